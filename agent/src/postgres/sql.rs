//! Sessions of the agent at its own Postgres, over the Unix socket, and the probe that asks whether it still answers.
//!
//! Every session carries its settings in the startup packet: they rank above what `ALTER ROLE`, `ALTER DATABASE` or
//! postgresql.conf say, so that a user of the database can neither plant functions in the agent's search_path nor stall it.

use std::{io, ops::Deref, time::Duration};

use tokio::{task::JoinHandle, time::timeout};
use tokio_postgres::{
    Client, NoTls, Row,
    error::SqlState,
    types::{ToSql, Type},
};

use super::{MAINTENANCE_DB, SUPERUSER};
use crate::config::Config;

/// `application_name` of the agent's sessions.
pub const APPLICATION_NAME: &str = "pgwarden";
/// Time for a connection to be accepted and authenticated.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// `statement_timeout` of a session, if nothing else is asked for.
pub const STATEMENT_TIMEOUT: Duration = Duration::from_secs(5);
/// What the agent waits longer than the server's own timeout, before it takes the server for hung.
const SLACK: Duration = Duration::from_secs(1);

/// A session could not be had, or a statement failed in it.
#[derive(Debug, thiserror::Error)]
pub enum SqlError {
    /// The server, or the lack of one, said no.
    #[error("failed to connect to database {dbname:?} as {user:?}")]
    Connect {
        /// Role.
        user: String,
        /// Database.
        dbname: String,
        /// What was answered.
        source: tokio_postgres::Error,
    },
    /// No answer to the connection attempt.
    #[error("failed to connect to database {dbname:?} as {user:?}: no answer within {} ms", after.as_millis())]
    ConnectTimeout {
        /// Role.
        user: String,
        /// Database.
        dbname: String,
        /// How long was waited.
        after: Duration,
    },
    /// A statement failed.
    #[error("failed to {what}")]
    Statement {
        /// What the statement was for.
        what: &'static str,
        /// What the server answered.
        source: tokio_postgres::Error,
    },
    /// No answer to a statement, beyond the server's own statement_timeout.
    #[error("failed to {what}: no answer within {} ms", after.as_millis())]
    StatementTimeout {
        /// What the statement was for.
        what: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// The answer was not of the expected shape.
    #[error("failed to {what}: unexpected answer")]
    Answer {
        /// What the statement was for.
        what: &'static str,
        /// The column that could not be read.
        source: tokio_postgres::Error,
    },
}

impl SqlError {
    /// SQLSTATE, when the server answered with one.
    #[must_use]
    pub fn code(&self) -> Option<&SqlState> {
        match self {
            Self::Connect { source, .. } | Self::Statement { source, .. } | Self::Answer { source, .. } => {
                source.code()
            }
            Self::ConnectTimeout { .. } | Self::StatementTimeout { .. } => None,
        }
    }
}

/// How long to wait for what.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For a connection to be accepted and authenticated.
    pub connect: Duration,
    /// `statement_timeout`; zero for none.
    pub statement: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: CONNECT_TIMEOUT, statement: STATEMENT_TIMEOUT }
    }
}

/// A session. Dropping it closes the connection, also when the server hangs.
#[derive(Debug)]
pub struct Session {
    client: Client,
    connection: JoinHandle<()>,
    timeouts: Timeouts,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Deref for Session {
    type Target = Client;
    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Session {
    /// Runs statements without parameters or results.
    ///
    /// # Errors
    /// When one fails; the later ones have not run then.
    pub async fn run(&self, what: &'static str, sql: &str) -> Result<(), SqlError> {
        self.within(what, self.client.batch_execute(sql)).await
    }

    /// The rows of a query.
    ///
    /// # Errors
    /// When it fails.
    pub async fn rows(
        &self,
        what: &'static str,
        sql: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Vec<Row>, SqlError> {
        self.within(what, self.client.query_typed(sql, parameters)).await
    }

    /// The first row of a query, if there is one.
    ///
    /// # Errors
    /// When it fails.
    pub async fn row(
        &self,
        what: &'static str,
        sql: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Option<Row>, SqlError> {
        Ok(self.rows(what, sql, parameters).await?.into_iter().next())
    }

    /// Awaits an answer, no longer than the session's statement_timeout and some slack: a hung server does not answer at all.
    ///
    /// # Errors
    /// When there is none, or it is an error.
    pub async fn within<T>(
        &self,
        what: &'static str,
        answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, SqlError> {
        let result = if self.timeouts.statement.is_zero() {
            answer.await
        } else {
            let after = self.timeouts.statement + SLACK;
            timeout(after, answer).await.map_err(|_| SqlError::StatementTimeout { what, after })?
        };
        result.map_err(|source| SqlError::Statement { what, source })
    }
}

/// Connects to this instance's Postgres over its Unix socket.
///
/// # Errors
/// When Postgres does not run, does not answer in time, or refuses.
pub async fn connect(config: &Config, user: &str, dbname: &str) -> Result<Session, SqlError> {
    connect_with(config, user, dbname, Timeouts::default()).await
}

/// The same as superuser at the maintenance database: what the agent's own administration uses.
///
/// # Errors
/// See [`connect`].
pub async fn connect_admin(config: &Config) -> Result<Session, SqlError> {
    connect(config, SUPERUSER, MAINTENANCE_DB).await
}

/// [`connect`] with other timeouts.
///
/// # Errors
/// See [`connect`].
pub async fn connect_with(
    config: &Config,
    user: &str,
    dbname: &str,
    timeouts: Timeouts,
) -> Result<Session, SqlError> {
    let mut settings = tokio_postgres::Config::new();
    settings
        .host_path(&config.socket_dir)
        .port(config.postgres_port)
        .user(user)
        .dbname(dbname)
        .application_name(APPLICATION_NAME)
        .options(startup_options(config.version, user == SUPERUSER, timeouts.statement));
    let (client, connection) = timeout(timeouts.connect, settings.connect(NoTls))
        .await
        .map_err(|_| SqlError::ConnectTimeout {
            user: user.to_owned(),
            dbname: dbname.to_owned(),
            after: timeouts.connect,
        })?
        .map_err(|source| SqlError::Connect { user: user.to_owned(), dbname: dbname.to_owned(), source })?;
    let connection = tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(error = super::describe(&error), "connection to postgres ended");
        }
    });
    Ok(Session { client, connection, timeouts })
}

/// Settings of a session, in the startup packet's syntax.
fn startup_options(version: u32, superuser: bool, statement_timeout: Duration) -> String {
    let mut options = format!(
        "-c search_path=pg_catalog,pg_temp -c statement_timeout={} -c standard_conforming_strings=on -c jit=off \
         -c default_transaction_read_only=off",
        statement_timeout.as_millis()
    );
    if superuser {
        // The agent's own bookkeeping is done again by the next primary: it must not hang because a replica is away.
        options.push_str(" -c synchronous_commit=local");
        if version >= 17 {
            options.push_str(" -c event_triggers=off");
        }
    }
    options
}

/// What a fresh connection found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// It answered `SELECT 1`.
    Alive,
    /// It refused for want of free connections: alive.
    TooManyConnections,
    /// It starts, recovers or shuts down, and says so.
    StartingUp(String),
    /// Nobody listens.
    Refused(String),
    /// It answered with another error.
    Failed(String),
    /// It took the connection, or not even that, and then said nothing.
    Hung,
}

impl Probe {
    /// Postgres works, whether or not it had room for one more connection.
    #[must_use]
    pub const fn alive(&self) -> bool {
        matches!(self, Self::Alive | Self::TooManyConnections)
    }
}

/// Asks with a new connection whether Postgres answers: a session that is open already would not notice a stopped postmaster.
pub async fn probe(config: &Config, limit: Duration) -> Probe {
    let timeouts = Timeouts { connect: limit, statement: limit };
    let ask = async {
        let session = connect_with(config, SUPERUSER, MAINTENANCE_DB, timeouts).await?;
        session.run("probe", "SELECT 1").await
    };
    match timeout(limit, ask).await {
        Err(_) => Probe::Hung,
        Ok(Ok(())) => Probe::Alive,
        Ok(Err(error)) => judge(&error),
    }
}

/// Reads the error of a probe.
fn judge(error: &SqlError) -> Probe {
    match error {
        SqlError::ConnectTimeout { .. } | SqlError::StatementTimeout { .. } => return Probe::Hung,
        SqlError::Connect { .. } | SqlError::Statement { .. } | SqlError::Answer { .. } => {}
    }
    match error.code() {
        Some(code) if *code == SqlState::TOO_MANY_CONNECTIONS => Probe::TooManyConnections,
        Some(code) if *code == SqlState::CANNOT_CONNECT_NOW => Probe::StartingUp(super::describe(error)),
        Some(code) if *code == SqlState::QUERY_CANCELED => Probe::Hung,
        Some(_) => Probe::Failed(super::describe(error)),
        None if is_refused(error) => Probe::Refused(super::describe(error)),
        None => Probe::Failed(super::describe(error)),
    }
}

/// Whether the cause is that no process listens on the socket.
fn is_refused(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return matches!(io.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused);
        }
        next = error.source();
    }
    false
}

/// A name as SQL writes it, quoted always.
#[must_use]
pub fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A string as SQL writes it; sessions have standard_conforming_strings on.
#[must_use]
pub fn quote_literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_strings_are_quoted() {
        assert_eq!(quote_ident(r#"a "b" c"#), r#""a ""b"" c""#);
        assert_eq!(quote_literal("it's"), "'it''s'");
    }

    #[test]
    fn options_hold_the_search_path_and_fit_the_version() {
        let o = startup_options(17, true, Duration::from_secs(5));
        assert!(o.contains("search_path=pg_catalog,pg_temp"), "{o}");
        assert!(o.contains("statement_timeout=5000"), "{o}");
        assert!(o.contains("event_triggers=off"), "{o}");
        // Both are settable by superusers or known from 17 on only: a session would be refused.
        assert!(!startup_options(16, true, Duration::ZERO).contains("event_triggers"));
        assert!(!startup_options(17, false, Duration::ZERO).contains("event_triggers"));
    }

    #[tokio::test]
    async fn nobody_listens_is_refused_and_a_mute_server_is_hung() {
        let dir = crate::postgres::testing::scratch("sql");
        let config = crate::postgres::testing::config(&dir);
        std::fs::create_dir_all(&config.socket_dir).unwrap();
        assert!(matches!(probe(&config, Duration::from_millis(200)).await, Probe::Refused(_)));
        let mute = std::os::unix::net::UnixListener::bind(
            config.socket_dir.join(format!(".s.PGSQL.{}", config.postgres_port)),
        )
        .unwrap();
        assert_eq!(probe(&config, Duration::from_millis(200)).await, Probe::Hung);
        drop(mute);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
