//! What an instance that does not hold the record does: look, claim, clone, follow, wait (T0–T4b, T18, T20).

use crate::{
    event::{Data, Directory, Effect, Mode, Op, Upstream},
    machine::{Hold, Machine, Mutant, Stage},
    reason::{Notice, Reason},
    record::{Holder, InstanceId, Record, RecordState},
    time::Instant,
};

/// The next step of an instance that holds nothing.
enum Plan {
    Rest,
    Wait(Reason),
    Until(Reason, Instant),
    Do(Op),
    Claim(Claim),
}

struct Claim {
    instance: InstanceId,
    notice: Notice,
    reason: &'static str,
}

impl Machine {
    /// T15 and adoption: the record says that this very incarnation holds it.
    pub(crate) fn resume(&mut self, now: Instant) {
        let (Some(supervisor), Some(record)) = (&self.supervisor, self.seen_record()) else { return };
        let Some(holder) = record.holder.as_ref().filter(|_| record.state.is_held()) else { return };
        let same = if self.is(Mutant::AnyIncarnation) {
            self.directory_instance() == Some(holder.instance)
        } else {
            holder.incarnation == supervisor.incarnation
        };
        // An instance that is told to go, and runs nothing, takes nothing up again.
        if !same || (self.terminating.is_some() && supervisor.postmaster.is_none()) {
            return;
        }
        let epoch = record.epoch;
        if supervisor.postmaster.is_some_and(|p| p.mode == Mode::Primary && p.epoch != epoch) {
            return;
        }
        let granted = supervisor.grant.filter(|(e, deadline)| *e == epoch && *deadline > now).map(|(_, d)| d);
        self.hold = Some(Hold {
            instance: holder.instance,
            epoch,
            deadline: granted,
            affirmed: false,
            renew_at: now,
            stage: Stage::Down,
        });
        self.retry_at = now;
    }

    /// No hold: the next step, or why there is none.
    pub(crate) fn free(&mut self, now: Instant, out: &mut Vec<Effect>) -> Option<Reason> {
        if self.record.outdated {
            self.read_record(now, out);
        }
        let running = self.postmaster();
        if running.is_some_and(|p| p.mode == Mode::Primary) {
            if self.seen_record().is_some() && !self.record.outdated {
                // A primary without a hold, and the record does not say that it is ours.
                out.push(Effect::KillAll);
                self.killing = Some(now);
                return None;
            }
            return Some(Reason::RecordUnknown); // its deadline stands
        }
        if self.terminating.is_some() {
            self.stop_and_leave(now, out);
            return None;
        }
        let plan = self.plan(now);
        if let Some((_, op)) = &self.op {
            let kept = match (&plan, op) {
                (_, Op::Lock | Op::Inspect | Op::SetAside { .. } | Op::Stop { .. }) => true,
                (Plan::Do(Op::Clone { from: wanted, .. }), Op::Clone { from, .. }) => {
                    wanted.holder == from.holder
                }
                (Plan::Do(Op::Follow { upstream: wanted, .. }), Op::Follow { upstream, .. }) => {
                    wanted == upstream
                }
                _ => false,
            };
            if kept {
                return None;
            }
            self.abort(out);
            return None;
        }
        if self.retry_at > now && !matches!(plan, Plan::Wait(_) | Plan::Rest) {
            self.wake_at(self.retry_at);
            if matches!(plan, Plan::Do(Op::Lock)) {
                return Some(Reason::VolumeLocked);
            }
            return self.last_error.clone().map(|(doing, error)| Reason::Retrying { doing, error });
        }
        match plan {
            Plan::Rest => None,
            Plan::Wait(reason) => Some(reason),
            Plan::Until(reason, at) => {
                self.wake_at(at);
                Some(reason)
            }
            Plan::Do(op) => {
                match &op {
                    Op::Clone { from, .. }
                        if !matches!(self.last_error, Some(("copying the primary", _))) =>
                    {
                        let pod = from.holder.place.pod.clone();
                        out.push(Effect::Notify(Notice::CloneStarted { pod }));
                    }
                    Op::SetAside { reason } => {
                        out.push(Effect::Notify(Notice::SetAside { reason: reason.clone() }));
                    }
                    _ => {}
                }
                self.begin(op, out);
                None
            }
            Plan::Claim(claim) => {
                self.claim(claim, now, out);
                Some(Reason::Claiming)
            }
        }
    }

    fn stop_and_leave(&mut self, now: Instant, out: &mut Vec<Effect>) {
        let stopping = matches!(self.op, Some((_, Op::Stop { .. })));
        match self.postmaster() {
            _ if stopping => {}
            Some(p) => {
                self.abort(out);
                if self.retry_at <= now {
                    self.begin(Op::Stop { mode: p.mode }, out);
                } else {
                    self.wake_at(self.retry_at);
                }
            }
            None => self.leave(out),
        }
    }

    /// T0 and T4b: one compare-and-swap decides.
    fn claim(&mut self, claim: Claim, now: Instant, out: &mut Vec<Effect>) {
        if self.record.in_flight.is_some() {
            return;
        }
        if self.record.outdated {
            self.read_record(now, out);
            return;
        }
        let (Some(base), Some(holder)) = (self.seen_record().cloned(), self.myself(claim.instance)) else {
            return;
        };
        if self.record.not_before > now {
            self.wake_at(self.record.not_before);
            return;
        }
        out.push(Effect::Notify(claim.notice));
        let record = Record {
            epoch: base.epoch.next(),
            state: RecordState::Held,
            holder: Some(holder),
            lease: self.policy.timing.lease,
            reason: claim.reason.to_owned(),
            ..base
        };
        self.write(record, now, out);
    }

    fn plan(&self, now: Instant) -> Plan {
        if let Some(version) = self.policy.unsupported {
            return Plan::Wait(Reason::VersionNotYetSupported { version });
        }
        if self.supervisor.as_ref().is_some_and(|s| !s.locked) {
            return Plan::Do(Op::Lock);
        }
        let Some(directory) = &self.directory else { return Plan::Do(Op::Inspect) };
        let Some(seen) = &self.record.seen else {
            return Plan::Wait(if self.record.missing {
                Reason::RecordMissing
            } else {
                Reason::RecordUnknown
            });
        };
        if self.record.missing {
            // A running standby follows on; nothing else begins without a record.
            return Plan::Wait(Reason::RecordMissing);
        }
        let record = &seen.record;
        match directory {
            Directory::Foreign { why } if record.system.is_some() => {
                Plan::Do(Op::SetAside { reason: why.clone() })
            }
            Directory::Foreign { .. } => Plan::Wait(Reason::DataWithoutRecord),
            Directory::Empty => self.plan_empty(record, seen.changed, now),
            Directory::Complete(data) => self.plan_data(record, data),
        }
    }

    /// T0 and T1.
    fn plan_empty(&self, record: &Record, changed: Instant, now: Instant) -> Plan {
        if record.state == RecordState::Frozen {
            return Plan::Wait(Reason::Frozen);
        }
        let anyway = self.is(Mutant::InitdbAnyway);
        if record.system.is_some() && !anyway {
            return match &record.holder {
                None => Plan::Wait(Reason::NoHolder),
                Some(holder) if holder.place.pod == self.policy.place.pod => {
                    Plan::Wait(Reason::HolderDataLost)
                }
                Some(holder) if record.state == RecordState::Held => Plan::Do(Op::Clone {
                    instance: self.fresh_instance(),
                    from: Upstream { holder: holder.clone(), epoch: record.epoch },
                }),
                Some(holder) => Plan::Wait(Reason::HolderStopped { pod: holder.place.pod.clone() }),
            };
        }
        let took_over = record.holder.is_some();
        if let Some(holder) = record.holder.as_ref().filter(|_| record.state == RecordState::Held) {
            let lease = record.lease.max(self.policy.timing.lease);
            let over = changed.plus(lease);
            if self.proof_of_death(holder).is_none() && now < over {
                return Plan::Until(Reason::BootstrapElsewhere { pod: holder.place.pod.clone() }, over);
            }
        }
        Plan::Claim(Claim {
            instance: self.fresh_instance(),
            notice: Notice::Bootstrapping { epoch: record.epoch.next(), took_over },
            reason: if took_over { "took over an unfinished bootstrap" } else { "bootstrap" },
        })
    }

    /// T2, T3, T4b, T20, and directories that are not this cluster's.
    fn plan_data(&self, record: &Record, data: &Data) -> Plan {
        let holder = record.holder.as_ref();
        let mine = holder.filter(|h| data.instance == h.instance);
        let Some(system) = record.system else {
            return match (mine, holder) {
                (Some(holder), _) => self.reclaim(record, holder),
                (None, Some(h)) => Plan::Wait(Reason::BootstrapElsewhere { pod: h.place.pod.clone() }),
                (None, None) => Plan::Wait(Reason::DataWithoutRecord),
            };
        };
        if data.system != system && !self.is(Mutant::StartForeign) {
            let reason = format!("its system identifier is {}, the cluster's is {system}", data.system);
            return Plan::Do(Op::SetAside { reason });
        }
        if self.promised > record.epoch.next() {
            return Plan::Wait(Reason::RecordRolledBack { promised: self.promised, epoch: record.epoch });
        }
        match (mine, holder) {
            (Some(holder), _) => self.reclaim(record, holder),
            (None, None) => Plan::Wait(Reason::NoHolder),
            (None, Some(holder)) => self.plan_follow(data.instance, holder, record),
        }
    }

    fn plan_follow(&self, instance: InstanceId, holder: &Holder, record: &Record) -> Plan {
        let running = self.postmaster().is_some();
        let wanted = (holder.instance, record.epoch, holder.place.address.clone());
        if running && self.following.as_ref() == Some(&wanted) {
            return match record.state {
                RecordState::Held => Plan::Rest,
                _ => Plan::Wait(Reason::HolderStopped { pod: holder.place.pod.clone() }),
            };
        }
        let upstream = Upstream { holder: holder.clone(), epoch: record.epoch };
        Plan::Do(Op::Follow { instance, upstream, running })
    }

    /// T4b: this data is the recorded holder's, in another life. It has every acknowledged transaction, but that other life must be over.
    fn reclaim(&self, record: &Record, holder: &Holder) -> Plan {
        if record.state == RecordState::Frozen {
            return Plan::Wait(Reason::Frozen);
        }
        let proof = if record.state == RecordState::Held {
            self.proof_of_death(holder)
        } else {
            Some("its earlier life has stopped and said so")
        };
        let proof = if self.is(Mutant::NoProofOfDeath) { Some("assumed") } else { proof };
        match proof {
            Some(proof) => Plan::Claim(Claim {
                instance: holder.instance,
                notice: Notice::Reclaimed { epoch: record.epoch.next(), proof },
                reason: "restarted where it was",
            }),
            None => Plan::Wait(Reason::HolderNotProvenDead { node: holder.place.node.clone() }),
        }
    }

    /// The supervisor of that life and everything it started hold the volume's lock until they are gone, and the lock works
    /// between all pods of one node.
    fn proof_of_death(&self, holder: &Holder) -> Option<&'static str> {
        let place = &self.policy.place;
        if !self.supervisor.as_ref()?.locked {
            return None;
        }
        // A bootstrap by another pod of this node has another volume, so this lock says nothing about it.
        if holder.place.pod != place.pod {
            return None;
        }
        if holder.place.pod_uid == place.pod_uid {
            Some("same pod, and the volume's lock is held")
        } else if holder.place.node == place.node {
            Some("same node, and the volume's lock is held")
        } else {
            None
        }
    }
}
