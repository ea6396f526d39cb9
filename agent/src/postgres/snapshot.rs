//! What Postgres says of itself, in one look: everything that a status needs.
//!
//! One session is kept open, its statements prepared, so that a look costs Postgres two short queries on a replica and three on a
//! primary. What is dear or hardly changes (settings, the size of the WAL) is looked at every ten seconds.

use std::time::Duration;

use pgwarden_proto::v1;
use tokio::time::Instant;
use tokio_postgres::{Row, Statement, types::PgLsn};

use super::{
    settings, slots,
    sql::{self, Session, SqlError},
};
use crate::config::Config;

/// How old what is dear may be.
const SLOW_INTERVAL: Duration = Duration::from_secs(10);

/// One look at Postgres.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// It replays another's WAL.
    pub in_recovery: bool,
    /// Timeline that it writes or receives.
    pub timeline: u32,
    /// Positions. On a primary all three are the flushed one.
    pub lsn: v1::Lsn,
    /// See [`v1::InstanceStatus::replay_lag_bytes`]; 0 on a primary.
    pub replay_lag_bytes: i64,
    /// See [`v1::InstanceStatus::replay_lag_seconds`]; 0 on a primary.
    pub replay_lag_seconds: f64,
    /// A replica's stream; `None` without one, and on a primary.
    pub receiver: Option<Receiver>,
    /// Its replication connections; `pod` is filled in for members of this cluster.
    pub replication: Vec<v1::Replication>,
    /// Its slots.
    pub slots: Vec<v1::Slot>,
    /// Client sessions, and how many may be.
    pub connections: v1::Connections,
    /// Seconds since the postmaster started.
    pub uptime_seconds: f64,
    /// `synchronous_standby_names` in force.
    pub synchronous_standby_names: String,
    /// What changes slowly.
    pub slow: Slow,
}

impl Snapshot {
    /// A replica that receives.
    #[must_use]
    pub const fn streaming(&self) -> bool {
        matches!(&self.receiver, Some(receiver) if receiver.streaming)
    }
}

/// A replica's stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Receiver {
    /// Process id of the walreceiver.
    pub pid: i32,
    /// Data is coming, or may.
    pub streaming: bool,
    /// Address or name of the sender.
    pub sender: String,
    /// Slot in use.
    pub slot: String,
    /// End of the sender's WAL, as it last said.
    pub sender_end: u64,
}

/// What is looked at every ten seconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Slow {
    /// `server_version`, such as "17.11".
    pub version: String,
    /// Identity of the data.
    pub system_identifier: u64,
    /// Settings whose new value waits for a restart.
    pub pending_restart: Vec<v1::PendingRestart>,
    /// What Postgres objects to in its files.
    pub problems: Vec<v1::Problem>,
    /// Bytes of WAL on the volume.
    pub wal_bytes: u64,
}

/// Takes snapshots, over one session.
#[derive(Debug, Default)]
pub struct Poller {
    open: Option<Open>,
    slow: Option<(Instant, Slow)>,
}

#[derive(Debug)]
struct Open {
    session: Session,
    base: Statement,
    replication: Statement,
    slots: Statement,
}

impl Poller {
    /// Looks. The session is opened when there is none; it is closed after an error.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn take(&mut self, config: &Config) -> Result<Snapshot, SqlError> {
        let open = match self.open.take() {
            Some(open) if !open.session.is_closed() => open,
            _ => open(config).await?,
        };
        let slow = self.slow.take();
        let (snapshot, slow) = look(config, &open, slow).await?;
        // Only now: a future that was dropped half-way leaves a session with an answer in it.
        self.open = Some(open);
        self.slow = Some(slow);
        Ok(snapshot)
    }

    /// Has the next look refresh everything: settings were changed.
    pub fn refresh(&mut self) {
        self.slow = None;
    }

    /// Closes the session: Postgres is about to be stopped, or was.
    pub fn close(&mut self) {
        *self = Self::default();
    }
}

async fn open(config: &Config) -> Result<Open, SqlError> {
    let session = sql::connect_admin(config).await?;
    let what = "prepare the look at postgres";
    Ok(Open {
        base: session.within(what, session.prepare(BASE)).await?,
        replication: session.within(what, session.prepare(REPLICATION)).await?,
        slots: session.within(what, session.prepare(slots::LIST)).await?,
        session,
    })
}

async fn look(
    config: &Config,
    open: &Open,
    slow: Option<(Instant, Slow)>,
) -> Result<(Snapshot, (Instant, Slow)), SqlError> {
    let Open { session, base, replication, slots } = open;
    let row = session.within(WHAT, session.query_one(base, &[])).await?;
    let mut snapshot = read_base(&row).map_err(|source| SqlError::Answer { what: WHAT, source })?;
    let rows = session.within(slots::WHAT_LIST, session.query(slots, &[])).await?;
    snapshot.slots = rows.iter().map(slots::slot).collect::<Result<_, _>>()?;
    // Cascading replicas are not made here, but a user may have one.
    let rows = session.within(WHAT, session.query(replication, &[])).await?;
    snapshot.replication = rows
        .iter()
        .map(|row| read_replication(config, row))
        .collect::<Result<_, _>>()
        .map_err(|source| SqlError::Answer { what: WHAT, source })?;
    let slow = match slow {
        Some((at, slow)) if at.elapsed() < SLOW_INTERVAL => (at, slow),
        _ => (Instant::now(), look_slow(session).await?),
    };
    snapshot.slow = slow.1.clone();
    Ok((snapshot, slow))
}

const WHAT: &str = "look at postgres";

/// On a replica the sender's end of WAL is what it said with its last message: at most `wal_sender_timeout / 2` old.
const BASE: &str = "\
    SELECT r.recovery, \
           CASE WHEN r.recovery \
             THEN COALESCE(w.received_tli, NULLIF(c.min_recovery_end_timeline, 0), k.timeline_id) \
             ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int4 END, \
           CASE WHEN r.recovery THEN NULL ELSE pg_current_wal_flush_lsn() END, \
           pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn(), \
           EXTRACT(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::float8, \
           w.pid, w.status, w.sender_host, w.slot_name::text, w.latest_end_lsn, \
           (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')::int4, \
           current_setting('max_connections')::int4, \
           EXTRACT(epoch FROM clock_timestamp() - pg_postmaster_start_time())::float8, \
           current_setting('synchronous_standby_names') \
    FROM (SELECT pg_is_in_recovery() AS recovery) r \
    CROSS JOIN pg_control_recovery() c CROSS JOIN pg_control_checkpoint() k \
    LEFT JOIN pg_stat_wal_receiver w ON true";

fn read_base(row: &Row) -> Result<Snapshot, tokio_postgres::Error> {
    let lsn = |at: usize| Ok::<_, tokio_postgres::Error>(row.try_get::<_, Option<PgLsn>>(at)?.map(u64::from));
    let in_recovery = row.try_get(0)?;
    let (flushed, received, replayed) = (lsn(2)?, lsn(3)?.unwrap_or(0), lsn(4)?.unwrap_or(0));
    let count =
        |at: usize| Ok::<_, tokio_postgres::Error>(u32::try_from(row.try_get::<_, i32>(at)?).unwrap_or(0));
    let receiver = row
        .try_get::<_, Option<i32>>(6)?
        .map(|pid| {
            Ok::<_, tokio_postgres::Error>(Receiver {
                pid,
                streaming: row.try_get::<_, Option<String>>(7)?.as_deref() == Some("streaming"),
                sender: row.try_get::<_, Option<String>>(8)?.unwrap_or_default(),
                slot: row.try_get::<_, Option<String>>(9)?.unwrap_or_default(),
                sender_end: lsn(10)?.unwrap_or(0),
            })
        })
        .transpose()?;
    let positions = match flushed {
        Some(flushed) => v1::Lsn { flushed, received: flushed, replayed: flushed },
        // After a restart nothing has been received yet: what was replayed was there before.
        None => v1::Lsn { flushed: received.max(replayed), received, replayed },
    };
    let (replay_lag_bytes, replay_lag_seconds) =
        if in_recovery { lag(receiver.as_ref(), &positions, row.try_get(5)?) } else { (0, 0.0) };
    Ok(Snapshot {
        in_recovery,
        timeline: count(1)?,
        lsn: positions,
        replay_lag_bytes,
        replay_lag_seconds,
        receiver,
        connections: v1::Connections { used: count(11)?, max: count(12)? },
        uptime_seconds: row.try_get::<_, f64>(13)?.max(0.0),
        synchronous_standby_names: row.try_get(14)?,
        ..Snapshot::default()
    })
}

/// How far a replica is behind: bytes, and seconds since the commit of the last transaction that it replayed. -1: not known.
fn lag(receiver: Option<&Receiver>, lsn: &v1::Lsn, since_replay: Option<f64>) -> (i64, f64) {
    let end = receiver.filter(|r| r.streaming && r.sender_end > 0).map(|r| r.sender_end.max(lsn.flushed));
    match end {
        // Without traffic the last transaction gets old, and nothing is behind.
        Some(end) if lsn.replayed >= end => (0, 0.0),
        Some(end) => (signed(end - lsn.replayed), since_replay.map_or(-1.0, |seconds| seconds.max(0.0))),
        None => (-1, since_replay.map_or(-1.0, |seconds| seconds.max(0.0))),
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

const REPLICATION: &str = "\
    SELECT COALESCE(application_name, ''), COALESCE(host(client_addr), ''), COALESCE(state, ''), \
           COALESCE(sync_state, ''), sent_lsn, flush_lsn, replay_lsn, e.lsn, \
           EXTRACT(epoch FROM replay_lag)::float8 \
    FROM pg_stat_replication, (SELECT CASE WHEN pg_is_in_recovery() \
      THEN GREATEST(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) ELSE pg_current_wal_flush_lsn() END) AS e(lsn) \
    ORDER BY application_name";

fn read_replication(config: &Config, row: &Row) -> Result<v1::Replication, tokio_postgres::Error> {
    let lsn =
        |at: usize| Ok::<_, tokio_postgres::Error>(row.try_get::<_, Option<PgLsn>>(at)?.map_or(0, u64::from));
    let application_name: String = row.try_get(0)?;
    let pod = slots::member(&application_name)
        .map(|member| config.names().pod(&config.version.to_string(), member.ordinal));
    let (replay_lsn, end) = (lsn(6)?, lsn(7)?);
    // Postgres keeps the last measured lag for a while after the replica has caught up.
    let caught_up = replay_lsn >= end;
    let seconds = row.try_get::<_, Option<f64>>(8)?.filter(|_| !caught_up).unwrap_or(0.0);
    Ok(v1::Replication {
        application_name,
        pod: pod.unwrap_or_default(),
        address: row.try_get(1)?,
        state: row.try_get(2)?,
        sync_state: row.try_get(3)?,
        sent_lsn: lsn(4)?,
        flush_lsn: lsn(5)?,
        replay_lsn,
        // A base backup has no position.
        lag_bytes: if replay_lsn == 0 { -1 } else { signed(end.saturating_sub(replay_lsn)) },
        lag_seconds: if replay_lsn == 0 { -1.0 } else { seconds.max(0.0) },
    })
}

async fn look_slow(session: &Session) -> Result<Slow, SqlError> {
    let row = session
        .row(
            WHAT,
            "SELECT current_setting('server_version'), (SELECT system_identifier FROM pg_control_system()), \
                    (SELECT COALESCE(sum(size), 0)::int8 FROM pg_ls_waldir()), \
                    EXISTS (SELECT FROM pg_settings WHERE pending_restart), \
                    EXISTS (SELECT FROM pg_file_settings WHERE error IS NOT NULL), \
                    CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() ELSE false END",
            &[],
        )
        .await?;
    let Some(row) = row else { return Ok(Slow::default()) };
    let read = || {
        let version: String = row.try_get(0)?;
        let pending: bool = row.try_get(3)?;
        let (errors, paused): (bool, bool) = (row.try_get(4)?, row.try_get(5)?);
        let slow = Slow {
            version: version.split_whitespace().next().unwrap_or_default().to_owned(),
            // Kept as a signed number by Postgres, written as an unsigned one everywhere.
            system_identifier: row.try_get::<_, i64>(1)?.cast_unsigned(),
            wal_bytes: u64::try_from(row.try_get::<_, i64>(2)?).unwrap_or(0),
            ..Slow::default()
        };
        Ok((slow, pending, errors, paused))
    };
    let (mut slow, pending, errors, paused) =
        read().map_err(|source| SqlError::Answer { what: WHAT, source })?;
    if pending {
        slow.pending_restart = settings::pending_restart(session).await?;
    }
    if errors {
        slow.problems = settings::file_errors(session).await?;
    }
    if paused {
        slow.problems.push(v1::Problem {
            reason: "ReplayPaused".to_owned(),
            message: "replay is paused: by pg_wal_replay_pause(), or because the primary was given larger settings of \
                      connections or processes than this replica runs with; a restart of the replica mends the latter"
                .to_owned(),
        });
    }
    Ok(slow)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receiver(sender_end: u64) -> Receiver {
        Receiver { streaming: true, sender_end, ..Receiver::default() }
    }

    #[test]
    fn lag_is_zero_without_traffic_and_unknown_without_a_stream() {
        let at = |replayed| v1::Lsn { flushed: 100, received: 100, replayed };
        assert_eq!(lag(Some(&receiver(100)), &at(100), Some(3600.0)), (0, 0.0));
        assert_eq!(lag(Some(&receiver(150)), &at(100), Some(2.5)), (50, 2.5));
        // Received, and not yet replayed, though the sender has not said more.
        assert_eq!(lag(Some(&receiver(90)), &at(60), Some(1.0)), (40, 1.0));
        assert_eq!(lag(None, &at(100), Some(60.0)), (-1, 60.0));
        assert_eq!(lag(None, &at(100), None), (-1, -1.0));
        let stopped = Receiver { streaming: false, ..receiver(100) };
        assert_eq!(lag(Some(&stopped), &at(100), None).0, -1);
    }
}
