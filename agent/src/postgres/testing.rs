//! What the tests of this directory share.

use std::path::Path;

use clap::Parser;

use crate::config::Config;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    config: Config,
}

/// A configuration whose every path lies under `dir`.
pub(crate) fn config(dir: &Path) -> Config {
    let at = |name: &str| dir.join(name).into_os_string();
    let mut args: Vec<std::ffi::OsString> =
        ["agent", "--cluster", "c", "--namespace", "n", "--pod", "c-17-0"]
            .into_iter()
            .chain(["--pod-uid", "u", "--node", "x", "--address", "127.0.0.1", "--version", "17"])
            .map(Into::into)
            .collect();
    for (flag, path) in [
        ("--data-mount", at("volume")),
        ("--control-socket", at("control.sock")),
        ("--socket-dir", dir.as_os_str().to_owned()),
        ("--tls-dir", at("tls")),
        ("--config-dir", at("config")),
        ("--cert-dir", at("cert")),
        ("--app-secret-dir", at("app")),
    ] {
        args.extend([flag.into(), path]);
    }
    Cli::parse_from(args).config.complete().unwrap()
}

/// An empty directory for one test.
pub(crate) fn scratch(name: &str) -> std::path::PathBuf {
    let dir = std::env::temp_dir().join(format!("pgwarden-{name}-{}", uuid::Uuid::new_v4()));
    std::fs::create_dir_all(&dir).unwrap();
    dir
}
