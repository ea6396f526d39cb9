use pgwarden_supervisor::clock::SECOND;

use super::*;

const OURS: Incarnation = Incarnation([1; 16]);
const NOW: u64 = 1_000 * SECOND;

fn new() -> State {
    let mut state = State::new(OURS, false, 60 * SECOND);
    ask(&mut state, Request::Hello, NOW);
    state
}

/// Asks on the controlling connection; starts succeed with pid 77.
fn ask(state: &mut State, request: Request, now: u64) -> Vec<Action> {
    let mut actions = state.handle(Input::Request { connection: 1, request }, now);
    if matches!(actions.last(), Some(Action::Spawn(_))) {
        actions.extend(state.handle(Input::Started(Some(77)), now));
    } else if let Some(Action::SpawnTool(_, pending)) = actions.last() {
        let started = Input::ToolStarted(88, pending.clone());
        actions.extend(state.handle(started, now));
    }
    actions
}

fn code(actions: &[Action]) -> Option<RefusalCode> {
    match actions.last() {
        Some(Action::Reply(Reply::Refused(refusal))) => {
            assert_eq!(actions.len(), 1, "a refusal does nothing");
            Some(refusal.code)
        }
        _ => None,
    }
}

fn grant(epoch: u64, deadline_ns: u64) -> Request {
    Request::Grant { epoch, incarnation: OURS, deadline_ns }
}

fn start(mode: Mode, epoch: u64) -> Request {
    Request::Start(Start {
        mode,
        epoch,
        argv: vec!["postgres".into()],
        env: Vec::new(),
        cwd: None,
        death_pipe: false,
        log: false,
    })
}

fn run(program: &str, kill_on_disconnect: bool) -> Request {
    Request::Run(Run {
        argv: vec![program.into()],
        env: Vec::new(),
        cwd: None,
        stdin: false,
        stdout: false,
        stderr: false,
        kill_on_disconnect,
    })
}

fn promote(epoch: u64) -> Request {
    Request::Promote { epoch, data_dir: "/data".into() }
}

fn refusal_of(state: &mut State, request: Request, now: u64) -> Option<RefusalCode> {
    code(&ask(state, request, now))
}

#[test]
fn grants_are_for_this_life_only_and_go_forward_only() {
    let mut state = new();
    let other = Request::Grant { epoch: 1, incarnation: Incarnation([2; 16]), deadline_ns: NOW + SECOND };
    assert_eq!(refusal_of(&mut state, other, NOW), Some(RefusalCode::WrongIncarnation));
    assert_eq!(refusal_of(&mut state, grant(1, NOW), NOW), Some(RefusalCode::DeadlinePassed));
    assert_eq!(refusal_of(&mut state, grant(1, NOW + 121 * SECOND), NOW), Some(RefusalCode::DeadlineTooFar));
    assert_eq!(state.highest_epoch, 0, "a refused grant leaves nothing behind");
    let deadline = NOW + 4 * SECOND;
    assert_eq!(
        ask(&mut state, grant(5, deadline), NOW),
        vec![
            Action::SetDeadline(deadline),
            Action::Reply(Reply::Granted(GrantView { epoch: 5, deadline_ns: deadline }))
        ]
    );
    assert_eq!(refusal_of(&mut state, grant(5, deadline - 1), NOW), Some(RefusalCode::DeadlineBackwards));
    assert_eq!(refusal_of(&mut state, grant(4, deadline + 1), NOW), Some(RefusalCode::StaleEpoch));
    assert_eq!(refusal_of(&mut state, grant(5, deadline), NOW), None, "again is fine");
    assert_eq!(refusal_of(&mut state, grant(6, deadline), NOW), None, "a newer epoch is fine");
    assert_eq!(refusal_of(&mut state, grant(5, deadline + 1), NOW), Some(RefusalCode::StaleEpoch));
    // Not even after it has fired does an earlier deadline come back.
    state.handle(Input::DeadlineFired, deadline);
    assert_eq!(refusal_of(&mut state, grant(6, deadline - 1), NOW), Some(RefusalCode::DeadlineBackwards));
}

#[test]
fn a_primary_needs_a_live_grant_of_its_very_epoch() {
    let mut state = new();
    let deadline = NOW + 4 * SECOND;
    assert_eq!(refusal_of(&mut state, start(Mode::Primary, 1), NOW), Some(RefusalCode::NoGrant));
    ask(&mut state, grant(2, deadline), NOW);
    for epoch in [0, 1, 3] {
        assert_eq!(refusal_of(&mut state, start(Mode::Primary, epoch), NOW), Some(RefusalCode::NoGrant));
    }
    let late = deadline - QUIT_LEAD;
    assert_eq!(refusal_of(&mut state, start(Mode::Primary, 2), late), Some(RefusalCode::NoGrant));
    let actions = ask(&mut state, start(Mode::Primary, 2), late - 1);
    assert_eq!(actions[0], Action::Arm(None), "armed before it exists");
    assert!(matches!(actions[1], Action::Spawn(_)));
    assert_eq!(actions[2..], [Action::Arm(Some(77)), Action::Reply(Reply::Started { start_id: 1, pid: 77 })]);
    assert_eq!(refusal_of(&mut state, start(Mode::Standby, 2), NOW), Some(RefusalCode::AlreadyRunning));
}

#[test]
fn a_standby_is_not_armed_until_it_is_promoted() {
    let mut state = new();
    assert_eq!(refusal_of(&mut state, promote(1), NOW), Some(RefusalCode::NotRunning));
    let actions = ask(&mut state, start(Mode::Standby, 0), NOW);
    assert!(!actions.iter().any(|action| matches!(action, Action::Arm(_))));
    assert_eq!(refusal_of(&mut state, promote(1), NOW), Some(RefusalCode::NoGrant));
    ask(&mut state, grant(1, NOW + 4 * SECOND), NOW);
    assert_eq!(refusal_of(&mut state, promote(2), NOW), Some(RefusalCode::NoGrant));
    let relative = Request::Promote { epoch: 1, data_dir: "data".into() };
    assert_eq!(refusal_of(&mut state, relative, NOW), Some(RefusalCode::BadRequest));
    let expected = vec![
        Action::Arm(Some(77)),
        Action::PromoteFile("/data".into()),
        Action::Signal(77, libc::SIGUSR1),
        Action::Reply(Reply::Done),
    ];
    assert_eq!(ask(&mut state, promote(1), NOW), expected);
    assert_eq!(state.status(NOW).postmaster.unwrap().mode, Mode::Primary);
    assert_eq!(ask(&mut state, promote(1), NOW), expected, "again is fine");
    ask(&mut state, grant(2, NOW + 5 * SECOND), NOW);
    assert_eq!(refusal_of(&mut state, promote(2), NOW), Some(RefusalCode::NotStandby));
}

#[test]
fn a_born_primary_is_not_promoted() {
    let mut state = new();
    ask(&mut state, grant(1, NOW + 4 * SECOND), NOW);
    ask(&mut state, start(Mode::Primary, 1), NOW);
    assert_eq!(refusal_of(&mut state, promote(1), NOW), Some(RefusalCode::NotStandby));
}

#[test]
fn after_the_switch_has_fired_a_newer_grant_is_needed() {
    let mut state = new();
    let deadline = NOW + 4 * SECOND;
    ask(&mut state, grant(1, deadline), NOW);
    ask(&mut state, start(Mode::Primary, 1), NOW);
    let actions = state.handle(Input::DeadlineFired, deadline);
    assert_eq!(actions[0], Action::KillEverything, "also what was made meanwhile");
    assert!(actions.contains(&Action::Tell(Event::DeadlineFired { epoch: 1 })));
    let exit = Exit::Signal(libc::SIGKILL);
    let actions = state.handle(Input::PostmasterExited { exit, drained: true }, deadline);
    assert_eq!(actions[0], Action::Disarm);
    let status = state.status(deadline);
    assert_eq!((status.fenced, status.grant, status.postmaster), (Some(1), None, None));
    assert_eq!(status.last_exit, Some(PostmasterExit { start_id: 1, exit, drained: true }));
    assert_eq!(refusal_of(&mut state, start(Mode::Primary, 1), deadline), Some(RefusalCode::NoGrant));
    ask(&mut state, grant(1, deadline + 4 * SECOND), deadline);
    assert_eq!(refusal_of(&mut state, start(Mode::Primary, 1), deadline), None);
}

#[test]
fn a_postmaster_that_obeys_the_switch_is_fenced_once() {
    let mut state = new();
    ask(&mut state, grant(1, NOW + 4 * SECOND), NOW);
    ask(&mut state, start(Mode::Primary, 1), NOW);
    state.handle(Input::DeadlineQuit, NOW + 3_500 * MILLISECOND);
    let fired = Action::Tell(Event::DeadlineFired { epoch: 1 });
    let mut late = state.clone();
    let exited = Input::PostmasterExited { exit: Exit::Code(2), drained: true };
    let actions = state.handle(exited.clone(), NOW + 3_600 * MILLISECOND);
    assert_eq!((&actions[0], &actions[2]), (&Action::Disarm, &fired));
    assert!(matches!(actions[3], Action::Tell(Event::PostmasterExited(_))));
    assert_eq!((state.status(NOW).fenced, state.status(NOW).grant), (Some(1), None));
    // It does not obey: told at the deadline, and not once more at its end.
    assert!(late.handle(Input::DeadlineFired, NOW + 4 * SECOND).contains(&fired));
    assert!(!late.handle(exited.clone(), NOW + 4 * SECOND).contains(&fired));
    // A standby is not the switch's business.
    let mut state = new();
    ask(&mut state, start(Mode::Standby, 1), NOW);
    state.handle(Input::DeadlineQuit, NOW);
    assert_eq!(state.handle(exited, NOW).len(), 2);
    assert_eq!(state.status(NOW).fenced, None);
}

#[test]
fn a_grant_that_races_with_the_switch_is_lost() {
    let mut state = new();
    ask(&mut state, grant(1, NOW + 4 * SECOND), NOW);
    ask(&mut state, start(Mode::Primary, 1), NOW);
    // The thread has fired, the news comes after a grant that came too late.
    ask(&mut state, grant(1, NOW + 8 * SECOND), NOW + 3 * SECOND);
    state.handle(Input::DeadlineFired, NOW + 4 * SECOND);
    state.handle(Input::PostmasterExited { exit: Exit::Signal(9), drained: true }, NOW + 4 * SECOND);
    assert_eq!(refusal_of(&mut state, start(Mode::Primary, 1), NOW + 4 * SECOND), Some(RefusalCode::NoGrant));
}

#[test]
fn the_epoch_moves_only_for_a_living_primary() {
    let mut state = new();
    let deadline = NOW + 4 * SECOND;
    let set = |from, to| Request::SetEpoch { from, to };
    assert_eq!(refusal_of(&mut state, set(1, 2), NOW), Some(RefusalCode::NoGrant));
    ask(&mut state, grant(1, deadline), NOW);
    assert_eq!(refusal_of(&mut state, set(1, 2), NOW), Some(RefusalCode::NotPrimary));
    ask(&mut state, start(Mode::Standby, 1), NOW);
    assert_eq!(refusal_of(&mut state, set(1, 2), NOW), Some(RefusalCode::NotPrimary));
    ask(&mut state, promote(1), NOW);
    assert_eq!(refusal_of(&mut state, set(1, 1), NOW), Some(RefusalCode::BadRequest));
    assert_eq!(refusal_of(&mut state, set(0, 2), NOW), Some(RefusalCode::NoGrant));
    assert_eq!(ask(&mut state, set(1, 2), NOW), vec![Action::Reply(Reply::Done)]);
    assert_eq!(ask(&mut state, set(1, 2), NOW), vec![Action::Reply(Reply::Done)], "again is fine");
    let status = state.status(NOW);
    assert_eq!(status.postmaster.unwrap().epoch, 2);
    assert_eq!(status.grant, Some(GrantView { epoch: 2, deadline_ns: deadline }), "the deadline stays");
    assert_eq!(refusal_of(&mut state, grant(1, deadline + 1), NOW), Some(RefusalCode::StaleEpoch));
    assert_eq!(
        refusal_of(&mut state, set(2, 3), deadline),
        Some(RefusalCode::NoGrant),
        "not when it is over"
    );
}

#[test]
fn a_failed_start_leaves_nothing_armed() {
    let mut state = new();
    ask(&mut state, grant(1, NOW + 4 * SECOND), NOW);
    state.handle(Input::Request { connection: 1, request: start(Mode::Primary, 1) }, NOW);
    assert_eq!(state.handle(Input::Started(None), NOW), vec![Action::Disarm]);
    assert_eq!(refusal_of(&mut state, start(Mode::Primary, 1), NOW), None);
}

#[test]
fn only_the_connection_that_said_hello_last_is_heard() {
    let mut state = State::new(OURS, false, 60 * SECOND);
    assert_eq!(refusal_of(&mut state, grant(1, NOW + SECOND), NOW), Some(RefusalCode::HelloFirst));
    ask(&mut state, Request::Hello, NOW);
    ask(&mut state, run("pg_basebackup", true), NOW);
    let actions = state.handle(Input::Request { connection: 2, request: Request::Hello }, NOW);
    assert_eq!(actions[..2], [Action::KillGroup(88), Action::Close(1)]);
    assert!(matches!(actions[2], Action::Reply(Reply::Hello(_))));
    assert_eq!(refusal_of(&mut state, grant(1, NOW + SECOND), NOW), Some(RefusalCode::HelloFirst));
    assert!(
        state
            .handle(Input::Closed { connection: 1 }, NOW)
            .iter()
            .all(|it| matches!(it, Action::KillGroup(_)))
    );
    assert_eq!(state.controller(), Some(2), "the loss of an old connection changes nothing");
    assert_eq!(state.handle(Input::Closed { connection: 2 }, NOW), vec![], "not its tool");
}

#[test]
fn tools_die_with_their_connection_unless_told_otherwise() {
    let mut state = new();
    ask(&mut state, run("pg_rewind", true), NOW);
    ask(&mut state, run("pg_controldata", false), NOW);
    assert_eq!(state.status(NOW).tools.len(), 2);
    state.tools[1].pid = 89;
    assert_eq!(state.handle(Input::Closed { connection: 1 }, NOW), vec![Action::KillGroup(88)]);
    let exited = |pid| Input::ChildExited { pid, exit: Exit::Code(0) };
    assert_eq!(state.handle(exited(12345), NOW), vec![], "an orphan");
    assert_eq!(
        state.handle(exited(88), NOW),
        vec![Action::Tell(Event::ToolExited { tool: 1, exit: Exit::Code(0) })]
    );
    assert_eq!(state.handle(exited(89), NOW)[0], Action::Sweep, "nothing of ours runs any more");
}

#[test]
fn what_a_tool_leaves_is_not_swept_while_a_postmaster_runs() {
    let mut state = new();
    ask(&mut state, start(Mode::Standby, 1), NOW);
    ask(&mut state, run("pg_dump", true), NOW);
    let actions = state.handle(Input::ChildExited { pid: 88, exit: Exit::Code(0) }, NOW);
    assert!(!actions.contains(&Action::Sweep));
}

#[test]
fn tools_are_bounded() {
    let mut state = new();
    assert_eq!(refusal_of(&mut state, run("", true), NOW), Some(RefusalCode::BadRequest));
    for _ in 0..MAX_TOOLS {
        assert_eq!(refusal_of(&mut state, run("pg_dump", true), NOW), None);
    }
    assert_eq!(refusal_of(&mut state, run("pg_dump", true), NOW), Some(RefusalCode::TooMany));
    let kill = |tool, signal| Request::KillTool { tool, signal };
    assert_eq!(refusal_of(&mut state, kill(99, 9), NOW), Some(RefusalCode::NoSuchTool));
    assert_eq!(refusal_of(&mut state, kill(1, 0), NOW), Some(RefusalCode::BadRequest));
    assert_eq!(ask(&mut state, kill(1, 15), NOW)[0], Action::SignalGroup(88, 15));
}

#[test]
fn signals_go_to_others_only() {
    let mut state = new();
    for pid in [i32::MIN, -1, 0, 1] {
        let request = Request::Signal { pid, signal: libc::SIGTERM };
        assert_eq!(refusal_of(&mut state, request, NOW), Some(RefusalCode::NoSuchProcess), "{pid}");
    }
    for signal in [-1, 0, 65] {
        let request = Request::Signal { pid: 5, signal };
        assert_eq!(refusal_of(&mut state, request, NOW), Some(RefusalCode::NoSuchProcess), "{signal}");
    }
    let request = Request::Signal { pid: 5, signal: 15 };
    assert_eq!(ask(&mut state, request, NOW)[0], Action::SignalOther(5, 15));
    assert_eq!(refusal_of(&mut state, Request::Reload, NOW), Some(RefusalCode::NotRunning));
    ask(&mut state, start(Mode::Standby, 1), NOW);
    for (mode, signal) in [
        (StopMode::Smart, libc::SIGTERM),
        (StopMode::Fast, libc::SIGINT),
        (StopMode::Immediate, libc::SIGQUIT),
    ] {
        assert_eq!(ask(&mut state, Request::Stop { mode }, NOW)[0], Action::Signal(77, signal));
    }
    assert_eq!(ask(&mut state, Request::Reload, NOW)[0], Action::Signal(77, libc::SIGHUP));
}

#[test]
fn without_the_lock_that_was_asked_for_nothing_starts() {
    let mut state = new();
    let lock = |path: &str| Request::Lock { path: path.into() };
    assert_eq!(refusal_of(&mut state, lock("relative"), NOW), Some(RefusalCode::BadRequest));
    assert_eq!(refusal_of(&mut state, run("initdb", true), NOW), None, "nobody asked for a lock yet");
    assert_eq!(ask(&mut state, lock("/l"), NOW), vec![Action::Lock("/l".into())]);
    // The open itself may have failed: then nothing is fed back.
    assert_eq!(refusal_of(&mut state, start(Mode::Standby, 1), NOW), Some(RefusalCode::LockMissing));
    let actions = state.handle(Input::Locked("/l".into(), false), NOW);
    assert_eq!(code(&actions), Some(RefusalCode::LockedElsewhere));
    assert_eq!(refusal_of(&mut state, start(Mode::Standby, 1), NOW), Some(RefusalCode::LockMissing));
    assert_eq!(refusal_of(&mut state, run("initdb", true), NOW), Some(RefusalCode::LockMissing));
    ask(&mut state, lock("/l"), NOW);
    assert_eq!(state.handle(Input::Locked("/l".into(), true), NOW), vec![Action::Reply(Reply::Done)]);
    assert_eq!(ask(&mut state, lock("/l"), NOW), vec![Action::Reply(Reply::Done)], "again is fine");
    assert_eq!(refusal_of(&mut state, lock("/m"), NOW), Some(RefusalCode::BadRequest));
    assert_eq!(refusal_of(&mut state, start(Mode::Standby, 1), NOW), None);
}

#[test]
fn the_note_is_kept_and_bounded() {
    let mut state = new();
    ask(&mut state, Request::SetNote(b"record".to_vec()), NOW);
    assert_eq!(
        refusal_of(&mut state, Request::SetNote(vec![0; MAX_NOTE + 1]), NOW),
        Some(RefusalCode::BadRequest)
    );
    state.handle(Input::Closed { connection: 1 }, NOW);
    assert_eq!(state.status(NOW).note, b"record");
}

#[test]
fn exit_kills_and_is_final() {
    let mut state = new();
    assert_eq!(
        ask(&mut state, Request::Exit { code: 3 }, NOW),
        vec![Action::KillEverything, Action::Reply(Reply::Done), Action::Exit(3)]
    );
    assert_eq!(refusal_of(&mut state, start(Mode::Standby, 1), NOW), Some(RefusalCode::Terminating));
}

fn tick(state: &mut State, now: u64) -> Vec<Action> {
    let mut actions = state.handle(Input::Tick, now);
    actions.retain(|action| !matches!(action, Action::Log(_)));
    actions
}

/// A pod with a running standby that was told to go at `NOW`.
fn deleted() -> State {
    let mut state = new();
    ask(&mut state, start(Mode::Standby, 1), NOW);
    assert!(state.handle(Input::SigTerm, NOW).contains(&Action::Tell(Event::SigTerm)));
    assert_eq!(state.handle(Input::SigTerm, NOW + 1), vec![], "once");
    assert_eq!(refusal_of(&mut state, promote(1), NOW), Some(RefusalCode::Terminating));
    state
}

#[test]
fn a_silent_agent_has_two_seconds() {
    let mut state = deleted();
    assert_eq!(tick(&mut state, NOW + 2 * SECOND - 1), vec![]);
    assert_eq!(state.next_tick(), Some(NOW + 2 * SECOND));
    assert_eq!(tick(&mut state, NOW + 2 * SECOND), vec![Action::Signal(77, libc::SIGINT)]);
    assert_eq!(tick(&mut state, NOW + 56 * SECOND), vec![Action::Signal(77, libc::SIGQUIT)]);
    assert_eq!(tick(&mut state, NOW + 58_500 * MILLISECOND), vec![Action::Exit(0)]);
}

#[test]
fn an_agent_that_answers_has_until_ten_seconds_before_the_end() {
    let mut state = deleted();
    ask(&mut state, Request::SigTermAck, NOW + SECOND);
    assert_eq!(tick(&mut state, NOW + 50 * SECOND - 1), vec![]);
    assert_eq!(refusal_of(&mut state, run("pg_controldata", true), NOW), None, "the end of the WAL is read");
    state.handle(Input::PostmasterExited { exit: Exit::Code(0), drained: true }, NOW + 9 * SECOND);
    assert_eq!(tick(&mut state, NOW + 10 * SECOND), vec![], "it waits for Exit");
    assert_eq!(refusal_of(&mut state, start(Mode::Standby, 1), NOW), Some(RefusalCode::Terminating));
    assert_eq!(tick(&mut state, NOW + 50 * SECOND), vec![Action::Exit(0)]);
}

#[test]
fn an_agent_that_is_lost_is_waited_for_two_seconds() {
    let mut state = deleted();
    ask(&mut state, Request::SigTermAck, NOW);
    state.handle(Input::Closed { connection: 1 }, NOW + 10 * SECOND);
    assert_eq!(tick(&mut state, NOW + 12 * SECOND - 1), vec![]);
    let mut adopted = state.clone();
    assert_eq!(tick(&mut state, NOW + 12 * SECOND), vec![Action::Signal(77, libc::SIGINT)]);
    // Another one takes it on in time.
    ask(&mut adopted, Request::Hello, NOW + 11 * SECOND);
    assert!(adopted.status(NOW).sigterm);
    ask(&mut adopted, Request::SigTermAck, NOW + 11 * SECOND);
    assert_eq!(tick(&mut adopted, NOW + 49 * SECOND), vec![]);
}

#[test]
fn with_postgres_down_and_no_agent_there_is_nothing_to_wait_for() {
    let mut state = new();
    state.handle(Input::Closed { connection: 1 }, NOW);
    assert_eq!(tick(&mut state, NOW), vec![], "but without SIGTERM it outlives Postgres");
    state.handle(Input::SigTerm, NOW);
    assert_eq!(tick(&mut state, NOW), vec![Action::Exit(0)]);
    let mut state = new();
    state.handle(Input::SigTerm, NOW);
    assert_eq!(tick(&mut state, NOW), vec![], "an agent that is there has its two seconds");
    assert_eq!(tick(&mut state, NOW + 2 * SECOND), vec![Action::Exit(0)]);
}

#[test]
fn stages_are_ordered_in_any_grace_period() {
    for grace in 1..120 {
        let mut state = State::new(OURS, false, grace * SECOND);
        ask(&mut state, Request::Hello, NOW);
        ask(&mut state, start(Mode::Standby, 1), NOW);
        state.handle(Input::SigTerm, NOW);
        ask(&mut state, Request::SigTermAck, NOW);
        let mut last = NOW;
        for expected in [Action::Signal(77, libc::SIGINT), Action::Signal(77, libc::SIGQUIT), Action::Exit(0)]
        {
            let due = state.next_tick().unwrap();
            assert!(due > last && due < NOW + grace * SECOND, "{grace}");
            assert_eq!(tick(&mut state, due), vec![expected], "{grace}");
            last = due;
        }
    }
}

#[test]
fn a_long_sleep_runs_all_stages_in_order() {
    let mut state = deleted();
    assert_eq!(
        tick(&mut state, NOW + 60 * SECOND),
        vec![Action::Signal(77, libc::SIGINT), Action::Signal(77, libc::SIGQUIT), Action::Exit(0)]
    );
}
