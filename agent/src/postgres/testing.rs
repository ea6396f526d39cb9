//! What the tests of this directory share: configurations, and a Postgres pod on this machine made of real processes.
//!
//! PostgreSQL refuses to run as root, and peer authentication wants the user `postgres`: a test that runs as root starts itself
//! again as that user ([`as_postgres`]).

use std::{
    ffi::OsString,
    fs::{self, File},
    net::{IpAddr, TcpListener},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::{Child, Command, Output},
    sync::OnceLock,
    time::Duration,
};

use clap::Parser;
use pgwarden_api::config::InitdbArgs;
use tokio::sync::mpsc;

use super::{
    SUPERUSER,
    clone::Upstream,
    control,
    datadir::{self, Identity, Phase},
    initdb, roles,
    settings::{self, Desired},
};
use crate::{
    config::Config,
    supervisor::{Event, Mode, Started, Supervisor},
};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    config: Config,
}

/// A configuration whose every path lies under `dir`.
pub(crate) fn config(dir: &Path) -> Config {
    config_of(dir, 0, 17, 5432)
}

fn config_of(dir: &Path, ordinal: u32, version: u32, port: u16) -> Config {
    let args = ["agent", "--cluster", "c", "--namespace", "n", "--pod-uid", "u", "--node", "x"];
    let mut args: Vec<OsString> = args.into_iter().map(Into::into).collect();
    for (flag, value) in [
        ("--pod", format!("c-{version}-{ordinal}")),
        ("--version", version.to_string()),
        ("--postgres-port", port.to_string()),
        ("--address", "127.0.0.1".to_owned()),
        ("--listen", "127.0.0.1".to_owned()),
    ] {
        args.extend([flag.into(), value.into()]);
    }
    for (flag, path) in [
        ("--data-mount", "volume"),
        ("--control-socket", "control.sock"),
        ("--socket-dir", "run"),
        ("--tls-dir", "tls"),
        ("--config-dir", "config"),
        ("--cert-dir", "cert"),
        ("--app-secret-dir", "app"),
    ] {
        args.extend([flag.into(), dir.join(path).into_os_string()]);
    }
    Cli::parse_from(args).config.complete().unwrap()
}

/// An empty directory for one test.
pub(crate) fn scratch(name: &str) -> PathBuf {
    let id = uuid::Uuid::new_v4().simple().to_string();
    let dir = std::env::temp_dir().join(format!("pgw-{name}-{}", &id[..8]));
    fs::create_dir_all(&dir).unwrap();
    dir
}

const AGAIN: &str = "PGWARDEN_TEST_AGAIN";
const SUPERVISOR_PATH: &str = "PGWARDEN_TEST_SUPERVISOR";
const MOUNT: &str = "PGWARDEN_TEST_MOUNT";

/// How a test wants its machine to be.
#[derive(Clone, Copy, Default)]
pub(crate) struct Machine {
    /// A file system of this many bytes for the test, see [`small_volume`]. Needs root.
    pub volume_bytes: Option<u64>,
    /// No PostgreSQL is installed. Needs root.
    pub without_postgres: bool,
}

/// Runs a test as the user `postgres`. `module` is `module_path!()`, `name` the test function's.
pub(crate) fn as_postgres(module: &str, name: &str, machine: Machine, body: impl AsyncFnOnce()) {
    let root = rustix::process::geteuid().is_root();
    if std::env::var_os(AGAIN).is_none() && root {
        return again(module, name, machine);
    }
    if !root && user() != SUPERUSER {
        println!(
            "SKIPPED {name}: peer authentication needs the user postgres; run it as root or as postgres"
        );
        return;
    }
    if std::env::var_os(AGAIN).is_none() && (machine.volume_bytes.is_some() || machine.without_postgres) {
        println!("SKIPPED {name}: mounting needs root");
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        // No test may outlive its suite's patience.
        tokio::time::timeout(Duration::from_secs(60), body()).await.expect("the test takes too long");
    });
}

/// Name of this process's user.
fn user() -> String {
    let output = Command::new("id").arg("-un").output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn again(module: &str, name: &str, machine: Machine) {
    let (_, module) = module.split_once("::").unwrap();
    let test = File::open(std::env::current_exe().unwrap()).unwrap();
    let supervisor = File::open(supervisor_binary()).unwrap();
    // By descriptor, so that the user needs no right to the directories above.
    for file in [&test, &supervisor] {
        rustix::io::fcntl_setfd(file, rustix::io::FdFlags::empty()).unwrap();
    }
    let by_fd = |file: &File| format!("/proc/self/fd/{}", file.as_raw_fd());
    let mount = machine.volume_bytes.map(|bytes| {
        let dir = scratch("mount");
        let options = format!("size={bytes},mode=0777");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "pgwarden"]).arg(&dir).status();
        assert!(mounted.unwrap().success());
        dir
    });
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-ec"]);
    let hide = if machine.without_postgres { "mount -t tmpfs none /usr/lib/postgresql; " } else { "" };
    command.arg(format!("{hide}exec setpriv --reuid postgres --regid postgres --init-groups \"$@\""));
    command.args(["sh", &by_fd(&test), "--exact", &format!("{module}::{name}"), "--nocapture"]);
    command.env(AGAIN, "1").env(SUPERVISOR_PATH, by_fd(&supervisor)).env("RUST_BACKTRACE", "1");
    if let Some(mount) = &mount {
        command.env(MOUNT, mount);
    }
    let output = command.output().unwrap();
    if let Some(mount) = &mount {
        assert!(Command::new("umount").arg(mount).status().unwrap().success());
        fs::remove_dir(mount).unwrap();
    }
    let text = [String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)].concat();
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    println!("{text}");
}

/// The file system asked for in [`Machine::volume_bytes`].
pub(crate) fn small_volume() -> PathBuf {
    std::env::var_os(MOUNT).map(PathBuf::from).expect("no volume was asked for")
}

/// The supervisor's binary, built beside this test's.
fn supervisor_binary() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    if let Some(path) = std::env::var_os(SUPERVISOR_PATH) {
        return path.into();
    }
    BUILT
        .get_or_init(|| {
            let exe = std::env::current_exe().unwrap();
            let profile = exe.parent().and_then(Path::parent).unwrap();
            let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
            let built = Command::new(cargo)
                .args(["build", "--quiet", "--package", "pgwarden-supervisor", "--target-dir"])
                .arg(profile.parent().unwrap())
                .current_dir(env!("CARGO_MANIFEST_DIR"))
                .status()
                .unwrap();
            assert!(built.success());
            profile.join("pgwarden-supervisor")
        })
        .clone()
}

/// Directory of the newest installed PostgreSQL's programs, and its major version.
pub(crate) fn installed() -> (PathBuf, u32) {
    fs::read_dir("/usr/lib/postgresql")
        .expect("PostgreSQL must be installed")
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let major = path.file_name()?.to_str()?.parse().ok()?;
            path.join("bin/postgres").exists().then(|| (path.join("bin"), major))
        })
        .max_by_key(|(_, major)| *major)
        .expect("PostgreSQL must be installed")
}

/// Certificates of one cluster.
pub(crate) struct Authority {
    certificate: rcgen::Certificate,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, uuid::Uuid::new_v4().to_string());
        let certificate = params.self_signed(&key).unwrap();
        Self { certificate, issuer: rcgen::Issuer::new(params, key) }
    }

    fn leaf(&self, dir: &Path, name: &str, common_name: &str, names: &[&str]) {
        let key = rcgen::KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, common_name);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        for (suffix, text) in [("crt", certificate.pem()), ("key", key.serialize_pem())] {
            super::files::write(&dir.join(format!("{name}.{suffix}")), text.as_bytes(), 0o600).unwrap();
        }
    }

    /// Fills a pod's `tls` directory.
    pub(crate) fn fill(&self, dir: &Path) {
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join("ca.crt"), self.certificate.pem()).unwrap();
        self.leaf(dir, "server", "c", &["localhost", "c-pods.n.svc", "*.c-pods.n.svc"]);
        self.leaf(dir, "replication", super::REPLICATION_ROLE, &[]);
    }
}

/// A pod: a supervisor with its volume, sockets and keys.
pub(crate) struct Node {
    pub config: Config,
    pub supervisor: Supervisor,
    pub events: mpsc::UnboundedReceiver<Event>,
    process: Child,
    dir: PathBuf,
}

impl Drop for Node {
    fn drop(&mut self) {
        // Whatever state the test left: everything that runs here ends with its supervisor.
        if let Err(error) = self.exit() {
            eprintln!("supervisor did not exit by itself: {error}");
            let _ = self.process.kill();
        }
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Node {
    /// A pod with an empty volume.
    pub(crate) async fn new(authority: &Authority, ordinal: u32) -> Self {
        Self::on(authority, ordinal, None).await
    }

    /// A pod with the given volume.
    pub(crate) async fn on(authority: &Authority, ordinal: u32, volume: Option<PathBuf>) -> Self {
        let dir = scratch("node");
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let version = if Path::new("/usr/lib/postgresql/.").read_dir().is_ok_and(|mut d| d.next().is_some()) {
            installed().1
        } else {
            17
        };
        let mut config = config_of(&dir, ordinal, version, port);
        if let Some(volume) = volume {
            config.data_mount = volume;
        }
        for path in [&config.data_mount, &config.socket_dir, &config.config_dir, &config.app_secret_dir] {
            fs::create_dir_all(path).unwrap();
        }
        authority.fill(&config.tls_dir);
        let process = Command::new(supervisor_binary())
            .args(["--probe-port", "0", "--socket"])
            .arg(&config.control_socket)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .stdout(File::create(dir.join("stdout")).unwrap())
            .stderr(File::create(dir.join("stderr")).unwrap())
            .spawn()
            .unwrap();
        let connected = Supervisor::connect_when_there(&config.control_socket);
        let (supervisor, events) =
            tokio::time::timeout(Duration::from_secs(10), connected).await.unwrap().unwrap();
        supervisor.lock(&datadir::lock_path(&config)).await.unwrap();
        Self { config, supervisor, events, process, dir }
    }

    fn exit(&mut self) -> std::io::Result<()> {
        use pgwarden_supervisor::{client::Connection, protocol::Request};
        let patience = Duration::from_secs(3);
        let connection = Connection::connect(&self.config.control_socket)?;
        for request in [Request::Hello, Request::Exit { code: 0 }] {
            connection.send(&request, &[])?;
            connection.wait_readable(Some(patience))?;
            connection.recv()?;
        }
        let end = std::time::Instant::now() + patience;
        while self.process.try_wait()?.is_none() {
            if std::time::Instant::now() >= end {
                return Err(std::io::ErrorKind::TimedOut.into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// A supervisor's grant for as long as any test takes.
    pub(crate) async fn grant(&self, epoch: u64) {
        let now = Duration::from_nanos(pgwarden_supervisor::clock::boottime_ns());
        self.supervisor.grant(epoch, now + Duration::from_secs(100)).await.unwrap();
    }

    pub(crate) async fn initdb(&self) -> Identity {
        let uuid = uuid::Uuid::new_v4().to_string();
        let identity = datadir::begin(&self.config, Phase::Initdb, &uuid, 1).await.unwrap();
        initdb::run(&self.config, &self.supervisor, &identity, &InitdbArgs::default()).await.unwrap().0
    }

    /// A running primary with the operator's roles, closed to clients.
    pub(crate) async fn primary(&self) -> Started {
        self.initdb().await;
        self.grant(1).await;
        settings::write(&self.config, &self.supervisor, &desired("")).await.unwrap();
        let started = control::start(&self.config, &self.supervisor, Mode::Primary, 1).await.unwrap();
        control::wait_ready(&self.config, &self.supervisor, &started.death).await.unwrap();
        roles::ensure(&self.config, None).await.unwrap();
        started
    }

    /// As others see it.
    pub(crate) fn upstream(&self) -> Upstream {
        Upstream {
            host: self.config.pod_dns(&self.config.pod),
            address: IpAddr::from([127, 0, 0, 1]),
            port: self.config.postgres_port,
        }
    }

    /// psql over TCP; `conninfo` is put behind host, port and the certificate authority.
    pub(crate) fn psql(&self, password: &str, conninfo: &str, sql: &str) -> Output {
        let server = format!(
            "host={} hostaddr=127.0.0.1 port={} sslrootcert={} {conninfo}",
            self.config.pod_dns(&self.config.pod),
            self.config.postgres_port,
            self.config.tls_dir.join("ca.crt").display()
        );
        Command::new(installed().0.join("psql"))
            .args([
                "--no-psqlrc",
                "--tuples-only",
                "--no-align",
                "--set=ON_ERROR_STOP=1",
                "--command",
                sql,
                &server,
            ])
            .env("PGPASSWORD", password)
            .env("LC_ALL", "C")
            .env("HOME", &self.dir)
            .output()
            .unwrap()
    }

    /// What Postgres and the tools wrote to the container's output.
    pub(crate) fn log(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.dir.join(name)).unwrap_or_default();
        read("stdout") + &read("stderr")
    }
}

/// Settings of a primary, small enough for a test.
pub(crate) fn desired(extra: &str) -> Desired {
    Desired {
        postgresql: format!(
            "shared_buffers = 16MB\nmax_connections = 30\nmax_wal_size = 64MB\nmin_wal_size = 32MB\n\
             wal_sender_timeout = 5s\nwal_receiver_timeout = 5s\nwal_retrieve_retry_interval = 100ms\n{extra}"
        ),
        follow: None,
        synchronous_standby_names: String::new(),
    }
}

/// Waits for a condition, for at most ten seconds.
pub(crate) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let end = std::time::Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(std::time::Instant::now() < end, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
