//! Time as the protocol sees it: a number that the driver reads from `CLOCK_BOOTTIME`, and the constants of `Timing`.

use std::{fmt, time::Duration};

/// A point of `CLOCK_BOOTTIME`, in nanoseconds. Only comparable on one node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// From nanoseconds.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }
    /// From milliseconds.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1_000_000))
    }
    /// In nanoseconds.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }
    /// This much later.
    #[must_use]
    pub fn plus(self, d: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)))
    }
    /// This much earlier.
    #[must_use]
    pub fn minus(self, d: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)))
    }
    /// Time from `earlier` to this; zero if it is not earlier.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1_000_000_000, self.0 / 1_000_000 % 1000)
    }
}

/// The constants of the protocol (`balanced`, `fast` and `tolerant` are all there are: free numbers are not offered).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Timing {
    /// From one renewal to the next.
    pub renew: Duration,
    /// A request to the record is given up after this; its outcome is then unknown.
    pub request_timeout: Duration,
    /// F: a renewal sent at `t` keeps a primary alive until `t + fence`.
    pub fence: Duration,
    /// L: how long a candidate waits since it last saw the record change.
    pub lease: Duration,
    /// Between two heartbeats of a replica.
    pub heartbeat: Duration,
}

/// From the deadline to the last process' death: SIGKILL is sent at the deadline.
const KILL: Duration = Duration::from_millis(300);
/// Least time between the surest death of a primary and the first moment at which another may be elected.
pub const LEAST_SLACK: Duration = Duration::from_millis(700);

impl Timing {
    /// For most clusters.
    pub const BALANCED: Self = Self::new(1500, 1000, 4000, 6000, 500);
    /// For a quiet network and control plane.
    pub const FAST: Self = Self::new(1000, 600, 2600, 4000, 300);
    /// For slow networks.
    pub const TOLERANT: Self = Self::new(3000, 2000, 10_000, 15_000, 1000);

    const fn new(renew: u64, request_timeout: u64, fence: u64, lease: u64, heartbeat: u64) -> Self {
        Self {
            renew: Duration::from_millis(renew),
            request_timeout: Duration::from_millis(request_timeout),
            fence: Duration::from_millis(fence),
            lease: Duration::from_millis(lease),
            heartbeat: Duration::from_millis(heartbeat),
        }
    }

    /// The profile of this name; balanced for an unknown one.
    #[must_use]
    pub fn profile(name: &str) -> Self {
        match name {
            "fast" => Self::FAST,
            "tolerant" => Self::TOLERANT,
            _ => Self::BALANCED,
        }
    }

    /// Time left between a primary's sure death and the first election, when clocks differ in rate by up to 1 %.
    #[must_use]
    pub fn slack(&self) -> Duration {
        self.lease.saturating_sub(self.fence).saturating_sub(KILL).saturating_sub(self.lease / 100)
    }

    /// F under a record whose candidates wait `lease`: a profile that changes while the record still carries the old L must not
    /// outlive it.
    #[must_use]
    pub fn fence_under(&self, lease: Duration) -> Duration {
        self.fence.min(lease.saturating_sub(lease / 100).saturating_sub(KILL).saturating_sub(LEAST_SLACK))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_has_slack_and_room_for_a_failed_renewal() {
        for t in [Timing::BALANCED, Timing::FAST, Timing::TOLERANT] {
            assert!(t.slack() >= LEAST_SLACK, "{t:?}");
            assert!(t.request_timeout < t.renew, "{t:?}");
            // One renewal times out, the next succeeds before SIGQUIT (half a second before the deadline).
            let second = t.renew + t.request_timeout;
            assert!(second + Duration::from_millis(500) < t.fence, "{t:?}");
            assert_eq!(t.fence_under(t.lease), t.fence, "its own L does not shorten F");
        }
    }

    #[test]
    fn a_longer_profile_does_not_outlive_the_records_shorter_lease() {
        let f = Timing::TOLERANT.fence_under(Timing::FAST.lease);
        assert!(f < Timing::FAST.lease - LEAST_SLACK, "{f:?}");
        assert_eq!(Timing::BALANCED.fence_under(Duration::ZERO), Duration::ZERO);
    }
}
