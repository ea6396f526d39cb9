//! The record: one small object, changed by compare-and-swap alone.
//!
//! [`RecordStore`] is what the driver needs of it; [`kube`] is the real one. Conversions between the API's types and the protocol's
//! are in [`convert`].

pub mod convert;
#[cfg(feature = "testing")]
pub mod file;
pub mod kube;

use std::time::Duration;

use futures::{future::BoxFuture, stream::BoxStream};
use pgwarden_ha::{Outcome, Reading, Record, Version};

/// What the watch tells.
#[allow(clippy::large_enum_variant, reason = "one at a time, and mostly the large one")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The record is now, or was a moment ago, this.
    Observed(Version, Record),
    /// The record was deleted.
    Deleted,
}

/// A store of one record.
pub trait RecordStore: Send + Sync + 'static {
    /// Reads the record, not from a cache. Always answers within `timeout`.
    fn get(&self, timeout: Duration) -> BoxFuture<'static, Reading>;

    /// Writes the record if its version is still `expected`. Always answers within `timeout`; dropping the future leaves the outcome
    /// unknown.
    fn replace(&self, expected: Version, record: Record, timeout: Duration) -> BoxFuture<'static, Outcome>;

    /// Follows the record; never ends, and comes back by itself. Changes can be merged and repeated, and never go back.
    fn watch(&self) -> BoxStream<'static, Change>;
}
