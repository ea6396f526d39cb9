//! A world of three pods, one record and an adversary, in which the real protocol runs. Deterministic: the same actions give the
//! same run. The checks look at the world as it is, not at what an instance believes.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

mod pods;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use pgwarden_ha::{
    Data, Directory, Effect, Epoch, Event, Holder, Id, Incarnation, InstanceId, Instant, Machine, Mode,
    Mutant, Note, Notice, Op, Outcome, Output, Place, Policy, Postmaster, Reading, Reason, Record,
    RecordState, Supervisor, SystemId, Timing, Version, step,
};

pub const NODES: usize = 3;
const TICK: u64 = 50;
/// Old pods that live on after their name was given to another.
const GHOSTS: usize = 3;
/// The voters of the next version: elected as soon as the record allows it.
const PHANTOM: InstanceId = InstanceId(0xdead);

/// What the adversary does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Advance(u16),
    Partition(usize, bool),
    ApiDown(bool),
    /// Replies to this pod's next write come this late.
    SlowReply(usize, u16),
    /// The next write is applied, its reply is lost.
    LoseReply(usize),
    /// The next write arrives this late, long after it was given up.
    DelayWrite(usize, u16),
    CrashAgent(usize),
    Pause(usize, bool),
    KillContainer(usize),
    DeletePod(usize, bool),
    /// The pod's node is lost to the API: a new pod of the same name starts elsewhere while the old one lives on.
    ForceMove(usize),
    Wipe(usize),
    PlaceForeign(usize),
    CrashPostgres(usize),
    FailOp(usize),
    Duplicate(usize),
    /// An old state of the record is shown to a pod.
    StaleWatch(usize, u8),
    /// The holder is told to let an instance vote (next version), or none.
    Voters(usize, bool),
    /// The controller touches the object without changing it: a new version, the same content.
    Touch,
}

#[derive(Clone, Debug)]
struct Disk {
    data: Option<Data>,
}

#[derive(Clone, Debug)]
struct Sup {
    incarnation: Incarnation,
    grant: Option<(Epoch, u64)>,
    highest: Epoch,
    postmaster: Option<Postmaster>,
    starts: u64,
    note: Option<Note>,
    sigterm: bool,
    locked: bool,
}

#[derive(Clone, Debug)]
struct Agent {
    machine: Machine,
    inbox: VecDeque<Event>,
    op: Option<(Id, Op, u64)>,
    last: Option<Event>,
}

#[derive(Clone, Debug)]
struct Pod {
    place: Place,
    disk: Disk,
    sup: Option<Sup>,
    agent: Option<Agent>,
    /// When a missing supervisor or agent comes back.
    sup_at: u64,
    agent_at: u64,
    paused: bool,
    cut: bool,
    slow: u64,
    lose: bool,
    delay: u64,
    exited: bool,
}

#[allow(clippy::large_enum_variant, reason = "a simulation")]
#[derive(Clone, Debug)]
enum Kind {
    Write { expected: Version, record: Record },
    Read,
}

/// A request on its way.
#[derive(Clone, Debug)]
struct Packet {
    pod: usize,
    incarnation: Option<Incarnation>,
    id: Id,
    kind: Kind,
    sent: u64,
    arrives: u64,
    replies: Option<u64>,
}

/// Something that reaches an agent at a time.
#[derive(Clone, Debug)]
struct Letter {
    at: u64,
    pod: usize,
    incarnation: Option<Incarnation>,
    event: Event,
}

/// An applied write.
#[derive(Clone, Debug)]
struct Applied {
    record: Record,
    sent: u64,
}

/// What the run reached.
pub type Reached = BTreeSet<&'static str>;

pub struct World {
    now: u64,
    timing: Timing,
    mutant: Option<Mutant>,
    record: Record,
    order: u64,
    touches: u64,
    changed: u64,
    /// The last applied writes.
    log: Vec<Applied>,
    /// Who has ever held which epoch.
    held: BTreeSet<(Epoch, Incarnation)>,
    /// Epochs whose holder has said that it has stopped for good.
    released: BTreeSet<Epoch>,
    versions: Vec<(Version, Record)>,
    api_down: bool,
    packets: Vec<Packet>,
    letters: Vec<Letter>,
    pods: Vec<Pod>,
    counter: u128,
    over: bool,
    pub reached: Reached,
    pub violation: Option<String>,
    pub trace: Vec<String>,
    pub tracing: bool,
}

impl World {
    pub fn new(mutant: Option<Mutant>) -> Self {
        let timing = Timing::BALANCED;
        let mut world = Self {
            now: 1_000_000,
            timing,
            mutant,
            record: Record::default(),
            order: 1,
            touches: 0,
            changed: 0,
            log: Vec::new(),
            held: BTreeSet::new(),
            released: BTreeSet::new(),
            versions: Vec::new(),
            api_down: false,
            packets: Vec::new(),
            letters: Vec::new(),
            pods: Vec::new(),
            counter: 0x1000,
            over: false,
            reached: Reached::new(),
            violation: None,
            trace: Vec::new(),
            tracing: false,
        };
        world.versions.push((world.version(), world.record.clone()));
        for pod in 0..NODES {
            let place = world.place(pod, pod);
            world.pods.push(Pod {
                place,
                disk: Disk { data: None },
                sup: None,
                agent: None,
                sup_at: 0,
                agent_at: 0,
                paused: false,
                cut: false,
                slow: 0,
                lose: false,
                delay: 0,
                exited: false,
            });
        }
        world
    }

    fn unique(&mut self) -> u128 {
        self.counter += 0x1_0000;
        self.counter
    }

    fn place(&mut self, pod: usize, node: usize) -> Place {
        let uid = self.unique();
        Place {
            pod: format!("c-{pod}"),
            pod_uid: format!("{uid:x}"),
            node: format!("node{node}"),
            address: format!("10.0.0.{}", uid % 250),
        }
    }

    fn version(&self) -> Version {
        Version { object: "o".into(), order: self.order, token: format!("{}.{}", self.order, self.touches) }
    }

    fn instant(&self) -> Instant {
        Instant::from_millis(self.now)
    }

    fn note(&mut self, text: impl FnOnce() -> String) {
        if self.tracing {
            let now = self.now;
            self.trace.push(format!("{now}: {}", text()));
        }
    }

    fn violate(&mut self, text: String) {
        self.note(|| format!("VIOLATION {text}"));
        if self.violation.is_none() {
            self.violation = Some(format!("at {}: {text}", self.now));
        }
    }

    pub fn run(&mut self, actions: &[Action]) {
        for action in actions {
            if self.over || self.violation.is_some() {
                return;
            }
            self.note(|| format!("ACTION {action:?}"));
            self.act(action);
            self.settle();
        }
    }

    fn act(&mut self, action: &Action) {
        match action.clone() {
            Action::Advance(ticks) => {
                for _ in 0..ticks {
                    self.tick();
                }
            }
            Action::Partition(pod, cut) => {
                self.pods[pod].cut = cut;
                if !cut {
                    self.show(pod);
                }
            }
            Action::ApiDown(down) => {
                self.api_down = down;
                for pod in 0..self.pods.len() {
                    self.show(pod);
                }
            }
            Action::SlowReply(pod, ms) => self.pods[pod].slow = u64::from(ms),
            Action::LoseReply(pod) => self.pods[pod].lose = true,
            Action::DelayWrite(pod, ms) => self.pods[pod].delay = u64::from(ms),
            Action::CrashAgent(pod) => self.crash_agent(pod, 300),
            Action::Pause(pod, paused) => self.pods[pod].paused = paused,
            Action::KillContainer(pod) => self.kill_container(pod),
            Action::DeletePod(pod, elsewhere) => {
                if let Some(sup) = &mut self.pods[pod].sup {
                    sup.sigterm = true;
                }
                // Where the next pod of this name will run.
                if elsewhere {
                    let node = self.unique() as usize;
                    self.pods[pod].place.node = format!("node{node}");
                    // The running machine keeps its own place.
                }
                self.tell(pod, Event::SigTerm);
            }
            Action::ForceMove(pod) => self.force_move(pod),
            Action::Wipe(pod) => {
                self.kill_container(pod);
                self.pods[pod].disk.data = None;
            }
            Action::PlaceForeign(pod) => {
                self.kill_container(pod);
                let id = self.unique();
                self.pods[pod].disk.data =
                    Some(Data { instance: InstanceId(id), promised: Epoch(0), system: SystemId(id as u64) });
            }
            Action::CrashPostgres(pod) => self.kill_postmaster(pod),
            Action::FailOp(pod) => {
                if let Some(agent) = &mut self.pods[pod].agent
                    && let Some((id, _, _)) = agent.op.take()
                {
                    self.tell(pod, Event::Finished(id, Err("injected".into())));
                }
            }
            Action::Duplicate(pod) => {
                if let Some(event) = self.pods[pod].agent.as_ref().and_then(|a| a.last.clone()) {
                    self.tell(pod, event);
                }
            }
            Action::StaleWatch(pod, back) => {
                let at = self.versions.len().saturating_sub(usize::from(back) + 1);
                let (version, record) = self.versions[at].clone();
                self.tell(pod, Event::Observed(version, record));
            }
            Action::Voters(pod, some) => {
                let voters = if some { [InstanceId(7)].into() } else { BTreeSet::new() };
                self.tell(pod, Event::Voters(voters));
            }
            Action::Touch => self.touches += 1,
        }
    }

    fn tell(&mut self, pod: usize, event: Event) {
        if let Some(agent) = &mut self.pods[pod].agent {
            agent.inbox.push_back(event);
        }
    }

    /// The pod's watch shows the record as it is now.
    fn show(&mut self, pod: usize) {
        if !self.pods[pod].cut && !self.api_down {
            let event = Event::Observed(self.version(), self.record.clone());
            self.tell(pod, event);
        }
    }

    fn crash_agent(&mut self, pod: usize, back: u64) {
        // Tools die with the agent's connection: a half copy is nothing.
        self.pods[pod].agent = None;
        self.pods[pod].paused = false;
        self.pods[pod].agent_at = self.now + back;
        let incarnation = self.pods[pod].sup.as_ref().map(|s| s.incarnation);
        self.letters.retain(|l| l.pod != pod || l.incarnation != incarnation || incarnation.is_none());
        self.letters.retain(|l| l.pod != pod);
    }

    fn kill_container(&mut self, pod: usize) {
        self.pods[pod].sup = None;
        self.pods[pod].sup_at = self.now + 200;
        if let Some(agent) = &mut self.pods[pod].agent {
            agent.op = None;
        }
        self.tell(pod, Event::Disconnected);
    }

    /// The old pod lives on where it is, agent, supervisor and all, and never comes back once dead; a new one of its name starts elsewhere
    /// with the same data.
    fn force_move(&mut self, pod: usize) {
        if self.pods.len() >= NODES + GHOSTS {
            return;
        }
        let ghost = self.pods.len();
        let mut old = self.pods[pod].clone();
        (old.sup_at, old.agent_at) = (u64::MAX, u64::MAX);
        self.pods.push(old);
        for packet in self.packets.iter_mut().filter(|p| p.pod == pod) {
            packet.pod = ghost;
        }
        for letter in self.letters.iter_mut().filter(|l| l.pod == pod) {
            letter.pod = ghost;
        }
        let node = usize::try_from(self.unique()).unwrap();
        let place = self.place(pod, node);
        let fresh = &mut self.pods[pod];
        (fresh.place, fresh.sup, fresh.agent, fresh.paused) = (place, None, None, false);
        (fresh.sup_at, fresh.agent_at) = (self.now + 200, self.now + 200);
    }

    fn kill_postmaster(&mut self, pod: usize) {
        let Some(sup) = &mut self.pods[pod].sup else { return };
        if let Some(postmaster) = sup.postmaster.take() {
            self.tell(pod, Event::Exited { start_id: postmaster.start_id });
        }
    }

    fn tick(&mut self) {
        if self.over || self.violation.is_some() {
            return;
        }
        self.now += TICK;
        self.deadlines();
        self.births();
        self.network();
        self.operations();
        for pod in 0..self.pods.len() {
            let agent = self.pods[pod].agent.as_ref().filter(|_| !self.pods[pod].paused);
            let due = agent.is_some_and(|a| a.machine.wake().is_some_and(|w| w <= self.instant()));
            if due {
                self.tell(pod, Event::Tick);
            }
        }
        self.settle();
        self.check();
        self.elect();
    }

    /// Supervisors kill at the deadline, whatever their agents do.
    fn deadlines(&mut self) {
        let now = self.now;
        let over = |s: &Sup| {
            s.postmaster.is_some_and(|p| p.mode == Mode::Primary) && s.grant.is_none_or(|(_, d)| d <= now)
        };
        for pod in 0..self.pods.len() {
            if self.pods[pod].sup.as_ref().is_some_and(over) {
                self.reached.insert("deadline fired");
                self.kill_postmaster(pod);
                if let Some(sup) = &mut self.pods[pod].sup {
                    sup.grant = None;
                }
                self.tell(pod, Event::DeadlineFired);
            }
        }
    }

    fn births(&mut self) {
        for pod in 0..self.pods.len() {
            if self.pods[pod].sup.is_none() && self.now >= self.pods[pod].sup_at {
                let incarnation = Incarnation(self.unique());
                if self.pods[pod].exited {
                    // A new pod.
                    self.pods[pod].exited = false;
                    let uid = self.unique();
                    self.pods[pod].place.pod_uid = format!("{uid:x}");
                    self.pods[pod].place.address = format!("10.0.0.{}", uid % 250);
                    self.pods[pod].agent = None;
                }
                self.pods[pod].sup = Some(Sup {
                    incarnation,
                    grant: None,
                    highest: Epoch(0),
                    postmaster: None,
                    starts: 0,
                    note: None,
                    sigterm: false,
                    locked: false,
                });
                self.connect(pod);
            }
            if self.pods[pod].agent.is_none() && self.now >= self.pods[pod].agent_at {
                let seed = InstanceId(self.unique());
                let policy = Policy {
                    place: self.pods[pod].place.clone(),
                    timing: self.timing,
                    unsupported: None,
                    seed,
                    mutant: self.mutant,
                };
                self.pods[pod].agent = Some(Agent {
                    machine: Machine::new(policy),
                    inbox: VecDeque::new(),
                    op: None,
                    last: None,
                });
                self.tell(pod, Event::Tick);
                self.show(pod);
                self.connect(pod);
            }
        }
    }

    fn connect(&mut self, pod: usize) {
        let Some(sup) = self.pods[pod].sup.clone() else { return };
        let view = Supervisor {
            incarnation: sup.incarnation,
            grant: sup.grant.map(|(e, d)| (e, Instant::from_millis(d))),
            postmaster: sup.postmaster,
            locked: sup.locked,
            sigterm: sup.sigterm,
        };
        self.tell(pod, Event::Connected(view, sup.note));
    }

    fn network(&mut self) {
        let now = self.now;
        let mut later = Vec::new();
        for packet in std::mem::take(&mut self.packets) {
            if packet.arrives > now {
                later.push(packet);
                continue;
            }
            let event = match packet.kind.clone() {
                Kind::Read => Event::Read(packet.id, Reading::Found(self.version(), self.record.clone())),
                Kind::Write { expected, record } => {
                    let outcome = if expected == self.version() {
                        self.apply(&packet, record);
                        Outcome::Applied(self.version())
                    } else {
                        Outcome::Conflict
                    };
                    Event::Written(packet.id, outcome)
                }
            };
            if let Some(at) = packet.replies {
                self.letters.push(Letter { at, pod: packet.pod, incarnation: packet.incarnation, event });
            }
        }
        self.packets.extend(later);
        let mut waiting = Vec::new();
        for letter in std::mem::take(&mut self.letters) {
            if letter.at > now {
                waiting.push(letter);
            } else {
                self.tell(letter.pod, letter.event);
            }
        }
        self.letters.extend(waiting);
    }

    fn apply(&mut self, packet: &Packet, record: Record) {
        let old = self.record.clone();
        if record.epoch != old.epoch && record.epoch != old.epoch.next() {
            self.violate(format!("I1: epoch went from {} to {}", old.epoch, record.epoch));
        }
        let who = |r: &Record| r.holder.as_ref().map(|h| (h.instance, h.incarnation));
        if record.epoch == old.epoch && who(&record) != who(&old) {
            self.violate(format!("I1: epoch {} has two holders", record.epoch));
        }
        if record.epoch == old.epoch && !old.state.is_held() && record.state != old.state {
            self.violate(format!("epoch {} was {:?}, which is final", old.epoch, old.state));
        }
        if old.system.is_some() && record.system != old.system {
            self.violate(format!("system identifier changed from {:?} to {:?}", old.system, record.system));
        }
        self.note(|| format!("APPLIED by {} sent {}: {record:?}", packet.pod, packet.sent));
        self.log.push(Applied { record: record.clone(), sent: packet.sent });
        if self.log.len() > 32 {
            self.log.remove(0);
        }
        if let Some(holder) = &record.holder {
            self.held.insert((record.epoch, holder.incarnation));
        }
        if record.state == RecordState::Released {
            self.released.insert(record.epoch);
        }
        self.record = record;
        self.order += 1;
        self.changed = self.now;
        self.versions.push((self.version(), self.record.clone()));
        if self.versions.len() > 12 {
            self.versions.remove(0);
        }
        for pod in 0..self.pods.len() {
            if !self.pods[pod].cut && !self.api_down {
                let event = Event::Observed(self.version(), self.record.clone());
                self.letters.push(Letter { at: self.now + 20, pod, incarnation: None, event });
            }
        }
    }

    fn check(&mut self) {
        let now = self.now;
        let sups = || self.pods.iter().filter_map(|p| p.sup.as_ref());
        // What has said that it has stopped must have stopped (below); its grant is a word about nothing.
        let live: BTreeMap<Incarnation, Epoch> = sups()
            .filter_map(|s| s.grant.filter(|(_, d)| *d > now).map(|(e, _)| (s.incarnation, e)))
            .filter(|(_, e)| !self.released.contains(e))
            .collect();
        let mut bad = Vec::new();
        if live.len() > 1 {
            bad.push(format!("two live grants: {live:?}"));
        }
        for sup in sups() {
            let Some(p) = sup.postmaster.filter(|p| p.mode == Mode::Primary) else { continue };
            if self.released.contains(&p.epoch) {
                bad.push(format!("a primary of epoch {} runs, which was released", p.epoch));
            }
            let held = self.held.contains(&(p.epoch, sup.incarnation));
            if !held {
                bad.push(format!("I8: primary of epoch {}, which this incarnation never took", p.epoch));
            }
            if sup.grant.is_none_or(|(e, d)| e != p.epoch || d <= now) {
                bad.push(format!("I8: primary of epoch {} without a live grant", p.epoch));
            }
        }
        for text in bad {
            self.violate(text);
        }
    }

    /// The next version's candidates: with voters in the record and no change for L, another instance becomes primary.
    fn elect(&mut self) {
        let lease = u64::try_from(self.record.lease.as_millis()).unwrap() * 99 / 100;
        if self.record.voters.is_empty() || !self.record.state.is_held() || self.now < self.changed + lease {
            return;
        }
        self.reached.insert("another instance elected");
        let now = self.now;
        let sups = self.pods.iter().filter_map(|p| p.sup.as_ref());
        let living = sups.filter(|s| s.postmaster.is_some_and(|p| p.mode == Mode::Primary)).count();
        let granted =
            self.pods.iter().filter_map(|p| p.sup.as_ref()).any(|s| s.grant.is_some_and(|(_, d)| d > now));
        if living > 0 || granted {
            self.violate(format!(
                "I2: {PHANTOM:?} is elected while {living} primary lives, granted: {granted}"
            ));
        }
        // Whether an agent would extend its grant after this is seen too: the new holder's record is what is in force.
        self.record = Record {
            epoch: self.record.epoch.next(),
            state: RecordState::Held,
            holder: Some(Holder {
                instance: PHANTOM,
                incarnation: Incarnation(0xdead),
                place: Place::default(),
            }),
            ..self.record.clone()
        };
        self.order += 1;
        self.changed = self.now;
        self.log.push(Applied { record: self.record.clone(), sent: self.now });
        self.versions.push((self.version(), self.record.clone()));
        self.over = true;
    }
}
