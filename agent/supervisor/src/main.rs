//! PID 1 of the Postgres container. The crate's documentation has the map.

mod deadman;
mod kill;
mod log;
mod options;
mod probe;
mod relay;
mod server;
mod spawn;
mod state;
mod sys;

use std::io;
use std::process::ExitCode;
use std::sync::Arc;

use pgwarden_supervisor::clock::boottime_ns;
use pgwarden_supervisor::protocol::Incarnation;
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{Resource, getrlimit};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::deadman::DeadMan;
use crate::kill::Killer;
use crate::options::{Command, Options};
use crate::probe::LoopTick;
use crate::server::{Server, Sockets};
use crate::state::State;

fn main() -> ExitCode {
    match options::parse(std::env::args().skip(1)) {
        Ok(Command::Version) => {
            let line = concat!("pgwarden-supervisor ", env!("CARGO_PKG_VERSION"), "\n");
            let _ = rustix::io::write(std::io::stdout(), line.as_bytes());
            ExitCode::SUCCESS
        }
        Ok(Command::Serve(options)) => match prepare(&options) {
            Ok(server) => server.run(),
            Err(error) => {
                log::error("failed to start", &[("reason", &error)]);
                ExitCode::FAILURE
            }
        },
        Err(error) => {
            log::error(options::USAGE, &[("reason", &error)]);
            ExitCode::from(2)
        }
    }
}

fn prepare(options: &Options) -> io::Result<Server> {
    sys::single_heap();
    // Before any thread: they inherit the mask.
    let signals = sys::signals()?;
    let killer = Killer::detect();
    let mut random = [0; 16];
    getrandom(&mut random, GetRandomFlags::empty())?;
    let incarnation = Incarnation(random);
    let sockets = Sockets::open(&options.socket)?;
    let switch = DeadMan::start(killer)?;
    let tick = Arc::new(LoopTick::default());
    tick.set(boottime_ns());
    if options.probe_port != 0 {
        probe::start(options.probe_port, Arc::clone(&tick), Arc::clone(&switch))?;
    }
    let locked = lock_memory();
    log::info(
        "supervisor is ready",
        &[
            ("version", &env!("CARGO_PKG_VERSION")),
            ("incarnation", &incarnation),
            ("pid_one", &killer.pid_one()),
            ("memory_locked", &locked),
            ("socket", &options.socket.display()),
        ],
    );
    let state = State::new(incarnation, killer.pid_one(), options.grace_ns);
    Ok(Server::new(state, sockets, signals, switch, killer, tick))
}

/// Keeps what is mapped now in memory, so that the way to the kill never waits for a disk. Best effort: where the limit
/// is small it is left alone, because a locked stack that meets the limit can't grow.
fn lock_memory() -> bool {
    const ENOUGH: u64 = 4 * 1024 * 1024;
    let limit = getrlimit(Resource::Memlock).current;
    limit.is_none_or(|limit| limit >= ENOUGH) && mlockall(MlockAllFlags::CURRENT).is_ok()
}
