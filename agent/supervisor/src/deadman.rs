//! The dead-man switch: a thread of its own that kills at the deadline whatever the rest of the program is doing.
//!
//! It allocates nothing, writes no log and touches no file: it reads atomics, waits on a timer and signals. `primary` is
//! read before `deadline`, and written after it, so that it never sees a primary with a deadline older than the one that
//! it was started under.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::thread;

use pgwarden_supervisor::clock::{MILLISECOND, SECOND, boottime_ns};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::process::{Pid, Signal, kill_process};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

use crate::kill::Killer;
use crate::state::QUIT_LEAD;

/// No primary.
const NONE: i32 = 0;
/// A primary that has no pid yet.
const PENDING: i32 = -1;

/// Between two kills while the postmaster has not been reaped.
const AGAIN: u64 = 20 * MILLISECOND;

/// At most this long between two signs of life.
const TICK: u64 = SECOND;

/// What the dead-man thread and the main loop share.
#[derive(Debug)]
pub(crate) struct DeadMan {
    deadline: AtomicU64,
    primary: AtomicI32,
    fired: AtomicBool,
    quit: AtomicBool,
    tick: AtomicU64,
    kick: OwnedFd,
    notify: OwnedFd,
    timer: OwnedFd,
    killer: Killer,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Nothing until then.
    Wait(u64),
    /// SIGQUIT to the postmaster.
    Quit(i32),
    /// SIGKILL to everything.
    Kill,
}

/// The whole decision. `quit` is the deadline for which SIGQUIT has been sent.
fn decide(now: u64, primary: i32, deadline: u64, quit: u64) -> Step {
    if primary == NONE {
        Step::Wait(now.saturating_add(TICK))
    } else if now >= deadline {
        Step::Kill
    } else if now.saturating_add(QUIT_LEAD) < deadline {
        Step::Wait((deadline - QUIT_LEAD).min(now.saturating_add(TICK)))
    } else if primary > 0 && quit != deadline {
        Step::Quit(primary)
    } else {
        Step::Wait(deadline)
    }
}

impl DeadMan {
    /// Makes the switch and starts its thread.
    pub(crate) fn start(killer: Killer) -> io::Result<Arc<Self>> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let timer_flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let switch = Arc::new(Self {
            deadline: AtomicU64::new(0),
            primary: AtomicI32::new(NONE),
            fired: AtomicBool::new(false),
            quit: AtomicBool::new(false),
            tick: AtomicU64::new(boottime_ns()),
            kick: eventfd(0, flags)?,
            notify: eventfd(0, flags)?,
            timer: timerfd_create(TimerfdClockId::Boottime, timer_flags)?,
            killer,
        });
        let of_thread = Arc::clone(&switch);
        thread::Builder::new()
            .name("deadman".to_owned())
            .stack_size(64 * 1024)
            .spawn(move || of_thread.watch())?;
        Ok(switch)
    }

    pub(crate) fn set_deadline(&self, deadline_ns: u64) {
        self.deadline.store(deadline_ns, Ordering::SeqCst);
        add_one(&self.kick);
    }

    /// From the return on, the deadline counts. `None`: the process is about to be made.
    pub(crate) fn arm(&self, pid: Option<i32>) {
        self.primary.store(pid.filter(|pid| *pid > 0).unwrap_or(PENDING), Ordering::SeqCst);
        add_one(&self.kick);
    }

    pub(crate) fn disarm(&self) {
        self.primary.store(NONE, Ordering::SeqCst);
        add_one(&self.kick);
    }

    /// Whether it has fired since the last call. Set before it kills.
    pub(crate) fn take_fired(&self) -> bool {
        drain(&self.notify);
        self.fired.swap(false, Ordering::SeqCst)
    }

    /// Whether it has sent SIGQUIT since the last call. Set before it is sent.
    pub(crate) fn take_quit(&self) -> bool {
        self.quit.swap(false, Ordering::SeqCst)
    }

    /// Readable after it has fired.
    pub(crate) fn notify(&self) -> &OwnedFd {
        &self.notify
    }

    /// When the thread was last seen alive.
    pub(crate) fn last_tick(&self) -> u64 {
        self.tick.load(Ordering::SeqCst)
    }

    fn watch(&self) {
        let (mut quit, mut fired) = (0, 0);
        loop {
            let now = boottime_ns();
            self.tick.store(now, Ordering::SeqCst);
            let primary = self.primary.load(Ordering::SeqCst);
            let deadline = self.deadline.load(Ordering::SeqCst);
            match decide(now, primary, deadline, quit) {
                Step::Wait(until) => self.wait(until),
                Step::Quit(pid) => {
                    quit = deadline;
                    self.quit.store(true, Ordering::SeqCst);
                    if let Some(pid) = Pid::from_raw(pid) {
                        // Gone already is fine; the rest follows at the deadline.
                        let _ = kill_process(pid, Signal::QUIT);
                    }
                }
                Step::Kill => {
                    if fired != deadline {
                        fired = deadline;
                        self.fired.store(true, Ordering::SeqCst);
                    }
                    self.killer.everything();
                    add_one(&self.notify);
                    self.wait(now.saturating_add(AGAIN));
                }
            }
        }
    }

    /// Sleeps until an absolute time or a kick. The timer is absolute on `CLOCK_BOOTTIME`, so that a suspended machine
    /// wakes up to it.
    fn wait(&self, until: u64) {
        let it_value = Timespec {
            tv_sec: i64::try_from(until / SECOND).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(until % SECOND).unwrap_or(0),
        };
        let interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        let timer = Itimerspec { it_interval: interval, it_value };
        let armed = timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &timer).is_ok();
        // Without a timer: look again soon.
        let limit = Timespec { tv_sec: i64::from(armed), tv_nsec: 10_000_000 };
        let mut fds = [PollFd::new(&self.timer, PollFlags::IN), PollFd::new(&self.kick, PollFlags::IN)];
        let _ = poll(&mut fds, Some(&limit));
        drain(&self.kick);
    }
}

fn add_one(eventfd: &OwnedFd) {
    let _ = rustix::io::write(eventfd, &1_u64.to_ne_bytes());
}

fn drain(eventfd: &OwnedFd) {
    let _ = rustix::io::read(eventfd, &mut [0_u8; 8]);
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: u64 = 100 * SECOND;

    #[test]
    fn without_a_primary_nothing_fires() {
        for now in [0, D - 1, D, D + 1, 2 * D] {
            assert_eq!(decide(now, NONE, D, 0), Step::Wait(now + TICK));
        }
    }

    #[test]
    fn quit_comes_half_a_second_before_and_only_once() {
        assert_eq!(decide(D - QUIT_LEAD - 1, 7, D, 0), Step::Wait(D - QUIT_LEAD));
        assert_eq!(decide(D - QUIT_LEAD, 7, D, 0), Step::Quit(7));
        assert_eq!(decide(D - 1, 7, D, 0), Step::Quit(7));
        assert_eq!(decide(D - 1, 7, D, D), Step::Wait(D));
        assert_eq!(decide(D - 1, 7, D, D - 1), Step::Quit(7), "for each deadline");
    }

    #[test]
    fn kill_comes_at_the_deadline_and_stays() {
        for primary in [PENDING, 7] {
            for quit in [0, D] {
                assert_eq!(decide(D, primary, D, quit), Step::Kill);
                assert_eq!(decide(u64::MAX, primary, D, quit), Step::Kill);
                assert_ne!(decide(D - 1, primary, D, quit), Step::Kill);
            }
        }
        assert_eq!(decide(1, 7, 0, 0), Step::Kill, "a primary without a deadline must not live");
        assert_eq!(decide(D - 1, PENDING, D, 0), Step::Wait(D), "nothing to send SIGQUIT to");
    }

    #[test]
    fn it_never_sleeps_past_a_step() {
        let (mut now, mut quit, mut steps) = (D - 5 * SECOND, 0, Vec::new());
        while now < D {
            match decide(now, 7, D, quit) {
                Step::Wait(until) => {
                    assert!(until > now && until <= D && until <= now + TICK);
                    now = until;
                }
                Step::Quit(_) => {
                    quit = D;
                    steps.push(now);
                }
                Step::Kill => unreachable!("before the deadline"),
            }
        }
        assert_eq!((steps, now), (vec![D - QUIT_LEAD], D));
    }
}
