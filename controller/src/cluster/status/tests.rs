use super::*;
use crate::cluster::testing::{cluster, now, report, running};

fn status(
    of: &PostgreSQL,
    observed: &crate::cluster::observe::Observed,
    facts: Vec<Fact>,
    at: Timestamp,
) -> PostgreSQLStatus {
    compute(
        of,
        Parts {
            members: members(&observed.pods, &observed.reports, observed.record.as_deref()),
            replicas: 3,
            version: Some("17"),
            record: observed.record.as_deref(),
            summary: Summary { phase: phase::RUNNING, facts },
            now: at,
        },
    )
}

#[test]
fn it_says_what_was_observed() {
    let c = cluster("{version: \"17\", storage: 1Gi}");
    let s = status(&c, &running(), Vec::new(), now());
    assert_eq!((s.ready.as_str(), s.ready_replicas, s.replicas), ("3/3", 3, 3));
    assert_eq!((s.primary.as_deref(), s.version.as_deref()), (Some("orders-17-0"), Some("17")));
    assert_eq!((s.cluster_id.as_deref(), s.system_identifier.as_deref()), (Some("c-1"), Some("7")));
    assert_eq!(s.observed_generation, Some(4));
    assert_eq!(s.selector, "app.kubernetes.io/component=postgres,database.example.com/cluster=orders");
    let roles: Vec<_> = s.members.iter().map(|m| m.role.as_str()).collect();
    assert_eq!(roles, ["primary", "replica", "replica"]);
}

#[test]
fn two_that_call_themselves_primary_are_not_both_told() {
    let mut o = running();
    o.reports.insert("orders-17-1".into(), report(Role::Primary, true));
    let roles: Vec<_> =
        members(&o.pods, &o.reports, o.record.as_deref()).into_iter().map(|m| m.role).collect();
    assert_eq!(roles, ["primary", "none", "replica"]);
}

#[test]
fn an_agent_that_does_not_answer_is_told() {
    let mut o = running();
    o.reports.remove("orders-17-2");
    let m = members(&o.pods, &o.reports, o.record.as_deref()).pop().unwrap();
    assert_eq!((m.state.as_str(), m.ready), ("Unknown", false));
    assert_eq!(m.message.as_deref(), Some("its agent does not answer"));
}

#[test]
fn a_condition_keeps_its_time_until_it_changes() {
    let mut c = cluster("{version: \"17\", storage: 1Gi}");
    let later: Timestamp = "2026-11-22T13:00:00Z".parse().unwrap();
    let yes = || vec![conditions::fact("Ready", true, "A", "m")];
    c.status = Some(status(&c, &running(), yes(), now()));
    let same = status(&c, &running(), vec![conditions::fact("Ready", true, "B", "other")], later);
    assert_eq!(same.conditions[0].last_transition_time.0, now());
    assert_eq!(same.conditions[0].reason, "B");
    let other = status(&c, &running(), vec![conditions::fact("Ready", false, "A", "m")], later);
    assert_eq!(other.conditions[0].last_transition_time.0, later);
    assert_eq!(other.conditions[0].observed_generation, Some(4));
}

#[test]
fn positions_that_move_are_not_written() {
    let c = cluster("{version: \"17\", storage: 1Gi}");
    let with_lag = |lag: i64, seconds: f64| {
        let mut o = running();
        let mut r = o.reports["orders-17-1"].as_ref().clone();
        (r.replay_lag_bytes, r.replay_lag_seconds) = (lag, seconds);
        o.reports.insert("orders-17-1".into(), Arc::new(r));
        status(&c, &o, Vec::new(), now())
    };
    let quiet = with_lag(100, 0.1);
    assert!(changed(None, &quiet));
    assert!(!changed(Some(&quiet), &with_lag(5000, 0.4)));
    assert!(changed(Some(&quiet), &with_lag(1 << 30, 9.0)));
    assert_eq!(with_lag(1 << 30, 9.04).members[1].lag_seconds, Some(9.0));
}
