//! `postgresql.conf`: defaults derived from the pod's size, the user's parameters on top. A pure function.

use std::collections::BTreeMap;

use pgwarden_api::pod;

/// What the defaults follow from.
#[derive(Clone, Debug, Default)]
pub struct Sizing {
    /// Major version.
    pub version: u32,
    /// Bytes of memory: the limit, else the request.
    pub memory: Option<u64>,
    /// Thousandths of a CPU: the limit, else the request.
    pub cpu: Option<u64>,
    /// Bytes of the volume.
    pub storage: u64,
    /// Whether the pod may use huge pages.
    pub huge_pages: bool,
}

const MB: u64 = 1 << 20;

/// Defaults, by name, without the user's parameters. `connections` is the `max_connections` that will be in force.
#[must_use]
pub fn defaults(sizing: &Sizing, connections: u64) -> BTreeMap<&'static str, String> {
    let mut s: BTreeMap<&'static str, String> = BTreeMap::new();
    let version = sizing.version;
    let mut set = |name: &'static str, value: &str| {
        s.insert(name, value.to_owned());
    };

    // The operator's own: a user can't change these.
    set("listen_addresses", "*");
    set("port", &pod::PORT_POSTGRES.to_string());
    set("unix_socket_directories", pod::SOCKET_DIR);
    set("ssl", "on");
    set("ssl_cert_file", &format!("{}/server.crt", pod::TLS_DIR));
    set("ssl_key_file", &format!("{}/server.key", pod::TLS_DIR));
    set("ssl_ca_file", &format!("{}/ca.crt", pod::TLS_DIR));
    set("password_encryption", "scram-sha-256");
    set("wal_level", "logical");
    set("hot_standby", "on");
    // One crashed backend must not make the postmaster start again on its own: the agent decides what the instance may be then.
    set("restart_after_crash", "off");
    set("log_destination", "stderr");
    set("logging_collector", "off");
    if version >= 12 {
        set("ssl_min_protocol_version", "TLSv1.2");
    }
    if version >= 17 {
        set("allow_alter_system", "off");
    }

    // Memory.
    let memory = memory(sizing, connections);
    set("shared_buffers", &megabytes(memory.shared_buffers));
    set("effective_cache_size", &megabytes(memory.cache));
    set("maintenance_work_mem", &megabytes(memory.maintenance));
    set("work_mem", &format!("{}kB", memory.work >> 10));
    // Huge pages without a limit for them in the cgroup end in SIGBUS, where the node has some: the fault comes after mmap succeeded.
    set("huge_pages", if sizing.huge_pages { "try" } else { "off" });
    set("max_connections", &connections.to_string());
    // The agent's own sessions must always find a place.
    set("superuser_reserved_connections", "5");

    // CPU. Worker limits of parallel queries need not be equal on replicas, unlike max_worker_processes.
    set("max_worker_processes", "16");
    if let Some(cpu) = sizing.cpu {
        let cores = (cpu / 1000).clamp(1, 64);
        set("max_parallel_workers", &cores.clamp(2, 16).to_string());
        set("max_parallel_workers_per_gather", &(cores / 2).clamp(1, 4).to_string());
        set("max_parallel_maintenance_workers", &(cores / 2).clamp(1, 4).to_string());
    }

    // WAL and replication. All that WAL may occupy is a part of the volume.
    let of_volume = |percent: u64| sizing.storage / 100 * percent;
    let max_wal = of_volume(8).clamp(64 * MB, 4096 * MB);
    set("max_wal_size", &megabytes(max_wal));
    set("min_wal_size", &megabytes((max_wal / 4).max(32 * MB)));
    set("checkpoint_completion_target", "0.9");
    // Enough for pg_rewind after a failover, and for a replica that was away for a moment.
    let keep = of_volume(2).clamp(16 * MB, 2048 * MB);
    if version >= 13 {
        set("wal_keep_size", &megabytes(keep));
        set("max_slot_wal_keep_size", &megabytes(of_volume(25).max(128 * MB)));
    } else {
        set("wal_keep_segments", &(keep / (16 * MB)).to_string());
    }
    set("max_wal_senders", "20");
    set("max_replication_slots", "20");
    set("wal_sender_timeout", "5s");
    set("wal_receiver_timeout", "5s");
    set("wal_receiver_status_interval", "1s");
    set("wal_retrieve_retry_interval", "500ms");

    // Connections of clients that vanished must not hold locks for hours.
    set("tcp_keepalives_idle", "10");
    set("tcp_keepalives_interval", "5");
    set("tcp_keepalives_count", "3");
    if version >= 12 {
        set("tcp_user_timeout", "10s");
    }
    if version >= 14 {
        set("client_connection_check_interval", "5s");
        // Crash recovery begins with one call for the whole volume, not with an fsync of each file: that is most of a short outage.
        set("recovery_init_sync_method", "syncfs");
    }

    // Volumes are solid-state, or many disks.
    set("random_page_cost", "1.1");

    // Logs.
    set("log_line_prefix", "%m [%p] %q%u@%d/%a ");
    set("log_timezone", "UTC");
    set("timezone", "UTC");
    set("log_checkpoints", "on");
    set("log_lock_waits", "on");
    set("log_autovacuum_min_duration", "10s");
    set("log_temp_files", "64MB");
    s
}

struct Memory {
    shared_buffers: u64,
    cache: u64,
    maintenance: u64,
    work: u64,
}

fn memory(sizing: &Sizing, connections: u64) -> Memory {
    let Some(total) = sizing.memory else {
        // Nothing is known: what fits everywhere.
        return Memory { shared_buffers: 128 * MB, cache: 512 * MB, maintenance: 64 * MB, work: 4 * MB };
    };
    let shared_buffers = (total / 4).clamp(16 * MB, 16_384 * MB);
    // A query may use work_mem several times over; a quarter of what is left, divided by the connections, leaves room for that.
    let rest = total.saturating_sub(shared_buffers);
    Memory {
        shared_buffers,
        cache: (total / 4 * 3).max(32 * MB),
        maintenance: (total / 16).clamp(16 * MB, 2048 * MB - MB),
        work: (rest / 4 / connections.max(1)).clamp(MB, 64 * MB),
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{}MB", bytes / MB)
}

/// The file: defaults that the user has not replaced, then the user's parameters, each in order of their names.
#[must_use]
pub fn render(sizing: &Sizing, parameters: &BTreeMap<String, String>, preload: &[String]) -> String {
    let user: BTreeMap<String, &str> =
        parameters.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.as_str())).collect();
    let connections = user.get("max_connections").and_then(|v| v.trim().parse().ok()).unwrap_or(100);
    let defaults = defaults(sizing, connections);

    let mut text = String::from("# Written by the operator; changes made here are lost.\n");
    for (name, value) in defaults.iter().filter(|(name, _)| !user.contains_key(**name)) {
        line(&mut text, name, value);
    }
    text.push_str("# spec.parameters and spec.sharedPreloadLibraries\n");
    let libraries = libraries(preload, user.get("shared_preload_libraries").copied());
    for (name, value) in user.iter().filter(|(name, _)| *name != "shared_preload_libraries") {
        line(&mut text, name, value);
    }
    if !libraries.is_empty() {
        line(&mut text, "shared_preload_libraries", &libraries);
    }
    text
}

/// One list of both fields, without repetition, each name quoted where Postgres' list syntax asks for it.
fn libraries(field: &[String], parameter: Option<&str>) -> String {
    let from_parameter = parameter.unwrap_or("").split(',').map(|l| l.trim().trim_matches('"').to_owned());
    let mut all: Vec<String> = Vec::new();
    for library in field.iter().cloned().chain(from_parameter) {
        if !library.is_empty() && !all.contains(&library) {
            all.push(library);
        }
    }
    let plain = |l: &str| l.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    let quoted =
        all.iter().map(|l| if plain(l) { l.clone() } else { format!("\"{}\"", l.replace('"', "\"\"")) });
    quoted.collect::<Vec<_>>().join(", ")
}

/// `name = 'value'`: in a quoted value, quotes are doubled and backslashes start an escape.
fn line(text: &mut String, name: &str, value: &str) {
    text.push_str(name);
    text.push_str(" = '");
    for c in value.chars() {
        match c {
            '\'' => text.push_str("''"),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            c => text.push(c),
        }
    }
    text.push_str("'\n");
}

#[cfg(test)]
mod tests;
