//! What an instance that holds the record does with Postgres: initdb, start, admit clients, stop.

use std::time::Duration;

use crate::{
    event::{Directory, Effect, Id, Mode, Op},
    machine::{Machine, Mutant, Stage},
    reason::{Notice, Reason},
    record::{Epoch, RecordState},
    time::Instant,
};

/// A primary is started only with this much of its grant left: the supervisor refuses less than half a second.
const LEAST_GRANT: Duration = Duration::from_secs(1);
/// Stopping is bounded: a checkpoint of at most 20 s, a fast stop of at most 10 s, and what they need around.
const STOP_LIMIT: Duration = Duration::from_secs(35);
/// After the stop: how long the release is tried.
const RELEASE_LIMIT: Duration = Duration::from_secs(8);

impl Machine {
    /// One decision from all facts. Runs again while it changes what it decides from.
    pub(crate) fn decide(&mut self, now: Instant, out: &mut Vec<Effect>) {
        for _ in 0..8 {
            self.wake = None;
            let before = self.decided();
            let reason = self.decide_once(now, out);
            if reason != self.reason {
                if let Some(reason) = reason.as_ref().filter(|r| r.blocks()) {
                    out.push(Effect::Notify(Notice::Blocked(reason.clone())));
                }
                self.reason = reason;
            }
            if before == self.decided() {
                break;
            }
        }
        if let Some(deadline) = self.hold.as_ref().and_then(|h| h.deadline) {
            self.wake_at(deadline);
        }
        if let Some(write) = &self.record.in_flight {
            let sent = write.sent;
            self.wake_at(sent.plus(self.policy.timing.request_timeout + Duration::from_millis(500)));
        }
    }

    /// What a decision can change that the next one depends on.
    #[allow(clippy::type_complexity, reason = "compared, never kept")]
    fn decided(
        &self,
    ) -> (Option<(Epoch, Stage, Option<Instant>)>, Option<Id>, bool, Option<Instant>, Option<Id>, bool) {
        (
            self.hold.as_ref().map(|h| (h.epoch, h.stage, h.deadline)),
            self.op.as_ref().map(|(id, _)| *id),
            self.exited,
            self.killing,
            self.record.in_flight.as_ref().map(|w| w.id),
            self.record.reading.is_some(),
        )
    }

    fn decide_once(&mut self, now: Instant, out: &mut Vec<Effect>) -> Option<Reason> {
        if self.exited {
            return None;
        }
        if self.supervisor.is_none() {
            if self.record.outdated {
                self.read_record(now, out);
            }
            return Some(Reason::NoSupervisor);
        }
        if let Some(why) = self.deposed() {
            self.fence(why, now, out);
        }
        if self.wait_for_death(now, out) {
            return None;
        }
        if self.hold.is_none() {
            self.resume(now);
        }
        if self.hold.is_none() {
            return self.free(now, out);
        }
        self.renew(now, out);
        if self.terminating.is_some() {
            self.drain(now, out);
            return None;
        }
        self.serve(now, out)
    }

    /// True while something that must not run any more is not known to be gone.
    fn wait_for_death(&mut self, now: Instant, out: &mut Vec<Effect>) -> bool {
        let Some(since) = self.killing else { return false };
        if self.postmaster().is_none() {
            self.killing = None;
            return false;
        }
        let again = since.plus(Duration::from_secs(1));
        if now >= again {
            out.push(Effect::KillAll);
            self.killing = Some(now);
        }
        self.wake_at(self.killing.unwrap_or(now).plus(Duration::from_secs(1)));
        true
    }

    /// The holder's next step towards serving.
    fn serve(&mut self, now: Instant, out: &mut Vec<Effect>) -> Option<Reason> {
        let hold = self.hold.clone()?;
        let record = self.seen_record()?.clone();
        if self.op.is_some() {
            return None;
        }
        let running = self.postmaster();
        if self.retry_at > now && hold.stage != Stage::Open {
            self.wake_at(self.retry_at);
            return self.last_error.clone().map(|(doing, error)| Reason::Retrying { doing, error });
        }
        if running.is_none() && self.directory.is_none() {
            self.begin(Op::Inspect, out);
            return Some(Reason::Inspecting);
        }
        let anyway = self.is(Mutant::InitdbAnyway) && self.directory == Some(Directory::Empty);
        let Some(system) = record.system.filter(|_| !anyway) else {
            match &self.directory {
                Some(Directory::Empty) => self.begin(Op::Initdb { instance: hold.instance }, out),
                Some(Directory::Foreign { .. }) => return Some(Reason::DataWithoutRecord),
                Some(Directory::Complete(data)) if data.instance != hold.instance => {
                    return Some(Reason::DataWithoutRecord);
                }
                // Its identifier is on its way into the record (`desired`): nothing starts before.
                Some(Directory::Complete(_)) | None => {}
            }
            return None;
        };
        match (hold.stage, running) {
            (Stage::Down, Some(p)) if p.mode == Mode::Standby => {
                self.begin(Op::Stop { mode: Mode::Standby }, out)
            }
            (Stage::Down, running) => {
                if running.is_none() {
                    match &self.directory {
                        Some(Directory::Complete(data))
                            if data.instance == hold.instance && data.system == system => {}
                        Some(Directory::Foreign { why }) => return Some(Reason::Unusable(why.clone())),
                        _ => return Some(Reason::HolderDataLost),
                    }
                }
                if hold.deadline.is_some_and(|d| d >= now.plus(LEAST_GRANT)) {
                    let instance = hold.instance;
                    self.begin(Op::Primary { instance, epoch: hold.epoch, running: running.is_some() }, out);
                }
            }
            (Stage::Up, _) => self.begin(Op::Open { epoch: hold.epoch }, out),
            (Stage::Open | Stage::Stopped, _) => {}
        }
        None
    }

    /// T17 of the holder: stop, then say so.
    fn drain(&mut self, now: Instant, out: &mut Vec<Effect>) {
        let (Some(hold), Some(since)) = (self.hold.clone(), self.terminating) else { return };
        if hold.stage == Stage::Stopped {
            if self.seen_record().is_some_and(|r| r.state == RecordState::Released) {
                out.push(Effect::Notify(Notice::Released { epoch: hold.epoch }));
                self.leave(out);
                return;
            }
            let limit = self.retry_at.plus(RELEASE_LIMIT);
            if now >= limit {
                self.leave(out);
            } else {
                self.wake_at(limit);
            }
            return;
        }
        let stopping = matches!(self.op, Some((_, Op::Stop { .. })));
        match self.postmaster() {
            _ if stopping => {
                let limit = since.plus(STOP_LIMIT);
                if now >= limit {
                    self.abort(out);
                    out.push(Effect::KillAll);
                    self.killing = Some(now);
                } else {
                    self.wake_at(limit);
                }
            }
            Some(p) if now < since.plus(STOP_LIMIT) => {
                self.abort(out);
                if self.retry_at <= now {
                    self.begin(Op::Stop { mode: p.mode }, out);
                } else {
                    self.wake_at(self.retry_at);
                }
            }
            Some(_) => {
                out.push(Effect::KillAll);
                self.killing = Some(now);
            }
            None => {
                self.abort(out);
                self.retry_at = now;
                if let Some(hold) = &mut self.hold {
                    hold.stage = Stage::Stopped;
                }
            }
        }
    }

    /// The container may end.
    pub(crate) fn leave(&mut self, out: &mut Vec<Effect>) {
        self.abort(out);
        self.hold = None;
        self.exited = true;
        out.push(Effect::Exit);
    }
}
