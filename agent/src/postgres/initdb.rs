//! The one initdb in the life of a cluster.

use pgwarden_api::config::InitdbArgs;

use super::{
    SUPERUSER,
    control_file::ControlFile,
    datadir::{self, DatadirError, Identity},
    files::FileError,
};
use crate::{
    config::Config,
    supervisor::{RefusalCode, Supervisor, SupervisorError, Tool},
};

/// Locale and encoding of a cluster, unless its creator asked for others.
const DEFAULT_LOCALE: &str = "C.UTF-8";
const DEFAULT_ENCODING: &str = "UTF8";
/// What a fresh data directory takes, with its first WAL segments: for the message about a full volume.
const NEEDED_BYTES: u64 = 128 * 1024 * 1024;

/// Why there is no data directory.
#[derive(Debug, thiserror::Error)]
pub enum InitdbError {
    /// The image is not one of Postgres.
    #[error(
        "the Postgres image has no initdb ({message}); set spec.image to an image with PostgreSQL's programs"
    )]
    NoPostgres {
        /// Where it was looked for.
        message: String,
    },
    /// The arguments contradict each other or the version.
    #[error("initdb can't be called: {0}")]
    Arguments(String),
    /// The volume is full.
    #[error(
        "the volume is full: initdb had {available} bytes at {mount} and needs about {needed}; give spec.storage a larger size, \
         or free what is kept on the volume"
    )]
    DiskFull {
        /// Bytes free before it.
        available: u64,
        /// Bytes that it takes.
        needed: u64,
        /// The volume.
        mount: String,
    },
    /// It failed.
    #[error("initdb failed ({status}): {lines}")]
    Failed {
        /// How it ended.
        status: String,
        /// Its own last words.
        lines: String,
    },
    /// It could not be run.
    #[error("failed to run initdb")]
    Supervisor(#[source] SupervisorError),
    /// The directory could not be prepared or put into its place.
    #[error("failed to make the data directory")]
    Datadir(#[from] DatadirError),
    /// The volume could not be measured.
    #[error("failed to measure the volume")]
    Disk(#[from] FileError),
}

/// Makes the data directory of `identity` (from [`datadir::begin`]). Left-overs of an earlier attempt are removed first; the
/// directory gets its name only when everything in it is durable. Cancel-safe: dropping the future kills initdb.
///
/// # Errors
/// See [`InitdbError`]. It can be called again.
pub async fn run(
    config: &Config,
    supervisor: &Supervisor,
    identity: &Identity,
    args: &InitdbArgs,
) -> Result<(Identity, ControlFile), InitdbError> {
    let dir = datadir::initdb_dir(config);
    let argv = arguments(config.version, &dir.to_string_lossy(), args).map_err(InitdbError::Arguments)?;
    datadir::make_room(config).await?;
    let available = datadir::disk(config).await?.available_bytes;
    tracing::info!(uuid = identity.uuid, argv = argv.join(" "), available, "initdb starts");
    let output = supervisor.run_tool(Tool::new(argv)).await.map_err(|error| match error {
        SupervisorError::Refused { source, .. } if source.code == RefusalCode::ProgramNotFound => {
            InitdbError::NoPostgres { message: source.message }
        }
        other => InitdbError::Supervisor(other),
    })?;
    if !output.success() {
        // Whatever it says: a volume without room for it is the reason that a person can act on.
        if output.stderr.contains("No space left on device") {
            return Err(InitdbError::DiskFull {
                available,
                needed: NEEDED_BYTES,
                mount: config.data_mount.display().to_string(),
            });
        }
        return Err(InitdbError::Failed {
            status: output.status.to_string(),
            lines: complaint(&output.stderr).unwrap_or_else(|| output.last_lines(3)),
        });
    }
    let identity = datadir::install(config, dir, identity).await?;
    let control = datadir::control(config).await?;
    tracing::info!(uuid = identity.uuid, system_identifier = control.system_identifier, "initdb done");
    Ok((identity, control))
}

/// The lines in which a tool says what is wrong, without its cleaning up.
fn complaint(stderr: &str) -> Option<String> {
    let of_interest = ["error:", "FATAL:", "PANIC:", "detail:", "hint:", "DETAIL:", "HINT:"];
    let lines: Vec<&str> = stderr
        .lines()
        .filter(|line| of_interest.iter().any(|word| line.contains(word)))
        .map(str::trim)
        .collect();
    (!lines.is_empty()).then(|| lines.join("; "))
}

/// initdb's command line.
fn arguments(version: u32, dir: &str, args: &InitdbArgs) -> Result<Vec<String>, String> {
    let or =
        |given: &str, default: &str| if given.is_empty() { default.to_owned() } else { given.to_owned() };
    let locale = or(&args.locale, DEFAULT_LOCALE);
    let mut argv = vec!["initdb".to_owned()];
    argv.push(format!("--pgdata={dir}"));
    argv.push(format!("--username={SUPERUSER}"));
    argv.push(format!("--encoding={}", or(&args.encoding, DEFAULT_ENCODING)));
    argv.extend(
        ["--auth-local=peer", "--auth-host=scram-sha-256", "--data-checksums", "--no-sync"]
            .map(str::to_owned),
    );
    match args.provider.as_str() {
        "" | "libc" => {
            argv.push(format!("--locale={locale}"));
            if args.provider == "libc" && version >= 15 {
                argv.push("--locale-provider=libc".to_owned());
            }
        }
        "icu" if version >= 15 => {
            // Messages, money and the rest stay with libc; what sorts is ICU's.
            argv.push(format!("--locale={DEFAULT_LOCALE}"));
            argv.push("--locale-provider=icu".to_owned());
            argv.push(format!("--icu-locale={}", or(&args.locale, "und")));
        }
        "builtin" if version >= 17 => {
            argv.push(format!("--locale={DEFAULT_LOCALE}"));
            argv.push("--locale-provider=builtin".to_owned());
            argv.push(format!("--builtin-locale={locale}"));
        }
        provider @ ("icu" | "builtin") => {
            let since = if provider == "icu" { 15 } else { 17 };
            return Err(format!(
                "spec.initdb.provider {provider} exists since PostgreSQL {since}, this is {version}"
            ));
        }
        other => return Err(format!("spec.initdb.provider {other} is none of libc, icu, builtin")),
    }
    Ok(argv)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(locale: &str, provider: &str) -> InitdbArgs {
        InitdbArgs { locale: locale.into(), provider: provider.into(), encoding: String::new() }
    }

    #[test]
    fn the_command_line_follows_version_and_wishes() {
        let line = |version, args: &InitdbArgs| arguments(version, "/d", args).map(|argv| argv.join(" "));
        let default = line(13, &InitdbArgs::default()).unwrap();
        for part in
            ["--pgdata=/d", "--encoding=UTF8", "--locale=C.UTF-8", "--data-checksums", "--auth-local=peer"]
        {
            assert!(default.contains(part), "{default}");
        }
        assert!(!default.contains("provider"), "{default}");
        assert!(line(17, &args("de-DE", "icu")).unwrap().contains("--icu-locale=de-DE"));
        assert!(line(17, &args("", "builtin")).unwrap().contains("--builtin-locale=C.UTF-8"));
        assert!(!line(14, &args("de_DE.UTF-8", "libc")).unwrap().contains("provider"));
        assert!(line(14, &args("", "icu")).unwrap_err().contains("15"));
        assert!(line(16, &args("", "builtin")).unwrap_err().contains("17"));
        assert!(line(17, &args("", "magic")).unwrap_err().contains("magic"));
    }

    #[test]
    fn the_complaint_is_what_matters() {
        let stderr =
            "The files belonging to…\ninitdb: error: invalid locale name \"xx\"\ninitdb: removing contents\n";
        assert_eq!(complaint(stderr).unwrap(), "initdb: error: invalid locale name \"xx\"");
        assert_eq!(complaint("nothing\n"), None);
    }
}
