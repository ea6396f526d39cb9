//! The state of an instance: facts, what is under way, and how events change them.

use std::{collections::BTreeSet, time::Duration};

use crate::{
    event::{Directory, Effect, Event, Id, Mode, Note, Op, Outcome, Output, Postmaster, Reading, Supervisor},
    reason::{Notice, Reason},
    record::{Epoch, Holder, InstanceId, Place, Record, SystemId, Version},
    time::{Instant, Timing},
};

/// What does not change while an agent lives.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Policy {
    /// Where this instance runs.
    pub place: Place,
    /// Constants. Changed by [`Event::Timing`].
    pub timing: Timing,
    /// Set when this major version of PostgreSQL can't be run.
    pub unsupported: Option<u32>,
    /// A fresh identity for a new data directory, random; the n-th new directory of this machine adds n.
    pub seed: InstanceId,
    /// For tests: break one rule, so that the tests prove that they would see it.
    #[doc(hidden)]
    pub mutant: Option<Mutant>,
}

/// Rules that tests break.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mutant {
    /// The deadline counts from the reply of a renewal.
    DeadlineFromReply,
    /// The recorded holder starts again without proof that its earlier life is over.
    NoProofOfDeath,
    /// initdb although the record knows a system identifier.
    InitdbAnyway,
    /// Self-affirmation looks at the last confirmed record only.
    AffirmAmbiguous,
    /// A record held by another life of this instance is good for a grant.
    AnyIncarnation,
    /// A data directory of another cluster is started.
    StartForeign,
    /// A holder that reads another holder's name in the record serves on.
    IgnoreOtherHolder,
    /// An agent that takes over forgets the writes that the one before it has sent.
    ForgetNote,
}

/// The record as last known.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Seen {
    pub(crate) version: Version,
    pub(crate) record: Record,
    /// When it was last seen to change.
    pub(crate) changed: Instant,
}

/// A write that has not been answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Write {
    pub(crate) id: Id,
    pub(crate) record: Record,
    pub(crate) sent: Instant,
}

/// What the record is known to be, and may be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Knowledge {
    /// Last confirmed.
    pub(crate) seen: Option<Seen>,
    /// The object is not there.
    pub(crate) missing: bool,
    /// On its way.
    pub(crate) in_flight: Option<Write>,
    /// Contents that were sent and may be in force, now or later. All expected the version in `seen`.
    pub(crate) unresolved: Vec<Record>,
    /// The version in `seen` is not the current one: read before writing.
    pub(crate) outdated: bool,
    /// Somebody else has written: until it is read, nothing is known of what is in force.
    pub(crate) distrust: bool,
    /// A read is under way since.
    pub(crate) reading: Option<(Id, Instant)>,
    /// No read or write before.
    pub(crate) not_before: Instant,
}

/// The record is held, by this life of this instance.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Hold {
    pub(crate) instance: InstanceId,
    pub(crate) epoch: Epoch,
    /// Until when a primary may live; none before the first grant.
    pub(crate) deadline: Option<Instant>,
    /// The last extension came from affirmation.
    pub(crate) affirmed: bool,
    pub(crate) renew_at: Instant,
    pub(crate) stage: Stage,
}

/// How far a holder has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Stage {
    /// Postgres is not known to be up.
    Down,
    /// Up as primary, only internal connections.
    Up,
    /// Clients are admitted.
    Open,
    /// Stopped for good: everything of it is gone.
    Stopped,
}

/// An instance. Everything that it knows is in here, so it can be cloned, compared and hashed by a model checker.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Machine {
    pub(crate) policy: Policy,
    pub(crate) supervisor: Option<Supervisor>,
    pub(crate) record: Knowledge,
    pub(crate) directory: Option<Directory>,
    pub(crate) promised: Epoch,
    pub(crate) hold: Option<Hold>,
    /// What the running standby follows.
    pub(crate) following: Option<(InstanceId, Epoch, String)>,
    pub(crate) op: Option<(Id, Op)>,
    /// SIGKILL was sent to everything, and it is not known to be gone.
    pub(crate) killing: Option<Instant>,
    pub(crate) timeline: u32,
    /// Who should be able to vote; none: as the record says.
    pub(crate) voters: Option<BTreeSet<InstanceId>>,
    pub(crate) terminating: Option<Instant>,
    pub(crate) exited: bool,
    pub(crate) failures: u32,
    pub(crate) retry_at: Instant,
    pub(crate) last_error: Option<(&'static str, String)>,
    pub(crate) reason: Option<Reason>,
    pub(crate) noted: Option<Note>,
    pub(crate) fresh: u128,
    pub(crate) next_id: u64,
    pub(crate) wake: Option<Instant>,
}

/// What the driver shows and answers from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Name of the state.
    pub state: &'static str,
    /// Why it is in this state, when something needs to be said.
    pub reason: Option<Reason>,
    /// Epoch of the record that it follows or holds.
    pub epoch: Epoch,
    /// It holds the record and admits clients.
    pub serving: bool,
    /// It holds the record and Postgres is up.
    pub primary: bool,
    /// Its deadline, when it holds the record.
    pub deadline: Option<Instant>,
    /// Identity of the data directory.
    pub instance: Option<InstanceId>,
    /// System identifier of the cluster.
    pub system: Option<SystemId>,
    /// The holder.
    pub holder: Option<Holder>,
    /// Whom the running standby follows, and since which epoch.
    pub following: Option<(InstanceId, Epoch)>,
    /// Highest epoch promised.
    pub promised: Epoch,
    /// The record is known not to be there.
    pub record_missing: bool,
    /// The postmaster that runs.
    pub postmaster: Option<Postmaster>,
}

/// One step: what `event` at `now` means, and what is to be done about it.
#[must_use = "effects must be carried out"]
pub fn step(machine: &mut Machine, event: Event, now: Instant) -> Vec<Effect> {
    let mut out = Vec::new();
    machine.expire(now, &mut out);
    machine.learn(event, now, &mut out);
    machine.decide(now, &mut out);
    machine.sync_note(&mut out);
    out
}

impl Machine {
    /// An instance that knows nothing yet.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            supervisor: None,
            record: Knowledge { outdated: true, ..Knowledge::default() },
            directory: None,
            promised: Epoch::default(),
            hold: None,
            following: None,
            op: None,
            killing: None,
            timeline: 0,
            voters: None,
            terminating: None,
            exited: false,
            failures: 0,
            retry_at: Instant::default(),
            last_error: None,
            reason: None,
            noted: None,
            fresh: 0,
            next_id: 0,
            wake: None,
        }
    }

    /// When to call [`step`] with [`Event::Tick`] if nothing happens before.
    #[must_use]
    pub const fn wake(&self) -> Option<Instant> {
        self.wake
    }

    /// What is shown to people and peers.
    #[must_use]
    pub fn view(&self) -> View {
        let record = self.seen_record();
        let serving = self.hold.as_ref().is_some_and(|h| h.stage == Stage::Open);
        View {
            state: self.state_name(),
            reason: self.reason.clone(),
            epoch: self
                .hold
                .as_ref()
                .map(|h| h.epoch)
                .or_else(|| self.following.as_ref().map(|(_, e, _)| *e))
                .or_else(|| record.map(|r| r.epoch))
                .unwrap_or_default(),
            serving: serving && self.terminating.is_none(),
            primary: self.hold.as_ref().is_some_and(|h| matches!(h.stage, Stage::Up | Stage::Open)),
            deadline: self.hold.as_ref().and_then(|h| h.deadline),
            instance: self.hold.as_ref().map(|h| h.instance).or_else(|| self.directory_instance()),
            system: record.and_then(|r| r.system),
            holder: record.and_then(|r| r.holder.clone()),
            following: self.following.as_ref().map(|(i, e, _)| (*i, *e)),
            promised: self.promised,
            record_missing: self.record.missing,
            postmaster: self.postmaster(),
        }
    }

    fn state_name(&self) -> &'static str {
        if self.killing.is_some() {
            return "Fenced";
        }
        if self.terminating.is_some() {
            return "Draining";
        }
        if let Some(hold) = &self.hold {
            return match hold.stage {
                _ if self.seen_record().is_some_and(|r| r.system.is_none()) => "Initdb",
                Stage::Open if hold.affirmed => "Affirmed",
                Stage::Open => "Primary",
                Stage::Down | Stage::Up => "Barrier",
                Stage::Stopped => "Draining",
            };
        }
        match &self.op {
            Some((_, Op::Clone { .. })) => "Clone",
            Some((_, Op::Follow { .. })) => "Standby",
            _ if self.following.is_some() => "Standby",
            _ if self.reason.as_ref().is_some_and(Reason::blocks) => "Blocked",
            _ => "Init",
        }
    }

    pub(crate) fn seen_record(&self) -> Option<&Record> {
        self.record.seen.as_ref().map(|s| &s.record)
    }

    pub(crate) fn directory_instance(&self) -> Option<InstanceId> {
        match &self.directory {
            Some(Directory::Complete(data)) => Some(data.instance),
            _ => None,
        }
    }

    pub(crate) fn is(&self, mutant: Mutant) -> bool {
        self.policy.mutant == Some(mutant)
    }

    pub(crate) const fn id(&mut self) -> Id {
        self.next_id += 1;
        Id(self.next_id)
    }

    /// Identity for a new data directory.
    pub(crate) const fn fresh_instance(&self) -> InstanceId {
        InstanceId(self.policy.seed.0.wrapping_add(self.fresh))
    }

    pub(crate) fn wake_at(&mut self, at: Instant) {
        self.wake = Some(self.wake.map_or(at, |w| w.min(at)));
    }

    pub(crate) fn begin(&mut self, op: Op, out: &mut Vec<Effect>) {
        let id = self.id();
        self.op = Some((id, op.clone()));
        out.push(Effect::Begin(id, op));
    }

    pub(crate) fn abort(&mut self, out: &mut Vec<Effect>) {
        if let Some((id, op)) = self.op.take() {
            if matches!(op, Op::Initdb { .. } | Op::Clone { .. } | Op::SetAside { .. }) {
                self.directory = None;
            }
            out.push(Effect::Abort(id));
        }
    }

    /// A failed or ended thing is tried again, later each time.
    pub(crate) fn back_off(&mut self, now: Instant) {
        if self.retry_at > now {
            return; // the same trouble, told twice
        }
        let steps = self.failures.min(6);
        self.failures = self.failures.saturating_add(1);
        self.retry_at = now.plus(Duration::from_millis(if steps == 0 { 0 } else { 150 << steps }));
    }

    pub(crate) fn postmaster(&self) -> Option<Postmaster> {
        self.supervisor.as_ref().and_then(|s| s.postmaster)
    }

    fn learn(&mut self, event: Event, now: Instant, out: &mut Vec<Effect>) {
        match event {
            Event::Connected(supervisor, note) => self.connected(supervisor, note, now, out),
            Event::Disconnected => {
                self.abort(out);
                self.supervisor = None;
                self.hold = None;
                self.following = None;
                self.killing = None;
                self.noted = None;
            }
            Event::Started(postmaster) => {
                if let Some(supervisor) = &mut self.supervisor {
                    supervisor.postmaster = Some(postmaster);
                }
            }
            Event::Exited { start_id } => self.exited_postmaster(start_id, now, out),
            Event::DeadlineFired => self.fence("its deadline passed", now, out),
            Event::SigTerm => {
                if self.terminating.is_none() {
                    self.terminating = Some(now);
                    if !matches!(self.op, Some((_, Op::Stop { .. }))) {
                        self.abort(out);
                    }
                    self.retry_at = now;
                }
            }
            Event::Observed(version, record) => self.observe(version, record, false, now),
            Event::Deleted => self.record.outdated = true,
            Event::Read(id, reading) => self.read(id, reading, now, out),
            Event::Written(id, outcome) => self.written(id, outcome, now, out),
            Event::Finished(id, result) => self.finished(id, result, now, out),
            Event::Voters(voters) => self.voters = Some(voters),
            Event::Timing(timing) => self.policy.timing = timing,
            Event::Tick => {}
        }
    }

    fn connected(&mut self, supervisor: Supervisor, note: Option<Note>, now: Instant, out: &mut Vec<Effect>) {
        self.abort(out);
        self.hold = None;
        self.following = None;
        self.killing = None;
        self.directory = None;
        self.timeline = 0;
        self.voters = None;
        self.failures = 0;
        self.retry_at = now;
        self.exited = false;
        self.terminating = supervisor.sigterm.then_some(now);
        if let Some(note) = &note {
            self.read_note(note, now);
        }
        self.noted = note;
        self.supervisor = Some(supervisor);
    }

    /// What an earlier agent of this incarnation knew, and what it may have set going.
    fn read_note(&mut self, note: &Note, now: Instant) {
        let expected = &note.version;
        let forget = self.is(Mutant::ForgetNote);
        let seen = self.record.seen.get_or_insert_with(|| Seen {
            version: expected.clone(),
            record: note.record.clone(),
            changed: now,
        });
        let void = seen.version.object == expected.object && seen.version.order > expected.order;
        if !void && !forget {
            for record in &note.unresolved {
                if !self.record.unresolved.contains(record) {
                    self.record.unresolved.push(record.clone());
                }
            }
        }
    }

    fn exited_postmaster(&mut self, start_id: u64, now: Instant, out: &mut Vec<Effect>) {
        let Some(supervisor) = &mut self.supervisor else { return };
        if supervisor.postmaster.is_some_and(|p| p.start_id > start_id) {
            return;
        }
        let was = supervisor.postmaster.take();
        self.killing = None;
        self.following = None;
        let Some(was) = was else { return };
        if matches!(self.op, Some((_, Op::Stop { .. }))) {
            return; // its own end says whether it went well
        }
        // A start fails by itself, with the reason that Postgres gave.
        if matches!(self.op, Some((_, Op::Open { .. }))) {
            self.abort(out);
        }
        if let Some(hold) = &mut self.hold
            && hold.stage != Stage::Stopped
        {
            hold.stage = Stage::Down;
            if was.mode == Mode::Primary && self.terminating.is_none() {
                out.push(Effect::Notify(Notice::RestartingInPlace { epoch: hold.epoch }));
            }
        }
        self.back_off(now);
    }

    fn finished(&mut self, id: Id, result: Result<Output, String>, now: Instant, out: &mut Vec<Effect>) {
        if self.op.as_ref().is_none_or(|(running, _)| *running != id) {
            return;
        }
        let Some((_, op)) = self.op.take() else { return };
        match result {
            Ok(output) => self.succeeded(op, output, now, out),
            Err(error) => {
                let doing = op.name();
                if matches!(op, Op::Initdb { .. } | Op::Clone { .. } | Op::SetAside { .. }) {
                    self.directory = None; // whatever it left is looked at first
                }
                if self.last_error.as_ref().is_none_or(|(d, e)| *d != doing || *e != error) {
                    out.push(Effect::Notify(Notice::Failed { doing, error: error.clone() }));
                }
                self.last_error = Some((doing, error));
                self.failures = self.failures.max(1);
                self.back_off(now);
                if op == Op::Lock {
                    self.retry_at = now.plus(Duration::from_millis(500));
                }
            }
        }
    }

    fn succeeded(&mut self, op: Op, output: Output, now: Instant, out: &mut Vec<Effect>) {
        self.last_error = None;
        match (op, output) {
            (Op::Lock, _) => {
                if let Some(supervisor) = &mut self.supervisor {
                    supervisor.locked = true;
                }
            }
            (Op::SetAside { .. }, _) => self.directory = None,
            (op, Output::Directory(directory)) => {
                // A promise binds the identity that gave it: a new directory begins without.
                self.promised = Epoch::default();
                if let Directory::Complete(data) = &directory {
                    self.promised = data.promised;
                    if data.instance == self.fresh_instance() {
                        self.fresh += 1; // used
                    }
                }
                self.directory = Some(directory);
                if let Op::Clone { from, .. } = op {
                    out.push(Effect::Notify(Notice::Cloned { pod: from.holder.place.pod }));
                }
            }
            (Op::Follow { upstream, .. }, _) => {
                if self.postmaster().is_none() {
                    return; // it has ended meanwhile
                }
                self.failures = 0;
                self.promised = self.promised.max(upstream.epoch);
                let holder = upstream.holder;
                out.push(Effect::Notify(Notice::Following {
                    pod: holder.place.pod.clone(),
                    epoch: upstream.epoch,
                }));
                self.following = Some((holder.instance, upstream.epoch, holder.place.address));
            }
            (Op::Primary { epoch, .. }, Output::Up { timeline }) => {
                if self.postmaster().is_none() {
                    return; // it has ended meanwhile
                }
                self.promised = self.promised.max(epoch);
                self.timeline = timeline;
                if let Some(hold) = self.hold.as_mut().filter(|h| h.epoch == epoch) {
                    hold.stage = Stage::Up;
                }
            }
            (Op::Open { epoch }, _) => {
                if let Some(hold) = self.hold.as_mut().filter(|h| h.epoch == epoch && h.stage == Stage::Up) {
                    hold.stage = Stage::Open;
                    self.failures = 0;
                    out.push(Effect::Route { epoch });
                    out.push(Effect::Notify(Notice::BecamePrimary { epoch }));
                }
            }
            (Op::Stop { .. }, _) => {
                if let Some(supervisor) = &mut self.supervisor {
                    supervisor.postmaster = None;
                }
                self.following = None;
                self.killing = None;
                self.retry_at = now;
                if let Some(hold) = &mut self.hold {
                    hold.stage = if self.terminating.is_some() { Stage::Stopped } else { Stage::Down };
                }
            }
            (Op::Inspect | Op::Initdb { .. } | Op::Clone { .. } | Op::Primary { .. }, _) => {
                // An answer of the wrong kind: as a failure without words.
                self.back_off(now);
            }
        }
    }

    fn written(&mut self, id: Id, outcome: Outcome, now: Instant, out: &mut Vec<Effect>) {
        if self.record.in_flight.as_ref().is_none_or(|w| w.id != id) {
            return;
        }
        let Some(write) = self.record.in_flight.take() else { return };
        match outcome {
            Outcome::Applied(version) => {
                if let (Some(system), Some(Record { system: None, .. })) =
                    (write.record.system, self.seen_record())
                {
                    out.push(Effect::Notify(Notice::Initialised { system }));
                }
                self.observe(version, write.record.clone(), true, now);
                self.applied(&write, now, out);
            }
            Outcome::Conflict => {
                self.record.outdated = true;
                self.record.distrust = true;
                if let Some(hold) = &mut self.hold {
                    hold.renew_at = now;
                }
            }
            Outcome::Unknown => self.write_unknown(write, now, out),
        }
    }

    pub(crate) fn write_unknown(&mut self, write: Write, now: Instant, out: &mut Vec<Effect>) {
        let known = self.seen_record() == Some(&write.record);
        if !known && !self.record.unresolved.contains(&write.record) {
            self.record.unresolved.push(write.record);
        }
        if self.hold.is_none() {
            // An ambiguous claim: read, never act on it.
            self.record.outdated = true;
            self.record.not_before = now.plus(Duration::from_millis(200));
        }
        self.renewal_unknown(now, out);
    }

    pub(crate) fn read(&mut self, id: Id, reading: Reading, now: Instant, out: &mut Vec<Effect>) {
        if self.record.reading.is_none_or(|(asked, _)| asked != id) {
            return;
        }
        self.record.reading = None;
        match reading {
            Reading::Found(version, record) => self.observe(version, record, true, now),
            Reading::Missing => {
                self.record.missing = true;
                self.record.not_before = now.plus(Duration::from_secs(1));
                self.renewal_unknown(now, out);
            }
            Reading::Failed => {
                self.record.not_before = now.plus(Duration::from_millis(300));
                self.renewal_unknown(now, out);
            }
        }
    }

    /// `current`: the store has just said that this is the record, after everything that was known before.
    fn observe(&mut self, version: Version, record: Record, current: bool, now: Instant) {
        let (changed, since) = match &self.record.seen {
            Some(seen) if seen.version.object == version.object => {
                if version.order < seen.version.order {
                    return; // a late observation
                }
                let changed = version.order > seen.version.order;
                if !changed && !current {
                    return; // nothing new
                }
                (changed, if changed { now } else { seen.changed })
            }
            _ => (true, now),
        };
        if changed {
            // Whatever expected an older version can't be applied any more.
            self.record.unresolved.clear();
        }
        self.record.seen = Some(Seen { version, record, changed: since });
        self.record.missing = false;
        self.record.outdated = false;
        if current {
            self.record.distrust = false;
        }
    }
}

impl Op {
    /// What it does, for a person.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Lock => "taking the volume's lock",
            Self::Inspect => "looking at the data directory",
            Self::SetAside { .. } => "moving the data directory aside",
            Self::Initdb { .. } => "initdb",
            Self::Clone { .. } => "copying the primary",
            Self::Follow { .. } => "starting as a standby",
            Self::Primary { .. } => "starting as primary",
            Self::Open { .. } => "admitting clients",
            Self::Stop { .. } => "stopping Postgres",
        }
    }
}
