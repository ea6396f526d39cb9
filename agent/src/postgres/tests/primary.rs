//! The first instance of a cluster: initdb, roles, clients.

use std::{fs, process::Command};

use tokio_postgres::types::Type;

use crate::{
    postgres::{
        MONITOR_ROLE, SUPERUSER,
        control::{self, Stopped},
        control_file::ClusterState,
        datadir::{self, Found},
        hba::Access,
        roles::{self, AppSecret},
        settings,
        slots::{self, Ensured},
        snapshot::Poller,
        sql,
        testing::{Authority, Machine, Node, as_postgres, desired, installed, until},
    },
    supervisor::{Event, Mode, StopMode},
};

fn test(name: &str, body: impl AsyncFnOnce()) {
    as_postgres(module_path!(), name, Machine::default(), body);
}

/// What Postgres' own tool says of a data directory.
fn controldata(node: &Node, label: &str) -> String {
    let output = Command::new(installed().0.join("pg_controldata"))
        .arg(node.config.pgdata())
        .env("LC_ALL", "C")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line =
        text.lines().find(|line| line.starts_with(label)).unwrap_or_else(|| panic!("{label} in {text}"));
    line.split_once(':').unwrap().1.trim().to_owned()
}

#[test]
fn initdb_makes_what_the_control_file_says() {
    test("initdb_makes_what_the_control_file_says", async || {
        let node = Node::new(&Authority::new(), 0).await;
        let version = control::version(&node.config, &node.supervisor).await.unwrap();
        assert!(version.starts_with(&node.config.version.to_string()), "{version}");
        // Left by an attempt that was interrupted.
        fs::create_dir_all(node.config.data_mount.join("initdb.tmp/base")).unwrap();
        let identity = node.initdb().await;
        assert!(!node.config.data_mount.join("initdb.tmp").exists());

        let Found::Complete { identity: found, control, standby: false } =
            datadir::inspect(&node.config).await.unwrap()
        else {
            panic!("not complete")
        };
        assert_eq!(found, identity);
        assert!(control.checksums);
        assert_eq!(control.state, ClusterState::ShutDown);
        assert_eq!(control.state.to_string(), controldata(&node, "Database cluster state"));
        assert_eq!(control.system_identifier.to_string(), controldata(&node, "Database system identifier"));
        assert_eq!(control.control_version.to_string(), controldata(&node, "pg_control version number"));
        assert_eq!(control.timeline().to_string(), controldata(&node, "Latest checkpoint's TimeLineID"));
        let position = controldata(&node, "Latest checkpoint location");
        let (high, low) = position.split_once('/').unwrap();
        let number = |hex: &str| u64::from_str_radix(hex, 16).unwrap();
        assert_eq!(control.checkpoint, number(high) << 32 | number(low));
        assert_eq!(controldata(&node, "Data page checksum version"), "1");
    });
}

#[test]
fn clients_come_in_by_password_over_tls_alone() {
    test("clients_come_in_by_password_over_tls_alone", async || {
        let node = Node::new(&Authority::new(), 0).await;
        let config = &node.config;
        let started = node.primary().await;
        let password = "canary pass wörd ’\"\\$";
        let secret = AppSecret::new("my \"odd\" näme", "it's a database", password).unwrap();
        assert!(roles::ensure(config, Some(&secret)).await.unwrap());
        assert!(!roles::ensure(config, Some(&secret)).await.unwrap(), "nothing is written twice");

        let conninfo = |user: &str, database: &str, mode: &str| {
            let quote = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
            format!("user={} dbname={} sslmode={mode} connect_timeout=3", quote(user), quote(database))
        };
        let app = |mode: &str| conninfo(&secret.username, &secret.dbname, mode);
        let refused = |password: &str, conninfo: &str| {
            let output = node.psql(password, conninfo, "SELECT 1");
            assert!(!output.status.success(), "{conninfo}");
            String::from_utf8(output.stderr).unwrap()
        };

        // The barrier: nobody but the agent and replicas.
        assert_eq!(settings::access(config).await.unwrap(), Access::Internal);
        let error = refused(password, &app("verify-full"));
        assert!(error.contains("no pg_hba.conf entry"), "{error}");
        assert!(settings::admit(config, &node.supervisor, "").await.unwrap().is_empty());

        let make = "CREATE TABLE t AS SELECT 42 AS answer; SELECT answer FROM t; SELECT ssl, version FROM pg_stat_ssl \
                    WHERE pid = pg_backend_pid()";
        let output = node.psql(password, &app("verify-full"), make);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && text.contains("42") && text.contains("t|TLSv1.3"), "{text}");
        assert!(refused("wrong", &app("verify-full")).contains("password authentication failed"));
        assert!(refused(password, &app("disable")).contains("rejects connection"));
        for role in [SUPERUSER, MONITOR_ROLE, "pgwarden_replication"] {
            let error = refused(password, &conninfo(role, "postgres", "verify-full"));
            assert!(error.contains("rejects connection"), "{role}: {error}");
        }
        let error = refused(password, &format!("{} replication=true", app("verify-full")));
        assert!(error.contains("rejects") || error.contains("no pg_hba.conf entry"), "{error}");

        // The agent's other role, by peer and map.
        let monitor = sql::connect(config, MONITOR_ROLE, "postgres").await.unwrap();
        let row = monitor
            .row(
                "ask",
                "SELECT current_user::text, current_setting('search_path'), count(*) \
                         FROM pg_stat_activity WHERE query IS NOT NULL",
                &[],
            )
            .await
            .unwrap()
            .unwrap();
        assert_eq!(row.get::<_, &str>(0), MONITOR_ROLE);
        assert_eq!(row.get::<_, &str>(1), "pg_catalog,pg_temp");
        assert!(row.get::<_, i64>(2) > 0);

        // A new password in the Secret replaces the old one.
        let rotated = AppSecret::new(&secret.username, &secret.dbname, "another").unwrap();
        assert_ne!(rotated.hash(), secret.hash());
        assert!(roles::ensure(config, Some(&rotated)).await.unwrap());
        assert!(node.psql("another", &app("verify-full"), "SELECT 1").status.success());
        refused(password, &app("verify-full"));
        assert!(!node.log().contains("canary"), "no password in any log");
        assert!(!node.log().contains("SCRAM-SHA-256$"), "no verifier either");

        // Closing keeps new clients out, and says so when it is true.
        settings::close(config, &node.supervisor).await.unwrap();
        assert!(refused("another", &app("verify-full")).contains("no pg_hba.conf entry"));

        control::checkpoint(config, std::time::Duration::from_secs(10)).await.unwrap();
        let stopped = control::stop(&node.supervisor, std::time::Duration::from_secs(10), async {
            started.death.eof().await.unwrap();
        });
        assert_eq!(stopped.await.unwrap(), Stopped::Fast);
        assert_eq!(datadir::control(config).await.unwrap().state, ClusterState::ShutDown);
    });
}

#[test]
fn roles_of_others_are_mended_and_databases_of_others_left() {
    test("roles_of_others_are_mended_and_databases_of_others_left", async || {
        let node = Node::new(&Authority::new(), 0).await;
        node.primary().await;
        let admin = sql::connect_admin(&node.config).await.unwrap();
        admin
            .run(
                "disturb",
                "ALTER ROLE pgwarden_replication SUPERUSER NOREPLICATION PASSWORD 'x'; REVOKE pg_monitor FROM pgwarden_monitor; \
                 ALTER ROLE pgwarden_monitor NOLOGIN; CREATE ROLE somebody; CREATE ROLE app NOLOGIN",
            )
            .await
            .unwrap();
        admin.run("disturb", "CREATE DATABASE shop OWNER somebody").await.unwrap();
        let secret = AppSecret::new("app", "shop", "secret").unwrap();
        assert!(roles::ensure(&node.config, Some(&secret)).await.unwrap());
        assert!(!roles::ensure(&node.config, Some(&secret)).await.unwrap());
        let row = admin
            .row(
                "look",
                "SELECT r.rolreplication AND NOT r.rolsuper AND r.rolpassword IS NULL, pg_has_role($1, 'pg_monitor', 'USAGE'), \
                   pg_get_userbyid(d.datdba)::text, has_database_privilege('app', d.oid, 'CREATE'), a.rolcanlogin \
                 FROM pg_authid r, pg_database d, pg_roles a \
                 WHERE r.rolname = 'pgwarden_replication' AND d.datname = 'shop' AND a.rolname = 'app'",
                &[(&MONITOR_ROLE, Type::NAME)],
            )
            .await
            .unwrap()
            .unwrap();
        assert!(row.get::<_, bool>(0) && row.get::<_, bool>(1));
        assert_eq!(row.get::<_, &str>(2), "somebody", "the database stays its owner's");
        assert!(row.get::<_, bool>(3) && row.get::<_, bool>(4));

        // Before version 15 everybody may create in the public schema of a new database: not here.
        let mut older = node.config.clone();
        older.version = 14;
        let old = AppSecret::new("old", "old", "secret").unwrap();
        admin.run("interrupt an earlier attempt", "CREATE DATABASE old").await.unwrap();
        assert!(roles::ensure(&older, Some(&old)).await.unwrap());
        assert!(!roles::ensure(&older, Some(&old)).await.unwrap());
        let inside = sql::connect(&node.config, SUPERUSER, "old").await.unwrap();
        let row = inside
            .row(
                "look",
                "SELECT has_schema_privilege('old', 'public', 'CREATE'), has_schema_privilege('somebody', 'public', 'CREATE'), \
                   has_schema_privilege('somebody', 'public', 'USAGE')",
                &[],
            )
            .await
            .unwrap()
            .unwrap();
        assert_eq!((row.get(0), row.get(1), row.get(2)), (true, false, true));

        // A user's search_path and functions are nothing to the agent.
        admin
            .run(
                "plant",
                "ALTER ROLE postgres SET search_path = evil, pg_catalog; ALTER DATABASE postgres SET statement_timeout = 1; \
                 CREATE SCHEMA evil; CREATE FUNCTION evil.pg_is_in_recovery() RETURNS bool LANGUAGE sql AS 'SELECT 1/0 = 0'",
            )
            .await
            .unwrap();
        let snapshot = Poller::default().take(&node.config).await.unwrap();
        assert!(!snapshot.in_recovery);
        assert!(!roles::ensure(&node.config, Some(&secret)).await.unwrap());
    });
}

#[test]
fn slots_are_kept_dropped_and_made_anew() {
    test("slots_are_kept_dropped_and_made_anew", async || {
        let mut node = Node::new(&Authority::new(), 0).await;
        node.initdb().await;
        node.grant(1).await;
        let wanted = desired("max_slot_wal_keep_size = 1MB\nwal_keep_size = 0\n");
        settings::write(&node.config, &node.supervisor, &wanted).await.unwrap();
        let started = control::start(&node.config, &node.supervisor, Mode::Primary, 1).await.unwrap();
        control::wait_ready(&node.config, &node.supervisor, &started.death).await.unwrap();
        let admin = sql::connect_admin(&node.config).await.unwrap();
        let uuid = |n: u8| format!("550e8400-e29b-41d4-a716-4466554400{n:02}");
        let names: Vec<String> =
            [(1, 1), (1, 2), (2, 3)].map(|(o, n)| pgwarden_api::names::member_name(o, &uuid(n))).to_vec();
        for name in &names {
            assert_eq!(slots::ensure(&admin, name).await.unwrap(), Ensured::Created);
            assert_eq!(slots::ensure(&admin, name).await.unwrap(), Ensured::Kept);
        }
        admin
            .run("make", "SELECT pg_create_logical_replication_slot('m1_theirs', 'pgoutput')")
            .await
            .unwrap();
        assert!(matches!(
            slots::ensure(&admin, "m1_theirs").await,
            Err(slots::SlotError::NotPhysical(name)) if name == "m1_theirs"
        ));
        let listed = slots::list(&admin).await.unwrap();
        assert_eq!(listed.len(), 4);
        assert!(
            listed.iter().all(|slot| slot.restart_lsn > 0 && !slot.active),
            "WAL is kept at once: {listed:?}"
        );

        // The same ordinal with another UUID is gone for good.
        let dropped =
            slots::drop_obsolete(&admin, true, |member| member.ordinal != 1 || member.name == names[1]).await;
        assert_eq!(dropped.unwrap(), [names[0].clone()]);
        assert!(!slots::drop_slot(&admin, &names[0]).await.unwrap(), "dropping again is no error");

        // More WAL than may be kept for it.
        for _ in 0..3 {
            admin.run("write", "CREATE TABLE public.filler AS SELECT 1; DROP TABLE public.filler; SELECT pg_switch_wal()").await.unwrap();
        }
        admin.run("checkpoint", "CHECKPOINT").await.unwrap();
        let listed = slots::list(&admin).await.unwrap();
        let status = &listed.iter().find(|slot| slot.name == names[2]).unwrap().wal_status;
        assert_eq!(status, "lost");
        assert_eq!(slots::ensure(&admin, &names[2]).await.unwrap(), Ensured::Recreated);
        let snapshot = Poller::default().take(&node.config).await.unwrap();
        assert_eq!(snapshot.slots.iter().find(|slot| slot.name == names[2]).unwrap().wal_status, "reserved");

        // The end is told, and the log says why.
        node.supervisor.stop(StopMode::Immediate).await.unwrap();
        let exit = until("the exit", async || match node.events.try_recv() {
            Ok(Event::PostmasterExited(exit)) => Some(exit),
            _ => None,
        })
        .await;
        assert!(exit.drained);
        started.death.eof().await.unwrap();
    });
}
