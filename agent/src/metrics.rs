//! Prometheus metrics. Being written: the signatures stand.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::{bus::Bus, config::Config, tls};

/// Counts of the driver's that are in no status: it writes, the metrics read. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Deadline(Arc<DeadlineInner>);

#[derive(Debug, Default)]
struct DeadlineInner {
    renewals: AtomicU64,
    near_misses: AtomicU64,
    last_margin_us: AtomicI64,
    lowest_margin_us: AtomicI64,
}

impl Deadline {
    /// The deadline was moved when `margin` of `length` was left; less than a quarter is a near miss.
    pub fn renewed(&self, margin: Duration, length: Duration) {
        let inner = &self.0;
        let us = i64::try_from(margin.as_micros()).unwrap_or(i64::MAX);
        inner.last_margin_us.store(us, Relaxed);
        if inner.renewals.fetch_add(1, Relaxed) == 0 {
            inner.lowest_margin_us.store(us, Relaxed);
        } else {
            inner.lowest_margin_us.fetch_min(us, Relaxed);
        }
        if margin < length / 4 {
            inner.near_misses.fetch_add(1, Relaxed);
        }
    }
}

/// Serves `/metrics` on `config.metrics_port`, for ever.
///
/// # Errors
/// When the port cannot be bound.
#[allow(clippy::unused_async, reason = "being written")]
pub async fn serve(
    _config: Config,
    _store: tls::Store,
    _bus: Bus,
    _deadline: Deadline,
) -> Result<(), std::io::Error> {
    std::future::pending().await
}
