//! What Postgres tells, in a handful of queries over one session of the monitoring role.

use pgwarden_proto::v1::InstanceStatus;
use tokio_postgres::Row;

use super::{
    families::{self as f, Family},
    page::Page,
};
use crate::postgres::sql::{Session, SqlError};

/// Position of the write-ahead log that lags are counted from.
const POSITION: &str = "(SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END AS lsn) p";

/// Databases shown at most: each has about twenty samples.
const DATABASES: u32 = 256;

/// States in which a database's sessions are counted even when there is none, so that a graph has no holes.
const STATES: [&str; 4] = ["active", "idle", "idle in transaction", "idle in transaction (aborted)"];

const SERVER: &str = "SELECT current_setting('server_version'), \
    extract(epoch FROM pg_postmaster_start_time())::float8, \
    extract(epoch FROM pg_conf_load_time())::float8, \
    current_setting('max_connections')::float8, \
    CASE WHEN NOT pg_is_in_recovery() THEN pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::float8 END, \
    CASE WHEN pg_is_in_recovery() THEN pg_wal_lsn_diff(pg_last_wal_receive_lsn(), '0/0')::float8 END, \
    CASE WHEN pg_is_in_recovery() THEN pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0')::float8 END";

/// Family and column of each per-database value.
const DATABASE_VALUES: &[(&Family, &str)] = &[
    (&f::XACT_COMMIT, "s.xact_commit"),
    (&f::XACT_ROLLBACK, "s.xact_rollback"),
    (&f::BLOCKS_READ, "s.blks_read"),
    (&f::BLOCKS_HIT, "s.blks_hit"),
    (&f::TUPLES_RETURNED, "s.tup_returned"),
    (&f::TUPLES_FETCHED, "s.tup_fetched"),
    (&f::TUPLES_INSERTED, "s.tup_inserted"),
    (&f::TUPLES_UPDATED, "s.tup_updated"),
    (&f::TUPLES_DELETED, "s.tup_deleted"),
    (&f::CONFLICTS, "s.conflicts"),
    (&f::TEMP_FILES, "s.temp_files"),
    (&f::TEMP_BYTES, "s.temp_bytes"),
    (&f::DEADLOCKS, "s.deadlocks"),
    (&f::CHECKSUM_FAILURES, "s.checksum_failures"),
    (&f::XID_AGE, "age(d.datfrozenxid)"),
    (&f::MXID_AGE, "mxid_age(d.datminmxid)"),
];

fn databases() -> String {
    let values: Vec<_> = DATABASE_VALUES.iter().map(|(_, column)| format!("{column}::float8")).collect();
    format!(
        "SELECT d.datname::text, {} FROM pg_database d JOIN pg_stat_database s ON s.datid = d.oid \
         WHERE d.datallowconn ORDER BY d.datname LIMIT {DATABASES}",
        values.join(", ")
    )
}

const CONNECTIONS: &str = "SELECT datname::text, coalesce(state, 'unknown'), count(*)::float8, \
    (count(*) FILTER (WHERE wait_event_type = 'Lock'))::float8, \
    max(extract(epoch FROM clock_timestamp() - xact_start)) FILTER (WHERE pid <> pg_backend_pid())::float8 \
    FROM pg_stat_activity WHERE backend_type = 'client backend' AND datname IS NOT NULL GROUP BY 1, 2";

/// Of two standbys with one name the one that lags more is shown: it comes last.
fn replication() -> String {
    format!(
        "SELECT application_name, state, coalesce(sync_state, ''), \
         greatest(pg_wal_lsn_diff(p.lsn, replay_lsn), 0)::float8, extract(epoch FROM replay_lag)::float8 \
         FROM pg_stat_replication, {POSITION} WHERE state IS NOT NULL AND state <> 'backup' ORDER BY 4 NULLS FIRST"
    )
}

fn slots() -> String {
    format!(
        "SELECT slot_name::text, active::int4::float8, (coalesce(wal_status, '') = 'lost')::int4::float8, \
         greatest(pg_wal_lsn_diff(p.lsn, restart_lsn), 0)::float8 FROM pg_replication_slots, {POSITION}"
    )
}

/// The view changed its name and columns with version 17.
const fn checkpoints(version: u32) -> &'static str {
    if version >= 17 {
        "SELECT num_timed::float8, num_requested::float8, write_time / 1000, sync_time / 1000, buffers_written::float8 \
         FROM pg_stat_checkpointer"
    } else {
        "SELECT checkpoints_timed::float8, checkpoints_req::float8, checkpoint_write_time / 1000, \
         checkpoint_sync_time / 1000, buffers_checkpoint::float8 FROM pg_stat_bgwriter"
    }
}

/// The view came with version 14.
const fn wal(version: u32) -> Option<&'static str> {
    if version >= 14 {
        Some("SELECT wal_records::float8, wal_fpi::float8, wal_bytes::float8 FROM pg_stat_wal")
    } else {
        None
    }
}

/// Asks everything at once; an error is that of the first query: Postgres does not answer. Another query that fails leaves its families out.
pub(super) async fn collect(
    session: &Session,
    status: &InstanceStatus,
    version: u32,
) -> Result<Page, SqlError> {
    let (databases, replication, slots) = (databases(), replication(), slots());
    let ask = |what, sql| session.rows(what, sql, &[]);
    // Sent one behind the other on the one connection.
    let answers = tokio::join!(
        ask("server", SERVER),
        ask("databases", &databases),
        ask("connections", CONNECTIONS),
        ask("replication", &replication),
        ask("slots", &slots),
        ask("checkpoints", checkpoints(version)),
        async {
            match wal(version) {
                Some(sql) => ask("wal", sql).await,
                None => Ok(Vec::new()),
            }
        },
    );
    let mut page = Page::default();
    server(&mut page, &answers.0?);
    let rows = |page: &mut Page, query: &str, answer: Result<Vec<Row>, SqlError>| -> Vec<Row> {
        page.set(&f::QUERY_SUCCESS, &[query], if answer.is_ok() { 1.0 } else { 0.0 });
        answer.unwrap_or_else(|error| {
            tracing::warn!(
                query,
                error = crate::postgres::describe(&error),
                "a query for the metrics failed"
            );
            Vec::new()
        })
    };
    let databases = rows(&mut page, "databases", answers.1);
    let connections = rows(&mut page, "connections", answers.2);
    let replication = rows(&mut page, "replication", answers.3);
    let slots = rows(&mut page, "slots", answers.4);
    let checkpoints = rows(&mut page, "checkpoints", answers.5);
    let wal = rows(&mut page, "wal", answers.6);
    per_database(&mut page, &databases);
    sessions(&mut page, &connections);
    standbys(&mut page, &replication, status);
    kept_by_slots(&mut page, &slots);
    if let Some(row) = checkpoints.first() {
        page.set_some(&f::CHECKPOINTS, &["timed"], number(row, 0));
        page.set_some(&f::CHECKPOINTS, &["requested"], number(row, 1));
        page.set_some(&f::CHECKPOINT_WRITE, &[], number(row, 2));
        page.set_some(&f::CHECKPOINT_SYNC, &[], number(row, 3));
        page.set_some(&f::CHECKPOINT_BUFFERS, &[], number(row, 4));
    }
    if let Some(row) = wal.first() {
        page.set_some(&f::WAL_RECORDS, &[], number(row, 0));
        page.set_some(&f::WAL_FPI, &[], number(row, 1));
        page.set_some(&f::WAL_BYTES, &[], number(row, 2));
    }
    Ok(page)
}

/// A value that is there and is not null.
fn number(row: &Row, column: usize) -> Option<f64> {
    row.try_get::<_, Option<f64>>(column).ok().flatten()
}

fn text(row: &Row, column: usize) -> &str {
    row.try_get::<_, Option<&str>>(column).ok().flatten().unwrap_or_default()
}

fn server(page: &mut Page, rows: &[Row]) {
    let Some(row) = rows.first() else { return };
    // "17.6 (Debian 17.6-1)": the number is what matters.
    let version = text(row, 0).split(' ').next().unwrap_or_default();
    page.set(&f::POSTGRES_INFO, &[version], 1.0);
    for (column, family) in [
        (1, &f::POSTGRES_START),
        (2, &f::CONFIG_LOAD),
        (3, &f::CONNECTIONS_MAX),
        (4, &f::WAL_FLUSHED),
        (5, &f::WAL_RECEIVED),
        (6, &f::WAL_REPLAYED),
    ] {
        page.set_some(family, &[], number(row, column));
    }
}

fn per_database(page: &mut Page, rows: &[Row]) {
    for row in rows {
        let database = text(row, 0);
        for (column, (family, _)) in DATABASE_VALUES.iter().enumerate() {
            page.set_some(family, &[database], number(row, column + 1));
        }
        for state in STATES {
            page.set(&f::CONNECTIONS, &[database, state], 0.0);
        }
        page.set(&f::CONNECTIONS_WAITING, &[database], 0.0);
        page.set(&f::OLDEST_TRANSACTION, &[database], 0.0);
    }
}

fn sessions(page: &mut Page, rows: &[Row]) {
    // Sums over the states of a database.
    let mut totals = std::collections::BTreeMap::<&str, (f64, f64)>::new();
    for row in rows {
        let database = text(row, 0);
        page.set_some(&f::CONNECTIONS, &[database, text(row, 1)], number(row, 2));
        let (waiting, oldest) = totals.entry(database).or_default();
        *waiting += number(row, 3).unwrap_or(0.0);
        *oldest = oldest.max(number(row, 4).unwrap_or(0.0));
    }
    for (database, (waiting, oldest)) in totals {
        page.set(&f::CONNECTIONS_WAITING, &[database], waiting);
        page.set(&f::OLDEST_TRANSACTION, &[database], oldest);
    }
}

fn standbys(page: &mut Page, rows: &[Row], status: &InstanceStatus) {
    for row in rows {
        let name = text(row, 0);
        // Members are shown by their pod, others by the name that they gave.
        let member = status.replication.iter().find(|r| r.application_name == name && !r.pod.is_empty());
        let replica = member.map_or(name, |member| member.pod.as_str());
        let bytes = number(row, 3);
        page.set(&f::REPLICATION_INFO, &[replica, text(row, 1), text(row, 2)], 1.0);
        page.set_some(&f::REPLICATION_LAG_BYTES, &[replica], bytes);
        // Postgres measures while something is on its way; without that, a standby that has all is not late.
        let caught_up = bytes.filter(|bytes| *bytes == 0.0);
        page.set_some(&f::REPLICATION_LAG_SECONDS, &[replica], number(row, 4).or(caught_up));
    }
}

fn kept_by_slots(page: &mut Page, rows: &[Row]) {
    for row in rows {
        let slot = text(row, 0);
        page.set_some(&f::SLOT_ACTIVE, &[slot], number(row, 1));
        page.set_some(&f::SLOT_LOST, &[slot], number(row, 2));
        page.set_some(&f::SLOT_RETAINED, &[slot], number(row, 3));
    }
}
