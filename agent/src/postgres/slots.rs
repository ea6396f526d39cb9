//! Physical replication slots, one for each replica: they keep the WAL that it has not got yet.

use std::time::Duration;

use pgwarden_proto::v1;
use tokio::time::{Instant, sleep};
use tokio_postgres::{
    error::SqlState,
    types::{PgLsn, Type},
};

use super::sql::{Session, SqlError};

/// How long a slot's walsender may take to end after it was terminated.
const RELEASE_LIMIT: Duration = Duration::from_secs(3);
const RELEASE_LOOK: Duration = Duration::from_millis(20);

/// Why a slot is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// A query failed.
    #[error(transparent)]
    Sql(#[from] SqlError),
    /// The name is taken by a slot of another kind.
    #[error("replication slot {0} exists and is not a physical one: drop it")]
    NotPhysical(String),
    /// It is in use, and stays so.
    #[error("replication slot {0} is still in use by a walsender that does not end")]
    Busy(String),
}

/// What [`ensure`] found or did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ensured {
    /// It was there.
    Kept,
    /// It was made.
    Created,
    /// It had lost WAL that it should have kept, and was made anew: its replica needs a new copy, if it can't go on.
    Recreated,
}

/// Makes a slot that keeps WAL from now on.
///
/// # Errors
/// See [`SlotError`].
pub async fn ensure(session: &Session, name: &str) -> Result<Ensured, SlotError> {
    let mut ensured = Ensured::Created;
    if let Some(slot) = find(session, name).await? {
        if !slot.physical {
            return Err(SlotError::NotPhysical(name.to_owned()));
        }
        if !slot.lost {
            return Ok(Ensured::Kept);
        }
        tracing::warn!(slot = name, "slot has lost its WAL and is made anew");
        drop_slot(session, name).await?;
        ensured = Ensured::Recreated;
    }
    let made = session
        .rows(
            "create a replication slot",
            "SELECT pg_catalog.pg_create_physical_replication_slot($1, true)",
            &[(&name, Type::NAME)],
        )
        .await;
    match made {
        // Another session was quicker.
        Err(error) if error.code() == Some(&SqlState::DUPLICATE_OBJECT) => Ok(Ensured::Kept),
        Err(error) => Err(error.into()),
        Ok(_) => {
            tracing::info!(slot = name, "slot made");
            Ok(ensured)
        }
    }
}

struct Found {
    physical: bool,
    lost: bool,
}

async fn find(session: &Session, name: &str) -> Result<Option<Found>, SqlError> {
    let what = "read a replication slot";
    let row = session
        .row(
            what,
            "SELECT slot_type = 'physical', COALESCE(wal_status = 'lost', false) \
             FROM pg_catalog.pg_replication_slots WHERE slot_name = $1",
            &[(&name, Type::NAME)],
        )
        .await?;
    let bad = |source| SqlError::Answer { what, source };
    row.map(|row| Ok(Found { physical: row.try_get(0).map_err(bad)?, lost: row.try_get(1).map_err(bad)? }))
        .transpose()
}

/// Drops a slot, if it is there; a walsender that uses it is terminated. Whether it was.
///
/// # Errors
/// [`SlotError::Busy`] when the walsender does not end.
pub async fn drop_slot(session: &Session, name: &str) -> Result<bool, SlotError> {
    let end = Instant::now() + RELEASE_LIMIT;
    loop {
        let dropped = session
            .rows(
                "drop a replication slot",
                "SELECT pg_catalog.pg_drop_replication_slot(slot_name) FROM pg_catalog.pg_replication_slots \
                 WHERE slot_name = $1",
                &[(&name, Type::NAME)],
            )
            .await;
        match dropped {
            Ok(rows) => {
                if !rows.is_empty() {
                    tracing::info!(slot = name, "slot dropped");
                }
                return Ok(!rows.is_empty());
            }
            Err(error) if error.code() == Some(&SqlState::OBJECT_IN_USE) => {
                if Instant::now() >= end {
                    return Err(SlotError::Busy(name.to_owned()));
                }
                session
                    .rows(
                        "end the walsender of a slot",
                        "SELECT pg_catalog.pg_terminate_backend(active_pid) FROM pg_catalog.pg_replication_slots \
                         WHERE slot_name = $1 AND active_pid IS NOT NULL",
                        &[(&name, Type::NAME)],
                    )
                    .await?;
                sleep(RELEASE_LOOK).await;
            }
            // Somebody else dropped it between the look and the call.
            Err(error) if error.code() == Some(&SqlState::UNDEFINED_OBJECT) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Drops the slots of members that the caller does not want any more; slots of others (logical ones, a user's own) are never
/// touched. Returns what was dropped. A slot that is in use is dropped only when `in_use` is set.
///
/// # Errors
/// See [`SlotError`]; what was dropped until then stays dropped.
pub async fn drop_obsolete(
    session: &Session,
    in_use: bool,
    wanted: impl Fn(&Member<'_>) -> bool,
) -> Result<Vec<String>, SlotError> {
    let mut dropped = Vec::new();
    for slot in list(session).await? {
        let Some(member) = member(&slot.name) else { continue };
        if !wanted(&member) && (in_use || !slot.active) && drop_slot(session, &slot.name).await? {
            dropped.push(slot.name.clone());
        }
    }
    Ok(dropped)
}

/// A member's name, taken apart (`pgwarden_api::names::member_name`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member<'a> {
    /// The whole name.
    pub name: &'a str,
    /// Ordinal of the pod.
    pub ordinal: u32,
    /// Instance UUID, 32 hex digits.
    pub instance: &'a str,
}

/// Reads a member's name; `None` when it is not one.
#[must_use]
pub fn member(name: &str) -> Option<Member<'_>> {
    let (ordinal, instance) = name.strip_prefix('m')?.split_once('_')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let hex = instance.len() == 32 && instance.bytes().all(|b| b.is_ascii_hexdigit());
    (digits(ordinal) && hex).then_some(())?;
    Some(Member { name, ordinal: ordinal.parse().ok()?, instance })
}

/// All slots, a user's too.
///
/// # Errors
/// When the query fails.
pub async fn list(session: &Session) -> Result<Vec<v1::Slot>, SqlError> {
    let rows = session.rows(WHAT_LIST, LIST, &[]).await?;
    rows.iter().map(slot).collect()
}

pub(crate) const WHAT_LIST: &str = "list the replication slots";
pub(crate) const LIST: &str = "\
    SELECT slot_name::text, active, COALESCE(wal_status, ''), restart_lsn, COALESCE(pg_wal_lsn_diff( \
      CASE WHEN pg_is_in_recovery() THEN GREATEST(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) \
           ELSE pg_current_wal_lsn() END, restart_lsn), 0)::int8 \
    FROM pg_replication_slots ORDER BY slot_name";

/// A row of [`LIST`].
pub(crate) fn slot(row: &tokio_postgres::Row) -> Result<v1::Slot, SqlError> {
    let bad = |source| SqlError::Answer { what: WHAT_LIST, source };
    let restart: Option<PgLsn> = row.try_get(3).map_err(bad)?;
    Ok(v1::Slot {
        name: row.try_get(0).map_err(bad)?,
        active: row.try_get(1).map_err(bad)?,
        wal_status: row.try_get(2).map_err(bad)?,
        restart_lsn: restart.map_or(0, u64::from),
        retained_bytes: row.try_get::<_, i64>(4).map_err(bad)?.max(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_told_from_other_slots() {
        let name = pgwarden_api::names::member_name(12, "550e8400-e29b-41d4-a716-446655440000");
        let found = member(&name).unwrap();
        assert_eq!((found.ordinal, found.instance), (12, "550e8400e29b41d4a716446655440000"));
        for other in
            ["", "m", "m1_", "my_slot", "m1_550e8400", "mx_550e8400e29b41d4a716446655440000", "debezium"]
        {
            assert_eq!(member(other), None, "{other}");
        }
    }
}
