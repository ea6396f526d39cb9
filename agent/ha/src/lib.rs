//! The failover protocol, pure: [`step`]`(machine, event, now) -> effects`. No clock, no I/O, no task; a test holds that.
//!
//! The driver (`agent/src/driver`) feeds what happened, carries out what is asked, and calls again at [`Machine::wake`]. The same
//! code runs in production and under the simulation in `tests/`.
//!
//! # The instance's states
//!
//! | state | means | left by |
//! |---|---|---|
//! | Init | nothing runs; lock, directory and record are being looked at | T0, T1, T2, T4b |
//! | Initdb | holds an epoch of a cluster without a system identifier | identifier recorded; deposed by another holder |
//! | Clone | copies the holder | copy complete (T2); holder changed |
//! | Standby | follows the holder | record changed (T3) |
//! | Barrier | holds the epoch; Postgres starts or runs, only internal connections | Postgres out of recovery (T8), clients admitted (T9) |
//! | Primary | serves under renewals of the record (T10) | T11, T13, T14, T15, T17 |
//! | Affirmed | serves although the record can't be renewed, because nobody else may be promoted | T12, T13, T14 |
//! | Draining | stops on SIGTERM, then releases (T17) | released: the container ends |
//! | Fenced | everything was killed, waiting until it is gone | T18: as Init |
//! | Blocked | needs a person, or something outside this pod | what is missing arrives |
//!
//! How it is built: events change facts, then one level-triggered decision is taken from all facts (`start` for an instance that
//! holds nothing, `lease` and `serve` for one that does). A transition of a later version (votes, sealing, the sync
//! set, affirmation by peers) is one more fact, or one more row of a decision.

mod event;
mod lease;
mod machine;
mod reason;
mod record;
mod serve;
mod start;
mod time;

pub use event::{
    Data, Directory, Effect, Event, Id, Mode, Note, Op, Outcome, Output, Postmaster, Reading, Supervisor,
    Upstream,
};
pub use machine::{Machine, Mutant, Policy, View, step};
pub use reason::{Notice, Reason};
pub use record::{Epoch, Holder, Incarnation, InstanceId, Place, Record, RecordState, SystemId, Version};
pub use time::{Instant, LEAST_SLACK, Timing};
