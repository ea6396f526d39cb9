//! What the driver's last status tells.

use std::sync::atomic::Ordering::Relaxed;

use pgwarden_proto::v1::{InstanceStatus, Role};

use super::{Deadline, families as f, page::Page};
use crate::tls;

const fn truth(value: bool) -> f64 {
    if value { 1.0 } else { 0.0 }
}

/// Adds what the status knows; what it says to be unknown is left out.
#[allow(clippy::cast_precision_loss, reason = "bytes beyond 8 PiB are not met")]
pub(super) fn add(page: &mut Page, status: &InstanceStatus) {
    page.set(&f::AGENT_INFO, &[env!("CARGO_PKG_VERSION")], 1.0);
    page.set(&f::READY, &[], truth(status.ready));
    let role = match status.role() {
        Role::Primary => "primary",
        Role::Replica => "replica",
        Role::None | Role::Unspecified => "none",
    };
    for name in ["primary", "replica", "none"] {
        page.set(&f::ROLE, &[name], truth(name == role));
    }
    page.set(&f::EPOCH, &[], status.epoch as f64);
    if status.timeline > 0 {
        page.set(&f::TIMELINE, &[], status.timeline.into());
    }
    page.set(&f::PENDING_RESTART, &[], status.pending_restart.len() as f64);
    for problem in &status.problems {
        page.set(&f::PROBLEM, &[&problem.reason], 1.0);
    }
    if let Some(disk) = &status.disk {
        page.set(&f::VOLUME_SIZE, &[], disk.total_bytes as f64);
        page.set(&f::VOLUME_AVAILABLE, &[], disk.available_bytes as f64);
        page.set(&f::WAL_DIRECTORY, &[], disk.wal_bytes as f64);
    }
    if status.role() == Role::Replica {
        page.set(&f::STREAMING, &[], truth(status.streaming));
        if status.replay_lag_bytes >= 0 {
            page.set(&f::REPLAY_LAG_BYTES, &[], status.replay_lag_bytes as f64);
        }
        if status.replay_lag_seconds >= 0.0 {
            page.set(&f::REPLAY_LAG_SECONDS, &[], status.replay_lag_seconds);
        }
    }
}

/// Adds what TLS and authorisation saw.
#[allow(clippy::cast_precision_loss, reason = "counts and times fit")]
pub(super) fn add_tls(page: &mut Page, store: &tls::Store) {
    for (role, seconds) in store.expiry() {
        page.set(&f::CERTIFICATE_EXPIRY, &[role.as_str()], seconds as f64);
    }
    let counters = store.counters();
    page.set(&f::GRPC_CONNECTIONS, &[], counters.connections.load(Relaxed) as f64);
    page.set(&f::GRPC_HANDSHAKES_FAILED, &[], counters.handshakes_failed.load(Relaxed) as f64);
    page.set(&f::GRPC_CALLS_DENIED, &[], counters.calls_denied.load(Relaxed) as f64);
}

/// Adds how close the deadline came, on an instance that has had one.
#[allow(clippy::cast_precision_loss, reason = "counts and times fit")]
pub(super) fn add_deadline(page: &mut Page, deadline: &Deadline) {
    let inner = &deadline.0;
    let renewals = inner.renewals.load(Relaxed);
    if renewals == 0 {
        return;
    }
    page.set(&f::DEADLINE_RENEWALS, &[], renewals as f64);
    page.set(&f::DEADLINE_NEAR, &[], inner.near_misses.load(Relaxed) as f64);
    page.set(&f::DEADLINE_MARGIN, &[], inner.last_margin_us.load(Relaxed) as f64 / 1e6);
    page.set(&f::DEADLINE_LOWEST, &[], inner.lowest_margin_us.load(Relaxed) as f64 / 1e6);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pgwarden_proto::v1::{Disk, PendingRestart, Problem};

    use super::*;

    fn lines(page: Page) -> Vec<String> {
        let text = page.encode().unwrap();
        text.lines().filter(|line| !line.starts_with('#')).map(ToOwned::to_owned).collect()
    }

    fn has(lines: &[String], line: &str) -> bool {
        lines.iter().any(|found| found == line)
    }

    #[test]
    fn unknown_is_left_out() {
        let mut page = Page::default();
        let replica =
            InstanceStatus { replay_lag_bytes: -1, replay_lag_seconds: -1.0, ..InstanceStatus::default() };
        add(&mut page, &InstanceStatus { role: Role::Replica.into(), ..replica });
        let found = lines(page);
        assert!(has(&found, "pgwarden_role{role=\"replica\"} 1"), "{found:?}");
        assert!(has(&found, "pgwarden_role{role=\"primary\"} 0"));
        assert!(has(&found, "pgwarden_replica_streaming 0"));
        for family in ["lag", "volume", "timeline", "problem{"] {
            assert!(!found.iter().any(|line| line.contains(family)), "{family}");
        }
    }

    #[test]
    fn known_is_told() {
        let mut page = Page::default();
        let problem = |reason: &str| Problem { reason: reason.into(), message: "m".into() };
        add(
            &mut page,
            &InstanceStatus {
                role: Role::Replica.into(),
                ready: true,
                streaming: true,
                epoch: 4,
                timeline: 3,
                replay_lag_bytes: 0,
                replay_lag_seconds: 1.5,
                pending_restart: vec![PendingRestart::default()],
                problems: vec![problem("DiskFull"), problem("DiskFull")],
                disk: Some(Disk { total_bytes: 1 << 40, available_bytes: 2, wal_bytes: 3 }),
                ..InstanceStatus::default()
            },
        );
        let found = lines(page);
        for line in [
            "pgwarden_ready 1",
            "pgwarden_epoch 4",
            "pgwarden_timeline 3",
            "pgwarden_replay_lag_bytes 0",
            "pgwarden_replay_lag_seconds 1.5",
            "pgwarden_replica_streaming 1",
            "pgwarden_settings_pending_restart 1",
            "pgwarden_problem{reason=\"DiskFull\"} 1",
            "pgwarden_volume_size_bytes 1099511627776",
            "pgwarden_volume_available_bytes 2",
            "pgwarden_wal_directory_bytes 3",
        ] {
            assert!(has(&found, line), "{line} is not in {found:?}");
        }
    }

    #[test]
    fn a_primary_has_no_lag_of_its_own() {
        let mut page = Page::default();
        add(&mut page, &InstanceStatus { role: Role::Primary.into(), ..InstanceStatus::default() });
        let found = lines(page);
        assert!(has(&found, "pgwarden_role{role=\"primary\"} 1"));
        assert!(!found.iter().any(|line| line.contains("replay_lag") || line.contains("streaming")));
    }

    #[test]
    fn the_deadline_is_told_once_there_is_one() {
        let deadline = Deadline::default();
        let told = || {
            let mut page = Page::default();
            add_deadline(&mut page, &deadline);
            lines(page)
        };
        assert_eq!(told(), Vec::<String>::new());
        let length = Duration::from_secs(4);
        for margin in [3000, 900, 3500] {
            deadline.renewed(Duration::from_millis(margin), length);
        }
        assert_eq!(
            told(),
            [
                "pgwarden_deadline_lowest_margin_seconds 0.9",
                "pgwarden_deadline_margin_seconds 3.5",
                "pgwarden_deadline_near_misses_total 1",
                "pgwarden_deadline_renewals_total 3",
            ]
        );
    }
}
