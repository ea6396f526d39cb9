//! Who leads: the decision, apart from I/O.
//!
//! Only *changes* of the Lease are trusted, timed by this process' own clock: the times that other machines write into it are
//! never compared with ours. Leadership is a matter of efficiency here, not of safety: every write of the controller is either
//! idempotent or a compare-and-swap.

use std::time::Duration;

/// A Lease as this process saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Identity of the holder; empty when it was released.
    pub holder: String,
    /// How long the holder claims it without a renewal.
    pub duration: Duration,
    /// When this process first saw this `resourceVersion`, by its own clock.
    pub since: Duration,
}

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Write ourselves as holder.
    Acquire,
    /// We hold it: write again.
    Renew,
    /// Somebody else holds it.
    Yield {
        /// Who.
        holder: String,
        /// How much longer it is theirs if it does not change.
        remaining: Duration,
    },
}

/// Decides; `lease` is `None` when there is none yet.
#[must_use]
pub fn evaluate(lease: Option<&Seen>, me: &str, now: Duration) -> Decision {
    let Some(lease) = lease else { return Decision::Acquire };
    if lease.holder == me {
        return Decision::Renew;
    }
    if lease.holder.is_empty() {
        return Decision::Acquire;
    }
    match lease.duration.checked_sub(now.saturating_sub(lease.since)) {
        Some(remaining) if !remaining.is_zero() => {
            Decision::Yield { holder: lease.holder.clone(), remaining }
        }
        _ => Decision::Acquire,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn table() {
        let seen = |holder: &str, since| Seen { holder: holder.into(), duration: S(15), since: S(since) };
        let yields = |left| Decision::Yield { holder: "b".into(), remaining: S(left) };
        let rows: [(Option<Seen>, u64, Decision); 8] = [
            (None, 0, Decision::Acquire),
            (Some(seen("", 0)), 0, Decision::Acquire),
            (Some(seen("a", 0)), 0, Decision::Renew),
            // Ours, although it has run out: nobody else has taken it.
            (Some(seen("a", 0)), 99, Decision::Renew),
            (Some(seen("b", 0)), 0, yields(15)),
            (Some(seen("b", 10)), 24, yields(1)),
            (Some(seen("b", 10)), 25, Decision::Acquire),
            // A clock that seems to go back never shortens somebody's lease.
            (Some(seen("b", 10)), 5, yields(15)),
        ];
        for (i, (lease, now, want)) in rows.into_iter().enumerate() {
            assert_eq!(evaluate(lease.as_ref(), "a", S(now)), want, "row {i}");
        }
    }
}
