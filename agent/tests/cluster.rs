//! Agents, supervisors and Postgres as real processes, without Kubernetes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "tests")]

mod common;

use std::{
    fs,
    time::{Duration, Instant},
};

use common::{Cluster, PASSWORD, SOON, Session, has_run_as_postgres, wait};
use pgwarden_api::record::RecordState;
use rustix::process::{Signal, kill_process};

macro_rules! as_postgres {
    ($name:literal) => {
        if has_run_as_postgres($name) {
            return;
        }
    };
}

/// The application's connection to this database.
fn app(database: &str) -> String {
    let password = PASSWORD.replace('\\', "\\\\").replace('\'', "\\'");
    format!("user=app dbname={database} password='{password}'")
}

#[test]
fn three_instances_one_initdb_two_streaming_copies() {
    as_postgres!("three_instances_one_initdb_two_streaming_copies");
    let start = Instant::now();
    let cluster = Cluster::started("three", 3);
    let primary = cluster.primary();
    println!("primary after {:?}", start.elapsed());
    cluster.replicas(primary);
    println!("three instances streaming after {:?}", start.elapsed());

    assert_eq!(cluster.log("initdb done").len(), 1, "exactly one initdb");
    assert_eq!(cluster.log("base backup done").len(), 2);
    let record = cluster.record().spec;
    assert_eq!((record.epoch, record.state), (1, RecordState::Held));
    let holder = &cluster.nodes[primary];
    assert_eq!(record.holder.unwrap().pod, holder.pod);
    assert_eq!(holder.must("SELECT system_identifier FROM pg_control_system()"), record.system_identifier);
    assert_eq!(holder.must("SHOW data_checksums"), "on");
    assert_eq!(holder.must("SHOW wal_level"), "logical");

    // A row written by the application over TLS is read on every replica.
    let app =
        format!("user=app dbname=app password='{}'", PASSWORD.replace('\\', "\\\\").replace('\'', "\\'"));
    holder.tcp(&app, "CREATE TABLE t (x int); INSERT INTO t VALUES (42)").unwrap();
    for node in cluster.nodes.iter().filter(|n| n.pod != holder.pod) {
        wait("the row on a replica", SOON, || node.tcp(&app, "SELECT x FROM t").ok().filter(|x| x == "42"));
        let error = node.tcp(&app, "INSERT INTO t VALUES (1)").unwrap_err();
        assert!(error.contains("read-only"), "{error}");
    }
    // Who must not come in.
    let error = holder.tcp("user=postgres dbname=postgres password=x", "SELECT 1").unwrap_err();
    assert!(error.contains("pg_hba.conf rejects"), "{error}");
    let error = holder.tcp("user=app dbname=app password=wrong", "SELECT 1").unwrap_err();
    assert!(error.contains("password authentication failed"), "{error}");
    let error = holder.tcp(&format!("{app} sslmode=disable"), "SELECT 1").unwrap_err();
    assert!(error.contains("pg_hba.conf rejects"), "{error}");
    let replication = "user=pgwarden_replication dbname=postgres replication=true";
    let error = holder.tcp(replication, "IDENTIFY_SYSTEM").unwrap_err();
    assert!(error.contains("certificate"), "{error}");
    let tls = holder.dir.join("tls");
    let with = format!(
        "{replication} sslcert={} sslkey={}",
        tls.join("replication.crt").display(),
        tls.join("replication.key").display()
    );
    assert!(holder.tcp(&with, "IDENTIFY_SYSTEM").unwrap().starts_with(&record.system_identifier));

    for node in &cluster.nodes {
        let (agent, respawner) = node.agent_memory();
        println!("{}: agent {} kB, respawner {} kB resident", node.pod, agent / 1024, respawner / 1024);
    }
}

#[test]
fn a_killed_agent_comes_back_and_adopts_postgres() {
    as_postgres!("a_killed_agent_comes_back_and_adopts_postgres");
    let cluster = Cluster::started("adopt", 2);
    let primary = cluster.primary();
    cluster.replicas(primary);
    for node in [&cluster.nodes[primary], &cluster.nodes[1 - primary]] {
        let postmaster = node.postmaster();
        let mut session = Session::open(node);
        let backend = session.ask("SELECT pg_backend_pid()");
        for round in 1..3 {
            let agent = node.agent_pid();
            node.signal_agent(Signal::KILL);
            wait("another agent", SOON, || (node.agent_pid() != agent).then_some(()));
            let adopted = || node.log("connected to the supervisor").len() > round;
            wait("it to adopt", SOON, || adopted().then_some(()));
        }
        // Longer than the grant that the dead agent left.
        let end = Instant::now() + Duration::from_secs(5);
        while Instant::now() < end {
            assert_eq!(session.ask("SELECT pg_backend_pid()"), backend, "the session goes on");
        }
        assert_eq!(node.postmaster(), postmaster);
    }
    assert_eq!(cluster.record().spec.epoch, 1);
    cluster.replicas(primary);
}

#[test]
fn a_stopped_agent_means_a_dead_primary_at_the_deadline() {
    as_postgres!("a_stopped_agent_means_a_dead_primary_at_the_deadline");
    let cluster = Cluster::started("frozen", 1);
    let node = &cluster.nodes[cluster.primary()];
    let postmaster = node.postmaster().unwrap();
    let agent = node.agent_pid();
    kill_process(agent, Signal::STOP).unwrap();
    let stopped = Instant::now();
    wait("the primary's death", Duration::from_secs(6), || (!node.postmaster_lives()).then_some(()));
    let lived = stopped.elapsed();
    println!("dead {lived:?} after the agent was stopped");
    assert!(lived < Duration::from_millis(4500), "{lived:?}");
    assert!(lived > Duration::from_millis(1500), "a deadline counts from the last renewal: {lived:?}");
    kill_process(agent, Signal::CONT).unwrap();
    wait("service again", SOON, || node.sql("SELECT 1").ok());
    assert_ne!(node.postmaster(), Some(postmaster));
}

#[test]
fn a_crashed_postgres_is_back_in_place() {
    as_postgres!("a_crashed_postgres_is_back_in_place");
    let cluster = Cluster::started("crash", 1);
    let node = &cluster.nodes[cluster.primary()];
    node.must("CREATE TABLE t (x int); INSERT INTO t VALUES (1)");
    node.must("GRANT SELECT ON t TO app");
    let client = app("postgres");
    for round in 0..3 {
        let postmaster = node.postmaster().unwrap();
        kill_process(postmaster, Signal::KILL).unwrap();
        let crashed = Instant::now();
        wait("service again, for clients", SOON, || {
            (node.postmaster() != Some(postmaster) && node.tcp(&client, "SELECT x FROM t").ok()? == "1")
                .then_some(())
        });
        println!("round {round}: back after {:?}", crashed.elapsed());
    }
    assert_eq!(cluster.record().spec.epoch, 1, "the same epoch goes on");
}

#[test]
fn the_primary_serves_on_while_the_record_is_away() {
    as_postgres!("the_primary_serves_on_while_the_record_is_away");
    let cluster = Cluster::started("away", 1);
    let node = &cluster.nodes[cluster.primary()];
    let mut session = Session::open(node);
    let backend = session.ask("SELECT pg_backend_pid()");
    // The ConfigMap changes meanwhile, as kubelet would show it.
    fs::write(node.dir.join("config/postgresql.conf"), "work_mem = '7MB'\nmax_connections = '40'\n").unwrap();
    fs::write(node.dir.join("config/agent.json"), r#"{"generation":2,"replicas":1,"failover":"balanced"}"#)
        .unwrap();
    cluster.record_away(true);
    wait("affirmation", SOON, || (!node.log("Affirmed").is_empty()).then_some(()));
    // Also with an agent that has never read the record, and with a Postgres that crashes meanwhile.
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        assert_eq!(session.ask("SELECT pg_backend_pid()"), backend, "the session goes on");
    }
    node.signal_agent(Signal::KILL);
    let end = Instant::now() + Duration::from_secs(6);
    while Instant::now() < end {
        assert_eq!(session.ask("SELECT pg_backend_pid()"), backend, "adopted by what the note says");
    }
    let postmaster = node.postmaster().unwrap();
    kill_process(postmaster, Signal::KILL).unwrap();
    wait("service again", SOON, || {
        (node.postmaster() != Some(postmaster) && node.sql("SELECT 1").is_ok()).then_some(())
    });
    wait("the changed setting", SOON, || (node.sql("SHOW work_mem").ok()? == "7MB").then_some(()));
    let order = cluster.record().order;
    cluster.record_away(false);
    wait("renewals", SOON, || (cluster.record().order > order).then_some(()));
    assert_eq!(cluster.record().spec.epoch, 1);
    assert!(node.postmaster_lives());
}

#[test]
fn a_deleted_pod_releases_and_takes_its_place_again() {
    as_postgres!("a_deleted_pod_releases_and_takes_its_place_again");
    let mut cluster = Cluster::started("release", 2);
    let primary = cluster.primary();
    cluster.replicas(primary);
    cluster.nodes[primary].must("CREATE TABLE t (x int); INSERT INTO t VALUES (7)");
    cluster.nodes[primary].terminate();
    let record = cluster.record().spec;
    assert_eq!((record.epoch, record.state), (1, RecordState::Released));
    let control = cluster.nodes[primary].pgdata();
    let control = std::process::Command::new(common::postgres_bin().join("pg_controldata"))
        .arg(control)
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&control.stdout).contains("shut down\n"), "a clean stop");

    // Another pod of the same name, elsewhere: released is proof enough.
    let node = &mut cluster.nodes[primary];
    node.pod_uid = "another".into();
    node.host = "elsewhere".into();
    node.start();
    assert_eq!(cluster.primary(), primary);
    cluster.replicas(primary);
    assert_eq!(cluster.record().spec.epoch, 2);
    assert_eq!(cluster.nodes[1 - primary].must("SELECT x FROM t"), "7");
}

#[test]
fn all_lose_power_and_come_back_from_disk() {
    as_postgres!("all_lose_power_and_come_back_from_disk");
    let mut cluster = Cluster::started("power", 3);
    let primary = cluster.primary();
    cluster.replicas(primary);
    cluster.nodes[primary].must("CREATE TABLE t (x int); INSERT INTO t VALUES (7)");
    cluster.nodes.iter_mut().for_each(common::Node::kill_all);
    let identity = fs::read(cluster.nodes[0].dir.join("volume/instance.json")).unwrap();
    cluster.nodes.iter_mut().for_each(common::Node::start);
    assert_eq!(cluster.primary(), primary, "the same instance");
    cluster.replicas(primary);
    assert_eq!(cluster.record().spec.epoch, 2, "a new life, a new epoch");
    assert_eq!(cluster.log("initdb done").len(), 1, "nobody made anything anew");
    assert_eq!(cluster.log("base backup done").len(), 2);
    for node in &cluster.nodes {
        assert_eq!(node.must("SELECT x FROM t"), "7");
    }
    let uuid = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap()["uuid"].clone();
    assert_eq!(uuid(&identity), uuid(&fs::read(cluster.nodes[0].dir.join("volume/instance.json")).unwrap()));
}

#[test]
fn the_holder_elsewhere_without_a_release_waits_for_proof() {
    as_postgres!("the_holder_elsewhere_without_a_release_waits_for_proof");
    let mut cluster = Cluster::started("proof", 1);
    cluster.primary();
    let node = &mut cluster.nodes[0];
    node.kill_all();
    (node.pod_uid, node.host) = ("another".into(), "elsewhere".into());
    node.start();
    wait("a refusal with its remedy", SOON, || (!node.log("HolderNotProvenDead").is_empty()).then_some(()));
    assert!(!node.postmaster_lives());
    assert_eq!(cluster.record().spec.epoch, 1);
}

#[test]
fn a_foreign_directory_is_set_aside_and_an_interrupted_copy_is_made_anew() {
    as_postgres!("a_foreign_directory_is_set_aside_and_an_interrupted_copy_is_made_anew");
    let mut cluster = Cluster::new("foreign", 2);
    // A data directory of nobody's, with a row that must not be lost.
    let initdb = common::postgres_bin().join("initdb");
    let made = std::process::Command::new(initdb)
        .arg("--no-sync")
        .arg("-D")
        .arg(cluster.nodes[1].pgdata())
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    fs::write(cluster.nodes[1].pgdata().join("precious"), "kept").unwrap();

    cluster.nodes[1].start();
    wait("a refusal", SOON, || (!cluster.nodes[1].log("DataWithoutRecord").is_empty()).then_some(()));
    assert_eq!(cluster.record().spec.epoch, 0, "data without a record: nobody begins anew over it");

    cluster.nodes[0].start();
    assert_eq!(cluster.primary(), 0);
    // The copy is cut short, twice: once with the container, once with the agent.
    wait("a copy under way", SOON, || cluster.nodes[1].dir.join("volume/clone.tmp").exists().then_some(()));
    cluster.nodes[1].kill_container();
    assert!(!cluster.nodes[1].pgdata().exists(), "half a copy has no name");
    cluster.nodes[1].start_container();
    wait("a copy under way", SOON, || cluster.nodes[1].dir.join("volume/clone.tmp").exists().then_some(()));
    cluster.nodes[1].signal_agent(Signal::KILL);
    cluster.replicas(0);
    let volume = fs::read_dir(cluster.nodes[1].dir.join("volume")).unwrap();
    let aside: Vec<_> =
        volume.map(|e| e.unwrap().path()).filter(|p| p.to_str().unwrap().contains("set-aside")).collect();
    assert_eq!(aside.len(), 1, "{aside:?}");
    assert_eq!(fs::read_to_string(aside[0].join("precious")).unwrap(), "kept");
    assert!(!cluster.nodes[1].dir.join("volume/clone.tmp").exists());
}
