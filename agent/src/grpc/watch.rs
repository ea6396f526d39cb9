//! WatchStatus: a report at once, then one for every change that a reader acts on, and one after a time without any.

use std::{sync::Arc, time::Duration};

use futures::{Stream, stream};
use pgwarden_proto::v1::InstanceStatus;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tonic::Status;

/// Between two reports, whatever changes.
const MIN_INTERVAL: Duration = Duration::from_millis(250);
const DEFAULT_INTERVAL: u32 = 10_000;
const INTERVALS: std::ops::RangeInclusive<u32> = 1_000..=60_000;

/// The longest time without a report, as asked for.
pub(super) fn interval(millis: u32) -> Result<Duration, Status> {
    match millis {
        0 => Ok(Duration::from_millis(DEFAULT_INTERVAL.into())),
        _ if INTERVALS.contains(&millis) => Ok(Duration::from_millis(millis.into())),
        _ => Err(Status::invalid_argument(format!(
            "max_interval_ms is {millis}: it must be from {} to {}, or 0 for {DEFAULT_INTERVAL}",
            INTERVALS.start(),
            INTERVALS.end()
        ))),
    }
}

type Statuses = watch::Receiver<Arc<InstanceStatus>>;

/// Nothing is queued: a slow reader gets the state of when it reads.
pub(super) fn stream(
    statuses: Statuses,
    closing: watch::Receiver<bool>,
    max: Duration,
) -> impl Stream<Item = Result<InstanceStatus, Status>> + Send {
    let watch = Watch { statuses, closing, max, sent: None, ended: false };
    stream::unfold(watch, async |mut watch| {
        if watch.ended {
            return None;
        }
        let next = watch.next().await?;
        watch.ended = next.is_err();
        Some((next, watch))
    })
}

struct Watch {
    statuses: Statuses,
    closing: watch::Receiver<bool>,
    max: Duration,
    sent: Option<(Instant, InstanceStatus)>,
    ended: bool,
}

impl Watch {
    async fn next(&mut self) -> Option<Result<InstanceStatus, Status>> {
        if let Some((at, what)) = self.sent.take() {
            let changed = async {
                loop {
                    // The sender has gone only when the agent ends.
                    self.statuses.changed().await.ok()?;
                    if steady(&self.statuses.borrow_and_update()) != what {
                        break;
                    }
                }
                sleep_until(at + MIN_INTERVAL).await;
                Some(())
            };
            tokio::select! {
                () = async { self.closing.wait_for(|closing| *closing).await.map(drop).unwrap_or_default() } => {
                    let why = "this connection's certificate is no longer accepted: connect again with a new one";
                    return Some(Err(Status::unavailable(why)));
                }
                () = sleep_until(at + self.max) => {}
                changed = changed => changed?,
            }
        }
        let status = Arc::clone(&self.statuses.borrow_and_update());
        self.sent = Some((Instant::now(), steady(&status)));
        Some(Ok(InstanceStatus::clone(&status)))
    }
}

/// The part of a report that a reader acts on: without positions, lags, sizes and ages, which move all the time.
fn steady(status: &InstanceStatus) -> InstanceStatus {
    let mut steady = status.clone();
    steady.lsn = None;
    steady.replay_lag_bytes = 0;
    steady.replay_lag_seconds = 0.0;
    steady.disk = None;
    steady.connections = None;
    // Whether Postgres runs matters, since when does not.
    steady.postgres_uptime_seconds = f64::from(u8::from(status.postgres_uptime_seconds > 0.0));
    steady.agent_uptime_seconds = 0.0;
    for replica in &mut steady.replication {
        (replica.sent_lsn, replica.flush_lsn, replica.replay_lsn) = (0, 0, 0);
        (replica.lag_bytes, replica.lag_seconds) = (0, 0.0);
    }
    for slot in &mut steady.slots {
        (slot.restart_lsn, slot.retained_bytes) = (0, 0);
    }
    steady
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use pgwarden_proto::v1::{Disk, Lsn, Replication};

    use super::*;

    fn watched() -> (watch::Sender<Arc<InstanceStatus>>, watch::Sender<bool>, Statuses, watch::Receiver<bool>)
    {
        let (status, statuses) = watch::channel(Arc::default());
        let (close, closing) = watch::channel(false);
        (status, close, statuses, closing)
    }

    fn status(change: impl FnOnce(&mut InstanceStatus)) -> Arc<InstanceStatus> {
        let mut status = InstanceStatus::default();
        change(&mut status);
        Arc::new(status)
    }

    #[test]
    fn intervals() {
        assert_eq!(interval(0).unwrap(), Duration::from_secs(10));
        assert_eq!(interval(1_000).unwrap(), Duration::from_secs(1));
        assert!(interval(999).is_err() && interval(60_001).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn at_once_then_on_change_never_faster_than_the_minimum() {
        let (tx, _close, rx, closing) = watched();
        let mut stream = Box::pin(stream(rx, closing, Duration::from_secs(10)));
        let start = Instant::now();
        stream.next().await.unwrap().unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);
        for epoch in 1..100 {
            tx.send_replace(status(|s| s.epoch = epoch));
        }
        // One report for a hundred changes, the last of them.
        assert_eq!(stream.next().await.unwrap().unwrap().epoch, 99);
        assert_eq!(start.elapsed(), MIN_INTERVAL);
    }

    #[tokio::test(start_paused = true)]
    async fn what_moves_all_the_time_waits_for_the_interval() {
        let (tx, _close, rx, closing) = watched();
        let mut stream = Box::pin(stream(rx, closing, Duration::from_secs(10)));
        stream.next().await.unwrap().unwrap();
        let start = Instant::now();
        let busy = tokio::spawn(async move {
            for n in 1.. {
                tokio::time::sleep(Duration::from_millis(100)).await;
                tx.send_replace(status(|s| {
                    s.lsn = Some(Lsn { flushed: n, ..Lsn::default() });
                    s.disk = Some(Disk { available_bytes: n, ..Disk::default() });
                    s.replay_lag_seconds = n as f64;
                }));
            }
        });
        let seen = stream.next().await.unwrap().unwrap();
        assert_eq!(start.elapsed(), Duration::from_secs(10));
        assert!(seen.lsn.unwrap().flushed >= 99, "it is as of now, not as of then");
        busy.abort();
    }

    #[test]
    fn a_replica_that_comes_or_changes_state_is_acted_on() {
        let replica = |state: &str, lag_bytes| {
            steady(&status(|s| {
                let state = state.into();
                s.replication = vec![Replication { state, lag_bytes, ..Replication::default() }];
            }))
        };
        assert_eq!(replica("streaming", 1), replica("streaming", 2));
        assert_ne!(replica("streaming", 1), replica("catchup", 1));
        assert_ne!(replica("streaming", 1), steady(&status(|_| {})));
        let up = |seconds| steady(&status(|s| s.postgres_uptime_seconds = seconds));
        assert_eq!(up(1.0), up(2.0));
        assert_ne!(up(0.0), up(1.0));
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_when_the_connection_is_let_go_or_the_agent_stops() {
        let (tx, close, rx, closing) = watched();
        let mut a = Box::pin(stream(rx.clone(), closing.clone(), Duration::from_secs(10)));
        let mut b = Box::pin(stream(rx, closing, Duration::from_secs(10)));
        a.next().await.unwrap().unwrap();
        b.next().await.unwrap().unwrap();
        close.send_replace(true);
        assert_eq!(a.next().await.unwrap().unwrap_err().code(), tonic::Code::Unavailable);
        assert!(a.next().await.is_none());
        close.send_replace(false);
        drop(tx);
        assert!(b.next().await.is_none());
    }
}
