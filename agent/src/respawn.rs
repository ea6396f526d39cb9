//! A small process that starts the agent, and starts it again at once when it crashes: kubelet would wait 10 s, and the primary's
//! deadline is 4 s.

use std::{
    collections::VecDeque,
    os::unix::process::ExitStatusExt,
    process::{ExitCode, ExitStatus},
    time::{Duration, Instant},
};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
    time::sleep,
};

/// So many crashes within the window are answered at once, later ones after the pause.
const BURST: usize = 5;
const WINDOW: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_secs(1);

/// When the respawner is killed, so is the agent.
pub(crate) fn die_with_parent() {
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::KILL)) {
        tracing::warn!(%error, "the agent would outlive its respawner");
    }
}

/// Runs `… run --child` with our own arguments until it ends well, or a signal ends both.
pub(crate) async fn respawn() -> anyhow::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("failed to listen for SIGINT")?;
    let mut crashes = VecDeque::new();
    loop {
        let mut child = spawn()?;
        let status = tokio::select! {
            status = child.wait() => status.context("failed to wait for the agent")?,
            _ = terminate.recv() => return end(child, Signal::TERM).await,
            _ = interrupt.recv() => return end(child, Signal::INT).await,
        };
        if status.success() {
            return Ok(ExitCode::SUCCESS);
        }
        let pause = pause(&mut crashes, Instant::now());
        say(&format!(
            "the agent ended ({}), it is started again in {} ms",
            describe(status),
            pause.as_millis()
        ));
        tokio::select! {
            () = sleep(pause) => {}
            _ = terminate.recv() => return Ok(ExitCode::SUCCESS),
            _ = interrupt.recv() => return Ok(ExitCode::SUCCESS),
        }
    }
}

fn spawn() -> anyhow::Result<Child> {
    let me = std::env::current_exe().context("failed to find the agent's own binary")?;
    let arguments: Vec<_> = std::env::args_os().skip(2).collect();
    Command::new(&me)
        .arg("run")
        .arg("--child")
        .args(arguments)
        .spawn()
        .with_context(|| format!("failed to start {}", me.display()))
}

async fn end(mut child: Child, signal: Signal) -> anyhow::Result<ExitCode> {
    if let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) {
        // Gone already: then there is nothing to end.
        let _ = kill_process(pid, signal);
    }
    let status = child.wait().await.context("failed to wait for the agent")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// How long to wait before the next start.
fn pause(crashes: &mut VecDeque<Instant>, now: Instant) -> Duration {
    while crashes.front().is_some_and(|at| now.duration_since(*at) > WINDOW) {
        crashes.pop_front();
    }
    crashes.push_back(now);
    if crashes.len() > BURST {
        crashes.pop_front();
        PAUSE
    } else {
        Duration::ZERO
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown".to_owned(),
    }
}

/// In the agent's own form of log lines.
fn say(message: &str) {
    let line =
        serde_json::json!({ "level": "WARN", "target": "pgwarden_agent::respawn", "message": message });
    let _ = std::io::Write::write_fmt(&mut std::io::stdout(), format_args!("{line}\n"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_is_answered_at_once_and_a_loop_is_slowed_within_the_deadline() {
        let (mut crashes, start) = (VecDeque::new(), Instant::now());
        for n in 0..5 {
            assert_eq!(pause(&mut crashes, start + Duration::from_secs(n)), Duration::ZERO);
        }
        assert_eq!(pause(&mut crashes, start + Duration::from_secs(6)), PAUSE);
        assert_eq!(pause(&mut crashes, start + Duration::from_secs(7)), PAUSE);
        assert_eq!(
            pause(&mut crashes, start + Duration::from_secs(60)),
            Duration::ZERO,
            "an hour later it is a first crash"
        );
        assert!(
            PAUSE < Duration::from_millis(2500),
            "shorter than what is left of a deadline after a renewal"
        );
    }
}
