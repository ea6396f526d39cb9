//! Sizes of databases: dear, as Postgres looks at every file. Measured on a session of its own, so that a slow volume holds nothing else.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use crate::{
    config::Config,
    postgres::{
        MAINTENANCE_DB, MONITOR_ROLE,
        sql::{self, SqlError, Timeouts},
    },
};

/// The least time between two measurements; and they take a tenth of the time at most.
const INTERVAL: Duration = Duration::from_secs(30);
const SHARE: u32 = 10;
/// Sizes older than this are not shown.
const STALE: Duration = Duration::from_secs(1800);
/// After one that failed.
const RETRY: Duration = Duration::from_secs(5);
/// How long a page waits for a measurement that it started.
const WAIT: Duration = Duration::from_millis(400);
const MEASURE: Timeouts = Timeouts { connect: Duration::from_secs(2), statement: Duration::from_secs(60) };

/// What the last measurement found.
#[derive(Clone, Debug, Default)]
pub(super) struct Measured {
    /// Bytes by database.
    pub(super) sizes: Vec<(String, f64)>,
    /// Whether the last one succeeded.
    pub(super) success: bool,
    at: Option<Instant>,
    next: Option<Instant>,
}

/// See the module; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Sizes(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: Config,
    running: AtomicBool,
    measured: watch::Sender<Measured>,
}

impl Sizes {
    pub(super) fn new(config: Config) -> Self {
        Self(Arc::new(Inner { config, running: AtomicBool::new(false), measured: watch::Sender::default() }))
    }

    /// The last sizes; `None` before the first measurement is done. Starts one when it is time, and waits for it a little.
    pub(super) async fn current(&self) -> Option<Measured> {
        let mut measured = self.0.measured.subscribe();
        let due = measured.borrow_and_update().next.is_none_or(|next| Instant::now() >= next);
        if due {
            if !self.0.running.swap(true, SeqCst) {
                tokio::spawn(Arc::clone(&self.0).measure());
            }
            // A slow one is shown on a later page.
            let _ = timeout(WAIT, measured.changed()).await;
        }
        let now = measured.borrow().clone();
        now.next?;
        let stale = now.at.is_none_or(|at| at.elapsed() > STALE);
        Some(if stale { Measured { sizes: Vec::new(), ..now } } else { now })
    }
}

impl Inner {
    async fn measure(self: Arc<Self>) {
        let start = Instant::now();
        let found = ask(&self.config).await;
        let took = start.elapsed();
        self.measured.send_modify(|measured| {
            let pause = if found.is_ok() { INTERVAL } else { RETRY };
            measured.next = Some(Instant::now() + pause.max(took * SHARE));
            measured.success = found.is_ok();
            match found {
                Ok(sizes) => (measured.sizes, measured.at) = (sizes, Some(start)),
                Err(error) => {
                    tracing::debug!(error = crate::postgres::describe(&error), "failed to measure databases");
                }
            }
        });
        self.running.store(false, SeqCst);
    }
}

async fn ask(config: &Config) -> Result<Vec<(String, f64)>, SqlError> {
    let session = sql::connect_with(config, MONITOR_ROLE, MAINTENANCE_DB, MEASURE).await?;
    let sql = "SELECT datname::text, pg_database_size(oid)::float8 FROM pg_database WHERE datallowconn \
               ORDER BY datname LIMIT 256";
    let what = "measure databases";
    let rows = session.rows(what, sql, &[]).await?;
    let answer = |source| SqlError::Answer { what, source };
    let mut sizes = Vec::with_capacity(rows.len());
    for row in rows {
        // Null when it was dropped meanwhile.
        if let Some(size) = row.try_get::<_, Option<f64>>(1).map_err(answer)? {
            sizes.push((row.try_get(0).map_err(answer)?, size));
        }
    }
    Ok(sizes)
}
