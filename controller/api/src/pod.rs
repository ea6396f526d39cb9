//! The contract of a pod between the controller that builds it and the programs that run in it: containers, ports, paths.
//!
//! Containers: init container `install` (puts the supervisor and `/etc/passwd` into [`BIN_DIR`]), native sidecar `agent`,
//! main container `postgres` (a stock image whose entry point is [`SUPERVISOR`]).

/// Name of the init container.
pub const CONTAINER_INSTALL: &str = "install";
/// Name of the native sidecar.
pub const CONTAINER_AGENT: &str = "agent";
/// Name of the main container.
pub const CONTAINER_POSTGRES: &str = "postgres";

/// Uid and gid of every process of the pod, and its fsGroup (decision 12).
pub const UID: i64 = 999;

/// Postgres.
pub const PORT_POSTGRES: u16 = 5432;
/// gRPC of the agent, mutual TLS.
pub const PORT_AGENT: u16 = 8443;
/// Readiness and liveness of the agent, plain HTTP: `/readyz`, `/livez`.
pub const PORT_AGENT_PROBE: u16 = 8008;
/// Liveness of the Postgres container, plain HTTP, answered by the supervisor: any path.
pub const PORT_SUPERVISOR_PROBE: u16 = 8009;
/// Prometheus metrics of the agent, plain HTTP: `/metrics`.
pub const PORT_METRICS: u16 = 9187;

/// Name of Postgres' port in pods, Services and slices.
pub const PORT_NAME_POSTGRES: &str = "postgres";
/// Name of the agent's gRPC port.
pub const PORT_NAME_AGENT: &str = "agent";
/// Name of the metrics port.
pub const PORT_NAME_METRICS: &str = "metrics";

/// Mount of the data volume, in the agent and in Postgres.
pub const DATA_MOUNT: &str = "/pgdata";
/// The data directory: a subdirectory, so that `lost+found` and our files stay outside.
pub const PGDATA: &str = "/pgdata/pgdata";
/// emptyDir (memory) shared by agent and Postgres container: the supervisor's control socket.
pub const CONTROL_DIR: &str = "/run/pgwarden";
/// The supervisor's control socket.
pub const CONTROL_SOCKET: &str = "/run/pgwarden/supervisor.sock";
/// emptyDir shared by agent and Postgres container: Postgres' Unix socket, where `psql` looks for it.
pub const SOCKET_DIR: &str = "/var/run/postgresql";
/// emptyDir (memory) shared by agent and Postgres container: keys written 0600 by the agent.
pub const TLS_DIR: &str = "/run/pgwarden-tls";
/// emptyDir filled by the init container: `supervisor`, `passwd`, `group`.
pub const BIN_DIR: &str = "/pgwarden";
/// The supervisor's binary in the Postgres container.
pub const SUPERVISOR: &str = "/pgwarden/supervisor";
/// ConfigMap of Postgres settings, in the agent only.
pub const CONFIG_DIR: &str = "/etc/pgwarden/config";
/// Certificates, in the agent only: one directory a role (`server`, `replication`, `peer`) with `tls.crt`, `tls.key`, `ca.crt`.
pub const CERT_DIR: &str = "/etc/pgwarden/tls";
/// The application Secret, in the agent only; optional, so that its absence does not hold the pod.
pub const APP_SECRET_DIR: &str = "/etc/pgwarden/app";
/// S3 credentials, in the agent only; optional.
pub const BACKUP_CREDENTIALS_DIR: &str = "/etc/pgwarden/backup";

/// Environment of the agent: the cluster's name.
pub const ENV_CLUSTER: &str = "PGWARDEN_CLUSTER";
/// Environment of the agent: namespace, from the downward API.
pub const ENV_NAMESPACE: &str = "PGWARDEN_NAMESPACE";
/// Environment of the agent: pod name, from the downward API.
pub const ENV_POD: &str = "PGWARDEN_POD";
/// Environment of the agent: pod UID, from the downward API.
pub const ENV_POD_UID: &str = "PGWARDEN_POD_UID";
/// Environment of the agent: pod IP, from the downward API.
pub const ENV_POD_IP: &str = "PGWARDEN_POD_IP";
/// Environment of the agent: node name, from the downward API.
pub const ENV_NODE: &str = "PGWARDEN_NODE";
/// Environment of the agent: major version of Postgres.
pub const ENV_VERSION: &str = "PGWARDEN_VERSION";

/// Grace period of the pod (decision 5).
pub const TERMINATION_GRACE_SECONDS: i64 = 60;
