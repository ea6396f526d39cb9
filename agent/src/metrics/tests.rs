//! The page of a real Postgres, up, hung, down and again up, and of a replica beside it.

use std::{
    fs,
    net::SocketAddr,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use pgwarden_proto::v1::{Replication, Role};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::sleep,
};

use super::*;
use crate::tls::testing::{Authority, TempDir};

const MOMENT: Duration = Duration::from_secs(30);

/// The newest PostgreSQL that is installed.
fn bin() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").unwrap();
    let newest = versions.filter_map(|v| v.unwrap().file_name().to_str()?.parse::<u32>().ok()).max().unwrap();
    PathBuf::from(format!("/usr/lib/postgresql/{newest}/bin"))
}

/// A program of it, as a user that it accepts.
fn program(name: &str) -> Command {
    let path = bin().join(name);
    let mut command = if rustix::process::getuid().is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups"]).arg(path);
        command
    } else {
        Command::new(path)
    };
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    command
}

struct Postgres {
    dir: TempDir,
    config: Config,
    child: Option<Child>,
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.signal(Signal::CONT);
        self.stop();
    }
}

impl Postgres {
    fn new(prepare: impl FnOnce(&Path, &Path)) -> Self {
        let dir = TempDir::new("metrics");
        // Open to the other user; what is in it is not a secret.
        if rustix::process::getuid().is_root() {
            let done = Command::new("chown").arg("postgres").arg(dir.path()).status().unwrap();
            assert!(done.success());
        }
        let mut config = crate::postgres::testing::config(dir.path());
        config.socket_dir = dir.path().to_owned();
        config.version = bin().parent().unwrap().file_name().unwrap().to_str().unwrap().parse().unwrap();
        fs::create_dir_all(&config.tls_dir).unwrap();
        Authority::new(&config.namespace, &config.cluster).mount(&config.cert_dir);
        prepare(&dir.path().join("data"), dir.path());
        Self { dir, config, child: None }
    }

    fn start(&mut self) {
        let mut command = program("postgres");
        command.arg("-D").arg(self.dir.path().join("data")).arg("-k").arg(&self.config.socket_dir);
        command.args(["-c", "listen_addresses=", "-c", "wal_level=logical", "-c", "fsync=off"]);
        command.args(["-c", "shared_buffers=16MB"]).arg("-p").arg(self.config.postgres_port.to_string());
        self.child = Some(command.spawn().unwrap());
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            kill_process(Pid::from_child(&child), Signal::QUIT).unwrap();
            child.wait().unwrap();
        }
    }

    /// To every process of it.
    fn signal(&self, signal: Signal) {
        let Some(child) = &self.child else { return };
        let pid = child.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let pids = children.split_whitespace().map(|pid| pid.parse().unwrap()).chain([pid.cast_signed()]);
        for pid in pids {
            let _ = kill_process(Pid::from_raw(pid).unwrap(), signal);
        }
    }

    async fn sql(&self, sql: &str) {
        let session = async {
            loop {
                match sql::connect_admin(&self.config).await {
                    Ok(session) => break session,
                    Err(_) => sleep(Duration::from_millis(50)).await,
                }
            }
        };
        let session = timeout(MOMENT, session).await.unwrap();
        for statement in sql.split(';') {
            session.run("prepare", statement).await.unwrap();
        }
    }

    async fn exporter(&self) -> (SocketAddr, Bus, tls::Store, Deadline) {
        let store = tls::Store::load(&self.config).await;
        let (bus, _) = Bus::new(InstanceStatus::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let deadline = Deadline::default();
        let served = serve_on(listener, self.config.clone(), store.clone(), bus.clone(), deadline.clone());
        tokio::spawn(served);
        (address, bus, store, deadline)
    }
}

async fn get(address: SocketAddr, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

/// A page, which is well formed.
struct Scraped(String);

impl Scraped {
    async fn from(address: SocketAddr) -> Self {
        let start = Instant::now();
        let (head, body) = get(address, "/metrics").await;
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
        assert!(head.starts_with("HTTP/1.1 200") && head.contains("text/plain; version=0.0.4"), "{head}");
        let page = Self(body);
        page.check();
        page
    }

    /// Every sample belongs to a family with help and type, and is a number.
    fn check(&self) {
        let mut family = "";
        let mut helped = "";
        for line in self.0.lines() {
            let word = |n| line.split(' ').nth(n).unwrap();
            if line.starts_with("# HELP ") {
                helped = word(2);
            } else if line.starts_with("# TYPE ") {
                family = word(2);
                assert_eq!(family, helped, "no help");
                assert_eq!(word(3) == "counter", family.ends_with("_total"), "{line}");
            } else {
                let name = line.split(['{', ' ']).next().unwrap();
                assert_eq!(name, family, "{line}");
                line.rsplit(' ').next().unwrap().parse::<f64>().unwrap();
            }
        }
    }

    fn get(&self, sample: &str) -> Option<f64> {
        let value = self.0.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '))?;
        Some(value.parse().unwrap())
    }

    #[track_caller]
    fn value(&self, sample: &str) -> f64 {
        self.get(sample).unwrap_or_else(|| panic!("{sample} is not in\n{}", self.0))
    }

    /// Samples of a family.
    fn samples(&self, family: &str) -> usize {
        let starts = [format!("{family}{{"), format!("{family} ")];
        self.0.lines().filter(|line| starts.iter().any(|start| line.starts_with(start))).count()
    }
}

async fn until_up(address: SocketAddr) -> Scraped {
    let up = async {
        loop {
            let page = Scraped::from(address).await;
            if page.value("pgwarden_up") == 1.0 {
                break page;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(MOMENT, up).await.unwrap()
}

fn initdb(data: &Path, _: &Path) {
    let mut command = program("initdb");
    command.args(["--auth=trust", "--username=postgres", "--no-sync", "--data-checksums", "-D"]).arg(data);
    assert!(command.status().unwrap().success(), "initdb failed");
}

#[tokio::test]
async fn a_real_postgres_is_measured_whatever_happens_to_it() {
    let mut primary = Postgres::new(initdb);
    let (address, bus, store, deadline) = primary.exporter().await;

    // Nothing runs yet.
    let page = Scraped::from(address).await;
    assert_eq!(page.value("pgwarden_up"), 0.0);
    assert_eq!(page.samples("pgwarden_database_size_bytes"), 0);
    assert!(page.value("process_resident_memory_bytes") > 1e6);
    let (head, body) = get(address, "/").await;
    assert!(head.starts_with("HTTP/1.1 404") && body.contains("/metrics"), "{head}{body}");

    primary.start();
    primary
        .sql(
            "CREATE ROLE pgwarden_monitor LOGIN; GRANT pg_monitor TO pgwarden_monitor; \
             CREATE DATABASE \"a \"\"b\"\" \\\\c\"; REVOKE CONNECT ON DATABASE postgres FROM PUBLIC; \
             GRANT CONNECT ON DATABASE postgres TO pgwarden_monitor; \
             SELECT pg_create_physical_replication_slot('kept', true); SELECT pg_switch_wal(); CHECKPOINT",
        )
        .await;
    bus.status.send_modify(|status| {
        let status = Arc::make_mut(status);
        status.set_role(Role::Primary);
        status.replication = vec![Replication {
            application_name: "m1_x".into(),
            pod: "c-15-1".into(),
            ..Replication::default()
        }];
    });
    deadline.renewed(Duration::from_secs(3), Duration::from_secs(4));
    up_and_measured(&until_up(address).await, &store);
    sizes_are_not_measured_each_time(address, &primary).await;
    those_who_ask_together_share(address).await;
    a_hung_postgres_is_told_in_time(address, &primary).await;
    sessions_are_counted(address, &primary).await;
    standbys_are_seen_from_both_sides(address, &primary).await;

    primary.stop();
    let page = Scraped::from(address).await;
    assert_eq!(page.value("pgwarden_up"), 0.0);
    assert_eq!(page.value("pgwarden_role{role=\"primary\"}"), 1.0, "what the driver knows is told");
    assert_eq!(page.samples("pgwarden_connections"), 0);
    primary.start();
    until_up(address).await;
}

fn up_and_measured(page: &Scraped, store: &tls::Store) {
    let all = |family: &str| page.value(family);
    assert!(all("pgwarden_database_size_bytes{database=\"postgres\"}") > 1e6);
    assert!(
        all(r#"pgwarden_database_size_bytes{database="a \"b\" \\\\c"}"#) > 1e6,
        "any name is shown as it is"
    );
    assert!(all("pgwarden_database_transactions_committed_total{database=\"postgres\"}") > 0.0);
    assert!(all("pgwarden_database_blocks_hit_total{database=\"postgres\"}") > 0.0);
    assert_eq!(all("pgwarden_database_deadlocks_total{database=\"postgres\"}"), 0.0);
    assert_eq!(all("pgwarden_database_checksum_failures_total{database=\"postgres\"}"), 0.0);
    assert!(all("pgwarden_database_transaction_id_age{database=\"template1\"}") > 0.0);
    assert_eq!(all("pgwarden_connections_max"), 100.0);
    assert!(all("pgwarden_connections{database=\"postgres\",state=\"active\"}") >= 1.0);
    assert_eq!(all("pgwarden_connections{database=\"template1\",state=\"idle in transaction\"}"), 0.0);
    let flushed = all("pgwarden_wal_flushed_position_bytes");
    let retained = all("pgwarden_slot_retained_bytes{slot=\"kept\"}");
    assert!(flushed > 16e6 && retained > 0.0 && retained < flushed, "{flushed} {retained}");
    assert_eq!(all("pgwarden_slot_active{slot=\"kept\"}"), 0.0);
    assert_eq!(all("pgwarden_slot_lost{slot=\"kept\"}"), 0.0);
    assert!(all("pgwarden_checkpoints_total{cause=\"requested\"}") >= 1.0);
    assert!(all("pgwarden_checkpoint_write_seconds_total") < 60.0, "seconds, not milliseconds");
    assert!(all("pgwarden_wal_written_bytes_total") > 0.0);
    let now = process::now();
    for time in ["pgwarden_postgres_start_time_seconds", "process_start_time_seconds"] {
        assert!((now - 600.0..=now + 1.0).contains(&all(time)), "{time}");
    }
    assert_eq!(page.samples("pgwarden_postgres_info"), 1);
    assert_eq!(all("pgwarden_deadline_margin_seconds"), 3.0);
    for (role, end) in store.expiry() {
        #[allow(clippy::cast_precision_loss)]
        let end = end as f64;
        assert_eq!(all(&format!("pgwarden_certificate_expiry_timestamp_seconds{{role=\"{role}\"}}")), end);
    }
    for query in ["databases", "connections", "replication", "slots", "checkpoints", "wal", "sizes"] {
        assert_eq!(all(&format!("pgwarden_query_success{{query=\"{query}\"}}")), 1.0);
    }
    assert!(page.0.lines().all(|line| !line.contains("NaN")), "unknown is left out");
}

async fn sizes_are_not_measured_each_time(address: SocketAddr, primary: &Postgres) {
    let size =
        async || Scraped::from(address).await.value("pgwarden_database_size_bytes{database=\"postgres\"}");
    let before = size().await;
    primary.sql("CREATE TABLE public.big AS SELECT generate_series(1, 100000) n").await;
    assert_eq!(size().await, before, "measured at most every 30 s");
}

async fn those_who_ask_together_share(address: SocketAddr) {
    let pages = futures::future::join_all((0..10).map(|_| Scraped::from(address))).await;
    let mut durations: Vec<_> = pages.iter().map(|p| p.value("pgwarden_scrape_duration_seconds")).collect();
    durations.sort_by(f64::total_cmp);
    durations.dedup();
    assert!(durations.len() <= 3, "{durations:?}");
}

async fn a_hung_postgres_is_told_in_time(address: SocketAddr, primary: &Postgres) {
    let sessions = async || {
        let page = until_up(address).await;
        ["active", "idle"]
            .map(|state| {
                page.value(&format!("pgwarden_connections{{database=\"postgres\",state=\"{state}\"}}"))
            })
            .iter()
            .sum::<f64>()
    };
    let before = sessions().await;
    primary.signal(Signal::STOP);
    for _ in 0..2 {
        let page = Scraped::from(address).await;
        assert_eq!(page.value("pgwarden_up"), 0.0);
    }
    primary.signal(Signal::CONT);
    // What hung is not used again, and does not stay.
    let again = async {
        while sessions().await > before {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(MOMENT, again).await.unwrap();
}

async fn sessions_are_counted(address: SocketAddr, primary: &Postgres) {
    let holder = sql::connect_admin(&primary.config).await.unwrap();
    holder.run("prepare", "BEGIN; LOCK TABLE public.big").await.unwrap();
    let waiter = sql::connect_admin(&primary.config).await.unwrap();
    let waits = waiter.run("wait", "SELECT count(*) FROM public.big");
    let seen = async {
        loop {
            let page = Scraped::from(address).await;
            let waiting = page.value("pgwarden_connections_waiting{database=\"postgres\"}");
            let idle =
                page.value("pgwarden_connections{database=\"postgres\",state=\"idle in transaction\"}");
            if waiting == 1.0 && idle == 1.0 {
                assert!(page.value("pgwarden_oldest_transaction_seconds{database=\"postgres\"}") > 0.0);
                break;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        ended = waits => panic!("{ended:?}"),
        seen = timeout(MOMENT, seen) => seen.unwrap(),
    }
}

async fn standbys_are_seen_from_both_sides(address: SocketAddr, primary: &Postgres) {
    let mut replica = Postgres::new(|data, _| {
        let mut command = program("pg_basebackup");
        command.args(["-U", "postgres", "-R", "-c", "fast", "--no-sync", "-d"]);
        let (host, port) = (primary.config.socket_dir.display(), primary.config.postgres_port);
        command.arg(format!("host={host} port={port} application_name=m1_x")).arg("-D").arg(data);
        assert!(command.status().unwrap().success(), "pg_basebackup failed");
    });
    replica.start();
    let (replica_address, bus, ..) = replica.exporter().await;
    bus.status.send_modify(|status| Arc::make_mut(status).set_role(Role::Replica));
    let info = "pgwarden_replication_info{replica=\"c-15-1\",state=\"streaming\",sync_state=\"async\"}";
    let caught_up = async {
        loop {
            let page = Scraped::from(address).await;
            let lag = page.get("pgwarden_replication_lag_bytes{replica=\"c-15-1\"}");
            if lag == Some(0.0) && page.get(info) == Some(1.0) {
                break page;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    let page = timeout(MOMENT, caught_up).await.unwrap();
    assert_eq!(page.samples("pgwarden_replication_lag_bytes"), 1);
    assert_eq!(page.samples("pgwarden_replication_info"), 1);
    assert!(page.value("pgwarden_replication_lag_seconds{replica=\"c-15-1\"}") < 30.0);
    let page = until_up(replica_address).await;
    assert!(page.value("pgwarden_wal_replayed_position_bytes") > 16e6);
    assert!(page.value("pgwarden_wal_received_position_bytes") > 16e6);
    assert_eq!(page.samples("pgwarden_wal_flushed_position_bytes"), 0);
    assert_eq!(page.value("pgwarden_query_success{query=\"slots\"}"), 1.0);
    assert_eq!(page.value("pgwarden_query_success{query=\"replication\"}"), 1.0);
    assert!(page.value("pgwarden_database_size_bytes{database=\"postgres\"}") > 1e6);
    // It falls behind while its processes are stopped, and the primary says so.
    replica.signal(Signal::STOP);
    primary.sql("INSERT INTO public.big SELECT generate_series(1, 10000)").await;
    let page = Scraped::from(address).await;
    assert!(page.value("pgwarden_replication_lag_bytes{replica=\"c-15-1\"}") > 10_000.0);
}
