//! The roles that the operator needs, and the application's role and database from its Secret.
//!
//! Every step reads first and writes only what differs: at the second call nothing is written. The password is never in a
//! statement, a log line or an error: only a SCRAM verifier is.

use std::{fmt, path::PathBuf, time::Duration};

use sha2::{Digest, Sha256};
use tokio_postgres::types::Type;

use super::{
    MAINTENANCE_DB, MONITOR_ROLE, REPLICATION_ROLE, SUPERUSER,
    files::{self, FileError, blocking},
    scram,
    sql::{self, Session, SqlError, Timeouts, quote_ident, quote_literal},
};
use crate::config::Config;

/// Application role and database where a Secret does not name them.
pub const DEFAULT_DATABASE: &str = "app";
/// Copying the template takes a while on a slow disk.
const TIMEOUTS: Timeouts = Timeouts { connect: sql::CONNECT_TIMEOUT, statement: Duration::from_secs(60) };
/// Bytes of a name that Postgres keeps; it would cut off the rest in silence.
const MAX_NAME: usize = 63;

/// The application's Secret.
#[derive(Clone, PartialEq, Eq)]
pub struct AppSecret {
    /// Role.
    pub username: String,
    /// Database, owned by the role.
    pub dbname: String,
    password: Vec<u8>,
}

impl fmt::Debug for AppSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AppSecret")
            .field("username", &self.username)
            .field("dbname", &self.dbname)
            .finish_non_exhaustive()
    }
}

/// Why a Secret can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// It could not be read.
    #[error(transparent)]
    Read(#[from] FileError),
    /// A key is missing or empty.
    #[error("the application Secret has no {key}: add the key")]
    Key {
        /// Which.
        key: &'static str,
    },
    /// A name is unusable.
    #[error("the application Secret's {key} {name:?} can't be used: {why}")]
    Name {
        /// Which key.
        key: &'static str,
        /// Its value.
        name: String,
        /// What is wrong.
        why: &'static str,
    },
}

impl AppSecret {
    /// A Secret's content.
    ///
    /// # Errors
    /// When a name can't be one, or there is no password.
    pub fn new(username: &str, dbname: &str, password: impl Into<Vec<u8>>) -> Result<Self, SecretError> {
        let password = password.into();
        if password.is_empty() {
            return Err(SecretError::Key { key: "password" });
        }
        for (key, name) in [("username", username), ("dbname", dbname)] {
            if let Some(why) = unusable(key, name) {
                return Err(SecretError::Name { key, name: name.to_owned(), why });
            }
        }
        Ok(Self { username: username.to_owned(), dbname: dbname.to_owned(), password })
    }

    /// Reads the mounted Secret; `None` while there is none. `database` is used when it names none.
    ///
    /// # Errors
    /// See [`SecretError`].
    pub async fn load(config: &Config, database: &str) -> Result<Option<Self>, SecretError> {
        let dir = config.app_secret_dir.clone();
        let default = if database.is_empty() { DEFAULT_DATABASE } else { database }.to_owned();
        let read = |dir: PathBuf| -> Result<[Option<Vec<u8>>; 3], FileError> {
            let key = |name: &str| files::read(&dir.join(name));
            Ok([key("username")?, key("password")?, key("dbname")?])
        };
        let [username, password, dbname] =
            blocking("read", &config.app_secret_dir, move || read(dir)).await?;
        if username.is_none() && password.is_none() {
            return Ok(None);
        }
        let text = |key, value: Option<Vec<u8>>| {
            let value = value.ok_or(SecretError::Key { key })?;
            String::from_utf8(value).map_err(|error| SecretError::Name {
                key,
                name: String::from_utf8_lossy(error.as_bytes()).into_owned(),
                why: "it is not UTF-8",
            })
        };
        let username = text("username", username)?;
        let dbname = dbname.map_or(Ok(default), |name| text("dbname", Some(name)))?;
        let password = password.ok_or(SecretError::Key { key: "password" })?;
        Self::new(&username, &dbname, password).map(Some)
    }

    /// Says whether the Secret has changed, in status. Stretched, so that it is of no more help in guessing a password than the
    /// verifier in the database.
    #[must_use]
    pub fn hash(&self) -> String {
        const ROUNDS: u32 = 4096;
        let parts = [self.username.as_bytes(), self.dbname.as_bytes(), &self.password];
        let mut state: [u8; 32] = parts
            .iter()
            .fold(Sha256::new(), |hash, part| {
                hash.chain_update((part.len() as u64).to_le_bytes()).chain_update(part)
            })
            .finalize()
            .into();
        for _ in 0..ROUNDS {
            state = Sha256::new().chain_update(state).chain_update(&self.password).finalize().into();
        }
        state.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }
}

fn unusable(key: &str, name: &str) -> Option<&'static str> {
    if name.is_empty() {
        return Some("it is empty");
    }
    if name.len() > MAX_NAME {
        return Some("PostgreSQL's names have at most 63 bytes");
    }
    if name.contains('\0') {
        return Some("it contains a zero byte");
    }
    let reserved = if key == "username" {
        name == SUPERUSER
            || name.starts_with("pg_")
            || name.starts_with("pgwarden_")
            || name == "public"
            || name == "none"
    } else {
        ["template0", "template1"].contains(&name)
    };
    reserved.then_some("the name is reserved")
}

/// Why a role or the database is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum RolesError {
    /// A statement failed.
    #[error(transparent)]
    Sql(#[from] SqlError),
}

/// What is known of a role.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Role {
    login: bool,
    replication: bool,
    superuser: bool,
    password: Option<String>,
    monitor: bool,
}

/// Makes roles and database as they should be, on a primary. Whether anything was written.
///
/// Safe at every moment: it connects to the application's database only before that has an owner of its own (before version 15).
///
/// # Errors
/// When a statement failed; it can be called again.
pub async fn ensure(config: &Config, secret: Option<&AppSecret>) -> Result<bool, RolesError> {
    let session = sql::connect_with(config, SUPERUSER, MAINTENANCE_DB, TIMEOUTS).await?;
    // A verifier is no password, but it is nobody's business either. In a statement of its own: whether a statement is logged is
    // decided before it runs.
    session
        .run(
            "keep verifiers out of the log",
            "SET log_statement = 'none'; SET log_min_duration_statement = -1; SET log_min_error_statement = 'panic'; \
             SET pg_stat_statements.track_utility = 'off'",
        )
        .await?;
    let mut statements = Vec::new();
    statements.extend(replication_role(role(&session, REPLICATION_ROLE).await?.as_ref()));
    statements.extend(monitor_role(role(&session, MONITOR_ROLE).await?.as_ref()));
    if let Some(secret) = secret {
        statements.extend(app_role(role(&session, &secret.username).await?.as_ref(), secret));
    }
    let mut changed = !statements.is_empty();
    if changed {
        session.run("make the roles", &format!("BEGIN; {}; COMMIT", statements.join("; "))).await?;
        tracing::info!(statements = statements.len(), "roles made or mended");
    }
    if let Some(secret) = secret {
        changed |= database(config, &session, secret).await?;
    }
    Ok(changed)
}

async fn role(session: &Session, name: &str) -> Result<Option<Role>, SqlError> {
    let what = "read a role";
    let row = session
        .row(
            what,
            "SELECT a.rolcanlogin, a.rolreplication, a.rolsuper, a.rolpassword, EXISTS (SELECT \
               FROM pg_catalog.pg_auth_members m JOIN pg_catalog.pg_roles g ON g.oid = m.roleid \
               WHERE m.member = a.oid AND g.rolname = 'pg_monitor') \
             FROM pg_catalog.pg_authid a WHERE a.rolname = $1",
            &[(&name, Type::NAME)],
        )
        .await?;
    let bad = |source| SqlError::Answer { what, source };
    row.map(|row| {
        Ok(Role {
            login: row.try_get(0).map_err(bad)?,
            replication: row.try_get(1).map_err(bad)?,
            superuser: row.try_get(2).map_err(bad)?,
            password: row.try_get(3).map_err(bad)?,
            monitor: row.try_get(4).map_err(bad)?,
        })
    })
    .transpose()
}

fn replication_role(found: Option<&Role>) -> Option<String> {
    let attributes = "LOGIN REPLICATION NOSUPERUSER PASSWORD NULL";
    match found {
        None => Some(format!("CREATE ROLE {REPLICATION_ROLE} {attributes}")),
        Some(Role { login: true, replication: true, superuser: false, password: None, .. }) => None,
        Some(_) => Some(format!("ALTER ROLE {REPLICATION_ROLE} {attributes}")),
    }
}

fn monitor_role(found: Option<&Role>) -> Vec<String> {
    let attributes = "LOGIN NOREPLICATION NOSUPERUSER PASSWORD NULL";
    let mut statements = Vec::new();
    match found {
        None => statements.push(format!("CREATE ROLE {MONITOR_ROLE} {attributes}")),
        Some(Role { login: true, replication: false, superuser: false, password: None, .. }) => {}
        Some(_) => statements.push(format!("ALTER ROLE {MONITOR_ROLE} {attributes}")),
    }
    if !found.is_some_and(|role| role.monitor) {
        statements.push(format!("GRANT pg_monitor TO {MONITOR_ROLE}"));
    }
    statements
}

/// The application's role: its other attributes are the user's business.
fn app_role(found: Option<&Role>, secret: &AppSecret) -> Option<String> {
    let name = quote_ident(&secret.username);
    let verifier = || quote_literal(&scram::verifier(&secret.password));
    match found {
        None => Some(format!("CREATE ROLE {name} LOGIN PASSWORD {}", verifier())),
        Some(role) => {
            let same = role.password.as_deref().is_some_and(|old| scram::matches(old, &secret.password));
            (!same || !role.login).then(|| format!("ALTER ROLE {name} LOGIN PASSWORD {}", verifier()))
        }
    }
}

/// Makes the application's database and gives it to its role.
async fn database(config: &Config, session: &Session, secret: &AppSecret) -> Result<bool, SqlError> {
    let what = "read the application database";
    let (database, owner) = (quote_ident(&secret.dbname), quote_ident(&secret.username));
    let row = session
        .row(
            what,
            "SELECT pg_catalog.pg_get_userbyid(d.datdba)::pg_catalog.text, \
                    pg_catalog.has_database_privilege($2, d.oid, 'CREATE') \
             FROM pg_catalog.pg_database d WHERE d.datname = $1",
            &[(&secret.dbname, Type::NAME), (&secret.username, Type::NAME)],
        )
        .await?;
    let found: Option<(String, bool)> = row
        .map(|row| Ok::<_, tokio_postgres::Error>((row.try_get(0)?, row.try_get(1)?)))
        .transpose()
        .map_err(|source| SqlError::Answer { what, source })?;
    match found {
        Some((current, _)) if current == secret.username => return Ok(false),
        // Somebody else's database, or the one that everybody has: the role may use it.
        Some((current, may_create)) if current != SUPERUSER || secret.dbname == MAINTENANCE_DB => {
            if !may_create {
                let grant = format!("GRANT ALL PRIVILEGES ON DATABASE {database} TO {owner}");
                session.run("grant the application its database", &grant).await?;
            }
            return Ok(!may_create);
        }
        Some(_) => {}
        None => {
            session.run("create the application database", &format!("CREATE DATABASE {database}")).await?;
        }
    }
    // Until here it is the superuser's, so that an interrupted attempt is seen and gone on with.
    if config.version < 15 {
        let inside = sql::connect_with(config, SUPERUSER, &secret.dbname, TIMEOUTS).await?;
        let give =
            format!("ALTER SCHEMA public OWNER TO {owner}; REVOKE CREATE ON SCHEMA public FROM PUBLIC");
        inside.run("give the application its schema", &give).await?;
    }
    let give = format!("ALTER DATABASE {database} OWNER TO {owner}");
    session.run("give the application its database", &give).await?;
    tracing::info!(database = secret.dbname, owner = secret.username, "application database made");
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_do_harm_are_refused() {
        let new = |user: &str, db: &str| AppSecret::new(user, db, "x");
        for user in ["", "postgres", "pg_x", "pgwarden_replication", "public", &"x".repeat(64), "a\0b"] {
            assert!(matches!(new(user, "app"), Err(SecretError::Name { key: "username", .. })), "{user}");
        }
        assert!(matches!(new("app", "template1"), Err(SecretError::Name { key: "dbname", .. })));
        assert!(matches!(AppSecret::new("app", "app", ""), Err(SecretError::Key { key: "password" })));
        assert!(new("my \"odd\" näme", "da'ta base").is_ok());
    }

    #[test]
    fn the_hash_sees_every_part_and_debug_shows_no_password() {
        let a = AppSecret::new("app", "app", "secret-canary").unwrap();
        assert_eq!(a.hash(), AppSecret::new("app", "app", "secret-canary").unwrap().hash());
        for other in [
            ("app", "app", "secret-canarx"),
            ("app", "apq", "secret-canary"),
            ("ap", "papp", "secret-canary"),
        ] {
            assert_ne!(a.hash(), AppSecret::new(other.0, other.1, other.2).unwrap().hash());
        }
        assert!(!format!("{a:?}").contains("canary"));
        assert!(a.hash().len() == 16);
    }

    #[test]
    fn only_what_differs_is_written() {
        let secret = AppSecret::new("app", "app", "secret").unwrap();
        let good = Role { login: true, password: Some(scram::verifier(b"secret")), ..Role::default() };
        assert_eq!(app_role(Some(&good), &secret), None);
        let statement = app_role(None, &secret).unwrap();
        assert!(statement.contains("SCRAM-SHA-256$") && !statement.contains("secret"), "{statement}");
        assert!(app_role(Some(&Role { password: Some(scram::verifier(b"old")), ..good }), &secret).is_some());
        let replication = Role { login: true, replication: true, ..Role::default() };
        assert_eq!(replication_role(Some(&replication)), None);
        assert!(replication_role(Some(&Role { superuser: true, ..replication })).is_some());
        assert_eq!(
            monitor_role(Some(&Role { login: true, monitor: true, ..Role::default() })),
            Vec::<String>::new()
        );
        assert_eq!(monitor_role(None).len(), 2);
    }
}
