//! This instance's Postgres: its data directory, its settings, and what is asked of it over SQL.
//!
//! Every tool runs in the Postgres container through the [`crate::supervisor`]; files are written by the agent on the shared
//! volume, on blocking threads, so that a hung disk never holds the lease path.

pub mod clone;
pub mod control;
pub mod control_file;
pub mod datadir;
pub mod files;
pub mod hba;
pub mod initdb;
pub mod roles;
mod scram;
pub mod settings;
pub mod slots;
pub mod snapshot;
pub mod sql;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

/// Superuser; by peer authentication over the Unix socket only.
pub const SUPERUSER: &str = "postgres";
/// Role of the replicas' streams; by client certificate only.
pub const REPLICATION_ROLE: &str = "pgwarden_replication";
/// Role of the metrics; by peer authentication over the Unix socket only, member of `pg_monitor`.
pub const MONITOR_ROLE: &str = "pgwarden_monitor";
/// The database that the agent's own sessions use.
pub const MAINTENANCE_DB: &str = "postgres";

/// An error and its causes in one line, for logs and for people; Postgres' own message without the driver's "db error".
#[must_use]
pub fn describe(error: &(dyn std::error::Error + 'static)) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let part = match error.downcast_ref::<tokio_postgres::error::DbError>() {
            Some(db) => {
                let mut part = format!("{}: {} (SQLSTATE {})", db.severity(), db.message(), db.code().code());
                for (name, value) in [("detail", db.detail()), ("hint", db.hint())] {
                    if let Some(value) = value {
                        // Writing to a String does not fail.
                        let _ = write!(part, "; {name}: {value}");
                    }
                }
                part
            }
            None => error.to_string(),
        };
        if part != "db error" && !text.ends_with(&part) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&part);
        }
        next = error.source();
    }
    text
}
