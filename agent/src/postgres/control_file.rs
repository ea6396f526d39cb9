//! Own reader of `global/pg_control`: the agent's image holds no Postgres, and a decision about a data directory must not wait
//! for a tool to start.

use std::{fmt, fs::File, io::Read, path::Path, thread, time::Duration};

use super::files::FileError;

/// What is read of `pg_control`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlFile {
    /// Identity of the cluster's data, made by initdb.
    pub system_identifier: u64,
    /// Version of the file's layout.
    pub control_version: u32,
    /// How Postgres was left.
    pub state: ClusterState,
    /// Position of the last checkpoint record; after a clean shutdown the last thing in the WAL.
    pub checkpoint: u64,
    /// Where redo starts.
    pub redo: u64,
    /// Timeline of the last checkpoint.
    pub checkpoint_timeline: u32,
    /// On a standby: how far replay must go before the data is consistent. 0 otherwise.
    pub min_recovery_point: u64,
    /// Its timeline.
    pub min_recovery_timeline: u32,
    /// Whether data pages carry checksums.
    pub checksums: bool,
    /// What the primary of this WAL runs with: a standby that has less does not start.
    pub required: Required,
}

/// Parameters that a standby must have at least as large as its primary; each sizes shared memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Required {
    /// `max_connections`.
    pub max_connections: u32,
    /// `max_worker_processes`.
    pub max_worker_processes: u32,
    /// `max_wal_senders`.
    pub max_wal_senders: u32,
    /// `max_prepared_transactions`.
    pub max_prepared_transactions: u32,
    /// `max_locks_per_transaction`.
    pub max_locks_per_transaction: u32,
}

impl ControlFile {
    /// The newest timeline that this data directory is known to be on.
    #[must_use]
    pub fn timeline(&self) -> u32 {
        self.checkpoint_timeline.max(self.min_recovery_timeline)
    }
}

/// How Postgres was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterState {
    /// Never came up.
    Starting,
    /// Cleanly shut down as a primary.
    ShutDown,
    /// Cleanly shut down as a standby.
    ShutDownInRecovery,
    /// Died while shutting down.
    ShuttingDown,
    /// Runs, or died, in crash recovery.
    InCrashRecovery,
    /// Runs, or died, as a standby.
    InArchiveRecovery,
    /// Runs, or died, as a primary.
    InProduction,
}

impl ClusterState {
    fn from_wire(value: u32) -> Option<Self> {
        Some(match value {
            0 => Self::Starting,
            1 => Self::ShutDown,
            2 => Self::ShutDownInRecovery,
            3 => Self::ShuttingDown,
            4 => Self::InCrashRecovery,
            5 => Self::InArchiveRecovery,
            6 => Self::InProduction,
            _ => return None,
        })
    }
}

impl fmt::Display for ClusterState {
    /// As pg_controldata says.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting up",
            Self::ShutDown => "shut down",
            Self::ShutDownInRecovery => "shut down in recovery",
            Self::ShuttingDown => "shutting down",
            Self::InCrashRecovery => "in crash recovery",
            Self::InArchiveRecovery => "in archive recovery",
            Self::InProduction => "in production",
        })
    }
}

/// Why a control file could not be understood.
#[derive(Debug, thiserror::Error)]
pub enum ControlFileError {
    /// It could not be read.
    #[error(transparent)]
    Read(#[from] FileError),
    /// Of a version that is not known here.
    #[error("pg_control has layout version {0}, which is not known")]
    Version(u32),
    /// It is damaged.
    #[error("pg_control is damaged: {0}")]
    Damaged(&'static str),
}

/// Reads `global/pg_control` below `pgdata`. Blocks.
///
/// # Errors
/// When it is missing, damaged or of an unknown version.
pub fn read(pgdata: &Path) -> Result<ControlFile, ControlFileError> {
    let path = pgdata.join("global/pg_control");
    let mut last = ControlFileError::Damaged("empty");
    // A running Postgres rewrites it in place: a torn read looks damaged, and the next one does not.
    for _ in 0..5 {
        let mut bytes = Vec::with_capacity(512);
        File::open(&path)
            .and_then(|file| file.take(512).read_to_end(&mut bytes))
            .map_err(FileError::new("read", &path))?;
        match parse(&bytes) {
            Err(error @ ControlFileError::Damaged(_)) => last = error,
            other => return other,
        }
        thread::sleep(Duration::from_millis(5));
    }
    Err(last)
}

/// Offsets of `ControlFileData` on 64-bit little-endian machines, and of its checksum.
struct Layout {
    min_recovery_point: usize,
    min_recovery_timeline: usize,
    max_connections: usize,
    checksum_version: usize,
    crc: usize,
}

/// PostgreSQL 18: the signedness of `char` follows the checksums' version, and moves what is after it.
const EIGHTEEN: Layout = Layout { crc: 292, ..CURRENT };
/// PostgreSQL 12 to 17: `CheckPoint` has 88 bytes.
const CURRENT: Layout = Layout {
    min_recovery_point: 136,
    min_recovery_timeline: 144,
    max_connections: 180,
    checksum_version: 252,
    crc: 288,
};
/// PostgreSQL 11: `CheckPoint` has 80 bytes, since its next transaction id is two 32-bit fields.
const ELEVEN: Layout = Layout {
    min_recovery_point: 128,
    min_recovery_timeline: 136,
    max_connections: 172,
    checksum_version: 244,
    crc: 280,
};

fn parse(bytes: &[u8]) -> Result<ControlFile, ControlFileError> {
    let short = || ControlFileError::Damaged("it is too short");
    let u64_at = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
    let u32_at = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    let control_version = u32_at(8).ok_or_else(short)?;
    let layout = match control_version {
        1100 => ELEVEN,
        1201 | 1300 | 1700 => CURRENT,
        1800 => EIGHTEEN,
        other => return Err(ControlFileError::Version(other)),
    };
    let covered = bytes.get(..layout.crc).ok_or_else(short)?;
    if u32_at(layout.crc).ok_or_else(short)? != crc32c(covered) {
        return Err(ControlFileError::Damaged("its checksum does not match"));
    }
    let required = |field: usize| u32_at(layout.max_connections + 4 * field).ok_or_else(short);
    Ok(ControlFile {
        system_identifier: u64_at(0).ok_or_else(short)?,
        control_version,
        state: ClusterState::from_wire(u32_at(16).ok_or_else(short)?)
            .ok_or(ControlFileError::Damaged("its state is not known"))?,
        checkpoint: u64_at(32).ok_or_else(short)?,
        redo: u64_at(40).ok_or_else(short)?,
        checkpoint_timeline: u32_at(48).ok_or_else(short)?,
        min_recovery_point: u64_at(layout.min_recovery_point).ok_or_else(short)?,
        min_recovery_timeline: u32_at(layout.min_recovery_timeline).ok_or_else(short)?,
        checksums: u32_at(layout.checksum_version).ok_or_else(short)? != 0,
        required: Required {
            max_connections: required(0)?,
            max_worker_processes: required(1)?,
            max_wal_senders: required(2)?,
            max_prepared_transactions: required(3)?,
            max_locks_per_transaction: required(4)?,
        },
    })
}

/// CRC-32C (Castagnoli), bit by bit: 300 bytes need no table.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_checksum_is_castagnolis() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    fn sample() -> Vec<u8> {
        sample_of(1300, 288)
    }

    fn sample_of(version: u32, crc_at: usize) -> Vec<u8> {
        let mut bytes = vec![0; 296];
        bytes[0..8].copy_from_slice(&7_234_567_890_123_456_789u64.to_le_bytes());
        bytes[8..12].copy_from_slice(&version.to_le_bytes());
        bytes[16..20].copy_from_slice(&6u32.to_le_bytes());
        bytes[32..40].copy_from_slice(&0x0300_0060u64.to_le_bytes());
        bytes[48..52].copy_from_slice(&3u32.to_le_bytes());
        bytes[144..148].copy_from_slice(&4u32.to_le_bytes());
        let crc = crc32c(&bytes[..crc_at]);
        bytes[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// As the servers of these versions write it.
    #[test]
    fn the_checksums_place_depends_on_the_version() {
        for (version, crc_at) in [(1100, 280), (1201, 288), (1300, 288), (1700, 288), (1800, 292)] {
            assert_eq!(parse(&sample_of(version, crc_at)).unwrap().control_version, version);
        }
    }

    #[test]
    fn a_good_file_is_read_and_a_flipped_bit_is_seen() {
        let good = parse(&sample()).unwrap();
        assert_eq!(good.state, ClusterState::InProduction);
        assert_eq!((good.checkpoint_timeline, good.timeline()), (3, 4));
        for at in [0, 33, 200, 287, 290] {
            let mut bad = sample();
            bad[at] ^= 1;
            assert!(matches!(parse(&bad), Err(ControlFileError::Damaged(_))), "byte {at}");
        }
        let mut newer = sample();
        newer[8..12].copy_from_slice(&9999u32.to_le_bytes());
        assert!(matches!(parse(&newer), Err(ControlFileError::Version(9999))));
        // The same bytes under another layout are no control file of that.
        newer[8..12].copy_from_slice(&1800u32.to_le_bytes());
        assert!(matches!(parse(&newer), Err(ControlFileError::Damaged(_))));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse(&bytes);
        }
    }
}
