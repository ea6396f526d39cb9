//! `pgwarden-agent run`: the agent beside a Postgres. `pgwarden-agent install --to DIR`: what the Postgres container needs.

mod install;
mod respawn;

use std::{future::Future, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use clap::Parser;
use pgwarden_agent::{
    bus::Bus,
    config::Config,
    driver::{self, Parts, events::Recorder, slices::SliceStore},
    grpc, metrics, probe,
    record::RecordStore,
    tls,
};
use pgwarden_proto::v1::InstanceStatus;
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
#[command(name = "pgwarden-agent", version)]
enum Command {
    /// Look after the Postgres of this pod.
    Run {
        /// Be the agent itself; without it, be the small process that starts it, and starts it again when it crashes.
        #[arg(long, hide = true)]
        child: bool,
        #[command(flatten)]
        config: Box<Config>,
    },
    /// Put the supervisor and the files that the Postgres container needs into a directory.
    Install {
        /// The directory.
        #[arg(long)]
        to: PathBuf,
    },
}

fn main() -> ExitCode {
    match start(Command::parse()) {
        Ok(code) => code,
        Err(error) => {
            // Before or after tracing: a person reads it either way.
            let _ = std::io::Write::write_fmt(
                &mut std::io::stderr(),
                format_args!("pgwarden-agent: {error:#}\n"),
            );
            ExitCode::FAILURE
        }
    }
}

fn start(command: Command) -> anyhow::Result<ExitCode> {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            // Files and SQL of one Postgres: what hangs with the disk hangs here, and there is an end to it.
            .max_blocking_threads(16)
            .thread_stack_size(256 * 1024)
            .thread_keep_alive(Duration::from_secs(5))
            .build()
            .context("failed to start the runtime")
    };
    match command {
        Command::Install { to } => {
            install::install(&to)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Run { child: false, .. } => runtime()?.block_on(respawn::respawn()),
        Command::Run { child: true, config } => {
            respawn::die_with_parent();
            log();
            let config = config.complete()?;
            runtime()?.block_on(run(config))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// JSON for machines, text for a terminal; `RUST_LOG` as usual.
fn log() {
    use std::io::IsTerminal;
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stdout);
    if std::io::stdout().is_terminal() {
        builder.init();
    } else {
        builder.json().flatten_event(true).with_current_span(false).init();
    }
}

async fn run(config: Config) -> anyhow::Result<()> {
    // Nobody else has installed one: this is the first line that needs it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        cluster = config.cluster,
        namespace = config.namespace,
        pod = config.pod,
        node = config.node,
        address = %config.address,
        "agent starts"
    );
    let mut terminate = signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("failed to listen for SIGINT")?;
    let (bus, requests) = Bus::new(InstanceStatus {
        cluster: config.cluster.clone(),
        namespace: config.namespace.clone(),
        pod: config.pod.clone(),
        state: "Init".to_owned(),
        ..InstanceStatus::default()
    });
    let (record, slices, recorder) = stores(&config).await?;
    let tls = tls::Store::load(&config).await;
    let deadline = metrics::Deadline::default();
    tokio::spawn(tls.clone().run(bus.clone()));
    let (c, t, b) = (config.clone(), tls.clone(), bus.clone());
    keep("gRPC", move || grpc::serve(c.clone(), t.clone(), b.clone()));
    let (c, t, b, d) = (config.clone(), tls.clone(), bus.clone(), deadline.clone());
    keep("metrics", move || metrics::serve(c.clone(), t.clone(), b.clone(), d.clone()));
    let (c, b) = (config.clone(), bus.clone());
    keep("probes", move || probe::serve(c.clone(), b.clone()));
    let parts = Parts { config, record, slices, recorder, tls, bus, requests, deadline };
    tokio::select! {
        () = driver::run(parts) => tracing::error!("driver ended"),
        // At the end of a pod Postgres has stopped before; when only this container is replaced, Postgres runs on and the next agent takes
        // it over.
        _ = terminate.recv() => tracing::info!("SIGTERM: agent ends, Postgres is left as it is"),
        _ = interrupt.recv() => tracing::info!("SIGINT: agent ends, Postgres is left as it is"),
    }
    Ok(())
}

/// Serves for ever. A port that can't be had is no reason to stop looking after Postgres.
fn keep<F, E>(name: &'static str, serve: impl Fn() -> F + Send + 'static)
where
    F: Future<Output = Result<(), E>> + Send + 'static,
    E: std::error::Error + Send + 'static,
{
    tokio::spawn(async move {
        loop {
            if let Err(error) = serve().await {
                tracing::error!(server = name, %error, "server ended, it is started again");
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    });
}

type Stores = (Arc<dyn RecordStore>, Arc<dyn SliceStore>, Recorder);

async fn stores(config: &Config) -> anyhow::Result<Stores> {
    #[cfg(feature = "testing")]
    if let Some(dir) = &config.record_dir {
        let record = pgwarden_agent::record::file::FileStore::new(dir, &config.pod);
        let slices = driver::slices::FileSlices { dir: dir.clone() };
        return Ok((Arc::new(record), Arc::new(slices), Recorder::log_only()));
    }
    let mut kube = kube::Config::infer().await.context("failed to find the Kubernetes API")?;
    kube.connect_timeout = Some(Duration::from_secs(1));
    // Watches are silent for long; every other call has its own limit.
    kube.read_timeout = None;
    let client = kube::Client::try_from(kube).context("failed to set up the client of the Kubernetes API")?;
    let names = config.names();
    let record =
        pgwarden_agent::record::kube::KubeStore::new(client.clone(), &config.namespace, &names.record());
    let slices = driver::slices::KubeSlices::new(client.clone(), &config.namespace);
    let recorder = Recorder::new(client, config);
    Ok((Arc::new(record), Arc::new(slices), recorder))
}
