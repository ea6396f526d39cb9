//! Bounds on what strangers can take: half-open connections, and lines in the log.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{task::AbortHandle, time::Instant};

/// Tasks of which the oldest makes room for the newest, unless it has been [kept](Keep): one that never comes to the point can't
/// keep others out.
#[derive(Debug)]
pub(crate) struct Oldest {
    most: usize,
    tasks: VecDeque<(AbortHandle, Keep)>,
}

/// Set when a task is no longer to be ended.
#[derive(Clone, Debug, Default)]
pub(crate) struct Keep(Arc<AtomicBool>);

impl Keep {
    /// The task has come to the point.
    pub(crate) fn keep(&self) {
        self.0.store(true, Relaxed);
    }
}

impl Oldest {
    /// At most `most` at once.
    pub(crate) fn new(most: usize) -> Self {
        Self { most, tasks: VecDeque::new() }
    }

    /// Adds a task; true when another had to end for it.
    pub(crate) fn push(&mut self, task: AbortHandle, keep: Keep) -> bool {
        self.tasks.retain(|(task, keep)| !task.is_finished() && !keep.0.load(Relaxed));
        let full = self.tasks.len() >= self.most;
        if full && let Some((oldest, _)) = self.tasks.pop_front() {
            oldest.abort();
        }
        self.tasks.push_back((task, keep));
        full
    }
}

/// Lets a line through at most once a second, and counts the others.
#[derive(Debug)]
pub(crate) struct Quiet {
    start: Instant,
    /// Milliseconds after the start from which the next line may pass.
    next: AtomicU64,
    held: AtomicU64,
}

impl Quiet {
    const EVERY: Duration = Duration::from_secs(1);

    /// The first line passes.
    pub(crate) fn new() -> Self {
        Self { start: Instant::now(), next: AtomicU64::new(0), held: AtomicU64::new(0) }
    }

    /// `Some(n)` when a line may pass, after `n` that did not.
    pub(crate) fn pass(&self) -> Option<u64> {
        let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let now = millis(self.start.elapsed());
        if now < self.next.load(Relaxed) {
            self.held.fetch_add(1, Relaxed);
            return None;
        }
        self.next.store(now.saturating_add(millis(Self::EVERY)), Relaxed);
        Some(self.held.swap(0, Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_that_is_not_kept_makes_room() {
        let mut oldest = Oldest::new(2);
        let task = || tokio::spawn(std::future::pending::<()>());
        let (a, b, c, d) = (task(), task(), task(), task());
        let keep = Keep::default();
        assert!(!oldest.push(a.abort_handle(), keep.clone()));
        assert!(!oldest.push(b.abort_handle(), Keep::default()));
        keep.keep();
        assert!(!oldest.push(c.abort_handle(), Keep::default()));
        assert!(oldest.push(d.abort_handle(), Keep::default()));
        assert!(b.await.unwrap_err().is_cancelled());
        assert!(!a.is_finished() && !c.is_finished() && !d.is_finished());
        for task in [a, c, d] {
            task.abort();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_line_a_second_with_the_number_held_back() {
        let quiet = Quiet::new();
        assert_eq!(quiet.pass(), Some(0));
        assert_eq!(quiet.pass(), None);
        assert_eq!(quiet.pass(), None);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(quiet.pass(), Some(2));
        assert_eq!(quiet.pass(), None);
    }
}
