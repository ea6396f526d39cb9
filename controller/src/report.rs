//! The decorator of a reconcile: outcome per step to the metrics, one log line, one Warning event for an object that fails. The code
//! of the steps holds none of that.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use kube::{
    Resource, ResourceExt,
    runtime::{
        controller::Action,
        events::{Event, EventType},
        reflector::ObjectRef,
    },
};
use pgwarden_api::{PostgreSQL, PostgreSQLStatus, cluster::condition};
use tracing::{debug, info, warn};

use crate::{
    cache::Guarded,
    cluster::{Error, status::phase},
    context::Context,
};

/// Longest text of an event.
const LONGEST_NOTE: usize = 1000;
/// Pauses after failures: doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LAST_PAUSE: Duration = Duration::from_secs(60);

/// The step that a reconcile is in.
#[derive(Debug, Default)]
pub struct Steps {
    current: Mutex<&'static str>,
}

impl Steps {
    /// A step begins.
    pub fn enter(&self, step: &'static str) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = step;
    }

    /// The one that has begun last.
    #[must_use]
    pub fn current(&self) -> &'static str {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reconcile under way. One that is dropped half-way is counted too.
pub struct Report<'a> {
    ctx: &'a Context,
    /// Where it is.
    pub steps: Steps,
    outcome: &'static str,
    start: Instant,
}

impl Drop for Report<'_> {
    fn drop(&mut self) {
        let step = if self.outcome == "applied" { "" } else { self.steps.current() };
        self.ctx.metrics.reconciles.with_label_values(&[self.outcome, step]).inc();
        self.ctx
            .metrics
            .duration
            .with_label_values(&[self.outcome])
            .observe(self.start.elapsed().as_secs_f64());
    }
}

impl<'a> Report<'a> {
    /// A reconcile begins.
    #[must_use]
    pub fn begin(ctx: &'a Context) -> Self {
        Self { ctx, steps: Steps::default(), outcome: "abandoned", start: Instant::now() }
    }

    /// It has ended: counts, logs, and publishes one event for a failure that is not yet known.
    pub async fn end(mut self, guarded: &Guarded, result: &Result<Action, Error>) {
        let key = ObjectRef::from_obj(guarded);
        let error = match result {
            Ok(_) => {
                self.outcome = "applied";
                let failed = self.ctx.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
                if failed.is_some() {
                    info!(cluster = %key.name, "reconciled after failures");
                } else {
                    debug!(cluster = %key.name, "reconciled");
                }
                return;
            }
            Err(error) => error,
        };
        self.outcome = "failed";
        warn!(cluster = %key.name, step = self.steps.current(), %error, "reconcile failed");
        let text = error.to_string();
        let known = {
            let mut failures = self.ctx.failures.lock().unwrap_or_else(PoisonError::into_inner);
            let failure = failures.entry(key).or_default();
            failure.count = failure.count.saturating_add(1);
            failure.until = (!error.is_final()).then(|| Instant::now() + pause(failure.count));
            failure.generation = guarded.meta().generation;
            std::mem::replace(&mut failure.told, text.clone()) == text
        };
        if !known {
            publish(self.ctx, guarded, EventType::Warning, error.category(), "Reconcile", text).await;
        }
    }
}

/// How long a cluster that has failed waits yet. Related objects that change do not shorten it: they may change because of the failure.
/// A new spec does.
#[must_use]
pub fn waits(guarded: &Guarded, ctx: &Context) -> Option<Duration> {
    let failures = ctx.failures.lock().unwrap_or_else(PoisonError::into_inner);
    let failure = failures.get(&ObjectRef::from_obj(guarded))?;
    let rest = failure.until?.checked_duration_since(Instant::now())?;
    (failure.generation == guarded.meta().generation && !rest.is_zero()).then_some(rest)
}

/// When to try again after a failure.
#[must_use]
pub fn policy(guarded: &Guarded, error: &Error, ctx: &Context) -> Action {
    if error.is_final() {
        return Action::await_change();
    }
    let key = ObjectRef::from_obj(guarded);
    let count = ctx.failures.lock().unwrap_or_else(PoisonError::into_inner).get(&key).map_or(1, |f| f.count);
    Action::requeue(pause(count))
}

/// The pause after a number of failures in a row.
#[must_use]
pub fn pause(failures: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1).min(16))).min(LAST_PAUSE)
}

/// Publishes what has changed in a status that was just written: the phase, who is primary, and trouble that is new.
pub async fn tell_changes(ctx: &Context, cluster: &PostgreSQL, new: &PostgreSQLStatus) {
    let old = cluster.status.clone().unwrap_or_default();
    if old.phase != new.phase {
        info!(cluster = %cluster.name_any(), from = %old.phase, to = %new.phase, "phase changed");
        let bad = [phase::DEGRADED, phase::BLOCKED].contains(&new.phase.as_str());
        let kind = if bad { EventType::Warning } else { EventType::Normal };
        let from = if old.phase.is_empty() { "new" } else { &old.phase };
        publish(
            ctx,
            cluster,
            kind,
            &new.phase,
            "ChangePhase",
            format!("{from} → {} ({})", new.phase, new.ready),
        )
        .await;
    }
    let trouble =
        |s: &PostgreSQLStatus, kind: &str| s.conditions.iter().any(|c| c.type_ == kind && is_trouble(c));
    for c in new.conditions.iter().filter(|c| is_trouble(c) && !trouble(&old, &c.type_)) {
        // The phase tells of the first three; the others are limits of this version, not trouble of this cluster.
        let general = [
            condition::READY,
            condition::PROGRESSING,
            condition::DEGRADED,
            condition::BACKUP_READY,
            condition::DURABILITY,
        ];
        if !general.contains(&c.type_.as_str()) {
            publish(ctx, cluster, EventType::Warning, &c.type_, "Reconcile", c.message.clone()).await;
        }
    }
}

fn is_trouble(c: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition) -> bool {
    (c.status == "True") != condition::is_good_when_true(&c.type_)
}

async fn publish<K>(ctx: &Context, object: &K, type_: EventType, reason: &str, action: &str, note: String)
where
    K: Resource<DynamicType = ()>,
{
    let mut note = note;
    if note.len() > LONGEST_NOTE {
        let end = (0..=LONGEST_NOTE).rev().find(|i| note.is_char_boundary(*i)).unwrap_or(0);
        note.truncate(end);
    }
    let event = Event {
        type_,
        reason: reason.to_owned(),
        action: action.to_owned(),
        note: Some(note),
        secondary: None,
    };
    if let Err(error) = ctx.recorder.publish(&event, &object.object_ref(&())).await {
        warn!(%error, reason, "could not publish an event");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_minute() {
        let seconds: Vec<f32> = [1, 2, 3, 7, 8, 40].map(|n| pause(n).as_secs_f32()).into();
        assert_eq!(seconds, [0.5, 1.0, 2.0, 32.0, 60.0, 60.0]);
    }
}
