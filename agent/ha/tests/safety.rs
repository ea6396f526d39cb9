//! The protocol against an adversary: crashes, partitions, lost, late and repeated messages, pauses, moved and wiped volumes.
//!
//! `proptest` records a failing run in `proptest-regressions/` and replays it first. Every rule is proved to be looked at: a protocol
//! with that rule broken must be caught.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "tests")]

mod sim;

use std::cell::RefCell;

use pgwarden_ha::Mutant;
use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, FileFailurePersistence, RngAlgorithm, TestError, TestRng, TestRunner},
};
use sim::{Action, NODES, Reached, World};

fn action() -> impl Strategy<Value = Action> {
    let pod = || 0..NODES;
    prop_oneof![
        30 => (1_u16..40).prop_map(Action::Advance),
        6 => (40_u16..200).prop_map(Action::Advance),
        4 => (pod(), any::<bool>()).prop_map(|(p, b)| Action::Partition(p, b)),
        2 => any::<bool>().prop_map(Action::ApiDown),
        4 => (pod(), 100_u16..990).prop_map(|(p, ms)| Action::SlowReply(p, ms)),
        4 => pod().prop_map(Action::LoseReply),
        3 => (pod(), 500_u16..9000).prop_map(|(p, ms)| Action::DelayWrite(p, ms)),
        4 => pod().prop_map(Action::CrashAgent),
        3 => (pod(), any::<bool>()).prop_map(|(p, b)| Action::Pause(p, b)),
        3 => pod().prop_map(Action::KillContainer),
        2 => (pod(), any::<bool>()).prop_map(|(p, b)| Action::DeletePod(p, b)),
        2 => pod().prop_map(Action::ForceMove),
        1 => pod().prop_map(Action::Wipe),
        1 => pod().prop_map(Action::PlaceForeign),
        3 => pod().prop_map(Action::CrashPostgres),
        3 => pod().prop_map(Action::FailOp),
        3 => pod().prop_map(Action::Duplicate),
        3 => (pod(), 0_u8..6).prop_map(|(p, b)| Action::StaleWatch(p, b)),
        2 => (pod(), any::<bool>()).prop_map(|(p, b)| Action::Voters(p, b)),
        1 => Just(Action::Touch),
    ]
}

fn check(mutant: Option<Mutant>, actions: &[Action]) -> Result<Reached, TestCaseError> {
    let mut world = World::new(mutant);
    world.run(actions);
    match world.violation {
        None => Ok(world.reached),
        Some(violation) => Err(TestCaseError::fail(violation)),
    }
}

fn config(cases: u32) -> Config {
    Config {
        cases,
        max_shrink_iters: 4000,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        source_file: Some(file!()),
        ..Config::default()
    }
}

/// More cases by `PROPTEST_CASES`.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(1500)
}

#[test]
fn nothing_that_happens_breaks_an_invariant_and_everything_is_reached() {
    let reached = RefCell::new(Reached::new());
    let result = TestRunner::new(config(cases())).run(&vec(action(), 20..200), |actions| {
        reached.borrow_mut().extend(check(None, &actions)?);
        Ok(())
    });
    if let Err(TestError::Fail(why, actions)) = result {
        let mut world = World::new(None);
        world.tracing = true;
        world.run(&actions);
        panic!("{why}\n{}\n{actions:?}", world.trace.join("\n"));
    }
    result.unwrap();
    let reached = reached.into_inner();
    for wanted in [
        "Bootstrapping",
        "Initialised",
        "BecamePrimary",
        "Affirmed",
        "Renewed",
        "RestartingInPlace",
        "Released",
        "Reclaimed",
        "took over a dead bootstrap",
        "Cloned",
        "Following",
        "Fenced",
        "SetAside",
        "adopted",
        "deadline fired",
        "holder not proven dead",
        "holder's data lost",
        "data without record",
        "another instance elected",
    ] {
        assert!(reached.contains(wanted), "never reached: {wanted}; reached {reached:?}");
    }
}

#[test]
fn a_quiet_world_has_a_primary_and_two_replicas() {
    let mut world = World::new(None);
    world.run(&[Action::Advance(200)]);
    assert_eq!(world.violation, None);
    for wanted in ["BecamePrimary", "Cloned", "Following"] {
        assert!(world.reached.contains(wanted), "{wanted}: {:?}", world.reached);
    }
    assert!(!world.reached.contains("Fenced"), "{:?}", world.reached);
}

/// An agent dies while a write that lets another instance vote is still on its way; the next agent must not affirm itself alone.
fn dead_agents_write(mutant: Option<Mutant>) -> Vec<String> {
    let mut violations = Vec::new();
    for delay in (600..5000).step_by(150) {
        for quiet in 1..4 {
            let mut world = World::new(mutant);
            world.run(&[
                Action::Advance(60 + 7 * quiet),
                Action::DelayWrite(0, delay),
                Action::Voters(0, true),
                Action::ApiDown(quiet > 1),
                Action::CrashAgent(0),
                // Its successor's own writes do not get through either.
                Action::DelayWrite(0, delay + 100),
                Action::Advance(250),
            ]);
            violations.extend(world.violation);
        }
    }
    violations
}

#[test]
fn what_a_dead_agent_has_sent_binds_the_next_one() {
    assert_eq!(dead_agents_write(None), Vec::<String>::new());
    assert_ne!(dead_agents_write(Some(Mutant::ForgetNote)), Vec::<String>::new(), "the test would see it");
}

/// A protocol with one rule broken is caught.
fn caught(mutant: Mutant) {
    let config = Config { failure_persistence: None, max_shrink_iters: 0, ..config(20_000) };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let result = TestRunner::new_with_rng(config, rng)
        .run(&vec(action(), 20..200), |actions| check(Some(mutant), &actions).map(drop));
    let Err(TestError::Fail(why, _)) = result else { panic!("{mutant:?} was not caught: {result:?}") };
    // By an invariant, not because the broken protocol spins.
    assert!(!why.to_string().contains("come to rest"), "{mutant:?}: {why}");
    println!("{mutant:?}: {why}");
}

macro_rules! mutants {
    ($($name:ident: $mutant:ident;)*) => { $(#[test] fn $name() { caught(Mutant::$mutant); })* };
}

mutants! {
    a_deadline_counted_from_the_reply_is_caught: DeadlineFromReply;
    a_restart_without_proof_of_death_is_caught: NoProofOfDeath;
    initdb_in_a_known_cluster_is_caught: InitdbAnyway;
    affirmation_under_an_ambiguous_record_is_caught: AffirmAmbiguous;
    a_grant_for_another_incarnation_is_caught: AnyIncarnation;
    a_start_of_a_foreign_directory_is_caught: StartForeign;
    a_holder_that_ignores_another_is_caught: IgnoreOtherHolder;
}
