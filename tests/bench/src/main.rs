//! Figures with their spread, against the marks of the project, on the test cluster. No figure fails a run: it is reported.

mod controller;
mod create;
mod figure;
mod images;
mod memory;
mod pgbench;
mod process;
mod requests;

use clap::{Parser, ValueEnum};
use figure::Report;
use pgwarden_e2e::Result;

#[derive(Parser)]
struct Args {
    /// What to measure; everything if none is named.
    names: Vec<Bench>,
    /// Repetitions of `create`.
    #[arg(long, default_value_t = 7)]
    creations: usize,
    /// Pairs of `pgbench`.
    #[arg(long, default_value_t = 10)]
    pairs: usize,
    /// Seconds of one pgbench run.
    #[arg(long, default_value_t = 20)]
    seconds: u32,
    /// Clusters' objects of `controller`.
    #[arg(long, default_value_t = 100)]
    clusters: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Bench {
    Images,
    Create,
    Requests,
    Memory,
    Pgbench,
    Controller,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result {
    let args = Args::parse();
    let all =
        [Bench::Images, Bench::Create, Bench::Requests, Bench::Memory, Bench::Pgbench, Bench::Controller];
    let names = if args.names.is_empty() { all.to_vec() } else { args.names.clone() };
    let mut failed = Vec::new();
    for bench in names {
        let mut report =
            Report::new(bench.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default());
        let outcome = match bench {
            Bench::Images => images::measure(&mut report),
            Bench::Create => create::measure(&mut report, args.creations).await,
            Bench::Requests => requests::measure(&mut report).await,
            Bench::Memory => memory::measure(&mut report).await,
            Bench::Pgbench => pgbench::measure(&mut report, args.pairs, args.seconds).await,
            Bench::Controller => controller::measure(&mut report, args.clusters).await,
        };
        report.finish()?;
        if let Err(e) = outcome {
            failed.push(format!("{}: {e:#}", report.name()));
        }
    }
    anyhow::ensure!(failed.is_empty(), "could not measure:\n{}", failed.join("\n"));
    Ok(())
}
