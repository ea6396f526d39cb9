//! Clusters of real processes on loopback addresses: supervisors, agents, Postgres; the record and the slices are files.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

use std::{
    ffi::OsString,
    fs::{self, File},
    io::Write,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use pgwarden_agent::{
    record::file::{Content, FileStore},
    tls::testing::{Authority, TempDir},
};
use rustix::process::{Pid, Signal, kill_process};

const MARK: &str = "PGWARDEN_TEST_MARK";
pub const PASSWORD: &str = "correct horse'\\ battery";

/// Runs the test as `postgres` when we are root: Postgres refuses root. True: it has run, there is nothing left to do.
pub fn has_run_as_postgres(name: &str) -> bool {
    build_supervisor();
    if !rustix::process::getuid().is_root() {
        return false;
    }
    let status = Command::new("setpriv")
        .args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env("HOME", "/tmp")
        .status()
        .unwrap();
    assert!(status.success(), "{name} failed as postgres");
    true
}

fn agent_binary() -> PathBuf {
    env!("CARGO_BIN_EXE_pgwarden-agent").into()
}

fn supervisor_binary() -> PathBuf {
    agent_binary().with_file_name("pgwarden-supervisor")
}

/// Cargo builds the binaries of one package only.
fn build_supervisor() {
    if std::env::var_os("PGWARDEN_SUPERVISOR_BUILT").is_some() || !rustix::process::getuid().is_root() {
        assert!(supervisor_binary().exists(), "build pgwarden-supervisor first");
        return;
    }
    let target = agent_binary().ancestors().nth(2).unwrap().to_owned();
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "-p", "pgwarden-supervisor"])
        .env("CARGO_TARGET_DIR", target)
        .status()
        .unwrap();
    assert!(status.success());
}

/// Directory of Postgres' programs: the newest.
pub fn postgres_bin() -> PathBuf {
    let mut found: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .expect("PostgreSQL is installed")
        .filter_map(|e| {
            let path = e.ok()?.path();
            Some((path.file_name()?.to_str()?.parse().ok()?, path.join("bin")))
        })
        .filter(|(_, bin)| bin.join("postgres").exists())
        .collect();
    found.sort();
    found.pop().expect("PostgreSQL is installed").1
}

fn version() -> String {
    postgres_bin().parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned()
}

/// Waits until something is there, and gives it.
#[track_caller]
pub fn wait<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "waited {limit:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub const SOON: Duration = Duration::from_secs(30);

pub struct Cluster {
    pub dir: TempDir,
    pub nodes: Vec<Node>,
    net: (u8, u8),
    mark: String,
}

pub struct Node {
    pub ordinal: u32,
    pub pod: String,
    pub pod_uid: String,
    pub host: String,
    pub address: String,
    pub dir: PathBuf,
    record: PathBuf,
    mark: String,
    supervisor: Option<Child>,
    agent: Option<Child>,
}

impl Cluster {
    /// `count` pods, none of them started.
    pub fn new(name: &str, count: u32) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let dir = TempDir::new(name);
        let number = std::process::id().wrapping_mul(8) + NEXT.fetch_add(1, Ordering::Relaxed);
        let net = (u8::try_from(1 + number / 250 % 250).unwrap(), u8::try_from(1 + number % 250).unwrap());
        let mark = format!("{}-{number}", std::process::id());
        let record = dir.path().join("record");
        fs::create_dir_all(&record).unwrap();
        FileStore::create(&record).unwrap();
        let authority = Authority::new("test", "c");
        let mut cluster = Self { dir, nodes: Vec::new(), net, mark };
        for ordinal in 0..count {
            let node = cluster.make_node(ordinal, &record);
            authority.mount(&node.dir.join("cert"));
            cluster.nodes.push(node);
        }
        cluster
    }

    fn make_node(&self, ordinal: u32, record: &Path) -> Node {
        let dir = self.dir.path().join(ordinal.to_string());
        for sub in ["volume", "socket", "tls", "config", "cert", "app", "run"] {
            fs::create_dir_all(dir.join(sub)).unwrap();
        }
        fs::write(
            dir.join("config/postgresql.conf"),
            "shared_buffers = '16MB'\nmax_connections = '40'\nmax_wal_size = '128MB'\nmin_wal_size = '64MB'\n\
             wal_keep_size = '32MB'\nrecovery_init_sync_method = 'syncfs'\nwal_receiver_timeout = '5s'\nwal_retrieve_retry_interval = '200ms'\n",
        )
        .unwrap();
        fs::write(dir.join("config/pg_hba.extra.conf"), "").unwrap();
        fs::write(
            dir.join("config/agent.json"),
            r#"{"generation":1,"replicas":3,"failover":"balanced","appDatabase":"app"}"#,
        )
        .unwrap();
        for (key, value) in [("username", "app"), ("password", PASSWORD), ("dbname", "app")] {
            fs::write(dir.join("app").join(key), value).unwrap();
        }
        Node {
            ordinal,
            pod: format!("c-{}-{ordinal}", version()),
            pod_uid: format!("uid-{ordinal}"),
            host: format!("node{ordinal}"),
            address: format!("127.{}.{}.{}", self.net.0, self.net.1, ordinal + 1),
            dir,
            record: record.to_owned(),
            mark: format!("{}.{ordinal}", self.mark),
            supervisor: None,
            agent: None,
        }
    }

    pub fn started(name: &str, count: u32) -> Self {
        let mut cluster = Self::new(name, count);
        cluster.nodes.iter_mut().for_each(Node::start);
        cluster
    }

    pub fn record_dir(&self) -> PathBuf {
        self.dir.path().join("record")
    }

    pub fn record(&self) -> Content {
        FileStore::load(&self.record_dir()).unwrap()
    }

    /// Index of the holder, once it admits clients.
    #[track_caller]
    pub fn primary(&self) -> usize {
        wait("a primary that admits clients", SOON, || {
            let address = self.slice("c").pop()?;
            let at = self.nodes.iter().position(|n| n.address == address)?;
            self.nodes[at].sql("SELECT 1").ok().map(|_| at)
        })
    }

    /// Addresses in a Service's slice.
    pub fn slice(&self, service: &str) -> Vec<String> {
        let Ok(text) = fs::read(self.record_dir().join(format!("slice-{service}.json"))) else {
            return Vec::new();
        };
        let slice: k8s_openapi::api::discovery::v1::EndpointSlice = serde_json::from_slice(&text).unwrap();
        slice.endpoints.into_iter().flat_map(|e| e.addresses).collect()
    }

    /// Waits until every other instance is a replica in the slice, streaming.
    #[track_caller]
    pub fn replicas(&self, primary: usize) {
        let wanted = self.nodes.len() - 1;
        wait("all replicas to stream and get traffic", SOON, || {
            let n = self.nodes[primary]
                .sql("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'")
                .ok()?;
            (n == wanted.to_string() && self.slice("c-ro").len() == wanted).then_some(())
        });
    }

    /// Whether the record can be reached, by all.
    pub fn record_away(&self, away: bool) {
        let path = self.record_dir().join("away");
        if away { fs::write(path, "").unwrap() } else { fs::remove_file(path).unwrap() }
    }

    /// All log lines of all agents that contain this.
    pub fn log(&self, text: &str) -> Vec<String> {
        self.nodes.iter().flat_map(|n| n.log(text)).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in &self.nodes {
                eprintln!("--- agent of {}\n{}", node.pod, tail(&node.dir.join("run/agent.log"), 60));
                eprintln!("--- postgres of {}\n{}", node.pod, tail(&node.dir.join("run/supervisor.log"), 25));
            }
        }
        for node in &mut self.nodes {
            node.kill_all();
        }
    }
}

fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Processes whose environment carries this mark: what a node has started, however it was orphaned.
fn marked(mark: &str) -> Vec<Pid> {
    let wanted = format!("{MARK}={mark}");
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|e| {
            let pid: i32 = e.ok()?.file_name().to_str()?.parse().ok()?;
            let environ = fs::read(format!("/proc/{pid}/environ")).ok()?;
            environ.split(|b| *b == 0).any(|v| v == wanted.as_bytes()).then(|| Pid::from_raw(pid))?
        })
        .collect()
}

fn kill_marked(mark: &str) {
    wait("every process of a container to be gone", SOON, || {
        let pids = marked(mark);
        for pid in &pids {
            let _ = kill_process(*pid, Signal::KILL);
        }
        pids.is_empty().then_some(())
    });
}

impl Node {
    /// Starts the container and the agent.
    pub fn start(&mut self) {
        self.start_container();
        self.start_agent();
    }

    pub fn start_container(&mut self) {
        let log =
            File::options().create(true).append(true).open(self.dir.join("run/supervisor.log")).unwrap();
        let path = format!("{}:/usr/bin:/bin", postgres_bin().display());
        let child = Command::new(supervisor_binary())
            .arg("--socket")
            .arg(self.socket())
            .args(["--probe-port", "0", "--grace", "30"])
            .env(MARK, format!("{}.c", self.mark))
            .env("PATH", path)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0)
            .spawn()
            .unwrap();
        self.supervisor = Some(child);
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("run/control.sock")
    }

    pub fn start_agent(&mut self) {
        let log = File::options().create(true).append(true).open(self.dir.join("run/agent.log")).unwrap();
        let mut args: Vec<OsString> = vec!["run".into()];
        for (name, value) in [
            ("--cluster", "c".to_owned()),
            ("--namespace", "test".to_owned()),
            ("--pod", self.pod.clone()),
            ("--pod-uid", self.pod_uid.clone()),
            ("--node", self.host.clone()),
            ("--address", self.address.clone()),
            ("--listen", self.address.clone()),
            ("--version", version()),
        ] {
            args.extend([name.into(), value.into()]);
        }
        for (name, value) in [
            ("--data-mount", "volume"),
            ("--control-socket", "run/control.sock"),
            ("--socket-dir", "socket"),
            ("--tls-dir", "tls"),
            ("--config-dir", "config"),
            ("--cert-dir", "cert"),
            ("--app-secret-dir", "app"),
        ] {
            args.extend([name.into(), self.dir.join(value).into()]);
        }
        args.extend(["--record-dir".into(), self.record.clone().into()]);
        let child = Command::new(agent_binary())
            .args(args)
            .env(MARK, format!("{}.a", self.mark))
            .env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "info,pgwarden_agent=debug".into()))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0)
            .spawn()
            .unwrap();
        self.agent = Some(child);
    }

    /// The agent itself, not its respawner.
    pub fn agent_pid(&self) -> Pid {
        let parent = self.agent.as_ref().unwrap().id();
        wait("the agent's process", SOON, || {
            let text = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
            text.split_whitespace().next()?.parse().ok().and_then(Pid::from_raw)
        })
    }

    pub fn signal_agent(&self, signal: Signal) {
        kill_process(self.agent_pid(), signal).unwrap();
    }

    /// Resident bytes of the agent and of its respawner.
    pub fn agent_memory(&self) -> (u64, u64) {
        let of = |pid: u32| {
            let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let line = text.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
        };
        let child = u32::try_from(self.agent_pid().as_raw_nonzero().get()).unwrap();
        (of(child), of(self.agent.as_ref().unwrap().id()))
    }

    pub fn stop_agent(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            kill_marked(&format!("{}.a", self.mark));
            agent.wait().unwrap();
        }
    }

    /// Power off for this container: every process of it dies at once.
    pub fn kill_container(&mut self) {
        if let Some(mut supervisor) = self.supervisor.take() {
            let _ = supervisor.kill();
            kill_marked(&format!("{}.c", self.mark));
            supervisor.wait().unwrap();
        }
    }

    pub fn kill_all(&mut self) {
        self.stop_agent();
        self.kill_container();
    }

    /// Deletes the pod as Kubernetes does: SIGTERM to the container's first process, and waits for its end.
    pub fn terminate(&mut self) {
        let mut supervisor = self.supervisor.take().unwrap();
        kill_process(Pid::from_child(&supervisor), Signal::TERM).unwrap();
        let status = wait("the container to end", SOON, || supervisor.try_wait().unwrap());
        assert!(status.success(), "{status:?}");
        self.stop_agent();
        assert_eq!(marked(&format!("{}.c", self.mark)), [], "nothing is left of the container");
    }

    pub fn pgdata(&self) -> PathBuf {
        self.dir.join("volume/pgdata")
    }

    pub fn postmaster(&self) -> Option<Pid> {
        let text = fs::read_to_string(self.pgdata().join("postmaster.pid")).ok()?;
        Pid::from_raw(text.lines().next()?.parse().ok()?)
    }

    pub fn postmaster_lives(&self) -> bool {
        // A dead process that nobody has waited for yet is dead.
        let state = |pid: Pid| fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok();
        self.postmaster().and_then(state).is_some_and(|s| s.contains("(postgres) ") && !s.contains(") Z "))
    }

    pub fn log(&self, text: &str) -> Vec<String> {
        let log = fs::read_to_string(self.dir.join("run/agent.log")).unwrap_or_default();
        log.lines().filter(|l| l.contains(text)).map(ToOwned::to_owned).collect()
    }

    /// As superuser over the Unix socket.
    pub fn sql(&self, sql: &str) -> Result<String, String> {
        answer(
            self.psql(&format!("host={} user=postgres dbname=postgres", self.dir.join("socket").display()))
                .args(["-c", sql]),
        )
    }

    #[track_caller]
    pub fn must(&self, sql: &str) -> String {
        self.sql(sql).unwrap_or_else(|error| panic!("{}: {sql}: {error}", self.pod))
    }

    /// `psql` with this connection string.
    pub fn psql(&self, conninfo: &str) -> Command {
        let mut command = Command::new(postgres_bin().join("psql"));
        command.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", &format!("{conninfo} connect_timeout=3")]);
        command.env("PGPASSFILE", "/nonexistent").stdin(Stdio::null());
        command
    }

    /// As a client over the network.
    pub fn tcp(&self, conninfo: &str, sql: &str) -> Result<String, String> {
        let ca = self.dir.join("tls/ca.crt");
        let target = format!(
            "host=c-pods.test.svc hostaddr={} port=5432 sslmode=verify-full sslrootcert={} {conninfo}",
            self.address,
            ca.display()
        );
        answer(self.psql(&target).args(["-c", sql]))
    }
}

#[allow(clippy::unwrap_in_result, reason = "the error is psql's own")]
pub fn answer(command: &mut Command) -> Result<String, String> {
    let Output { status, stdout, stderr } = command.output().unwrap();
    if status.success() {
        Ok(String::from_utf8(stdout).unwrap().trim().to_owned())
    } else {
        Err(String::from_utf8(stderr).unwrap().trim().to_owned())
    }
}

/// A session that stays open.
pub struct Session {
    child: Child,
    output: PathBuf,
    asked: u32,
}

impl Session {
    pub fn open(node: &Node) -> Self {
        let output = node.dir.join(format!("run/session-{}", node.ordinal));
        let file = File::create(&output).unwrap();
        let conninfo = format!("host={} user=postgres dbname=postgres", node.dir.join("socket").display());
        let child = node
            .psql(&conninfo)
            .stdin(Stdio::piped())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        Self { child, output, asked: 0 }
    }

    /// Asks something in the same session, and waits for the answer.
    #[track_caller]
    pub fn ask(&mut self, sql: &str) -> String {
        self.asked += 1;
        let end = format!("end-{}", self.asked);
        writeln!(self.child.stdin.as_mut().unwrap(), "{sql};\n\\echo {end}").unwrap();
        wait("an answer in the open session", SOON, || {
            let text = fs::read_to_string(&self.output).unwrap();
            let before = text.strip_suffix(&format!("{end}\n"))?;
            Some(before.lines().last().unwrap_or_default().to_owned())
        })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
