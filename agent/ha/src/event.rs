//! What the driver tells the protocol, and what the protocol wants done.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{
    reason::Notice,
    record::{Epoch, Holder, Incarnation, InstanceId, Record, SystemId, Version},
    time::{Instant, Timing},
};

/// How a postmaster lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Follows; the deadline does not touch it.
    Standby,
    /// May accept writes; dies at the deadline.
    Primary,
}

/// A postmaster that exists, or may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Postmaster {
    /// Counts the starts of an incarnation.
    pub start_id: u64,
    /// How it lives.
    pub mode: Mode,
    /// Epoch of its start or promotion.
    pub epoch: Epoch,
}

/// What a supervisor says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Supervisor {
    /// Its life.
    pub incarnation: Incarnation,
    /// The grant in force.
    pub grant: Option<(Epoch, Instant)>,
    /// The postmaster that runs.
    pub postmaster: Option<Postmaster>,
    /// Whether the volume's lock is held.
    pub locked: bool,
    /// The pod is being deleted.
    pub sigterm: bool,
}

/// What an agent leaves with the supervisor, so that the next one can go on while the record can't be read.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Note {
    /// The instance that this incarnation holds the record for.
    pub instance: InstanceId,
    /// The record as last confirmed.
    pub record: Record,
    /// Writes whose outcome was not known: any of them may be in force instead, now or later.
    pub unresolved: Vec<Record>,
    /// The version that they expected: once the record has a higher one, they are void. Empty when there are none.
    pub version: Version,
}

/// The data directory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Directory {
    /// There is none, or only what an interrupted copy or initdb has left: never started, made anew.
    Empty,
    /// A whole data directory.
    Complete(Data),
    /// Something that was not made here, is damaged, or of another version: never started, never deleted.
    Foreign {
        /// What is wrong with it.
        why: String,
    },
}

/// A whole data directory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Data {
    /// Its identity.
    pub instance: InstanceId,
    /// Highest epoch that this instance has promised to follow.
    pub promised: Epoch,
    /// PostgreSQL's system identifier.
    pub system: SystemId,
}

/// Names a request of the protocol, so that a late answer is told from a current one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub u64);

/// How a compare-and-swap ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The record is now what was written.
    Applied(Version),
    /// The record had another version: nothing was written.
    Conflict,
    /// No answer, or one that says neither: it may be applied now, later or never.
    Unknown,
}

/// How a read ended.
#[allow(clippy::large_enum_variant, reason = "short-lived, and mostly the large one")]
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reading {
    /// This is the record.
    Found(Version, Record),
    /// There is none.
    Missing,
    /// No answer, or one that does not say.
    Failed,
}

/// What a finished [`Op`] gives.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Output {
    /// Nothing but success.
    Done,
    /// The directory as it is now.
    Directory(Directory),
    /// Postgres accepts connections; its timeline.
    Up {
        /// Timeline.
        timeline: u32,
    },
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// Connected to the supervisor, with the note that an earlier agent left.
    Connected(Supervisor, Option<Note>),
    /// The supervisor is gone, or the connection to it.
    Disconnected,
    /// A postmaster was started.
    Started(Postmaster),
    /// The postmaster of this start and every process of it are gone.
    Exited {
        /// Which start.
        start_id: u64,
    },
    /// The supervisor has killed the primary at its deadline.
    DeadlineFired,
    /// The pod is being deleted.
    SigTerm,
    /// The record was seen to change; may come late, or twice.
    Observed(Version, Record),
    /// The record was seen to be deleted; may come late, or twice.
    Deleted,
    /// A read was answered, or was given up.
    Read(Id, Reading),
    /// A write was answered, or was given up.
    Written(Id, Outcome),
    /// An [`Op`] ended.
    Finished(Id, Result<Output, String>),
    /// Instances that should be able to vote. The sync set's machine will decide this; until then nothing but tests says it.
    Voters(BTreeSet<InstanceId>),
    /// The timing profile changed.
    Timing(Timing),
    /// Time has passed.
    Tick,
}

/// Something that takes time: at most one at once, apart from the lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Take the volume's lock. Done: it is held.
    Lock,
    /// Look at the data directory. Gives a directory.
    Inspect,
    /// Move the data directory aside; never delete it.
    SetAside {
        /// Why.
        reason: String,
    },
    /// Make the cluster's first data directory. Gives a directory.
    Initdb {
        /// Identity of the new directory.
        instance: InstanceId,
    },
    /// Copy the holder's data directory. Gives a directory.
    Clone {
        /// Identity of the new directory.
        instance: InstanceId,
        /// Whom to copy.
        from: Upstream,
    },
    /// Keep the promise (fsync), then run as a standby of this upstream: start, or reconfigure what runs. Done: Postgres has it.
    Follow {
        /// Identity of the directory.
        instance: InstanceId,
        /// Whom to follow.
        upstream: Upstream,
        /// It runs already.
        running: bool,
    },
    /// Keep the promise (fsync), then run as primary with no client admitted. Up: out of recovery.
    Primary {
        /// Identity of the directory.
        instance: InstanceId,
        /// Epoch of the grant.
        epoch: Epoch,
        /// It runs already (an earlier agent started it): leave its rules for clients as they are.
        running: bool,
    },
    /// Roles, database, then the rules that admit clients.
    Open {
        /// Epoch of the grant.
        epoch: Epoch,
    },
    /// Checkpoint, close to clients, stop. Done: everything is gone.
    Stop {
        /// What runs.
        mode: Mode,
    },
}

/// Whom a standby follows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Upstream {
    /// The holder.
    pub holder: Holder,
    /// Since which epoch.
    pub epoch: Epoch,
}

/// What to do. In order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Read the record, not from a cache: answered by `Read`.
    Read(Id),
    /// Write the record if it still has this version: answered by `Written`.
    Write {
        /// Names the write.
        id: Id,
        /// The version it must have.
        expected: Version,
        /// Its new content.
        record: Record,
    },
    /// Leave this with the supervisor. Must reach it before any later effect leaves.
    SaveNote(Option<Note>),
    /// Tell the supervisor that a primary of this epoch may live until then.
    Grant {
        /// Epoch.
        epoch: Epoch,
        /// The life that the grant is for.
        incarnation: Incarnation,
        /// Absolute.
        deadline: Instant,
    },
    /// Begin something: answered by `Finished`.
    Begin(Id, Op),
    /// Give it up; a later answer is ignored.
    Abort(Id),
    /// SIGKILL to every process of the Postgres container.
    KillAll,
    /// Clients of the primary Service come here, as of this epoch.
    Route {
        /// Epoch.
        epoch: Epoch,
    },
    /// Tell people.
    Notify(Notice),
    /// Let the Postgres container end.
    Exit,
}
