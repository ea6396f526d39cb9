//! `pgwarden-controller run` and `pgwarden-controller manifests`.

use clap::Parser;
use pgwarden_controller::{
    args::{Cli, Command},
    manifests, run,
};

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Run(args) => run::main(*args),
        Command::Manifests(args) => manifests::write(&args.out).map_err(Into::into),
    }
}
