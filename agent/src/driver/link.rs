//! The connection to the supervisor: what the protocol sends goes out in its order, what the supervisor tells comes in.

use std::time::Duration;

use pgwarden_ha::{self as ha, Epoch, Incarnation, Instant, Postmaster};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::timeout,
};

use super::Fed;
use crate::{
    config::Config,
    supervisor::{Event, LockView, Mode, Status, Supervisor, SupervisorError},
};

/// The supervisor answers from memory: longer means that it does not run.
const ANSWER: Duration = Duration::from_secs(1);

/// In order.
#[derive(Debug)]
pub(super) enum Command {
    /// Move the deadline.
    Grant { epoch: u64, deadline: Duration },
    /// Keep these bytes; tell this number when it is done.
    Note { bytes: Vec<u8>, number: u64 },
    /// SIGKILL to everything.
    KillAll,
    /// SIGTERM is being dealt with.
    Ack,
    /// Certificates or settings changed.
    Reload,
    /// Let the container end.
    Exit,
    /// Everything before has been answered.
    Barrier(oneshot::Sender<()>),
}

/// One connection.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) supervisor: Supervisor,
    pub(super) commands: mpsc::UnboundedSender<Command>,
    /// Number of the last note that the supervisor has.
    pub(super) noted: watch::Receiver<u64>,
    pub(super) status: Status,
    /// Tells this connection's events from an earlier one's.
    pub(super) number: u64,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Link {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Connects as soon as there is a supervisor, and feeds the connection and then its events to the driver.
pub(super) async fn connect(config: Config, number: u64, feed: mpsc::UnboundedSender<Fed>) {
    loop {
        match try_connect(&config, number, &feed).await {
            Ok(link) => {
                // The driver has ended: so does the connection.
                let _ = feed.send(Fed::Connected(Box::new(link)));
                return;
            }
            Err(error) => {
                tracing::warn!(
                    error = crate::postgres::describe(&error),
                    "supervisor can't be spoken with yet"
                );
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn try_connect(
    config: &Config,
    number: u64,
    feed: &mpsc::UnboundedSender<Fed>,
) -> Result<Link, SupervisorError> {
    let (supervisor, mut events) = Supervisor::connect_when_there(&config.control_socket).await?;
    let status = supervisor.hello().await?;
    let (commands, queue) = mpsc::unbounded_channel();
    let (noted_sender, noted) = watch::channel(0);
    let pump = {
        let feed = feed.clone();
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                if feed.send(Fed::Supervisor(number, event)).is_err() {
                    return;
                }
            }
            let _ = feed.send(Fed::Gone(number));
        })
    };
    let sender = tokio::spawn(send(supervisor.clone(), queue, noted_sender));
    Ok(Link { supervisor, commands, noted, status, number, tasks: [pump, sender] })
}

async fn send(
    supervisor: Supervisor,
    mut queue: mpsc::UnboundedReceiver<Command>,
    noted: watch::Sender<u64>,
) {
    while let Some(command) = queue.recv().await {
        let (name, call): (_, futures::future::BoxFuture<'_, Result<(), SupervisorError>>) = match command {
            Command::Grant { epoch, deadline } => {
                let supervisor = &supervisor;
                ("grant", Box::pin(async move { supervisor.grant(epoch, deadline).await.map(drop) }))
            }
            Command::Note { bytes, number } => {
                let (supervisor, noted) = (&supervisor, &noted);
                let keep = async move {
                    supervisor.set_note(bytes).await?;
                    noted.send_replace(number);
                    Ok(())
                };
                ("note", Box::pin(keep))
            }
            Command::KillAll => ("kill", Box::pin(supervisor.kill_all())),
            Command::Ack => ("acknowledgement of SIGTERM", Box::pin(supervisor.sigterm_ack())),
            Command::Reload => ("reload", Box::pin(supervisor.reload())),
            Command::Exit => ("exit", Box::pin(supervisor.exit(0))),
            Command::Barrier(done) => {
                let _ = done.send(());
                continue;
            }
        };
        match timeout(ANSWER, call).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(
                    command = name,
                    error = crate::postgres::describe(&error),
                    "supervisor refused"
                );
            }
            Err(_) => tracing::warn!(command = name, "supervisor does not answer"),
        }
    }
}

/// What a supervisor says of itself, in the protocol's terms.
pub(super) fn view(status: &Status) -> ha::Supervisor {
    ha::Supervisor {
        incarnation: Incarnation(u128::from_be_bytes(status.incarnation.0)),
        grant: status.grant.map(|g| (Epoch(g.epoch), Instant::from_nanos(g.deadline_ns))),
        postmaster: status.postmaster.map(|p| Postmaster {
            start_id: p.start_id,
            mode: match p.mode {
                Mode::Standby => ha::Mode::Standby,
                Mode::Primary => ha::Mode::Primary,
            },
            epoch: Epoch(p.epoch),
        }),
        locked: status.lock == LockView::Held,
        sigterm: status.sigterm,
    }
}

/// An event, in the protocol's terms. `None`: not the protocol's business.
pub(super) fn event(event: &Event) -> Option<ha::Event> {
    match event {
        Event::SigTerm => Some(ha::Event::SigTerm),
        Event::DeadlineFired { .. } => Some(ha::Event::DeadlineFired),
        // The exit counts when the death pipe says so, see the driver.
        Event::PostmasterExited(_) | Event::ToolExited { .. } | Event::Unknown(_) => None,
    }
}
