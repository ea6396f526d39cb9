//! The supervisor: PID 1 of the Postgres container, and the library to talk to it.
//!
//! The program (`pgwarden-supervisor --socket PATH [--probe-port N] [--grace SECONDS]`) is a small static binary that an init
//! container puts into an `emptyDir`, so that stock `postgres` images run unmodified. It starts nothing by itself: the
//! agent, in its own container, tells it over a Unix socket what to run. What it does on its own is to stop things:
//!
//! - **Dead-man switch.** While a primary runs, every process of the container is killed at an absolute deadline that only the
//!   agent's grants move. A dead, frozen or isolated agent means a dead primary.
//! - **Reaping.** When the postmaster is gone, its orphaned backends are killed before anybody hears of it.
//! - **SIGTERM.** At pod deletion it tells the agent, and stops Postgres by itself if the agent does not answer.
//!
//! It outlives Postgres: a crashed database never meets kubelet's restart back-off.
//!
//! # Map
//!
//! | module | what |
//! |---|---|
//! | [`protocol`] | messages and their bytes; exact semantics of every request |
//! | [`client`] | the agent's end of the socket, for any kind of event loop |
//! | [`packet`] | one packet with descriptors, sent or received |
//! | [`clock`] | `CLOCK_BOOTTIME` |
//! | `main.rs`, `options.rs` | start of the program |
//! | `state.rs`, `state/*.rs` | every decision, pure: `handle(input, now) -> actions` |
//! | `server.rs`, `server/*.rs` | the loop: socket, signals, reaping; carries actions out |
//! | `deadman.rs` | the deadline's thread |
//! | `kill.rs` | `kill(-1)` as PID 1, only descendants otherwise |
//! | `spawn.rs`, `probe.rs`, `log.rs`, `relay.rs`, `sys.rs` | processes, liveness, own log lines, Postgres' log, the few unsafe calls |
//!
//! # For the agent's authors
//!
//! ```no_run
//! use pgwarden_supervisor::{client::Connection, protocol::{Message, Reply, Request}};
//! # fn main() -> std::io::Result<()> {
//! let connection = Connection::connect("/run/pgwarden/supervisor.sock")?;
//! let id = connection.send(&Request::Hello, &[])?;
//! connection.wait_readable(None)?; // or tokio::io::unix::AsyncFd::new(connection)?.readable().await
//! match connection.recv()? {
//!     Message::Reply { id: answered, reply: Reply::Hello(status) } if answered == id => drop(status),
//!     other => drop(other),
//! }
//! # Ok(()) }
//! ```
//!
//! With tokio: `let fd = AsyncFd::new(connection)?;` then `let mut guard = fd.readable().await?;` and
//! `guard.try_io(|fd| fd.get_ref().recv())`. Replies come in the order of the requests; events stand between them.
//!
//! # What it can't do
//!
//! - A standby that somebody promotes behind its back (`pg_promote()`, `pg_ctl promote` in a shell) has no deadline: the
//!   agent has to notice it.
//! - `Start`, `Run`, `Promote` and `Lock` touch files on the main thread. On a hung volume it stops answering, liveness
//!   fails after 5 s and, as no grant is taken any more, a primary dies at its deadline: the switch is not affected.
//! - Without PID 1 (a shared PID namespace) it kills its descendants one by one, which a fork can race with;
//!   `Status::pid_one` tells.
//! - A supervisor that is stopped from the node (SIGSTOP, a frozen cgroup) kills nothing: kubelet's liveness probe is the
//!   third layer. From inside its namespace nobody can stop PID 1.
//!
//! A stock image's `STOPSIGNAL` (the official image has SIGINT) is treated as SIGTERM.

pub mod client;
pub mod clock;
pub mod packet;
pub mod protocol;
