//! The lease: renewing the record, what a renewal is worth, affirmation, and the fence.

use std::time::Duration;

use crate::{
    event::{Directory, Effect, Mode, Note, Op},
    machine::{Hold, Machine, Mutant, Stage, Write},
    reason::Notice,
    record::{Holder, Record, RecordState},
    time::Instant,
};

/// After a renewal whose outcome is not known and that could not be affirmed.
const RETRY: Duration = Duration::from_millis(250);
/// A request that the driver has not answered in this time beyond its own timeout is given up here.
const PATIENCE: Duration = Duration::from_millis(500);

impl Machine {
    /// T14, and requests that were never answered.
    pub(crate) fn expire(&mut self, now: Instant, out: &mut Vec<Effect>) {
        if self.hold.as_ref().is_some_and(|h| h.deadline.is_some_and(|d| now >= d)) {
            self.fence("its deadline passed", now, out);
        }
        let patience = self.policy.timing.request_timeout + PATIENCE;
        if self.record.in_flight.as_ref().is_some_and(|w| now >= w.sent.plus(patience))
            && let Some(write) = self.record.in_flight.take()
        {
            self.write_unknown(write, now, out);
        }
        if let Some((id, since)) = self.record.reading
            && now >= since.plus(patience)
        {
            self.read(id, crate::event::Reading::Failed, now, out);
        }
    }

    /// Everything that may be the record's content now or later, as far as this instance can know. None: anything may be.
    fn possible(&self) -> Option<impl Iterator<Item = &Record>> {
        let seen = self.seen_record()?;
        if self.record.distrust {
            return None;
        }
        let pending = self.record.in_flight.as_ref().map(|w| &w.record);
        let others = if self.is(Mutant::AffirmAmbiguous) { &[] } else { self.record.unresolved.as_slice() };
        let pending = pending.filter(|_| !self.is(Mutant::AffirmAmbiguous));
        Some(std::iter::once(seen).chain(others).chain(pending))
    }

    /// F under every record that may be in force.
    fn fence_time(&self) -> Duration {
        let timing = self.policy.timing;
        let leases = self.possible().into_iter().flatten().map(|r| timing.fence_under(r.lease));
        leases.min().unwrap_or_default()
    }

    /// T10: a write of mine was applied, so this incarnation held the record when it was sent.
    pub(crate) fn applied(&mut self, write: &Write, now: Instant, out: &mut Vec<Effect>) {
        let Some(incarnation) = self.supervisor.as_ref().map(|s| s.incarnation) else { return };
        let record = &write.record;
        let Some(holder) = record.holder.as_ref() else { return };
        let foreign = holder.incarnation != incarnation && !self.is(Mutant::AnyIncarnation);
        if foreign || !record.state.is_held() {
            return;
        }
        // A late answer: the record has moved on meanwhile.
        if self.seen_record() != Some(record) {
            return;
        }
        if self.hold.is_none() && self.terminating.is_none() {
            self.hold = Some(Hold {
                instance: holder.instance,
                epoch: record.epoch,
                deadline: None,
                affirmed: false,
                renew_at: now,
                stage: Stage::Down,
            });
            self.retry_at = now;
        }
        if self.hold.as_ref().is_none_or(|h| h.epoch != record.epoch) {
            return;
        }
        let from = if self.is(Mutant::DeadlineFromReply) { now } else { write.sent };
        let renew_at = write.sent.plus(self.policy.timing.renew);
        self.extend(from, now, false, out);
        if let Some(hold) = &mut self.hold {
            hold.renew_at = renew_at;
        }
    }

    /// T11 with nobody who may vote: the renewal's outcome is not known, but under every record that may be in force this
    /// incarnation holds the epoch and nobody may be promoted.
    pub(crate) fn renewal_unknown(&mut self, now: Instant, out: &mut Vec<Effect>) {
        let affirmed = self.alone();
        if affirmed {
            self.extend(now, now, true, out);
        }
        let wait = if affirmed { self.policy.timing.renew } else { RETRY };
        if let Some(hold) = &mut self.hold {
            hold.renew_at = now.plus(wait);
        }
    }

    /// T11, early: the outcome is not known yet and the deadline is near, as when an agent takes over from one that died, or the record
    /// answers slowly.
    fn affirm_early(&mut self, now: Instant, out: &mut Vec<Effect>) {
        let Some(deadline) = self.hold.as_ref().and_then(|h| h.deadline) else { return };
        let timing = self.policy.timing;
        let near = timing.fence.saturating_sub(timing.renew).saturating_sub(timing.request_timeout);
        if deadline > now.plus(near) {
            self.wake_at(deadline.minus(near));
        } else if self.alone() {
            self.extend(now, now, true, out);
        }
    }

    /// Whether under every record that may be in force this incarnation holds the epoch and nobody may be promoted.
    fn alone(&self) -> bool {
        let Some(hold) = &self.hold else { return false };
        let Some(incarnation) = self.supervisor.as_ref().map(|s| s.incarnation) else { return false };
        let alone = |r: &Record| {
            r.held_by(hold.instance, incarnation)
                && r.epoch == hold.epoch
                && r.voters.is_empty()
                && r.system.is_some()
        };
        self.possible().is_some_and(|mut all| all.all(alone))
    }

    /// Moves the deadline to `from` + F; never backwards.
    fn extend(&mut self, from: Instant, now: Instant, affirmed: bool, out: &mut Vec<Effect>) {
        let deadline = from.plus(self.fence_time());
        let Some(incarnation) = self.supervisor.as_ref().map(|s| s.incarnation) else { return };
        let Some(hold) = &mut self.hold else { return };
        if deadline <= now || hold.deadline.is_some_and(|d| d >= deadline) {
            return;
        }
        hold.deadline = Some(deadline);
        let epoch = hold.epoch;
        if hold.affirmed != affirmed && hold.stage != Stage::Down {
            out.push(Effect::Notify(if affirmed {
                Notice::Affirmed { epoch }
            } else {
                Notice::Renewed { epoch }
            }));
        }
        hold.affirmed = affirmed;
        out.push(Effect::Grant { epoch, incarnation, deadline });
    }

    /// T13, T14: nothing of this instance may be primary any more.
    pub(crate) fn fence(&mut self, why: &'static str, now: Instant, out: &mut Vec<Effect>) {
        let Some(hold) = self.hold.take() else { return };
        self.directory = None;
        self.timeline = 0;
        self.voters = None;
        let starting = matches!(self.op, Some((_, Op::Primary { .. } | Op::Open { .. } | Op::Stop { .. })));
        self.abort(out);
        let running = self.postmaster().is_some_and(|p| p.mode == Mode::Primary);
        if running || starting {
            out.push(Effect::KillAll);
            self.killing = running.then_some(now);
            out.push(Effect::Notify(Notice::Fenced { epoch: hold.epoch, why }));
        }
        self.retry_at = now;
    }

    /// T13: does the record still say that this incarnation holds the epoch?
    pub(crate) fn deposed(&self) -> Option<&'static str> {
        let hold = self.hold.as_ref()?;
        let record = self.seen_record()?;
        let incarnation = self.supervisor.as_ref().map(|s| s.incarnation)?;
        if self.is(Mutant::IgnoreOtherHolder) {
            return None;
        }
        let same = |h: &Holder| h.incarnation == incarnation || self.is(Mutant::AnyIncarnation);
        let mine = record.holder.as_ref().is_some_and(|h| h.instance == hold.instance && same(h));
        if record.epoch != hold.epoch {
            Some("the record is at another epoch")
        } else if !mine {
            Some("the record names another holder")
        } else if !record.state.is_held() && hold.stage != Stage::Stopped {
            Some("the record was released by somebody else")
        } else {
            None
        }
    }

    /// What the holder wants the record to say.
    fn desired(&self, hold: &Hold, base: &Record) -> Record {
        let mut record = base.clone();
        record.lease = record.lease.max(self.policy.timing.lease);
        if let Some(holder) = &mut record.holder {
            holder.place = self.policy.place.clone();
        }
        if record.system.is_none()
            && let Some(Directory::Complete(data)) = &self.directory
            && data.instance == hold.instance
        {
            record.system = Some(data.system);
            record.timeline = 1;
            record.max_timeline = 1;
        }
        if self.is(Mutant::InitdbAnyway)
            && let Some(Directory::Complete(data)) = &self.directory
        {
            record.system = Some(data.system);
        }
        if self.timeline != 0 {
            record.timeline = self.timeline;
            record.max_timeline = record.max_timeline.max(self.timeline);
        }
        if let Some(voters) = &self.voters {
            record.voters.clone_from(voters);
        }
        if hold.stage == Stage::Stopped {
            record.state = RecordState::Released;
            "stopped".clone_into(&mut record.reason);
        }
        record
    }

    /// Renews when it is time, or when there is something to say.
    pub(crate) fn renew(&mut self, now: Instant, out: &mut Vec<Effect>) {
        let (Some(hold), Some(seen)) = (&self.hold, &self.record.seen) else { return };
        let desired = self.desired(hold, &seen.record);
        let urgent = desired != seen.record && !hold.affirmed;
        let due = hold.renew_at;
        if self.record.in_flight.is_some() || self.record.reading.is_some() {
            self.affirm_early(now, out);
            return;
        }
        if due > now && !urgent {
            self.wake_at(due);
            return;
        }
        if self.record.outdated {
            self.read_record(now, out);
            return;
        }
        self.write(desired, now, out);
    }

    /// Sends a write that expects the version in `seen`.
    pub(crate) fn write(&mut self, record: Record, now: Instant, out: &mut Vec<Effect>) {
        let Some(seen) = &self.record.seen else { return };
        if self.record.in_flight.is_some() || self.record.not_before > now {
            self.wake_at(self.record.not_before);
            return;
        }
        let expected = seen.version.clone();
        let id = self.id();
        self.record.in_flight = Some(Write { id, record: record.clone(), sent: now });
        self.sync_note(out);
        out.push(Effect::Write { id, expected, record });
    }

    pub(crate) fn read_record(&mut self, now: Instant, out: &mut Vec<Effect>) {
        if let Some((_, since)) = self.record.reading {
            self.wake_at(since.plus(self.policy.timing.request_timeout + PATIENCE));
        } else if self.record.not_before > now {
            self.wake_at(self.record.not_before);
        } else {
            let id = self.id();
            self.record.reading = Some((id, now));
            out.push(Effect::Read(id));
        }
    }

    /// The recorded holder that this incarnation would be.
    pub(crate) fn myself(&self, instance: crate::record::InstanceId) -> Option<Holder> {
        let incarnation = self.supervisor.as_ref().map(|s| s.incarnation)?;
        Some(Holder { instance, incarnation, place: self.policy.place.clone() })
    }

    /// Leaves with the supervisor what the next agent needs, before anything that it describes leaves this one.
    pub(crate) fn sync_note(&mut self, out: &mut Vec<Effect>) {
        if self.supervisor.is_none() {
            return;
        }
        let note = self.hold.as_ref().zip(self.seen_record()).filter(|_| !self.record.distrust).map(
            |(h, record)| {
                let pending = self.record.in_flight.as_ref().map(|w| &w.record);
                let mut unresolved: Vec<Record> = Vec::new();
                for r in self.record.unresolved.iter().chain(pending) {
                    if r != record && !unresolved.contains(r) {
                        unresolved.push(r.clone());
                    }
                }
                let version = self.record.seen.as_ref().filter(|_| !unresolved.is_empty());
                let version = version.map(|s| s.version.clone()).unwrap_or_default();
                Note { instance: h.instance, record: record.clone(), unresolved, version }
            },
        );
        if note != self.noted {
            self.noted.clone_from(&note);
            out.push(Effect::SaveNote(note));
        }
    }
}
