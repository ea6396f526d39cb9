//! What the ConfigMap `NAME-config` holds, as the controller renders it and the agent reads it, and the parameters that the
//! operator owns.

use serde::{Deserialize, Serialize};

/// Key: settings in `postgresql.conf` syntax, defaults first, the user's `parameters` after them.
pub const FILE_POSTGRESQL: &str = "postgresql.conf";
/// Key: the user's extra lines of `pg_hba.conf`; the agent puts its own before and after them.
pub const FILE_HBA: &str = "pg_hba.extra.conf";
/// Key: [`AgentConfig`] as JSON.
pub const FILE_AGENT: &str = "agent.json";
/// Key: hash of the other keys' contents, see [`hash`].
pub const FILE_HASH: &str = "hash";

/// What the agent must know of the spec beyond Postgres' own settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AgentConfig {
    /// Generation of the `PostgreSQL` object that this was made from.
    pub generation: i64,
    /// UID of that object: `kubectl describe` shows only events that name it.
    pub uid: String,
    /// Instances wanted.
    pub replicas: u32,
    /// Arguments of initdb, used once in the life of a cluster.
    pub initdb: InitdbArgs,
    /// Timing profile.
    pub failover: String,
    /// Application database.
    pub app_database: String,
    /// Bytes beyond which a replica gets no read traffic.
    pub replica_lag_limit: u64,
}

/// Arguments of initdb.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct InitdbArgs {
    /// `--locale`.
    pub locale: String,
    /// `--locale-provider`: `libc`, `icu` or `builtin`; empty for the version's default.
    pub provider: String,
    /// `--encoding`.
    pub encoding: String,
}

/// Hash of a set of files: FNV-1a, 64 bits, over names and contents in order of the names. Not for security: it says "changed".
pub fn hash<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut sorted: Vec<_> = files.into_iter().filter(|(name, _)| *name != FILE_HASH).collect();
    sorted.sort_unstable();
    let mut h: u64 = 0xcbf2_9ce4_8422_2325;
    for part in sorted.iter().flat_map(|(name, text)| [*name, *text]) {
        for byte in part.bytes().chain([0]) {
            h = (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    format!("{h:016x}")
}

/// Hash of a role's certificate, as `InstanceStatus.certificates` reports what is in use: over `tls.crt` and `ca.crt` of its Secret. The
/// key stays out: the certificate names its public half.
#[must_use]
pub fn certificate_hash(tls_crt: &str, ca_crt: &str) -> String {
    hash([("tls.crt", tls_crt), ("ca.crt", ca_crt)])
}

/// Parameters that the operator owns: refused in `spec.parameters`, with the reason a user is told.
pub const OWNED_PARAMETERS: &[(&str, &str)] = &[
    ("allow_alter_system", "the operator owns postgresql.auto.conf"),
    ("archive_cleanup_command", "the operator manages archiving"),
    ("archive_command", "the operator manages archiving"),
    ("archive_library", "the operator manages archiving"),
    ("archive_mode", "the operator manages archiving"),
    ("cluster_name", "set to the member's name"),
    ("config_file", "the operator places the files"),
    ("data_directory", "the operator places the files"),
    ("data_sync_retry", "an fsync error must end in a failover"),
    ("event_source", "not used on Linux"),
    ("external_pid_file", "the operator places the files"),
    ("fsync", "acknowledged rows would be lost"),
    ("full_page_writes", "a crash would corrupt pages"),
    ("hba_file", "the operator places the files; use spec.hba"),
    ("hot_standby", "replicas serve reads"),
    ("ident_file", "the operator places the files"),
    ("include", "the operator places the files"),
    ("include_dir", "the operator places the files"),
    ("include_if_exists", "the operator places the files"),
    ("listen_addresses", "the operator manages the network"),
    ("log_destination", "logs go to stdout"),
    ("logging_collector", "logs go to stdout"),
    ("password_encryption", "SCRAM only"),
    ("port", "the operator manages the network"),
    ("primary_conninfo", "the operator manages replication"),
    ("primary_slot_name", "the operator manages replication"),
    ("promote_trigger_file", "the operator manages promotion"),
    ("recovery_end_command", "the operator manages recovery"),
    ("recovery_min_apply_delay", "a delayed replica could not be promoted"),
    ("recovery_target", "the operator manages recovery"),
    ("recovery_target_action", "the operator manages recovery"),
    ("recovery_target_inclusive", "the operator manages recovery"),
    ("recovery_target_lsn", "the operator manages recovery"),
    ("recovery_target_name", "the operator manages recovery"),
    ("recovery_target_time", "the operator manages recovery"),
    ("recovery_target_timeline", "the operator manages recovery"),
    ("recovery_target_xid", "the operator manages recovery"),
    ("restart_after_crash", "the supervisor decides after a crash"),
    ("restore_command", "the operator manages recovery"),
    ("ssl", "connections are encrypted"),
    ("ssl_ca_file", "the operator manages certificates"),
    ("ssl_cert_file", "the operator manages certificates"),
    ("ssl_crl_dir", "the operator manages certificates"),
    ("ssl_crl_file", "the operator manages certificates"),
    ("ssl_key_file", "the operator manages certificates"),
    ("ssl_passphrase_command", "the operator manages certificates"),
    ("ssl_passphrase_command_supports_reload", "the operator manages certificates"),
    ("synchronous_standby_names", "use spec.durability"),
    ("unix_socket_directories", "the operator manages the network"),
    ("unix_socket_group", "the operator manages the network"),
    ("unix_socket_permissions", "the operator manages the network"),
    ("wal_level", "logical from birth, so that a major upgrade needs no restart"),
    ("wal_log_hints", "checksums are on"),
    ("wal_sender_shutdown_timeout", "a switchover must drain its replicas"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_ignores_order_and_its_own_file_and_sees_moved_text() {
        let a = hash([("a", "1"), ("b", "2")]);
        assert_eq!(a, hash([("b", "2"), ("a", "1"), (FILE_HASH, "zzz")]));
        assert_ne!(a, hash([("a", "12"), ("b", "")]));
        assert_ne!(a, hash([("a", "1"), ("b", "3")]));
    }

    #[test]
    fn owned_parameters_are_sorted_and_unique() {
        assert!(OWNED_PARAMETERS.is_sorted_by(|a, b| a.0 < b.0));
    }
}
