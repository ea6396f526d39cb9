//! Why an instance is where it is, in words for a person, and what it announces.

use std::fmt;

use crate::record::{Epoch, SystemId};

/// Why nothing is done, or not yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The supervisor can't be reached.
    NoSupervisor,
    /// Another process has the volume's lock.
    VolumeLocked,
    /// The data directory is being looked at.
    Inspecting,
    /// The record has not been read yet.
    RecordUnknown,
    /// There is no record.
    RecordMissing,
    /// A write of the record is under way.
    Claiming,
    /// Another instance makes the first data directory.
    BootstrapElsewhere {
        /// Its pod.
        pod: String,
    },
    /// The holder has stopped: it comes back, or a person decides.
    HolderStopped {
        /// Its pod.
        pod: String,
    },
    /// Something failed and will be tried again.
    Retrying {
        /// What was done.
        doing: &'static str,
        /// What failed.
        error: String,
    },
    /// This PostgreSQL version can't be run yet.
    VersionNotYetSupported {
        /// Major version.
        version: u32,
    },
    /// There is data, and a record that knows of none.
    DataWithoutRecord,
    /// The record has gone back: it was restored, or made anew.
    RecordRolledBack {
        /// What this instance has promised.
        promised: Epoch,
        /// What the record says.
        epoch: Epoch,
    },
    /// The record names this data as the holder's, in another life that may still run.
    HolderNotProvenDead {
        /// Its node.
        node: String,
    },
    /// The holder's volume was this pod's, and is empty now.
    HolderDataLost,
    /// The record knows a cluster, but no holder.
    NoHolder,
    /// A person has stopped elections.
    Frozen,
    /// The data directory must not be touched.
    Unusable(String),
}

impl Reason {
    /// Whether it needs a person, or something outside this pod.
    #[must_use]
    pub const fn blocks(&self) -> bool {
        matches!(
            self,
            Self::VersionNotYetSupported { .. }
                | Self::DataWithoutRecord
                | Self::RecordRolledBack { .. }
                | Self::HolderNotProvenDead { .. }
                | Self::HolderDataLost
                | Self::NoHolder
                | Self::Frozen
                | Self::Unusable(_)
                | Self::RecordMissing
        )
    }

    /// Whether a person should know of it: what blocks, and what fails again and again.
    #[must_use]
    pub const fn is_problem(&self) -> bool {
        self.blocks()
            || matches!(self, Self::Retrying { .. } | Self::VolumeLocked | Self::HolderStopped { .. })
    }

    /// CamelCase, for conditions and events.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::NoSupervisor => "NoSupervisor",
            Self::VolumeLocked => "VolumeLocked",
            Self::Inspecting => "Inspecting",
            Self::RecordUnknown => "RecordUnknown",
            Self::RecordMissing => "RecordMissing",
            Self::Claiming => "Claiming",
            Self::BootstrapElsewhere { .. } => "BootstrapElsewhere",
            Self::HolderStopped { .. } => "HolderStopped",
            Self::Retrying { .. } => "Retrying",
            Self::VersionNotYetSupported { .. } => "VersionNotYetSupported",
            Self::DataWithoutRecord => "DataWithoutRecord",
            Self::RecordRolledBack { .. } => "RecordRolledBack",
            Self::HolderNotProvenDead { .. } => "HolderNotProvenDead",
            Self::HolderDataLost => "HolderDataLost",
            Self::NoHolder => "NoHolder",
            Self::Frozen => "Frozen",
            Self::Unusable(_) => "DataDirectoryUnusable",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSupervisor => f.write_str("the supervisor of the Postgres container can't be reached"),
            Self::VolumeLocked => f.write_str("another process holds the lock on the volume: an earlier pod is still running"),
            Self::Inspecting => f.write_str("looking at the data directory"),
            Self::RecordUnknown => f.write_str("the record has not been read yet"),
            Self::RecordMissing => f.write_str("there is no record of this cluster; the controller makes it"),
            Self::Claiming => f.write_str("a write of the record is under way"),
            Self::BootstrapElsewhere { pod } => write!(f, "{pod} makes the first data directory"),
            Self::HolderStopped { pod } => write!(f, "{pod} holds the cluster and has stopped"),
            Self::Retrying { doing, error } => write!(f, "{doing} failed and will be tried again: {error}"),
            Self::VersionNotYetSupported { version } => {
                write!(f, "PostgreSQL {version} can't be run yet; 13 is the first version that can")
            }
            Self::DataWithoutRecord => f.write_str(
                "there is a data directory, but the record knows of none: restore the record, or empty the volume to begin anew",
            ),
            Self::RecordRolledBack { promised, epoch } => write!(
                f,
                "the record is at epoch {epoch}, but this instance has followed epoch {promised}: the record was restored from an older copy"
            ),
            Self::HolderNotProvenDead { node } => write!(
                f,
                "this data was last primary on node {node}, and nothing proves that it no longer runs there; power that node off and taint it out-of-service"
            ),
            Self::HolderDataLost => {
                f.write_str("this pod was the primary and its volume is empty now: no other instance may be promoted")
            }
            Self::NoHolder => f.write_str("the record knows a system identifier, but no holder"),
            Self::Frozen => f.write_str("a person has stopped elections"),
            Self::Unusable(why) => f.write_str(why),
        }
    }
}

/// What is told to people when it happens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Notice {
    /// This instance makes the first data directory.
    Bootstrapping {
        /// Epoch.
        epoch: Epoch,
        /// It took over from an instance that did not finish.
        took_over: bool,
    },
    /// The first data directory is recorded.
    Initialised {
        /// Its system identifier.
        system: SystemId,
    },
    /// Clients are admitted.
    BecamePrimary {
        /// Epoch.
        epoch: Epoch,
    },
    /// The recorded holder takes its place again after a stop or a crash.
    Reclaimed {
        /// Epoch.
        epoch: Epoch,
        /// What proves that its earlier life is over.
        proof: &'static str,
    },
    /// Postgres ended and is started again.
    RestartingInPlace {
        /// Epoch.
        epoch: Epoch,
    },
    /// The record can't be renewed, and nobody else may be promoted: serving on.
    Affirmed {
        /// Epoch.
        epoch: Epoch,
    },
    /// The record is renewed again.
    Renewed {
        /// Epoch.
        epoch: Epoch,
    },
    /// Everything was killed.
    Fenced {
        /// Epoch.
        epoch: Epoch,
        /// Why.
        why: &'static str,
    },
    /// Stopped, and said so in the record.
    Released {
        /// Epoch.
        epoch: Epoch,
    },
    /// A copy of the holder begins.
    CloneStarted {
        /// The holder's pod.
        pod: String,
    },
    /// A copy is complete.
    Cloned {
        /// The holder's pod.
        pod: String,
    },
    /// Follows the holder.
    Following {
        /// The holder's pod.
        pod: String,
        /// Epoch.
        epoch: Epoch,
    },
    /// A foreign data directory is moved aside.
    SetAside {
        /// Why.
        reason: String,
    },
    /// Waits for a person, or for something outside this pod.
    Blocked(Reason),
    /// Something failed and will be tried again.
    Failed {
        /// What was done.
        doing: &'static str,
        /// What failed.
        error: String,
    },
}

impl Notice {
    /// CamelCase, the reason of a Kubernetes event.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Bootstrapping { .. } => "Bootstrapping",
            Self::Initialised { .. } => "Initialised",
            Self::BecamePrimary { .. } => "BecamePrimary",
            Self::Reclaimed { .. } => "Reclaimed",
            Self::RestartingInPlace { .. } => "RestartingInPlace",
            Self::Affirmed { .. } => "Affirmed",
            Self::Renewed { .. } => "Renewed",
            Self::Fenced { .. } => "Fenced",
            Self::Released { .. } => "Released",
            Self::CloneStarted { .. } => "CloneStarted",
            Self::Cloned { .. } => "Cloned",
            Self::Following { .. } => "Following",
            Self::SetAside { .. } => "SetAside",
            Self::Blocked(reason) => reason.name(),
            Self::Failed { .. } => "Failed",
        }
    }

    /// Whether a person should look.
    #[must_use]
    pub const fn is_warning(&self) -> bool {
        matches!(
            self,
            Self::RestartingInPlace { .. }
                | Self::Affirmed { .. }
                | Self::Fenced { .. }
                | Self::SetAside { .. }
                | Self::Blocked(_)
                | Self::Failed { .. }
        )
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bootstrapping { epoch, took_over: false } => {
                write!(f, "making the first data directory, epoch {epoch}")
            }
            Self::Bootstrapping { epoch, took_over: true } => {
                write!(
                    f,
                    "making the first data directory in place of an instance that did not finish, epoch {epoch}"
                )
            }
            Self::Initialised { system } => write!(f, "the cluster's system identifier is {system}"),
            Self::BecamePrimary { epoch } => write!(f, "primary of epoch {epoch}, clients are admitted"),
            Self::Reclaimed { epoch, proof } => write!(f, "takes its place again as epoch {epoch}: {proof}"),
            Self::RestartingInPlace { epoch } => {
                write!(f, "Postgres ended and is started again, epoch {epoch}")
            }
            Self::Affirmed { epoch } => {
                write!(
                    f,
                    "the record can't be renewed; nobody else may be promoted, so epoch {epoch} serves on"
                )
            }
            Self::Renewed { epoch } => write!(f, "the record of epoch {epoch} is renewed again"),
            Self::Fenced { epoch, why } => write!(f, "killed Postgres of epoch {epoch}: {why}"),
            Self::Released { epoch } => write!(f, "stopped and released epoch {epoch}"),
            Self::CloneStarted { pod } => write!(f, "copying the data directory of {pod}"),
            Self::Cloned { pod } => write!(f, "copied the data directory of {pod}"),
            Self::Following { pod, epoch } => write!(f, "follows {pod}, epoch {epoch}"),
            Self::SetAside { reason } => write!(f, "moved the data directory aside: {reason}"),
            Self::Blocked(reason) => reason.fmt(f),
            Self::Failed { doing, error } => write!(f, "{doing} failed and will be tried again: {error}"),
        }
    }
}
