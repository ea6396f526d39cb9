//! What runs in a pod: operations, the agent and what it does, its messages.

use super::*;

impl World {
    /// Operations end by themselves.
    pub(super) fn operations(&mut self) {
        for pod in 0..self.pods.len() {
            let Some(agent) = &self.pods[pod].agent else { continue };
            if let Some((id, op, at)) = agent.op.clone()
                && at <= self.now
                && self.pods[pod].sup.is_some()
            {
                self.finish(pod, id, &op);
            }
        }
    }

    pub(super) fn finish(&mut self, pod: usize, id: Id, op: &Op) {
        if let Some(agent) = &mut self.pods[pod].agent {
            agent.op = None;
        }
        let holder_serves = |world: &Self, holder: &Holder| {
            world.pods.iter().any(|p| {
                p.sup.as_ref().is_some_and(|s| {
                    s.incarnation == holder.incarnation
                        && s.postmaster.is_some_and(|m| m.mode == Mode::Primary)
                })
            })
        };
        let result = match op {
            Op::Lock => {
                if let Some(sup) = &mut self.pods[pod].sup {
                    sup.locked = true;
                }
                Ok(Output::Done)
            }
            Op::Inspect => Ok(Output::Directory(match &self.pods[pod].disk.data {
                None => Directory::Empty,
                Some(data) => Directory::Complete(data.clone()),
            })),
            Op::SetAside { .. } => {
                self.pods[pod].disk.data = None;
                Ok(Output::Done)
            }
            Op::Initdb { instance } => {
                if self.pods[pod].disk.data.is_some() {
                    self.violate("initdb over data".into());
                }
                let system = SystemId(self.unique() as u64);
                let data = Data { instance: *instance, promised: Epoch(0), system };
                self.pods[pod].disk.data = Some(data.clone());
                Ok(Output::Directory(Directory::Complete(data)))
            }
            Op::Clone { instance, from } => {
                if holder_serves(self, &from.holder) {
                    let system = self.record.system.unwrap_or(SystemId(0));
                    let data = Data { instance: *instance, promised: from.epoch, system };
                    self.pods[pod].disk.data = Some(data.clone());
                    Ok(Output::Directory(Directory::Complete(data)))
                } else {
                    Err("the holder does not serve".into())
                }
            }
            Op::Follow { upstream, running, .. } => {
                self.promise(pod, upstream.epoch);
                if *running {
                    Ok(Output::Done)
                } else {
                    self.start(pod, Mode::Standby, upstream.epoch, Output::Done)
                }
            }
            Op::Primary { epoch, running, .. } => {
                self.promise(pod, *epoch);
                let up = Output::Up { timeline: 1 };
                if *running { Ok(up) } else { self.start(pod, Mode::Primary, *epoch, up) }
            }
            Op::Open { .. } => Ok(Output::Done),
            Op::Stop { .. } => {
                self.kill_postmaster(pod);
                Ok(Output::Done)
            }
        };
        self.tell(pod, Event::Finished(id, result));
    }

    pub(super) fn promise(&mut self, pod: usize, epoch: Epoch) {
        if let Some(data) = &mut self.pods[pod].disk.data {
            data.promised = data.promised.max(epoch);
        }
    }

    pub(super) fn start(
        &mut self,
        pod: usize,
        mode: Mode,
        epoch: Epoch,
        output: Output,
    ) -> Result<Output, String> {
        let (now, record) = (self.now, self.record.clone());
        let data = self.pods[pod].disk.data.clone();
        let Some(sup) = &mut self.pods[pod].sup else { return Err("no supervisor".into()) };
        if sup.postmaster.is_some() {
            return Err("it runs already".into());
        }
        if mode == Mode::Primary && sup.grant.is_none_or(|(e, d)| e != epoch || d < now + 500) {
            return Err("no grant".into());
        }
        sup.starts += 1;
        let postmaster = Postmaster { start_id: sup.starts, mode, epoch };
        sup.postmaster = Some(postmaster);
        match data {
            None => self.violate(format!("pod {pod} starts an empty directory")),
            Some(data) if record.system != Some(data.system) => {
                self.violate(format!(
                    "pod {pod} starts system {:?}, the record says {:?}",
                    data.system, record.system
                ));
            }
            Some(_) => {}
        }
        self.tell(pod, Event::Started(postmaster));
        Ok(output)
    }

    /// Agents deal with what has reached them.
    pub(super) fn settle(&mut self) {
        for _ in 0..500 {
            let mut quiet = true;
            for pod in 0..self.pods.len() {
                if self.pods[pod].paused {
                    continue;
                }
                let now = self.instant();
                let Some(agent) = &mut self.pods[pod].agent else { continue };
                let Some(event) = agent.inbox.pop_front() else { continue };
                quiet = false;
                agent.last = Some(event.clone());
                let effects = step(&mut agent.machine, event.clone(), now);
                if self.tracing && (!effects.is_empty() || event != Event::Tick) {
                    let view = self.pods[pod].agent.as_ref().unwrap().machine.view();
                    self.note(|| {
                        format!("pod {pod} {event:?} -> {} {:?} {effects:?}", view.state, view.reason)
                    });
                }
                for effect in effects {
                    self.carry_out(pod, effect);
                }
            }
            if quiet {
                return;
            }
        }
        self.violate("agents do not come to rest".into());
    }

    pub(super) fn carry_out(&mut self, pod: usize, effect: Effect) {
        let incarnation = self.pods[pod].sup.as_ref().map(|s| s.incarnation);
        match effect {
            Effect::Read(id) => self.send(pod, incarnation, id, Kind::Read),
            Effect::Write { id, expected, record } => {
                self.send(pod, incarnation, id, Kind::Write { expected, record })
            }
            Effect::SaveNote(note) => {
                if let Some(sup) = &mut self.pods[pod].sup {
                    sup.note = note;
                }
            }
            Effect::Grant { epoch, incarnation, deadline } => self.grant(pod, epoch, incarnation, deadline),
            Effect::Begin(id, op) => {
                let takes = match op {
                    Op::Lock | Op::Inspect | Op::SetAside { .. } => 0,
                    Op::Open { .. } => 100,
                    Op::Primary { .. } | Op::Follow { .. } => 200,
                    Op::Initdb { .. } | Op::Stop { .. } => 500,
                    Op::Clone { .. } => 1000,
                };
                if let Op::Primary { running: true, .. } = op {
                    self.reached.insert("adopted");
                }
                let at = self.now + takes;
                if let Some(agent) = &mut self.pods[pod].agent {
                    if agent.op.is_some() {
                        self.violate("two operations at once".into());
                        return;
                    }
                    agent.op = Some((id, op, at));
                }
            }
            Effect::Abort(id) => {
                if let Some(agent) = &mut self.pods[pod].agent
                    && agent.op.as_ref().is_some_and(|(running, _, _)| *running == id)
                {
                    agent.op = None;
                }
            }
            Effect::KillAll => self.kill_postmaster(pod),
            Effect::Route { .. } => {}
            Effect::Notify(notice) => self.reach(&notice),
            Effect::Exit => {
                self.pods[pod].sup = None;
                self.pods[pod].sup_at = self.now + 1000;
                self.pods[pod].exited = true;
                self.tell(pod, Event::Disconnected);
            }
        }
    }

    pub(super) fn reach(&mut self, notice: &Notice) {
        self.reached.insert(match notice {
            Notice::Bootstrapping { took_over: true, .. } => "took over a dead bootstrap",
            Notice::Blocked(Reason::HolderNotProvenDead { .. }) => "holder not proven dead",
            Notice::Blocked(Reason::DataWithoutRecord) => "data without record",
            Notice::Blocked(Reason::HolderDataLost) => "holder's data lost",
            other => other.name(),
        });
    }

    pub(super) fn grant(&mut self, pod: usize, epoch: Epoch, incarnation: Incarnation, deadline: Instant) {
        let now = self.now;
        let deadline = deadline.as_nanos() / 1_000_000;
        let fence = u64::try_from(self.timing.fence.as_millis()).unwrap();
        let by_renewal = self.log.iter().any(|a| {
            a.record.epoch == epoch
                && a.record.state.is_held()
                && a.record.holder.as_ref().is_some_and(|h| h.incarnation == incarnation)
                && a.sent + fence >= deadline
        });
        let alone = |r: &Record| {
            r.epoch == epoch
                && r.voters.is_empty()
                && r.system.is_some()
                && r.state.is_held()
                && r.holder.as_ref().is_some_and(|h| h.incarnation == incarnation)
        };
        let version = self.version();
        let coming = self.packets.iter().filter_map(|p| match &p.kind {
            Kind::Write { expected, record } if *expected == version => Some(record),
            _ => None,
        });
        let by_affirmation = deadline <= now + fence && alone(&self.record) && coming.into_iter().all(alone);
        if !by_renewal && !by_affirmation {
            self.violate(format!("pod {pod}: grant of epoch {epoch} until {deadline} has no reason"));
        }
        let Some(sup) = &mut self.pods[pod].sup else { return };
        let refused = sup.incarnation != incarnation
            || epoch < sup.highest
            || deadline <= now
            || sup.grant.is_some_and(|(_, d)| d > deadline);
        if refused {
            return;
        }
        sup.highest = epoch;
        sup.grant = Some((epoch, deadline));
    }

    pub(super) fn send(&mut self, pod: usize, incarnation: Option<Incarnation>, id: Id, kind: Kind) {
        let timeout = u64::try_from(self.timing.request_timeout.as_millis()).unwrap();
        let (now, write) = (self.now, matches!(kind, Kind::Write { .. }));
        let given_up = |event: Event| Letter { at: now + timeout, pod, incarnation, event };
        let failure =
            if write { Event::Written(id, Outcome::Unknown) } else { Event::Read(id, Reading::Failed) };
        let p = &mut self.pods[pod];
        if p.cut || self.api_down {
            self.letters.push(given_up(failure));
            return;
        }
        let (mut arrives, mut replies) = (now + 10, Some(now + 20));
        if write {
            if p.delay > 0 {
                arrives = now + p.delay;
                p.delay = 0;
                replies = None;
            }
            if p.lose {
                p.lose = false;
                replies = None;
            }
            if p.slow > 0 {
                replies = replies.map(|r| (r + p.slow).min(now + timeout - 1));
                p.slow = 0;
            }
        }
        if replies.is_none() {
            self.letters.push(given_up(failure));
        }
        self.packets.push(Packet { pod, incarnation, id, kind, sent: now, arrives, replies });
    }
}
