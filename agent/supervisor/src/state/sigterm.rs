//! What happens between SIGTERM and the end of the pod's grace period.
//!
//! The agent hands over and says `Exit`. If it does not answer, or time gets short, Postgres is stopped from here: fast,
//! then immediate, then everything is killed, always in this order and always before kubelet does it.

use pgwarden_supervisor::clock::{MILLISECOND, SECOND};

use super::{Action, Event, State};

/// How long the agent may stay silent.
const ANSWER: u64 = 2 * SECOND;

/// How far the own stop has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Agent,
    Fast,
    Immediate,
    Kill,
}

/// A pod that is being deleted.
#[derive(Debug, Clone)]
pub(super) struct SigTerm {
    since: u64,
    /// Since when nobody has taken it on; `None` once the agent has.
    unanswered_since: Option<u64>,
    stage: Stage,
}

impl SigTerm {
    pub(super) fn new(now: u64) -> Self {
        Self { since: now, unanswered_since: Some(now), stage: Stage::Agent }
    }

    pub(super) fn acknowledged(&mut self) {
        self.unanswered_since = None;
    }

    pub(super) fn agent_lost(&mut self, now: u64) {
        self.unanswered_since.get_or_insert(now);
    }

    /// When the next stage begins.
    pub(super) fn next(&self, grace: u64) -> Option<u64> {
        let end = self.since.saturating_add(grace);
        match self.stage {
            Stage::Agent => {
                // 10 s before the end, but never at once when the whole period is short.
                let late = self.since.saturating_add(grace.saturating_sub(10 * SECOND).max(grace / 2));
                Some(self.unanswered_since.map_or(late, |since| since.saturating_add(ANSWER).min(late)))
            }
            Stage::Fast => Some(end.saturating_sub((4 * SECOND).min(grace / 4))),
            Stage::Immediate => Some(end.saturating_sub((1500 * MILLISECOND).min(grace / 8))),
            Stage::Kill => None,
        }
    }
}

impl State {
    pub(super) fn sigterm(&mut self, now: u64) -> Vec<Action> {
        if self.sigterm.is_some() {
            return Vec::new();
        }
        self.sigterm = Some(SigTerm::new(now));
        vec![Action::Log("SIGTERM: the pod is being deleted"), Action::Tell(Event::SigTerm)]
    }

    /// What is due by now. Never mixed into a request's actions, which end with the first that fails.
    pub(super) fn advance_sigterm(&mut self, now: u64) -> Vec<Action> {
        let mut actions = Vec::new();
        let grace = self.grace_ns;
        let pid = self.postmaster_pid();
        let Some(sigterm) = self.sigterm.as_mut().filter(|_| !self.exiting) else { return actions };
        while sigterm.next(grace).is_some_and(|due| due <= now) {
            let (stage, text, signal) = match sigterm.stage {
                Stage::Agent => {
                    (Stage::Fast, "nobody hands over: stopping Postgres (fast)", Some(libc::SIGINT))
                }
                Stage::Fast => {
                    (Stage::Immediate, "Postgres does not stop: stopping it (immediate)", Some(libc::SIGQUIT))
                }
                Stage::Immediate | Stage::Kill => {
                    (Stage::Kill, "the grace period ends: killing everything", None)
                }
            };
            sigterm.stage = stage;
            if let Some(pid) = pid {
                actions.push(Action::Log(text));
                actions.extend(signal.map(|signal| Action::Signal(pid, signal)));
            }
        }
        // The agent's word is waited for only while it is there and has time.
        let alone = sigterm.stage != Stage::Agent || self.controller.is_none();
        if sigterm.stage == Stage::Kill || (pid.is_none() && alone) {
            self.exiting = true;
            actions.push(Action::Log("exiting"));
            actions.push(Action::Exit(0));
        }
        actions
    }
}
