//! The record, in the protocol's own terms. `agent/src/record` converts at the edge.

use std::{collections::BTreeSet, fmt, time::Duration};

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub u128);
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:032x})"), self.0)
            }
        }
    };
}

id! {
    /// Random identity of a data directory: a new directory has a new one, whatever pod it is in.
    InstanceId
}
id! {
    /// Random identity of a supervisor's life. Two containers never share one.
    Incarnation
}

/// Fencing number: grows by one with every change of holder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The next.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// PostgreSQL's system identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SystemId(pub u64);

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which version of the record: what a compare-and-swap compares.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Version {
    /// Identity of the object: another one after it was deleted and made again.
    pub object: String,
    /// Grows with every change of the content: an observation with a lower one is late, and is dropped.
    pub order: u64,
    /// What the store compares.
    pub token: String,
}

/// State of a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RecordState {
    /// Nobody has held it yet.
    #[default]
    Empty,
    /// The holder lives, or is not known to be dead.
    Held,
    /// The holder has stopped and said so: final for this epoch.
    Released,
    /// The holder has stopped and handed over: final for this epoch.
    Handover,
    /// A person has stopped elections.
    Frozen,
}

impl RecordState {
    /// The holder may be running.
    #[must_use]
    pub const fn is_held(self) -> bool {
        matches!(self, Self::Held | Self::Frozen)
    }
}

/// The holder of a record.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Holder {
    /// Its data directory.
    pub instance: InstanceId,
    /// Its supervisor's life.
    pub incarnation: Incarnation,
    /// Where it runs.
    pub place: Place,
}

/// A pod, for finding it and for judging whether an earlier life of it can still run.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    /// Name.
    pub pod: String,
    /// UID.
    pub pod_uid: String,
    /// Node.
    pub node: String,
    /// IP address.
    pub address: String,
}

/// Who holds the cluster, since which epoch, and who may vote.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Record {
    /// Epoch.
    pub epoch: Epoch,
    /// State.
    pub state: RecordState,
    /// The instance that may be out of recovery.
    pub holder: Option<Holder>,
    /// None until the first initdb has ended.
    pub system: Option<SystemId>,
    /// L.
    pub lease: Duration,
    /// V: instances that may vote; empty: nobody may be promoted.
    pub voters: BTreeSet<InstanceId>,
    /// k: synchronous acknowledgements that a commit needs.
    pub sync_acks: u32,
    /// Timeline of the holder.
    pub timeline: u32,
    /// Highest timeline ever used.
    pub max_timeline: u32,
    /// Why the last change of holder or state happened, for people.
    pub reason: String,
}

impl Record {
    /// Whether `instance` in the life `incarnation` holds it.
    #[must_use]
    pub fn held_by(&self, instance: InstanceId, incarnation: Incarnation) -> bool {
        self.state.is_held()
            && self.holder.as_ref().is_some_and(|h| h.instance == instance && h.incarnation == incarnation)
    }
}
