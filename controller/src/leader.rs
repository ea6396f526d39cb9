//! Leader election over a Lease: the shell around [`crate::lease`].

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ObjectMeta, PostParams},
};
use tracing::{info, warn};

use crate::{
    answer::Answer,
    lease::{Decision, Seen, evaluate},
};

/// Name of the Lease.
pub const LEASE: &str = "pgwarden-controller";
/// How long a leader that does not answer keeps its place.
const DURATION: Duration = Duration::from_secs(15);
/// How often the leader renews.
const RENEW: Duration = Duration::from_secs(5);
/// A leader that could not renew for so long steps down, before anybody else takes its place.
const GIVE_UP: Duration = Duration::from_secs(10);
/// How often the others look.
const LOOK: Duration = Duration::from_secs(3);
/// Longest wait for one request.
const REQUEST: Duration = Duration::from_secs(4);

/// Leadership has ended.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// The Lease names another.
    #[error("the Lease {LEASE} is now held by {0:?}")]
    Taken(String),
    /// No renewal succeeded in time.
    #[error("the Lease {LEASE} could not be renewed for {limit} s: {0}", limit = GIVE_UP.as_secs())]
    NotRenewed(String),
}

/// How long leadership lasts for sure. A process that stood still finds its timers due before it finds that another leads: what it
/// would do then rests on an old picture.
#[derive(Clone, Debug)]
pub struct Tenure(Option<Arc<Mutex<Option<Instant>>>>);

impl Tenure {
    /// There is no election.
    #[must_use]
    pub const fn unlimited() -> Self {
        Self(None)
    }

    /// Whether nobody else can lead yet.
    #[must_use]
    pub fn lasts(&self) -> bool {
        let Some(renewed) = &self.0 else { return true };
        renewed.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|at| at.elapsed() < GIVE_UP)
    }

    fn renew(&self, at: Instant) {
        if let Some(renewed) = &self.0 {
            *renewed.lock().unwrap_or_else(PoisonError::into_inner) = Some(at);
        }
    }
}

/// One candidate.
pub struct Elector {
    tenure: Tenure,
    api: Api<Lease>,
    me: String,
    start: Instant,
    lease: Option<Lease>,
    seen: Option<Seen>,
}

impl Elector {
    /// A candidate called `me` in the operator's namespace.
    #[must_use]
    pub fn new(client: Client, namespace: &str, me: String) -> Self {
        let tenure = Tenure(Some(Arc::default()));
        Self {
            tenure,
            api: Api::namespaced(client, namespace),
            me,
            start: Instant::now(),
            lease: None,
            seen: None,
        }
    }

    /// How long leadership lasts.
    #[must_use]
    pub fn tenure(&self) -> Tenure {
        self.tenure.clone()
    }

    /// Waits until this process leads.
    pub async fn acquire(&mut self) {
        let mut told = String::new();
        loop {
            let sent = Instant::now();
            match self.attempt().await {
                Ok(None) => return self.tenure.renew(sent),
                Ok(Some(holder)) => {
                    if holder != told {
                        info!(leader = %holder, "another controller leads; waiting");
                        told = holder;
                    }
                }
                Err(error) => warn!(%error, lease = LEASE, "could not read or write the Lease; trying again"),
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Renews until leadership is lost.
    pub async fn hold(&mut self) -> Lost {
        let mut renewed = Instant::now();
        loop {
            let pause = RENEW.saturating_sub(renewed.elapsed()).max(Duration::from_millis(500));
            tokio::time::sleep(pause).await;
            let sent = Instant::now();
            match self.attempt().await {
                Ok(None) => {
                    renewed = sent;
                    self.tenure.renew(sent);
                }
                Ok(Some(holder)) => return Lost::Taken(holder),
                Err(error) if renewed.elapsed() >= GIVE_UP => return Lost::NotRenewed(error),
                Err(error) => warn!(%error, lease = LEASE, "could not renew the Lease; trying again"),
            }
        }
    }

    /// Gives the Lease back, so that the next leader need not wait.
    pub async fn release(&mut self) {
        let Some(mut lease) = self.lease.take() else { return };
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = None;
            spec.lease_duration_seconds = Some(1);
        }
        match tokio::time::timeout(REQUEST, self.api.replace(LEASE, &PostParams::default(), &lease)).await {
            Ok(Ok(_)) => info!("released the Lease"),
            Ok(Err(error)) => {
                warn!(error = %Answer::from(error), "could not release the Lease; the next leader waits until it runs out")
            }
            Err(_) => warn!("could not release the Lease in time; the next leader waits until it runs out"),
        }
    }

    /// One look and, if it is ours to write, one write. `None`: we lead; `Some`: the other holder.
    async fn attempt(&mut self) -> Result<Option<String>, String> {
        let read = tokio::time::timeout(REQUEST, async {
            // The leader's own copy is enough to renew by compare-and-swap: one request instead of two.
            if !self.leads() {
                let lease = self.api.get_opt(LEASE).await.map_err(|e| Answer::from(e).to_string())?;
                self.observe(lease);
            }
            self.write().await
        });
        let result = read.await.unwrap_or_else(|_| Err("no answer in time".to_owned()));
        if result.is_err() {
            // Whether a write took effect is not known: look again before the next.
            self.lease = None;
        }
        result
    }

    fn leads(&self) -> bool {
        self.lease.is_some() && self.seen.as_ref().is_some_and(|s| s.holder == self.me)
    }

    async fn write(&mut self) -> Result<Option<String>, String> {
        if let Decision::Yield { holder, .. } = evaluate(self.seen.as_ref(), &self.me, self.start.elapsed()) {
            return Ok(Some(holder));
        }
        let lease = self.next();
        let written = if lease.metadata.resource_version.is_some() {
            self.api.replace(LEASE, &PostParams::default(), &lease).await
        } else {
            self.api.create(&PostParams::default(), &lease).await
        };
        match written {
            Ok(lease) => {
                self.observe(Some(lease));
                Ok(None)
            }
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => {
                let lease = self.api.get_opt(LEASE).await.map_err(|e| Answer::from(e).to_string())?;
                self.observe(lease);
                match evaluate(self.seen.as_ref(), &self.me, self.start.elapsed()) {
                    Decision::Renew => Ok(None),
                    Decision::Acquire => Err("it changed while it was written".to_owned()),
                    Decision::Yield { holder, .. } => Ok(Some(holder)),
                }
            }
            Err(error) => Err(Answer::from(error).to_string()),
        }
    }

    /// The Lease with us as its holder.
    fn next(&self) -> Lease {
        let now = Some(MicroTime(Timestamp::now()));
        let mut lease = self.lease.clone().unwrap_or_else(|| Lease {
            metadata: ObjectMeta { name: Some(LEASE.to_owned()), ..ObjectMeta::default() },
            ..Lease::default()
        });
        let old = lease.spec.take().unwrap_or_default();
        let mine = old.holder_identity.as_deref() == Some(self.me.as_str());
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: if mine { old.acquire_time } else { now.clone() },
            renew_time: now,
            lease_transitions: Some(old.lease_transitions.unwrap_or(0) + i32::from(!mine)),
            ..LeaseSpec::default()
        });
        lease
    }

    fn observe(&mut self, lease: Option<Lease>) {
        let same = |a: &Option<Lease>, b: &Option<Lease>| {
            a.as_ref().and_then(ResourceExt::resource_version)
                == b.as_ref().and_then(ResourceExt::resource_version)
        };
        if self.lease.is_none() || !same(&self.lease, &lease) {
            let old_since = self.seen.as_ref().map(|s| s.since);
            self.seen = lease.as_ref().map(|l| {
                let spec = l.spec.clone().unwrap_or_default();
                let holder = spec.holder_identity.unwrap_or_default();
                let seconds = spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok()).unwrap_or(15);
                Seen { holder, duration: Duration::from_secs(seconds), since: self.start.elapsed() }
            });
            // A failed request forgets the copy but not the time: only a change of the object is news.
            if let (Some(seen), Some(since), true) = (&mut self.seen, old_since, same(&self.lease, &lease)) {
                seen.since = since;
            }
        }
        self.lease = lease;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenure_ends_when_it_is_not_renewed() {
        assert!(Tenure::unlimited().lasts());
        let tenure = Tenure(Some(Arc::default()));
        assert!(!tenure.lasts(), "before the election");
        tenure.renew(Instant::now());
        assert!(tenure.lasts());
        tenure.renew(Instant::now().checked_sub(GIVE_UP).unwrap());
        assert!(!tenure.lasts(), "the process stood still");
    }
}
