//! A small world around the state: a postmaster, a dead-man switch, a clock. Every sequence of events up to a depth, and long
//! random ones, must keep the invariants.

use pgwarden_supervisor::clock::SECOND;

use super::*;

const OURS: Incarnation = Incarnation([7; 16]);
const THEIRS: Incarnation = Incarnation([8; 16]);
const GRACE: u64 = 60 * SECOND;

/// What can happen.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Step {
    Hello(u64),
    Close,
    Grant(u64),
    GrantBackwards(u64),
    GrantElsewhere(u64),
    GrantFar,
    StartPrimary(u64),
    StartPrimaryFails(u64),
    StartStandby,
    Promote(u64),
    SetEpoch(u64, u64),
    Crash,
    KillAll,
    SigTerm,
    Ack,
    Pass(u64),
}

const STEPS: [Step; 22] = [
    Step::Hello(1),
    Step::Hello(2),
    Step::Close,
    Step::Grant(1),
    Step::Grant(2),
    Step::GrantBackwards(2),
    Step::GrantElsewhere(2),
    Step::GrantFar,
    Step::StartPrimary(1),
    Step::StartPrimary(2),
    Step::StartPrimaryFails(1),
    Step::StartStandby,
    Step::Promote(1),
    Step::Promote(2),
    Step::SetEpoch(1, 2),
    Step::Crash,
    Step::KillAll,
    Step::SigTerm,
    Step::Ack,
    Step::Pass(SECOND),
    Step::Pass(3_600 * MILLISECOND),
    Step::Pass(5 * SECOND),
];

#[derive(Debug, Clone)]
struct Process {
    writable: bool,
    epoch: u64,
}

#[derive(Debug, Clone)]
struct World {
    state: State,
    now: u64,
    process: Option<Process>,
    next_pid: i32,
    /// As the dead-man thread sees it.
    armed: bool,
    deadline: u64,
    /// Highest epoch and latest deadline of grants that were meant for us, whether taken or not.
    highest_granted: u64,
    granted_until: [u64; 3],
    exited: bool,
    spawn_fails: bool,
    seen: Seen,
}

/// The interesting things did happen somewhere, or the invariants hold for nothing.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    primary: bool,
    promoted: bool,
    fenced: bool,
    primary_after_fence: bool,
    epoch_moved: bool,
    own_stop: bool,
}

impl Seen {
    fn add(&mut self, other: Self) {
        self.primary |= other.primary;
        self.promoted |= other.promoted;
        self.fenced |= other.fenced;
        self.primary_after_fence |= other.primary_after_fence;
        self.epoch_moved |= other.epoch_moved;
        self.own_stop |= other.own_stop;
    }

    fn everything(self) -> bool {
        self.primary
            && self.promoted
            && self.fenced
            && self.primary_after_fence
            && self.epoch_moved
            && self.own_stop
    }
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            state: State::new(OURS, true, GRACE),
            now: 1_000 * SECOND,
            process: None,
            next_pid: 100,
            armed: false,
            deadline: 0,
            highest_granted: 0,
            granted_until: [0; 3],
            exited: false,
            spawn_fails: false,
            seen: Seen::default(),
        };
        world.step(Step::Hello(1));
        world
    }

    fn step(&mut self, step: Step) {
        if self.exited {
            return;
        }
        match step {
            Step::Hello(connection) => {
                self.input(Input::Request { connection, request: Request::Hello });
            }
            Step::Close => {
                if let Some(connection) = self.state.controller() {
                    self.input(Input::Closed { connection });
                }
            }
            Step::Grant(epoch) => self.grant(epoch, OURS, self.now + 4 * SECOND),
            Step::GrantBackwards(epoch) => self.grant(epoch, OURS, self.deadline.saturating_sub(1)),
            Step::GrantElsewhere(epoch) => self.grant(epoch, THEIRS, self.now + 60 * SECOND),
            Step::GrantFar => self.grant(2, OURS, self.now + 121 * SECOND),
            Step::StartPrimary(epoch) => self.start(Mode::Primary, epoch),
            Step::StartPrimaryFails(epoch) => {
                self.spawn_fails = true;
                self.start(Mode::Primary, epoch);
                self.spawn_fails = false;
            }
            Step::StartStandby => self.start(Mode::Standby, 1),
            Step::Promote(epoch) => self.ask(Request::Promote { epoch, data_dir: "/data".into() }),
            Step::SetEpoch(from, to) => self.ask(Request::SetEpoch { from, to }),
            Step::Crash => self.died(),
            Step::KillAll => self.ask(Request::KillAll),
            Step::SigTerm => self.input(Input::SigTerm),
            Step::Ack => self.ask(Request::SigTermAck),
            Step::Pass(time) => self.pass(time),
        }
        self.input(Input::Tick);
        self.check(step);
    }

    fn grant(&mut self, epoch: u64, incarnation: Incarnation, deadline_ns: u64) {
        let before = (self.deadline, self.state.highest_epoch);
        self.ask(Request::Grant { epoch, incarnation, deadline_ns });
        let moved = (self.deadline, self.state.highest_epoch) != before;
        if moved {
            assert_eq!(incarnation, OURS, "a grant of another life was taken");
            assert_eq!(self.deadline, deadline_ns);
            self.granted_until[epoch as usize] = deadline_ns;
            self.highest_granted = self.highest_granted.max(epoch);
        }
    }

    fn start(&mut self, mode: Mode, epoch: u64) {
        self.ask(Request::Start(Start {
            mode,
            epoch,
            argv: vec!["postgres".into()],
            env: Vec::new(),
            cwd: None,
            death_pipe: false,
            log: false,
        }));
    }

    fn ask(&mut self, request: Request) {
        let connection = self.state.controller().unwrap_or(99);
        self.input(Input::Request { connection, request });
    }

    fn pass(&mut self, time: u64) {
        let end = self.now + time;
        // The switch acts at its own time, not when somebody looks.
        if self.armed && self.deadline <= end {
            self.now = self.now.max(self.deadline);
            self.seen.fenced = true;
            self.process = None;
            self.input(Input::DeadlineFired);
            self.input(Input::PostmasterExited { exit: Exit::Signal(libc::SIGKILL), drained: true });
            assert!(self.state.postmaster_pid().is_none());
            assert!(self.state.grant.is_none(), "a fired grant is used up");
        }
        self.now = end;
    }

    fn died(&mut self) {
        if self.process.take().is_some() {
            self.input(Input::PostmasterExited { exit: Exit::Code(2), drained: true });
        }
    }

    fn input(&mut self, input: Input) {
        let is_request = matches!(input, Input::Request { .. });
        let mut replies = 0;
        let mut queue = std::collections::VecDeque::from(self.state.handle(input, self.now));
        while let Some(action) = queue.pop_front() {
            match action {
                Action::SetDeadline(deadline) => {
                    assert!(deadline >= self.deadline, "the deadline moved backwards");
                    self.deadline = deadline;
                }
                Action::Arm(_) => self.armed = true,
                Action::Disarm => self.armed = false,
                Action::Spawn(_) if self.spawn_fails => {
                    replies += 1;
                    queue.extend(self.state.handle(Input::Started(None), self.now));
                }
                Action::Spawn(start) => {
                    assert!(self.process.is_none(), "two postmasters");
                    let writable = start.mode == Mode::Primary;
                    self.process = Some(Process { writable, epoch: start.epoch });
                    if writable {
                        self.became_writable(start.epoch);
                        self.seen.primary = true;
                        self.seen.primary_after_fence |= self.seen.fenced;
                    }
                    self.next_pid += 1;
                    queue.extend(self.state.handle(Input::Started(Some(self.next_pid)), self.now));
                }
                Action::Signal(pid, libc::SIGUSR1) => {
                    assert_eq!(Some(pid), self.state.postmaster_pid());
                    let epoch = self.state.primary_epoch;
                    self.process.as_mut().unwrap().writable = true;
                    self.process.as_mut().unwrap().epoch = epoch;
                    self.became_writable(epoch);
                    self.seen.promoted = true;
                }
                Action::Signal(..) => {
                    self.seen.own_stop = true;
                }
                Action::KillEverything if self.process.take().is_some() => {
                    let exit = Exit::Signal(libc::SIGKILL);
                    let exited = Input::PostmasterExited { exit, drained: true };
                    queue.extend(self.state.handle(exited, self.now));
                }
                Action::Exit(_) => {
                    self.process = None;
                    self.exited = true;
                    return;
                }
                Action::Reply(_) => replies += 1,
                _ => {}
            }
        }
        assert_eq!(replies, i32::from(is_request), "one reply for each request, none without");
    }

    /// The grant of that very epoch, not of any other, is what lets it live.
    fn became_writable(&self, epoch: u64) {
        assert!(self.armed, "writable without the switch");
        assert!(self.deadline > self.now + QUIT_LEAD, "writable without a live grant");
        assert!(self.granted_until[epoch as usize] > self.now, "writable without a grant of epoch {epoch}");
        assert_eq!(epoch, self.state.highest_epoch, "writable under an old epoch");
        assert!(self.state.sigterm.is_none(), "writable in a pod that is being deleted");
    }

    fn check(&mut self, step: Step) {
        if let Some(process) = &self.process {
            assert!(!process.writable || self.armed, "{step:?}: a primary that no deadline counts for");
            assert!(!process.writable || self.now < self.deadline, "{step:?}: a primary past its deadline");
        }
        assert_eq!(
            self.process.is_some() && !self.exited,
            self.state.postmaster_pid().is_some() && !self.exited
        );
        assert!(self.process.is_some() || !self.armed || self.exited, "{step:?}: armed for nothing");
        if let (Some(process), Some(known)) = (&mut self.process, &self.state.postmaster) {
            assert!(!process.writable || known.mode == Mode::Primary, "{step:?}: an unknown primary");
            if process.writable && process.epoch != known.epoch {
                assert!(matches!(step, Step::SetEpoch(..)), "only SetEpoch moves the epoch of a primary");
                process.epoch = known.epoch;
                self.granted_until[known.epoch as usize] = self.deadline;
                self.seen.epoch_moved = true;
            }
        }
        if let Some(grant) = self.state.grant {
            assert_eq!(grant.deadline_ns, self.deadline, "{step:?}: the switch and the state disagree");
            assert_eq!(grant.epoch, self.state.highest_epoch);
        }
    }
}

fn search(world: &World, depth: u32, seen: &mut Seen) {
    seen.add(world.seen);
    if depth == 0 {
        return;
    }
    for step in STEPS {
        let mut next = world.clone();
        next.step(step);
        search(&next, depth - 1, seen);
    }
}

#[test]
fn every_short_history_keeps_the_invariants() {
    let mut seen = Seen::default();
    let prefixes: [&[Step]; 4] = [
        &[],
        &[Step::Grant(1), Step::StartPrimary(1)],
        &[Step::StartStandby, Step::Grant(1)],
        &[Step::Grant(1), Step::StartPrimary(1), Step::Pass(5 * SECOND)],
    ];
    for prefix in prefixes {
        let mut world = World::new();
        for step in prefix {
            world.step(*step);
        }
        search(&world, 3, &mut seen);
    }
    assert!(seen.everything(), "{seen:?}");
}

#[test]
fn long_random_histories_keep_the_invariants() {
    let mut seen = Seen::default();
    let mut random = 0x1234_5678_9abc_def1_u64;
    for _ in 0..10_000 {
        let mut world = World::new();
        for _ in 0..30 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            world.step(STEPS[(random % STEPS.len() as u64) as usize]);
        }
        seen.add(world.seen);
    }
    assert!(seen.everything(), "{seen:?}");
}

/// SIGTERM always ends, whatever the agent does, inside the grace period.
#[test]
fn a_deleted_pod_always_ends_in_time() {
    let mut random = 0xfeed_u64;
    for _ in 0..500 {
        let mut world = World::new();
        world.step(Step::StartStandby);
        world.step(Step::SigTerm);
        let since = world.now;
        while !world.exited {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            world.step(
                [Step::Ack, Step::Close, Step::Hello(1), Step::Grant(1), Step::Pass(SECOND / 2)]
                    [(random % 5) as usize],
            );
            assert!(world.now < since + GRACE);
        }
    }
}
