//! Prometheus metrics of this instance: `/metrics` over plain HTTP.
//!
//! Collected when asked for, over one kept session of the monitoring role; those who ask at the same time share an answer. Postgres may be
//! down or hung: the page then comes without what only Postgres knows, within three seconds.

mod families;
mod page;
mod postgres;
mod process;
mod sizes;
mod status;
#[cfg(test)]
mod tests;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use http::{HeaderValue, Response, StatusCode, header};
use pgwarden_proto::v1::InstanceStatus;
use tokio::{
    net::TcpListener,
    time::{Instant, timeout},
};

use self::{families as f, page::Page, sizes::Sizes};
use crate::{
    bus::Bus,
    config::Config,
    postgres::{
        MAINTENANCE_DB, MONITOR_ROLE,
        sql::{self, Session, SqlError, Timeouts},
    },
    probe::{ListenError, http as plain},
    tls,
};

/// For all that is asked of Postgres: Prometheus' own default timeout is 10 s.
const POSTGRES: Duration = Duration::from_millis(2500);
const TIMEOUTS: Timeouts = Timeouts { connect: Duration::from_secs(2), statement: Duration::from_secs(2) };
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Counts of the driver's that are in no status: it writes, the metrics read. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Deadline(Arc<DeadlineInner>);

#[derive(Debug, Default)]
struct DeadlineInner {
    renewals: AtomicU64,
    near_misses: AtomicU64,
    last_margin_us: AtomicI64,
    lowest_margin_us: AtomicI64,
}

impl Deadline {
    /// The deadline was moved when `margin` of `length` was left; less than a quarter is a near miss.
    pub fn renewed(&self, margin: Duration, length: Duration) {
        let inner = &self.0;
        let us = i64::try_from(margin.as_micros()).unwrap_or(i64::MAX);
        inner.last_margin_us.store(us, Relaxed);
        if inner.renewals.fetch_add(1, Relaxed) == 0 {
            inner.lowest_margin_us.store(us, Relaxed);
        } else {
            inner.lowest_margin_us.fetch_min(us, Relaxed);
        }
        if margin < length / 4 {
            inner.near_misses.fetch_add(1, Relaxed);
        }
    }
}

/// Serves `/metrics` on `config.metrics_port`, for ever.
///
/// # Errors
/// When the port cannot be bound.
pub async fn serve(
    config: Config,
    store: tls::Store,
    bus: Bus,
    deadline: Deadline,
) -> Result<(), ListenError> {
    let listener = plain::listen(config.listen(config.metrics_port), "metrics").await?;
    serve_on(listener, config, store, bus, deadline).await;
    Ok(())
}

/// As [`serve`], on a socket that listens already.
pub async fn serve_on(
    listener: TcpListener,
    config: Config,
    store: tls::Store,
    bus: Bus,
    deadline: Deadline,
) {
    let exporter = Arc::new(Exporter {
        sizes: Sizes::new(config.clone()),
        config,
        store,
        bus,
        deadline,
        started: process::now(),
        session: Mutex::new(None),
        last: tokio::sync::Mutex::new(None),
    });
    plain::serve(listener, move |path| {
        let exporter = Arc::clone(&exporter);
        async move {
            match path.as_str() {
                "/metrics" => exporter.answer().await,
                _ => plain::text(StatusCode::NOT_FOUND, "the metrics are at /metrics\n".into()),
            }
        }
    })
    .await;
}

struct Exporter {
    config: Config,
    store: tls::Store,
    bus: Bus,
    deadline: Deadline,
    sizes: Sizes,
    started: f64,
    /// Between two pages; a page that is given up takes it with it.
    session: Mutex<Option<Session>>,
    /// When the last page was done; held while one is collected.
    last: tokio::sync::Mutex<Option<(Instant, String)>>,
}

impl Exporter {
    async fn answer(&self) -> Response<String> {
        match self.shared().await {
            Ok(text) => {
                let mut response = plain::text(StatusCode::OK, text);
                response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
                response
            }
            Err(error) => {
                tracing::error!(%error, "failed to encode the metrics");
                plain::text(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    format!("failed to encode the metrics: {error}\n"),
                )
            }
        }
    }

    /// The page; one that was finished after we came is as good as our own.
    async fn shared(&self) -> Result<String, prometheus::Error> {
        let arrived = Instant::now();
        let mut last = self.last.lock().await;
        if let Some((done, text)) = &*last
            && *done >= arrived
        {
            return Ok(text.clone());
        }
        let text = self.collect().await.encode()?;
        *last = Some((Instant::now(), text.clone()));
        Ok(text)
    }

    async fn collect(&self) -> Page {
        let start = Instant::now();
        let status = self.bus.status();
        let mut page = match timeout(POSTGRES, self.ask(&status)).await {
            Ok(Ok(mut page)) => {
                page.set(&f::UP, &[], 1.0);
                if let Some(measured) = self.sizes.current().await {
                    let success = if measured.success { 1.0 } else { 0.0 };
                    page.set(&f::QUERY_SUCCESS, &["sizes"], success);
                    for (database, bytes) in &measured.sizes {
                        page.set(&f::DATABASE_SIZE, &[database], *bytes);
                    }
                }
                page
            }
            Ok(Err(error)) => {
                tracing::debug!(error = crate::postgres::describe(&error), "no metrics from postgres");
                down()
            }
            Err(_) => {
                tracing::debug!("no metrics from postgres in time");
                down()
            }
        };
        status::add(&mut page, &status);
        status::add_tls(&mut page, &self.store);
        status::add_deadline(&mut page, &self.deadline);
        process::add(&mut page, self.started);
        page.set(&f::SCRAPE_DURATION, &[], start.elapsed().as_secs_f64());
        page
    }

    async fn ask(&self, status: &InstanceStatus) -> Result<Page, SqlError> {
        let version = self.config.version;
        let kept = self.session.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(session) = kept.filter(|session| !session.is_closed()) {
            // A session may have ended with the Postgres that it belonged to: its error says nothing about the one that runs now.
            if let Ok(page) = postgres::collect(&session, status, version).await {
                self.keep(session);
                return Ok(page);
            }
        }
        let session = sql::connect_with(&self.config, MONITOR_ROLE, MAINTENANCE_DB, TIMEOUTS).await?;
        let page = postgres::collect(&session, status, version).await?;
        self.keep(session);
        Ok(page)
    }

    fn keep(&self, session: Session) {
        *self.session.lock().unwrap_or_else(PoisonError::into_inner) = Some(session);
    }
}

fn down() -> Page {
    let mut page = Page::default();
    page.set(&f::UP, &[], 0.0);
    page
}
