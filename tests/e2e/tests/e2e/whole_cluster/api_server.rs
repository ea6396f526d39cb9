//! The API server away.

use std::{process::Stdio, time::Duration};

use anyhow::{Context, ensure};
use pgwarden_e2e::{Manifest, Result, alone, ctl, eventually, sql::Login, until};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, Command},
    time::{MissedTickBehavior, interval},
};

use crate::{MOMENT, SOON, create::row_reaches_a_replica};

/// How long the API server stays away, and how often a row is written meanwhile: the issue's own figures.
const AWAY: Duration = Duration::from_secs(120);
const EVERY: Duration = Duration::from_millis(100);

#[tokio::test]
async fn a_creation_survives_a_restart_of_the_api_server() -> Result {
    alone("whole_api_restart", |ctx| async move {
        ctx.apply(&Manifest::new("a").replicas(2).to_string()).await?;
        // In the middle of it: the pods are there, the cluster is not.
        until("a pod of the cluster exists", MOMENT, || async {
            Ok((!ctx.pods("a").await?.is_empty()).then_some(()))
        })
        .await?;
        ctl::ctl(&["api-stop"]).await?;
        ctl::ctl(&["api-start"]).await?;
        ctx.ready("a", SOON).await?;
        row_reaches_a_replica(&ctx, "a", "hello").await
    })
    .await
}

/// One psql that writes a row for each line it is given, in one session.
struct Writer {
    psql: Child,
    input: ChildStdin,
    rows: tokio::io::Lines<BufReader<tokio::process::ChildStdout>>,
}

impl Writer {
    fn start(login: &Login) -> Result<Self> {
        let conninfo = format!(
            "host={} user={} dbname={} password={} sslmode=require connect_timeout=5",
            login.host, login.username, login.dbname, login.password
        );
        let mut psql = Command::new(ctl::repo().join("tests/cluster/ctl"))
            .args(["in", "client", "psql", "-X", "-q", "-At", "-v", "ON_ERROR_STOP=1", &conninfo])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let input = psql.stdin.take().context("stdin")?;
        let rows = BufReader::new(psql.stdout.take().context("stdout")?).lines();
        Ok(Self { psql, input, rows })
    }

    /// Writes a row; gives the session's backend once the row is committed.
    async fn write(&mut self, i: u32) -> Result<String> {
        let statement = format!("INSERT INTO written VALUES ({i}) RETURNING pg_backend_pid();\n");
        self.input.write_all(statement.as_bytes()).await?;
        let Some(line) = self.rows.next_line().await? else {
            let out = self.psql.wait_with_output_ref().await;
            anyhow::bail!("the session ended at row {i}: {out}");
        };
        Ok(line)
    }
}

trait Ending {
    async fn wait_with_output_ref(&mut self) -> String;
}

impl Ending for Child {
    async fn wait_with_output_ref(&mut self) -> String {
        let mut words = String::new();
        if let Some(mut stderr) = self.stderr.take() {
            let _ = tokio::io::AsyncReadExt::read_to_string(&mut stderr, &mut words).await;
        }
        words
    }
}

#[tokio::test]
async fn an_outage_of_the_api_server_of_two_minutes_interrupts_no_session() -> Result {
    alone("whole_api_away", |ctx| async move {
        ctx.apply(&Manifest::new("a").replicas(2).to_string()).await?;
        ctx.ready("a", SOON).await?;
        let login = ctx.login("a").await?;
        login.sql(None, "CREATE TABLE written (i int PRIMARY KEY)").await?;
        let epoch = ctx.record("a").await?.spec.epoch;
        let mut writer = Writer::start(&login)?;
        let backend = writer.write(0).await?;

        ctl::ctl(&["api-stop"]).await?;
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let end = tokio::time::Instant::now() + AWAY;
        let mut rows = 1;
        let outcome: Result = async {
            while tokio::time::Instant::now() < end {
                ticks.tick().await;
                let by = writer.write(rows).await?;
                ensure!(by == backend, "another session, {by} in place of {backend}");
                rows += 1;
            }
            Ok(())
        }
        .await;
        ctl::ctl(&["api-start"]).await?;
        outcome?;

        ensure!(writer.write(rows).await? == backend, "another session");
        rows += 1;
        eventually("the record is renewed again", SOON, || async {
            let before = ctx.record("a").await?.spec.renew_time.context("renewTime")?;
            let other = || async {
                Ok((ctx.record("a").await?.spec.renew_time.as_ref() != Some(&before)).then_some(()))
            };
            until("another renewTime", MOMENT, other).await
        })
        .await?;
        ctx.ready("a", SOON).await?;
        ensure!(
            login.sql(None, "SELECT count(*) FROM written").await? == rows.to_string(),
            "rows are missing"
        );
        let record = ctx.record("a").await?.spec;
        ensure!(record.epoch == epoch, "the epoch moved from {epoch} to {}", record.epoch);
        row_reaches_a_replica(&ctx, "a", "hello").await
    })
    .await
}
