//! Which changes of a report are worth a reconcile.

use pgwarden_proto::v1::InstanceStatus;

/// Lag in steps of powers of four from 16 MB on: the status follows the step, not each byte.
#[must_use]
pub fn lag_step(bytes: i64) -> u32 {
    match u64::try_from(bytes) {
        Ok(b) if b < 16 << 20 => 0,
        Ok(b) => 1 + (b / (16 << 20)).ilog2() / 2,
        Err(_) => u32::MAX,
    }
}

/// Whether a reconcile could do something about the difference.
#[must_use]
pub fn news(old: Option<&InstanceStatus>, new: Option<&InstanceStatus>) -> bool {
    match (old, new) {
        (None, None) => false,
        (Some(a), Some(b)) => essence(a) != essence(b),
        _ => true,
    }
}

/// A report without what moves all the time.
fn essence(report: &InstanceStatus) -> InstanceStatus {
    let mut e = report.clone();
    e.lsn = None;
    e.replay_lag_bytes = i64::from(lag_step(report.replay_lag_bytes));
    e.replay_lag_seconds = 0.0;
    e.replication.clear();
    e.slots.clear();
    e.disk = None;
    e.postgres_uptime_seconds = 0.0;
    e.agent_uptime_seconds = 0.0;
    e.connections = None;
    e
}

#[cfg(test)]
mod tests {
    use pgwarden_proto::v1::{Lsn, Role};

    use super::*;

    #[test]
    fn positions_are_no_news_roles_are() {
        let a = InstanceStatus {
            ready: true,
            lsn: Some(Lsn { flushed: 1, ..Lsn::default() }),
            ..Default::default()
        };
        let mut b = a.clone();
        b.lsn = Some(Lsn { flushed: 99, ..Lsn::default() });
        b.agent_uptime_seconds = 5.0;
        b.replay_lag_bytes = 1 << 20;
        assert!(!news(Some(&a), Some(&b)));
        b.set_role(Role::Primary);
        assert!(news(Some(&a), Some(&b)));
        assert!(news(None, Some(&a)) && news(Some(&a), None) && !news(None, None));
    }

    #[test]
    fn lag_steps() {
        assert_eq!([-1, 0, 15 << 20, 16 << 20, 63 << 20, 64 << 20].map(lag_step), [u32::MAX, 0, 0, 1, 1, 2]);
    }
}
