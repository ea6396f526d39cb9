//! Running one of the image's tools through the supervisor, and reading what it says in bounded memory.

use std::{collections::VecDeque, io, os::fd::AsFd, time::Duration};

use pgwarden_supervisor::{client::Stdio, protocol::Run};
use tokio::{io::AsyncWriteExt, net::unix::pipe, time::timeout};

use super::{Exit, Supervisor, SupervisorError, pipe_in, pipe_out};

/// Bytes of standard output that are kept, from its beginning.
const STDOUT_LIMIT: usize = 256 * 1024;
/// Bytes of standard error that are kept, from its end.
const STDERR_TAIL: usize = 8 * 1024;
/// A process that the tool left behind may hold its pipes: its output does not matter any more.
const DRAIN: Duration = Duration::from_secs(1);

/// A tool to run. It is killed when its future is dropped, and when the agent's connection ends.
#[derive(Clone, Debug, Default)]
pub struct Tool {
    /// Program and arguments; a program without a slash is found in the image.
    pub argv: Vec<String>,
    /// `NAME=value` sets a variable, `NAME` removes it. Messages are in English: `LC_ALL=C` is set before these.
    pub env: Vec<String>,
    /// What it reads; nothing if empty.
    pub stdin: Vec<u8>,
}

impl Tool {
    /// A tool with its arguments.
    pub fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self { argv: argv.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// Its name, for messages.
    #[must_use]
    pub fn name(&self) -> &str {
        self.argv.first().map_or("", |program| program.rsplit('/').next().unwrap_or(program))
    }
}

/// What a tool left.
#[derive(Clone, Debug)]
pub struct ToolOutput {
    /// How it ended.
    pub status: Exit,
    /// Standard output, at most 256 KiB.
    pub stdout: Vec<u8>,
    /// The end of standard error, at most 8 KiB.
    pub stderr: String,
}

impl ToolOutput {
    /// Ended with code 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.status == Exit::Code(0)
    }

    /// The last lines of standard error that say something, for a message.
    #[must_use]
    pub fn last_lines(&self, count: usize) -> String {
        let lines: Vec<&str> = self.stderr.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        lines.get(lines.len().saturating_sub(count)..).unwrap_or_default().join("; ")
    }
}

impl Supervisor {
    /// Runs a tool to its end. Cancel-safe: dropping the future kills the tool.
    ///
    /// # Errors
    /// When it could not be started, or the connection ended meanwhile. A tool that fails is no error here: see
    /// [`ToolOutput::status`].
    pub async fn run_tool(&self, tool: Tool) -> Result<ToolOutput, SupervisorError> {
        self.run_tool_watched(tool, |_| {}).await
    }

    /// [`run_tool`](Self::run_tool), with each complete line of standard error shown to `watch` as it comes.
    ///
    /// # Errors
    /// As [`run_tool`](Self::run_tool).
    pub async fn run_tool_watched(
        &self,
        tool: Tool,
        mut watch: impl FnMut(&str),
    ) -> Result<ToolOutput, SupervisorError> {
        let (stdout, stdout_end) = pipe_in("Run")?;
        let (stderr, stderr_end) = pipe_in("Run")?;
        let stdin = if tool.stdin.is_empty() { None } else { Some(pipe_out("Run")?) };
        let (stdin, stdin_end) = stdin.unzip();
        let mut env = vec!["LC_ALL=C".to_owned()];
        env.extend(tool.env);
        let run = Run {
            argv: tool.argv,
            env,
            cwd: None,
            stdin: false,
            stdout: false,
            stderr: false,
            kill_on_disconnect: true,
        };
        let stdio = Stdio {
            stdin: stdin_end.as_ref().map(AsFd::as_fd),
            stdout: Some(stdout_end.as_fd()),
            stderr: Some(stderr_end.as_fd()),
        };
        let mut running = self.spawn(run, stdio).await?;
        // Only the tool holds the other ends now, so that its end is the end of the streams.
        drop((stdin_end, stdout_end, stderr_end));

        let mut head = Vec::new();
        let mut tail = Tail::default();
        let mut lines = Lines::default();
        let status = {
            let feed = feed(stdin, tool.stdin);
            let read_out = drain(&stdout, |bytes| {
                let room = STDOUT_LIMIT.saturating_sub(head.len());
                head.extend_from_slice(bytes.get(..room.min(bytes.len())).unwrap_or_default());
            });
            let read_err = drain(&stderr, |bytes| {
                tail.push(bytes);
                lines.push(bytes, &mut watch);
            });
            let streams = async { tokio::join!(feed, read_out, read_err) };
            tokio::pin!(streams);
            tokio::select! {
                status = &mut running.exit => {
                    // A stream that can't be read to its end costs only words of a message.
                    let _ = timeout(DRAIN, &mut streams).await;
                    status
                }
                _ = &mut streams => (&mut running.exit).await,
            }
        };
        running.ended = true;
        let status = status.map_err(|_| SupervisorError::Gone)?;
        Ok(ToolOutput { status, stdout: head, stderr: tail.into_string() })
    }
}

/// Writes what the tool reads, and closes the pipe.
async fn feed(stdin: Option<pipe::Sender>, bytes: Vec<u8>) {
    if let Some(mut stdin) = stdin {
        // A tool that does not read its input to the end says why by itself.
        let _ = stdin.write_all(&bytes).await;
    }
}

/// Reads a pipe to its end.
async fn drain(pipe: &pipe::Receiver, mut take: impl FnMut(&[u8])) {
    let mut buffer = [0; 4096];
    while pipe.readable().await.is_ok() {
        match pipe.try_read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => take(buffer.get(..n).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

/// The last bytes of a stream.
#[derive(Debug, Default)]
struct Tail(VecDeque<u8>);

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
        let over = self.0.len().saturating_sub(STDERR_TAIL);
        self.0.drain(..over);
    }

    fn into_string(self) -> String {
        String::from_utf8_lossy(&Vec::from(self.0)).into_owned()
    }
}

/// Cuts a stream into lines; a line without end is cut at 4 KiB.
#[derive(Debug, Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn push(&mut self, bytes: &[u8], watch: &mut impl FnMut(&str)) {
        for &byte in bytes {
            if byte == b'\n' || byte == b'\r' || self.0.len() >= 4096 {
                if !self.0.is_empty() {
                    watch(&String::from_utf8_lossy(&self.0));
                }
                self.0.clear();
            } else {
                self.0.push(byte);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_bounded_and_holds_the_end() {
        let mut tail = Tail::default();
        tail.push(&vec![b'x'; 3 * STDERR_TAIL]);
        tail.push(b"the end");
        let text = tail.into_string();
        assert_eq!(text.len(), STDERR_TAIL);
        assert!(text.ends_with("xthe end"));
    }

    #[test]
    fn lines_come_whole_and_a_runaway_line_is_cut() {
        let mut seen = Vec::new();
        let mut lines = Lines::default();
        for part in ["one\ntw", "o\r\n\nthr", "ee"] {
            lines.push(part.as_bytes(), &mut |line: &str| seen.push(line.to_owned()));
        }
        assert_eq!(seen, ["one", "two"]);
        lines.push(&[b'y'; 10_000], &mut |line: &str| seen.push(line.to_owned()));
        assert!(seen.iter().all(|line| line.len() <= 4096) && seen.len() > 2);
    }

    #[test]
    fn the_last_lines_that_say_something() {
        let output =
            ToolOutput { status: Exit::Code(1), stdout: Vec::new(), stderr: "a\n\n b \nc\n\n".to_owned() };
        assert_eq!(output.last_lines(2), "b; c");
        assert_eq!(output.last_lines(9), "a; b; c");
    }
}
