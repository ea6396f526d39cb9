//! One reconcile: observe → validate → decide → build → apply → status.

pub mod apply;
pub mod build;
pub mod compare;
pub mod conditions;
pub mod decide;
pub mod delete;
pub mod observe;
pub mod pods;
pub mod prepare;
pub mod replace;
pub mod settings;
pub mod status;
#[cfg(test)]
mod testing;
pub mod validate;

use std::{net::IpAddr, sync::Arc, time::Duration};

use k8s_openapi::jiff::Timestamp;
use kube::{ResourceExt, core::error_boundary::InvalidObject, runtime::controller::Action};
use pgwarden_api::PostgreSQL;
use pgwarden_proto::identity::CertRole;

pub use self::build::Files;
use self::{
    apply::ApplyError,
    conditions::{Failed, Picture},
    decide::{Plan, Stop, decide},
    delete::DeleteError,
    observe::{ObserveError, Observed, StorageClassFact, observe},
    prepare::{Ground, PrepareError, prepare},
    status::{Parts, StatusError},
    validate::{ValidateError, ValidatedCluster, validate},
};
use crate::{
    agents::{Reach, Target},
    cache::Guarded,
    context::Context,
    report::{self, Report, Steps},
    tls::{self, TlsError},
};

/// Everything is looked at again after so long, although nothing has happened.
const RESYNC: Duration = Duration::from_secs(600);
/// Longest reconcile.
const LONGEST: Duration = Duration::from_secs(60);
/// What the operator has no watch for is asked for again after so long.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Why a reconcile failed, by step.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The object does not fit its own schema.
    #[error("the PostgreSQL object can't be read: {0}")]
    Undecodable(Box<InvalidObject>),
    /// The API server did not answer.
    #[error("the API server did not answer in time")]
    TooLong,
    /// Step observe.
    #[error(transparent)]
    Observe(#[from] ObserveError),
    /// Step validate.
    #[error(transparent)]
    Validate(#[from] ValidateError),
    /// Step prepare.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// Step apply.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The agents can't be reached with these certificates.
    #[error(transparent)]
    Agents(#[from] TlsError),
    /// Step status.
    #[error(transparent)]
    Status(#[from] StatusError),
    /// Deletion.
    #[error(transparent)]
    Delete(#[from] DeleteError),
}

impl Error {
    /// Reason of the event.
    #[must_use]
    pub const fn category(&self) -> &'static str {
        match self {
            Self::Undecodable(_) => "Undecodable",
            Self::TooLong => "Timeout",
            Self::Observe(_) => "ObserveFailed",
            Self::Validate(_) => "InvalidSpec",
            Self::Prepare(_) => "PrepareFailed",
            Self::Apply(ApplyError::Refused { .. }) => "Refused",
            Self::Apply(_) => "ApplyFailed",
            Self::Agents(_) => "CertificatesUnusable",
            Self::Status(_) => "StatusFailed",
            Self::Delete(_) => "DeleteFailed",
        }
    }

    /// Whether only a change of the object can help.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Undecodable(_) | Self::Validate(_))
    }
}

/// Reconciles one cluster.
///
/// # Errors
/// See [`Error`].
pub async fn reconcile(guarded: Arc<Guarded>, ctx: Arc<Context>) -> Result<Action, Error> {
    ctx.gate.pass().await;
    if !ctx.tenure.lasts() {
        // Another may lead: the process ends as soon as it knows.
        return Ok(Action::requeue(LOOK_AGAIN));
    }
    if let Some(rest) = report::waits(&guarded, &ctx) {
        return Ok(Action::requeue(rest));
    }
    let report = Report::begin(&ctx);
    let result = match &guarded.0 {
        // A request that hangs must not hold its cluster for the minutes that the client waits on a watch. Every step can be dropped.
        Ok(cluster) => tokio::time::timeout(LONGEST, run(cluster, &ctx, &report.steps))
            .await
            .unwrap_or(Err(Error::TooLong)),
        Err(invalid) => Err(Error::Undecodable(Box::new(InvalidObject {
            error: invalid.error.clone(),
            metadata: invalid.metadata.clone(),
        }))),
    };
    report.end(&guarded, &result).await;
    result
}

async fn run(cluster: &PostgreSQL, ctx: &Context, steps: &Steps) -> Result<Action, Error> {
    if cluster.metadata.deletion_timestamp.is_some() {
        steps.enter("delete");
        return Ok(delete::finish(ctx, cluster).await?);
    }
    steps.enter("observe");
    let observed = observe(ctx, cluster).await?;

    steps.enter("validate");
    let valid = match validate(cluster, observed.version, address_type(&observed), &ctx.settings) {
        Ok(valid) => valid,
        Err(error) => {
            let summary = conditions::invalid(error.to_string());
            write_status(ctx, cluster, &observed, None, summary).await?;
            return Err(error.into());
        }
    };
    delete::ensure_finalizer(ctx, cluster, &valid).await?;

    steps.enter("decide");
    let plan = decide(&valid, &observed, ctx.settings.network_policy);
    if plan.stop.is_some() {
        steps.enter("status");
        let summary = summary(cluster, &observed, &valid, &plan, Told::default());
        write_status(ctx, cluster, &observed, Some(&valid), summary).await?;
        return Ok(next(&observed, &plan, None));
    }
    match carry_out(ctx, &valid, &observed, &plan, steps).await {
        Ok(done) => {
            steps.enter("status");
            if ctx.agents.undecided(&valid.namespace, valid.names.cluster()) {
                // After a start of the controller no agent has spoken yet: that must not look like a loss.
                return Ok(Action::requeue(LOOK_AGAIN));
            }
            let told = Told {
                app_secret: done.app_secret_problem.as_deref(),
                resize: done.resize_problem.as_deref(),
                failure: None,
            };
            let summary = summary(cluster, &observed, &valid, &plan, told);
            write_status(ctx, cluster, &observed, Some(&valid), summary).await?;
            Ok(next(&observed, &plan, Some(done.next_change)))
        }
        Err(error) => {
            let text = error.to_string();
            let refused = matches!(error, Error::Apply(ApplyError::Refused { .. }));
            let failed = Failed { step: steps.current(), message: &text, refused };
            let told = Told { failure: Some(failed), ..Told::default() };
            let summary = summary(cluster, &observed, &valid, &plan, told);
            // The failure that is reported is the first one.
            if let Err(second) = write_status(ctx, cluster, &observed, Some(&valid), summary).await {
                tracing::warn!(error = %second, "could not write the status of a failed reconcile");
            }
            Err(error)
        }
    }
}

struct Done {
    app_secret_problem: Option<String>,
    resize_problem: Option<String>,
    next_change: Timestamp,
}

async fn carry_out(
    ctx: &Context,
    valid: &ValidatedCluster,
    observed: &Observed,
    plan: &Plan,
    steps: &Steps,
) -> Result<Done, Error> {
    steps.enter("prepare");
    let ground = prepare(ctx, valid, observed, plan).await?;

    steps.enter("build");
    let files = Arc::new(build::files(valid, &ground.app_secret));
    let inputs = build::Inputs {
        settings: &ctx.settings,
        certificates: &ground.certificates,
        app_secret: &ground.app_secret,
        files: &files,
    };
    let resources = build::build(valid, plan, inputs);

    steps.enter("apply");
    let outcome = apply::apply(ctx, valid, plan, observed, &ground, resources).await?;

    steps.enter("agents");
    reach(ctx, valid, observed, &ground, files)?;
    Ok(Done {
        app_secret_problem: ground.app_secret.problem,
        resize_problem: outcome.resize_problem,
        next_change: ground.certificates.next_change,
    })
}

/// Keeps in touch with the agents of the pods that have an address.
fn reach(
    ctx: &Context,
    valid: &ValidatedCluster,
    observed: &Observed,
    ground: &Ground,
    files: Arc<Files>,
) -> Result<(), TlsError> {
    let (namespace, cluster) = (&valid.namespace, valid.names.cluster());
    let certificates = &ground.certificates;
    let (Some(leaf), Some(key)) =
        (certificates.leafs.get(&CertRole::Controller), certificates.hash(CertRole::Controller))
    else {
        return Ok(());
    };
    let tls = match ctx.agents.tls(namespace, cluster) {
        Some(tls) if !ctx.agents.needs_tls(namespace, cluster, &key) => tls,
        _ => tls::client::config(&certificates.bundle, leaf)?,
    };
    let targets = observed.pods.iter().filter_map(|pod| {
        let address: IpAddr = pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()?;
        Some(Target { pod: pod.name_any(), uid: pod.uid()?, address })
    });
    let server_name = format!("{}.{namespace}.svc", valid.names.pods_service());
    ctx.agents.ensure(namespace, cluster, targets.collect(), Reach { key, tls, server_name, files });
    Ok(())
}

/// The family of the pods' addresses; of the slice that is there while there are no pods.
fn address_type(observed: &Observed) -> &'static str {
    let ip = observed.pods.iter().find_map(|p| p.status.as_ref()?.pod_ip.as_ref()?.parse::<IpAddr>().ok());
    let from_slice = || observed.live.slices.values().any(|s| s.address_type == "IPv6");
    match ip {
        Some(IpAddr::V6(_)) => "IPv6",
        None if from_slice() => "IPv6",
        _ => "IPv4",
    }
}

#[derive(Clone, Copy, Default)]
struct Told<'a> {
    app_secret: Option<&'a str>,
    resize: Option<&'a str>,
    failure: Option<Failed<'a>>,
}

fn summary(
    cluster: &PostgreSQL,
    observed: &Observed,
    valid: &ValidatedCluster,
    plan: &Plan,
    told: Told<'_>,
) -> status::Summary {
    let members = status::members(&observed.pods, &observed.reports, observed.record.as_deref());
    conditions::summarise(Picture {
        cluster: valid,
        observed,
        plan,
        members: &members,
        app_secret_problem: told.app_secret,
        resize_problem: told.resize,
        failure: told.failure,
        before: cluster.status.as_ref().map_or("", |s| s.phase.as_str()),
    })
}

async fn write_status(
    ctx: &Context,
    cluster: &PostgreSQL,
    observed: &Observed,
    valid: Option<&ValidatedCluster>,
    summary: status::Summary,
) -> Result<(), StatusError> {
    let status = status::compute(
        cluster,
        Parts {
            members: status::members(&observed.pods, &observed.reports, observed.record.as_deref()),
            replicas: cluster.spec.replicas,
            version: valid.map(|v| v.version.as_str()),
            record: observed.record.as_deref(),
            summary,
            now: observed.now,
        },
    );
    ctx.tell_phase(cluster, &status.phase);
    if status::write(ctx, cluster, &status).await? {
        report::tell_changes(ctx, cluster, &status).await;
    }
    Ok(())
}

/// When to look again although nothing has happened.
fn next(observed: &Observed, plan: &Plan, certificates: Option<Timestamp>) -> Action {
    let foreign = matches!(plan.stop, Some(Stop::NameConflict(_) | Stop::DataWithoutRecord(_)));
    let claims =
        observed.claims.iter().any(|c| c.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Pending"));
    let mut wait = RESYNC;
    if foreign || claims || observed.storage_class != StorageClassFact::NotAsked {
        wait = LOOK_AGAIN;
    }
    if let Some(at) = certificates {
        let seconds = at.as_second().saturating_sub(observed.now.as_second()).max(1);
        wait = wait.min(Duration::from_secs(u64::try_from(seconds).unwrap_or(1)));
    }
    Action::requeue(wait)
}
