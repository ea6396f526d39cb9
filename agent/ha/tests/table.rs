//! What an instance that has just started does, for each thing that it may find: one row each.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::time::Duration;

use pgwarden_ha::{
    Data, Directory, Effect, Epoch, Event, Holder, Incarnation, InstanceId, Instant, Machine, Op, Outcome,
    Output, Place, Policy, Reading, Reason, Record, RecordState, Supervisor, SystemId, Timing, Version, step,
};

const ME: InstanceId = InstanceId(10);
const OTHER: InstanceId = InstanceId(20);
const OURS: SystemId = SystemId(1);
const NOW: Incarnation = Incarnation(100);
const BEFORE: Incarnation = Incarnation(99);

fn place(pod: &str, uid: &str, node: &str) -> Place {
    Place { pod: pod.into(), pod_uid: uid.into(), node: node.into(), address: "10.0.0.1".into() }
}

fn mine() -> Place {
    place("c-0", "uid", "node")
}

fn held(by: InstanceId, incarnation: Incarnation, at: Place) -> Record {
    Record {
        epoch: Epoch(3),
        state: RecordState::Held,
        holder: Some(Holder { instance: by, incarnation, place: at }),
        system: Some(OURS),
        lease: Duration::from_secs(6),
        timeline: 1,
        max_timeline: 1,
        ..Record::default()
    }
}

fn by_other() -> Record {
    held(OTHER, BEFORE, place("c-1", "other", "elsewhere"))
}

fn data(instance: InstanceId, system: SystemId) -> Directory {
    Directory::Complete(Data { instance, promised: Epoch(3), system })
}

fn start(unsupported: Option<u32>) -> Machine {
    let policy =
        Policy { place: mine(), timing: Timing::BALANCED, unsupported, seed: InstanceId(1000), mutant: None };
    Machine::new(policy)
}

fn version(order: u64) -> Version {
    Version { object: "o".into(), order, token: order.to_string() }
}

/// The machine and its effects once it has seen both, with the lock held.
fn seen(directory: Directory, record: Record) -> (Machine, Vec<Effect>) {
    let mut machine = start(None);
    let now = Instant::from_millis(1000);
    let supervisor =
        Supervisor { incarnation: NOW, grant: None, postmaster: None, locked: true, sigterm: false };
    let mut out = step(&mut machine, Event::Tick, now);
    let read = out.iter().find_map(|e| if let Effect::Read(id) = e { Some(*id) } else { None }).unwrap();
    out = step(&mut machine, Event::Read(read, Reading::Found(version(1), record)), now);
    out.extend(step(&mut machine, Event::Connected(supervisor, None), now));
    if let Some(id) = out.iter().find_map(|e| match e {
        Effect::Begin(id, Op::Inspect) => Some(*id),
        _ => None,
    }) {
        out.extend(step(&mut machine, Event::Finished(id, Ok(Output::Directory(directory))), now));
    }
    // Looking is no decision.
    out.retain(|e| !matches!(e, Effect::Begin(_, Op::Inspect) | Effect::Read(_)));
    (machine, out)
}

#[track_caller]
fn waits(directory: Directory, record: Record, name: &str) {
    let (machine, out) = seen(directory, record);
    let reason = machine.view().reason.expect("a reason");
    assert_eq!(reason.name(), name, "{reason}");
    let acts = |e: &&Effect| matches!(e, Effect::Begin(..) | Effect::Write { .. } | Effect::Grant { .. });
    assert_eq!(out.iter().find(acts), None, "it only waits");
}

#[track_caller]
fn begins(directory: Directory, record: Record, wanted: impl Fn(&Op) -> bool) {
    let (_, out) = seen(directory, record);
    let ops: Vec<&Op> =
        out.iter().filter_map(|e| if let Effect::Begin(_, op) = e { Some(op) } else { None }).collect();
    assert!(ops.len() == 1 && wanted(ops[0]), "{out:?}");
    assert!(!out.iter().any(|e| matches!(e, Effect::Write { .. })), "{out:?}");
}

/// It claims the next epoch, and does nothing else before it has it.
#[track_caller]
fn claims(directory: Directory, record: Record, instance: Option<InstanceId>) {
    let (epoch, system) = (record.epoch, record.system);
    let (mut machine, out) = seen(directory, record);
    let Some(Effect::Write { id, expected, record }) = out.iter().find(|e| matches!(e, Effect::Write { .. }))
    else {
        panic!("no claim: {out:?}");
    };
    assert_eq!((expected, record.epoch, record.system), (&version(1), epoch.next(), system));
    let holder = record.holder.as_ref().unwrap();
    assert_eq!(holder.incarnation, NOW);
    assert_eq!(instance.unwrap_or(holder.instance), holder.instance);
    assert!(!out.iter().any(|e| matches!(e, Effect::Grant { .. } | Effect::Begin(..))), "{out:?}");
    let now = Instant::from_millis(1100);
    // Unknown is no grant.
    let mut unsure = machine.clone();
    let out = step(&mut unsure, Event::Written(*id, Outcome::Unknown), now);
    assert!(!out.iter().any(|e| matches!(e, Effect::Grant { .. } | Effect::Begin(..))), "{out:?}");
    // Applied is, counted from when it was sent.
    let out = step(&mut machine, Event::Written(*id, Outcome::Applied(version(2))), now);
    let sent = Instant::from_millis(1000);
    let deadline = sent.plus(Timing::BALANCED.fence);
    let grant = Effect::Grant { epoch: epoch.next(), incarnation: NOW, deadline };
    assert!(out.contains(&grant), "{out:?}");
}

#[test]
fn nothing_and_an_empty_record_is_a_bootstrap() {
    claims(Directory::Empty, Record::default(), None);
}

#[test]
fn nothing_and_somebody_elses_bootstrap_waits_for_it() {
    let record = Record { system: None, ..by_other() };
    waits(Directory::Empty, record.clone(), "BootstrapElsewhere");
    let (mut machine, _) = seen(Directory::Empty, record);
    let over = Instant::from_millis(1000).plus(Duration::from_secs(6));
    assert_eq!(machine.wake(), Some(over), "L after the last change");
    let before = step(&mut machine, Event::Tick, over.minus(Duration::from_millis(1)));
    assert_eq!(before, []);
    let out = step(&mut machine, Event::Tick, over);
    assert!(out.iter().any(|e| matches!(e, Effect::Write { .. })), "{out:?}");
}

#[test]
fn nothing_and_this_pods_own_unfinished_bootstrap_goes_on_at_once() {
    claims(Directory::Empty, Record { system: None, ..held(OTHER, BEFORE, mine()) }, None);
}

#[test]
fn nothing_and_a_known_cluster_is_a_copy_never_an_initdb() {
    begins(
        Directory::Empty,
        by_other(),
        |op| matches!(op, Op::Clone { from, .. } if from.holder.instance == OTHER),
    );
}

#[test]
fn nothing_where_the_primary_was_waits_for_a_person() {
    waits(Directory::Empty, held(OTHER, BEFORE, mine()), "HolderDataLost");
    waits(Directory::Empty, Record { holder: None, ..by_other() }, "NoHolder");
    waits(Directory::Empty, Record { state: RecordState::Released, ..by_other() }, "HolderStopped");
    waits(Directory::Empty, Record { state: RecordState::Frozen, ..by_other() }, "Frozen");
}

#[test]
fn data_and_a_holder_elsewhere_follows() {
    for state in [RecordState::Held, RecordState::Released, RecordState::Frozen] {
        begins(
            data(ME, OURS),
            Record { state, ..by_other() },
            |op| matches!(op, Op::Follow { instance: ME, upstream, running: false } if upstream.epoch == Epoch(3)),
        );
    }
}

#[test]
fn data_of_another_cluster_is_set_aside_and_never_over_an_empty_record() {
    begins(data(ME, SystemId(9)), by_other(), |op| matches!(op, Op::SetAside { .. }));
    let foreign = || Directory::Foreign { why: "not ours".into() };
    begins(foreign(), by_other(), |op| matches!(op, Op::SetAside { .. }));
    waits(foreign(), Record::default(), "DataWithoutRecord");
    waits(data(ME, OURS), Record::default(), "DataWithoutRecord");
    waits(data(ME, OURS), Record { system: None, ..by_other() }, "BootstrapElsewhere");
}

#[test]
fn the_recorded_holder_takes_its_place_only_with_proof() {
    let same_pod = held(ME, BEFORE, mine());
    let same_node = held(ME, BEFORE, place("c-0", "earlier", "node"));
    let elsewhere = held(ME, BEFORE, place("c-0", "earlier", "elsewhere"));
    claims(data(ME, OURS), same_pod.clone(), Some(ME));
    claims(data(ME, OURS), same_node, Some(ME));
    waits(data(ME, OURS), elsewhere.clone(), "HolderNotProvenDead");
    for state in [RecordState::Released, RecordState::Handover] {
        claims(data(ME, OURS), Record { state, ..elsewhere.clone() }, Some(ME));
    }
    // A snapshot of the volume in another pod has another lock.
    waits(data(ME, OURS), held(ME, BEFORE, place("c-7", "x", "node")), "HolderNotProvenDead");
    waits(data(ME, OURS), Record { state: RecordState::Frozen, ..same_pod }, "Frozen");
}

#[test]
fn the_same_life_renews_before_it_does_anything() {
    let (mut machine, out) = seen(data(ME, OURS), held(ME, NOW, mine()));
    let Some(Effect::Write { id, record, .. }) = out.iter().find(|e| matches!(e, Effect::Write { .. }))
    else {
        panic!("no renewal: {out:?}");
    };
    assert_eq!(record.epoch, Epoch(3), "the same epoch");
    assert!(!out.iter().any(|e| matches!(e, Effect::Begin(_, Op::Primary { .. }))), "{out:?}");
    let out =
        step(&mut machine, Event::Written(*id, Outcome::Applied(version(2))), Instant::from_millis(1100));
    let primary = |e: &Effect| {
        matches!(e, Effect::Begin(_, Op::Primary { instance: ME, epoch: Epoch(3), running: false }))
    };
    assert!(out.iter().any(primary), "{out:?}");
}

#[test]
fn a_record_that_went_back_blocks() {
    let promised = |epoch| Directory::Complete(Data { instance: ME, promised: Epoch(epoch), system: OURS });
    waits(promised(5), by_other(), "RecordRolledBack");
    // One ahead is a promise that was given and not yet used.
    begins(promised(4), by_other(), |op| matches!(op, Op::Follow { .. }));
}

#[test]
fn a_version_that_can_not_be_run_touches_nothing() {
    let mut machine = start(Some(11));
    let supervisor =
        Supervisor { incarnation: NOW, grant: None, postmaster: None, locked: false, sigterm: false };
    let out = step(&mut machine, Event::Connected(supervisor, None), Instant::from_millis(1));
    assert!(!out.iter().any(|e| matches!(e, Effect::Begin(..) | Effect::Write { .. })), "{out:?}");
    let view = machine.view();
    assert_eq!(view.reason, Some(Reason::VersionNotYetSupported { version: 11 }));
    assert_eq!(view.state, "Blocked");
}
