//! `run`: everything that is put together once.

use std::{
    collections::HashMap,
    future,
    sync::{Arc, Mutex},
};

use anyhow::Context as _;
use futures::{StreamExt, channel::mpsc, stream};
use kube::{
    Client,
    runtime::{
        Controller,
        controller::Config,
        events::{Recorder, Reporter},
        reflector::ObjectRef,
    },
};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{debug, info, warn};
use tracing_subscriber::EnvFilter;

use crate::{
    agents::Agents,
    args::{LogFormat, RunArgs},
    cache::{Caches, ClusterEvent, Gate, Scope, clusters},
    cluster::reconcile,
    context::{Context, Settings},
    http,
    leader::{Elector, Tenure},
    metrics::Metrics,
    report,
};

/// Runs until told to stop, or until leadership is lost.
///
/// # Errors
/// When something that is needed can't be had, or leadership is lost: the process ends, and starts again as a candidate.
pub fn main(args: RunArgs) -> anyhow::Result<()> {
    // First of all: rustls wants one provider for the process.
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("a TLS provider was installed twice"))?;
    log(args.log_format);
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run(args))
}

fn log(format: LogFormat) {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,kube_client=warn"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Json => builder.json().flatten_event(true).with_span_list(false).init(),
        LogFormat::Text => builder.init(),
    }
}

async fn run(args: RunArgs) -> anyhow::Result<()> {
    let mut sigterm = signal(SignalKind::terminate())?;
    let mut sigint = signal(SignalKind::interrupt())?;
    let stop = async move {
        tokio::select! {
            _ = sigterm.recv() => {}
            _ = sigint.recv() => {}
        }
    };
    tokio::pin!(stop);

    let metrics = Metrics::new()?;
    let server = http::serve(args.http_address, metrics.clone());
    tokio::pin!(server);
    let client = Client::try_default().await.context("failed to find the API server")?;
    let me = identity(&args);
    info!(version = env!("CARGO_PKG_VERSION"), %me, namespace = args.namespace.as_deref().unwrap_or("all"), "starting");

    let mut elector =
        args.leader_election.then(|| Elector::new(client.clone(), &args.operator_namespace, me.clone()));
    if let Some(elector) = &mut elector {
        tokio::select! {
            () = elector.acquire() => info!(%me, "leading"),
            () = &mut stop => return Ok(()),
            ended = &mut server => return ended.context("the HTTP server ended"),
        }
    }
    metrics.leader.set(1);

    let tenure = elector.as_ref().map_or_else(Tenure::unlimited, Elector::tenure);
    let controller = control(client, &args, metrics, tenure);
    tokio::pin!(controller);
    let lost = async {
        match &mut elector {
            Some(elector) => elector.hold().await.into(),
            None => future::pending::<anyhow::Error>().await,
        }
    };
    tokio::select! {
        () = &mut stop => info!("told to stop"),
        // Everything of a leader that is none any more must stop at once: the process ends.
        error = lost => return Err(error.context("leadership is lost")),
        ended = &mut server => return ended.context("the HTTP server ended"),
        () = &mut controller => anyhow::bail!("the controller ended"),
    }
    if let Some(elector) = &mut elector {
        elector.release().await;
    }
    Ok(())
}

/// The pod's name and UID: the same after a restart of the container, which can't run twice.
fn identity(args: &RunArgs) -> String {
    match (&args.pod_name, &args.pod_uid) {
        (Some(name), Some(uid)) => format!("{name}_{uid}"),
        (Some(name), None) => format!("{name}_{}", uuid::Uuid::new_v4()),
        _ => uuid::Uuid::new_v4().to_string(),
    }
}

async fn control(client: Client, args: &RunArgs, metrics: Metrics, tenure: Tenure) {
    let scope = Scope { client: client.clone(), namespace: args.namespace.clone() };
    let (wake, woken) = mpsc::unbounded();
    let agents = Agents::new(wake, metrics.clone());
    let (store, events) = clusters(&scope);
    let (caches, related) = Caches::watch(&scope, store.clone());

    let reporter =
        Reporter { controller: pgwarden_api::names::FIELD_MANAGER.into(), instance: args.pod_name.clone() };
    let context = Arc::new(Context {
        recorder: Recorder::new(client.clone(), reporter),
        client,
        gate: Gate::of(caches.clone()),
        caches,
        tenure,
        agents,
        settings: Settings::new(args),
        metrics,
        failures: Mutex::new(HashMap::new()),
        phases: Mutex::new(HashMap::new()),
    });
    let leaving = context.clone();
    let changed = events.filter_map(move |event| {
        future::ready(match event {
            ClusterEvent::Changed(cluster) => Some(ObjectRef::from_obj(cluster.as_ref())),
            ClusterEvent::Gone(cluster) => {
                leaving.forget(&cluster);
                None
            }
        })
    });
    let config = Config::default().concurrency(args.concurrency);
    Controller::for_stream(stream::pending(), store)
        .with_config(config)
        .reconcile_on(changed)
        .reconcile_on(related)
        .reconcile_on(woken)
        .run(reconcile, |cluster, error, ctx| report::policy(&cluster, error, &ctx), context)
        .for_each(|result| {
            match result {
                Ok((cluster, _)) => debug!(cluster = %cluster.name, "done"),
                // Related objects of a cluster that is gone: the garbage collector's.
                Err(kube::runtime::controller::Error::ObjectNotFound(object)) => {
                    debug!(cluster = %object.name, "no such cluster");
                }
                Err(kube::runtime::controller::Error::ReconcilerFailed(..)) => {}
                Err(error) => warn!(%error, "the controller's queue failed"),
            }
            future::ready(())
        })
        .await;
}
