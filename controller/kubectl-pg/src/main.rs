//! `kubectl pg`: a plugin of kubectl for the people who run clusters.
//!
//! Exit codes: 0, the answer is on stdout; 1, an error is on stderr; 2, wrong usage.

mod error;
mod read;
mod report;
mod table;
mod text;
mod units;

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use jiff::Timestamp;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use crate::{
    error::Error,
    read::{Reader, Scope},
    table::Screen,
};

/// How long the API server may take, all requests together.
const PATIENCE: Duration = Duration::from_secs(20);
const CONNECT: Duration = Duration::from_secs(5);

/// Look after PostgreSQL clusters.
#[derive(Debug, Parser)]
#[command(name = "kubectl-pg", bin_name = "kubectl pg", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    access: Access,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show a cluster: its members, conditions and last events. Without NAME, list the clusters.
    Status(StatusArgs),
}

#[derive(Debug, Args)]
struct StatusArgs {
    /// Name of the cluster.
    name: Option<String>,
    /// List the clusters of all namespaces.
    #[arg(short = 'A', long, conflicts_with_all = ["name", "namespace"])]
    all_namespaces: bool,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// For programs: a stable shape.
    Json,
}

/// How to reach the API server, as kubectl says it.
#[derive(Debug, Args)]
struct Access {
    /// Namespace; left out, that of the context.
    #[arg(short, long, global = true)]
    namespace: Option<String>,
    /// Context of the kubeconfig; left out, the current one.
    #[arg(long, global = true)]
    context: Option<String>,
    /// Kubeconfig file; left out, $KUBECONFIG or ~/.kube/config.
    #[arg(long, global = true, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    // Fails only when a provider is there already, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cli = Cli::parse();
    let answer = match tokio::time::timeout(PATIENCE, run(&cli)).await {
        Ok(answer) => answer,
        Err(_) => Err(Error::NoAnswer(PATIENCE.as_secs())),
    };
    match answer {
        Ok(text) => match io::stdout().lock().write_all(text.as_bytes()) {
            // `kubectl pg status | head` is no error.
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => fail(&Error::Write(e)),
            _ => ExitCode::SUCCESS,
        },
        Err(error) => fail(&error),
    }
}

fn fail(error: &Error) -> ExitCode {
    // With stderr closed there is nobody left to tell.
    let _ = writeln!(io::stderr(), "Error: {error}");
    ExitCode::FAILURE
}

async fn run(cli: &Cli) -> Result<String, Error> {
    let Command::Status(args) = &cli.command;
    let reader = connect(&cli.access, args.all_namespaces).await?;
    let now = Timestamp::now();
    match &args.name {
        Some(name) => {
            let report = reader.report(name).await?;
            match args.output {
                Output::Json => json(&report),
                Output::Text => Ok(text::report(&report, now, screen())),
            }
        }
        None => {
            let list = reader.list().await?;
            match args.output {
                Output::Json => json(&list),
                Output::Text if list.clusters.is_empty() => Err(reader.nothing()),
                Output::Text => Ok(text::list(&list, args.all_namespaces, now, screen())),
            }
        }
    }
}

fn json(value: &impl serde::Serialize) -> Result<String, Error> {
    let mut text = serde_json::to_string_pretty(value).map_err(Error::Json)?;
    text.push('\n');
    Ok(text)
}

/// What stdout can show.
fn screen() -> Screen {
    if !io::stdout().is_terminal() {
        return Screen { width: None, colour: false };
    }
    let width = rustix::termios::tcgetwinsize(io::stdout()).ok().map(|size| usize::from(size.ws_col));
    Screen {
        width: width.filter(|w| *w > 0),
        colour: std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()),
    }
}

async fn connect(access: &Access, everywhere: bool) -> Result<Reader, Error> {
    let options = KubeConfigOptions { context: access.context.clone(), ..KubeConfigOptions::default() };
    let mut config = match &access.kubeconfig {
        Some(file) => {
            let kubeconfig = Kubeconfig::read_from(file).map_err(Error::Kubeconfig)?;
            Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(Error::Kubeconfig)?
        }
        None if access.context.is_some() => {
            Config::from_kubeconfig(&options).await.map_err(Error::Kubeconfig)?
        }
        None => Config::infer().await.map_err(Error::Infer)?,
    };
    config.connect_timeout = Some(CONNECT);
    let server = config.cluster_url.to_string();
    let namespace = access.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
    let client =
        Client::try_from(config).map_err(|source| Error::Request { what: "set up the client", source })?;
    Ok(Reader::new(client, server, if everywhere { Scope::All } else { Scope::Namespace(namespace) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_command_line_is_kubectls() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
        let cli = parse("kubectl-pg status my-postgres -n prod -o json --context c --kubeconfig f").unwrap();
        assert_eq!(cli.access.namespace.as_deref(), Some("prod"));
        let Command::Status(args) = cli.command;
        assert_eq!((args.name.as_deref(), args.output), (Some("my-postgres"), Output::Json));
        assert!(parse("kubectl-pg -n prod status").is_ok());
        assert!(parse("kubectl-pg status -A").is_ok());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert!(parse("kubectl-pg status my-postgres -A").is_err());
        assert!(parse("kubectl-pg status -A -n prod").is_err());
        assert!(parse("kubectl-pg status -o yaml").is_err());
        assert!(parse("kubectl-pg").is_err());
    }
}
