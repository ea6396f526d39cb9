//! Grants, and the postmaster that lives by them.

use pgwarden_supervisor::clock::SECOND;
use pgwarden_supervisor::protocol::{
    Event, Exit, GrantView, Incarnation, Mode, PostmasterExit, Refusal, RefusalCode, Reply, Start,
};

use super::{Action, Postmaster, QUIT_LEAD, State, done, refuse, require_program};

/// No renewal justifies a deadline further ahead; more is a mistaken clock.
const FURTHEST_DEADLINE: u64 = 120 * SECOND;

impl State {
    pub(super) fn accept_grant(
        &mut self,
        epoch: u64,
        incarnation: Incarnation,
        deadline_ns: u64,
        now: u64,
    ) -> Result<Vec<Action>, Refusal> {
        if incarnation != self.incarnation {
            return refuse(
                RefusalCode::WrongIncarnation,
                format!("this is incarnation {}", self.incarnation),
            );
        }
        if epoch < self.highest_epoch {
            return refuse(RefusalCode::StaleEpoch, format!("epoch {} has been seen", self.highest_epoch));
        }
        if deadline_ns < self.floor_ns {
            return refuse(
                RefusalCode::DeadlineBackwards,
                format!("the deadline is at {} already", self.floor_ns),
            );
        }
        if deadline_ns <= now {
            return refuse(RefusalCode::DeadlinePassed, format!("it is {now} already"));
        }
        if deadline_ns - now > FURTHEST_DEADLINE {
            return refuse(RefusalCode::DeadlineTooFar, format!("it is {now} now, over 120 s before it"));
        }
        self.highest_epoch = epoch;
        self.floor_ns = deadline_ns;
        let grant = GrantView { epoch, deadline_ns };
        self.grant = Some(grant);
        Ok(vec![Action::SetDeadline(deadline_ns), Action::Reply(Reply::Granted(grant))])
    }

    /// Whether there is a grant of exactly this epoch with enough time left to be of use.
    pub(super) fn require_grant(&self, epoch: u64, now: u64) -> Result<(), Refusal> {
        let live = now.saturating_add(QUIT_LEAD);
        match self.grant {
            Some(grant) if grant.epoch == epoch && grant.deadline_ns > live => Ok(()),
            Some(grant) if grant.epoch == epoch => {
                refuse(RefusalCode::NoGrant, format!("the grant of epoch {epoch} has run out"))
            }
            Some(grant) => {
                refuse(RefusalCode::NoGrant, format!("the grant is of epoch {}, not {epoch}", grant.epoch))
            }
            None => refuse(RefusalCode::NoGrant, format!("there is no grant of epoch {epoch}")),
        }
    }

    pub(super) fn set_epoch(&mut self, from: u64, to: u64, now: u64) -> Result<Vec<Action>, Refusal> {
        if to <= from {
            return refuse(RefusalCode::BadRequest, "the epoch only grows");
        }
        if to < self.highest_epoch {
            return refuse(RefusalCode::StaleEpoch, format!("epoch {} has been seen", self.highest_epoch));
        }
        if self.require_grant(from, now).is_err() {
            self.require_grant(to, now)?;
        }
        let Some(postmaster) = self
            .postmaster
            .as_mut()
            .filter(|it| it.mode == Mode::Primary && (it.epoch == from || it.epoch == to))
        else {
            return refuse(RefusalCode::NotPrimary, format!("there is no primary of epoch {from}"));
        };
        postmaster.epoch = to;
        self.primary_epoch = to;
        self.highest_epoch = to;
        if let Some(grant) = &mut self.grant {
            grant.epoch = to;
        }
        Ok(vec![done()])
    }

    pub(super) fn start(&mut self, start: Start, now: u64) -> Result<Vec<Action>, Refusal> {
        if self.sigterm.is_some() {
            return refuse(RefusalCode::Terminating, "the pod is being deleted");
        }
        if let Some(postmaster) = &self.postmaster {
            return refuse(RefusalCode::AlreadyRunning, format!("postmaster {} runs", postmaster.pid));
        }
        self.require_lock()?;
        require_program(&start.argv)?;
        let mut actions = Vec::new();
        if start.mode == Mode::Primary {
            self.require_grant(start.epoch, now)?;
            self.primary_epoch = start.epoch;
            actions.push(Action::Arm(None));
        }
        self.starts += 1;
        self.postmaster = Some(Postmaster {
            pid: 0,
            mode: start.mode,
            born: start.mode,
            epoch: start.epoch,
            start_id: self.starts,
            quit: false,
        });
        actions.push(Action::Spawn(start));
        Ok(actions)
    }

    pub(super) fn started(&mut self, pid: Option<i32>) -> Vec<Action> {
        let (Some(pid), Some(postmaster)) = (pid, self.postmaster.as_mut()) else {
            self.postmaster = None;
            return vec![Action::Disarm];
        };
        postmaster.pid = pid;
        let reply = Action::Reply(Reply::Started { start_id: postmaster.start_id, pid });
        match postmaster.mode {
            Mode::Primary => vec![Action::Arm(Some(pid)), reply],
            Mode::Standby => vec![reply],
        }
    }

    pub(super) fn promote(&mut self, epoch: u64, data_dir: String, now: u64) -> Result<Vec<Action>, Refusal> {
        if self.sigterm.is_some() {
            return refuse(RefusalCode::Terminating, "the pod is being deleted");
        }
        if !data_dir.starts_with('/') {
            return refuse(RefusalCode::BadRequest, "the data directory must be an absolute path");
        }
        let Some(pid) = self.postmaster_pid() else {
            return refuse(RefusalCode::NotRunning, "no postmaster runs");
        };
        self.require_grant(epoch, now)?;
        let Some(postmaster) = self
            .postmaster
            .as_mut()
            .filter(|it| it.born == Mode::Standby && (it.mode == Mode::Standby || it.epoch == epoch))
        else {
            return refuse(RefusalCode::NotStandby, "the postmaster is not a standby");
        };
        postmaster.mode = Mode::Primary;
        postmaster.epoch = epoch;
        self.primary_epoch = epoch;
        // Armed before anything can make it writable.
        Ok(vec![
            Action::Arm(Some(pid)),
            Action::PromoteFile(data_dir),
            Action::Signal(pid, libc::SIGUSR1),
            done(),
        ])
    }

    pub(super) fn signal_postmaster(&self, signal: i32) -> Result<Vec<Action>, Refusal> {
        match self.postmaster_pid() {
            Some(pid) => Ok(vec![Action::Signal(pid, signal), done()]),
            None => refuse(RefusalCode::NotRunning, "no postmaster runs"),
        }
    }

    pub(super) fn postmaster_exited(&mut self, exit: Exit, drained: bool) -> Vec<Action> {
        let Some(postmaster) = self.postmaster.take() else { return vec![Action::Disarm] };
        let exit = PostmasterExit { start_id: postmaster.start_id, exit, drained };
        self.last_exit = Some(exit);
        let mut actions = vec![Action::Disarm];
        if postmaster.quit {
            actions.extend(self.fence());
        }
        actions.push(Action::Tell(Event::PostmasterExited(exit)));
        actions
    }

    /// The primary is dead by the switch, and so is the grant.
    pub(super) fn fence(&mut self) -> [Action; 2] {
        self.grant = None;
        self.fenced = Some(self.primary_epoch);
        if let Some(postmaster) = &mut self.postmaster {
            // Told once.
            postmaster.quit = false;
        }
        [
            Action::Log("the deadline passed without a newer grant: every process was killed"),
            Action::Tell(Event::DeadlineFired { epoch: self.primary_epoch }),
        ]
    }
}
