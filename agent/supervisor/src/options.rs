//! The command line.

use std::path::PathBuf;

use pgwarden_supervisor::clock::SECOND;

/// What the program was asked to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Print the version.
    Version,
    /// Be the supervisor.
    Serve(Options),
}

/// How to be the supervisor.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// The control socket.
    pub(crate) socket: PathBuf,
    /// Port of the liveness probe; 0 is none.
    pub(crate) probe_port: u16,
    /// The pod's grace period.
    pub(crate) grace_ns: u64,
}

pub(crate) const USAGE: &str =
    "usage: pgwarden-supervisor --socket PATH [--probe-port N] [--grace SECONDS] | --version";

pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Result<Command, String> {
    let mut arguments = arguments;
    let (mut socket, mut probe_port, mut grace) = (None, 8009, 60_u64);
    while let Some(argument) = arguments.next() {
        let (name, inline) = match argument.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (argument, None),
        };
        if name == "--version" {
            return Ok(Command::Version);
        }
        let value = inline.or_else(|| arguments.next()).ok_or_else(|| format!("{name}: no value"))?;
        let wrong = || format!("{name}: `{value}` is not a number in range");
        match name.as_str() {
            "--socket" => socket = Some(PathBuf::from(value)),
            "--probe-port" => probe_port = value.parse().map_err(|_| wrong())?,
            "--grace" => {
                grace = value.parse().ok().filter(|grace| (1..=86_400).contains(grace)).ok_or_else(wrong)?;
            }
            _ => return Err(format!("{name}: unknown option")),
        }
    }
    let socket = socket.ok_or("--socket is missing")?;
    Ok(Command::Serve(Options { socket, probe_port, grace_ns: grace * SECOND }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_text(text: &str) -> Result<Command, String> {
        parse(text.split_ascii_whitespace().map(str::to_owned))
    }

    #[test]
    fn options_are_read() {
        let serve = |probe_port, grace| {
            Ok(Command::Serve(Options { socket: "/s".into(), probe_port, grace_ns: grace * SECOND }))
        };
        assert_eq!(parse_text("--socket /s"), serve(8009, 60));
        assert_eq!(parse_text("--probe-port=0 --socket=/s --grace 5"), serve(0, 5));
        assert_eq!(parse_text("--version"), Ok(Command::Version));
        for wrong in
            ["", "--socket", "--socket /s --grace 0", "--socket /s --probe-port 70000", "x y", "--nope 1"]
        {
            assert!(parse_text(wrong).is_err(), "{wrong}");
        }
    }
}
