//! The families, as data: name, how to read it, kind, labels.
//!
//! Names begin with `pgwarden_`, but for the standard `process_` ones: a `postgres_exporter` beside this one (`pg_`) does not clash. Units
//! are Prometheus' base units. What is not known now is left out: a value is never made up.

/// Counters only grow, until Postgres' statistics are reset or its data directory is new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
}

#[derive(Debug)]
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) kind: Kind,
    pub(super) labels: &'static [&'static str],
}

macro_rules! families {
    ($($id:ident $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(pub(super) static $id: Family =
            Family { name: $name, help: $help, kind: Kind::$kind, labels: &[$($label),*] };)*
        /// All of them.
        #[cfg(test)]
        pub(super) static ALL: &[&Family] = &[$(&$id),*];
    };
}

families! {
    UP Gauge "pgwarden_up" [] "1 when this instance's Postgres answered this scrape, 0 when it is down, starting or hung.";
    READY Gauge "pgwarden_ready" [] "1 when this instance may be sent clients: what its readiness probe answers.";
    ROLE Gauge "pgwarden_role" ["role"] "1 for the role that this instance has now (primary, replica, or none while it starts, clones or is fenced), 0 for the others. Over all instances of a cluster, the sum for primary is 1, and 0 during a failover.";
    EPOCH Gauge "pgwarden_epoch" [] "Epoch of the cluster's record that this instance follows. It grows by every change of the primary.";
    TIMELINE Gauge "pgwarden_timeline" [] "Timeline that this instance writes or replays. It grows by every promotion.";
    PROBLEM Gauge "pgwarden_problem" ["reason"] "1 for each kind of problem that this instance reports to the controller; absent when there is none.";
    PENDING_RESTART Gauge "pgwarden_settings_pending_restart" [] "Number of settings whose new value waits for a restart of Postgres.";

    AGENT_INFO Gauge "pgwarden_agent_build_info" ["version"] "Always 1; the label is the version of the agent.";
    POSTGRES_INFO Gauge "pgwarden_postgres_info" ["version"] "1 while Postgres answers; the label is its version.";
    POSTGRES_START Gauge "pgwarden_postgres_start_time_seconds" [] "Unix time at which Postgres was started.";
    CONFIG_LOAD Gauge "pgwarden_postgres_config_load_time_seconds" [] "Unix time at which Postgres last loaded its configuration.";

    DEADLINE_RENEWALS Counter "pgwarden_deadline_renewals_total" [] "Times that the deadline, at which the supervisor would kill this primary, was moved on.";
    DEADLINE_NEAR Counter "pgwarden_deadline_near_misses_total" [] "Renewals of the deadline that came when less than a quarter of it was left. Growth means that the agent or the API server is slow: a failover of a healthy primary is near.";
    DEADLINE_MARGIN Gauge "pgwarden_deadline_margin_seconds" [] "Time that was left of the deadline when it was last moved on.";
    DEADLINE_LOWEST Gauge "pgwarden_deadline_lowest_margin_seconds" [] "Least time that was ever left of the deadline when it was moved on, since the agent started.";

    DATABASE_SIZE Gauge "pgwarden_database_size_bytes" ["database"] "Size of the database on disk. Measured at most every 30 seconds, and less often when measuring takes long.";
    XACT_COMMIT Counter "pgwarden_database_transactions_committed_total" ["database"] "Transactions that were committed.";
    XACT_ROLLBACK Counter "pgwarden_database_transactions_rolled_back_total" ["database"] "Transactions that were rolled back.";
    BLOCKS_READ Counter "pgwarden_database_blocks_read_total" ["database"] "Blocks (of 8 kB, unless Postgres was built otherwise) that were not in shared buffers and were read from the operating system.";
    BLOCKS_HIT Counter "pgwarden_database_blocks_hit_total" ["database"] "Blocks that were found in shared buffers. The hit ratio is this rate divided by its sum with that of blocks read.";
    TUPLES_RETURNED Counter "pgwarden_database_tuples_returned_total" ["database"] "Rows that scans read.";
    TUPLES_FETCHED Counter "pgwarden_database_tuples_fetched_total" ["database"] "Rows that index scans fetched.";
    TUPLES_INSERTED Counter "pgwarden_database_tuples_inserted_total" ["database"] "Rows inserted.";
    TUPLES_UPDATED Counter "pgwarden_database_tuples_updated_total" ["database"] "Rows updated.";
    TUPLES_DELETED Counter "pgwarden_database_tuples_deleted_total" ["database"] "Rows deleted.";
    CONFLICTS Counter "pgwarden_database_conflicts_total" ["database"] "Queries on a replica that were cancelled because replay needed what they held.";
    TEMP_FILES Counter "pgwarden_database_temp_files_total" ["database"] "Temporary files written because work_mem did not suffice.";
    TEMP_BYTES Counter "pgwarden_database_temp_bytes_total" ["database"] "Bytes written to temporary files because work_mem did not suffice.";
    DEADLOCKS Counter "pgwarden_database_deadlocks_total" ["database"] "Deadlocks found, each ended by cancelling one transaction.";
    CHECKSUM_FAILURES Counter "pgwarden_database_checksum_failures_total" ["database"] "Pages whose checksum was wrong when they were read: the disk or memory damages data.";
    XID_AGE Gauge "pgwarden_database_transaction_id_age" ["database"] "Transactions since the oldest one that is not frozen. Writes stop before 2147483648; autovacuum acts at autovacuum_freeze_max_age (200 million).";
    MXID_AGE Gauge "pgwarden_database_multixact_id_age" ["database"] "As pgwarden_database_transaction_id_age, for multixacts (rows locked by several transactions at once).";

    CONNECTIONS Gauge "pgwarden_connections" ["database", "state"] "Sessions of clients by state. A session that is 'idle in transaction' holds its locks and keeps vacuum from cleaning up.";
    CONNECTIONS_MAX Gauge "pgwarden_connections_max" [] "Sessions that Postgres allows at once (max_connections); some of them are reserved for superusers.";
    CONNECTIONS_WAITING Gauge "pgwarden_connections_waiting" ["database"] "Sessions that wait for another's lock.";
    OLDEST_TRANSACTION Gauge "pgwarden_oldest_transaction_seconds" ["database"] "Age of the oldest open transaction of a client, 0 when none is open.";

    WAL_FLUSHED Gauge "pgwarden_wal_flushed_position_bytes" [] "Position in the write-ahead log up to which this instance has it on disk. On a primary, its rate is the WAL written a second.";
    WAL_RECEIVED Gauge "pgwarden_wal_received_position_bytes" [] "On a replica: position up to which it has received the primary's WAL.";
    WAL_REPLAYED Gauge "pgwarden_wal_replayed_position_bytes" [] "On a replica: position up to which it has replayed, so that queries see it.";
    WAL_RECORDS Counter "pgwarden_wal_records_total" [] "WAL records written. From version 14 on.";
    WAL_FPI Counter "pgwarden_wal_full_page_images_total" [] "Full page images written to the WAL: the first change of a page after a checkpoint. From version 14 on.";
    WAL_BYTES Counter "pgwarden_wal_written_bytes_total" [] "Bytes of WAL written. From version 14 on.";

    STREAMING Gauge "pgwarden_replica_streaming" [] "On a replica: 1 while it receives from the primary by streaming.";
    REPLAY_LAG_BYTES Gauge "pgwarden_replay_lag_bytes" [] "On a replica, by its own view: WAL that the primary has flushed and that is not yet replayed here.";
    REPLAY_LAG_SECONDS Gauge "pgwarden_replay_lag_seconds" [] "On a replica, by its own view: time since the commit of the last replayed transaction, 0 when caught up.";
    REPLICATION_LAG_BYTES Gauge "pgwarden_replication_lag_bytes" ["replica"] "On a primary, for each standby connected to it: WAL written here and not yet replayed there.";
    REPLICATION_LAG_SECONDS Gauge "pgwarden_replication_lag_seconds" ["replica"] "On a primary, for each standby connected to it: time from a commit here until its replay there, 0 when caught up.";
    REPLICATION_INFO Gauge "pgwarden_replication_info" ["replica", "state", "sync_state"] "On a primary: 1 for each standby connected to it, with the states that pg_stat_replication shows.";
    SLOT_ACTIVE Gauge "pgwarden_slot_active" ["slot"] "1 when a replication slot is in use, 0 when nobody is connected to it and it keeps WAL on the volume.";
    SLOT_RETAINED Gauge "pgwarden_slot_retained_bytes" ["slot"] "WAL kept on the volume for a replication slot.";
    SLOT_LOST Gauge "pgwarden_slot_lost" ["slot"] "1 when WAL that a replication slot needs has been removed: its reader must start anew.";

    CHECKPOINTS Counter "pgwarden_checkpoints_total" ["cause"] "Checkpoints by cause: timed, or requested (by WAL volume, a backup, or a person). Many requested ones mean that max_wal_size is too small.";
    CHECKPOINT_WRITE Counter "pgwarden_checkpoint_write_seconds_total" [] "Time that checkpoints spent writing files.";
    CHECKPOINT_SYNC Counter "pgwarden_checkpoint_sync_seconds_total" [] "Time that checkpoints spent waiting for files to be on disk.";
    CHECKPOINT_BUFFERS Counter "pgwarden_checkpoint_buffers_written_total" [] "Buffers written by checkpoints.";

    VOLUME_SIZE Gauge "pgwarden_volume_size_bytes" [] "Size of the data volume's file system.";
    VOLUME_AVAILABLE Gauge "pgwarden_volume_available_bytes" [] "Space left on the data volume. At 0 Postgres stops.";
    WAL_DIRECTORY Gauge "pgwarden_wal_directory_bytes" [] "Size of the WAL on the data volume, kept for checkpoints, slots and wal_keep_size.";

    CERTIFICATE_EXPIRY Gauge "pgwarden_certificate_expiry_timestamp_seconds" ["role"] "Unix time at which the certificate in use ends. The controller renews it long before.";
    GRPC_CONNECTIONS Gauge "pgwarden_grpc_connections" [] "Open connections to the agent's gRPC port.";
    GRPC_HANDSHAKES_FAILED Counter "pgwarden_grpc_handshakes_failed_total" [] "Connections to the agent's gRPC port that were refused: without a certificate of this cluster, too many, or silent.";
    GRPC_CALLS_DENIED Counter "pgwarden_grpc_calls_denied_total" [] "gRPC calls that were denied because the certificate's role may not make them.";

    QUERY_SUCCESS Gauge "pgwarden_query_success" ["query"] "1 when a query that this page is made of succeeded, 0 when it failed and its families are missing.";
    SCRAPE_DURATION Gauge "pgwarden_scrape_duration_seconds" [] "Time that it took to collect this page.";

    PROCESS_CPU Counter "process_cpu_seconds_total" [] "CPU time that the agent has used.";
    PROCESS_RSS Gauge "process_resident_memory_bytes" [] "Memory of the agent that is in RAM.";
    PROCESS_VSIZE Gauge "process_virtual_memory_bytes" [] "Address space of the agent.";
    PROCESS_START Gauge "process_start_time_seconds" [] "Unix time at which the agent was started.";
    PROCESS_FDS Gauge "process_open_fds" [] "File descriptors that the agent has open.";
    PROCESS_THREADS Gauge "process_threads" [] "Threads of the agent.";
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_follow_the_conventions() {
        let mut seen = HashSet::new();
        for family in ALL {
            let Family { name, help, kind, labels } = family;
            assert!(seen.insert(name), "{name} twice");
            assert!(name.starts_with("pgwarden_") || name.starts_with("process_"), "{name}");
            assert!(
                name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'),
                "{name}"
            );
            assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
            for bad in
                ["_ms", "_milliseconds", "_minutes", "_kb", "_kilobytes", "_mb", "_count", "_sum", "_bucket"]
            {
                assert!(!name.ends_with(bad), "{name}");
                assert!(!name.ends_with(&format!("{bad}_total")), "{name}");
            }
            assert!(help.len() > 12 && help.ends_with('.'), "{name}: {help}");
            for label in *labels {
                // What a scrape configuration attaches itself would be renamed.
                assert!(!["instance", "job", "pod", "namespace", "le", "quantile"].contains(label), "{name}");
            }
        }
    }
}
