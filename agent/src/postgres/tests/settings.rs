//! Settings: what is reloaded, what waits, what is refused.

use std::fs;

use crate::{
    postgres::{
        control, settings,
        settings::SettingsError,
        snapshot::Poller,
        sql,
        testing::{Authority, Machine, Node, as_postgres, desired},
    },
    supervisor::Mode,
};

fn test(name: &str, body: impl AsyncFnOnce()) {
    as_postgres(module_path!(), name, Machine::default(), body);
}

async fn show(node: &Node, name: &str) -> String {
    let session = sql::connect_admin(&node.config).await.unwrap();
    let row = session.row("show", &format!("SELECT current_setting('{name}')"), &[]).await.unwrap().unwrap();
    row.get(0)
}

#[test]
fn settings_are_reloaded_wait_or_are_refused() {
    test("settings_are_reloaded_wait_or_are_refused", async || {
        let node = Node::new(&Authority::new(), 0).await;
        let (config, supervisor) = (&node.config, &node.supervisor);
        let write = async |extra: &str| settings::write(config, supervisor, &desired(extra)).await;
        node.initdb().await;

        // Nothing to fall back to: the parameter is named, and nothing starts.
        let error = write("work_mem = 'lots'\n").await.unwrap_err();
        let SettingsError::Refused(why) = error else { panic!("{error}") };
        assert!(why.contains("work_mem") && why.contains("lots"), "{why}");

        write("").await.unwrap();
        node.grant(1).await;
        let started = control::start(config, supervisor, Mode::Primary, 1).await.unwrap();
        control::wait_ready(config, supervisor, &started.death).await.unwrap();
        let mut poller = Poller::default();
        assert!(poller.take(config).await.unwrap().slow.pending_restart.is_empty());
        assert!(!write("").await.unwrap().changed, "the same again is nothing");

        // One is in force at once, the other waits.
        let written = write("work_mem = 8MB\nmax_connections = 40\n").await.unwrap();
        assert!(written.changed && written.problems.is_empty(), "{written:?}");
        settings::reload(config, supervisor).await.unwrap();
        assert_eq!(show(&node, "work_mem").await, "8MB");
        poller.refresh();
        let pending = poller.take(config).await.unwrap().slow.pending_restart;
        assert_eq!(pending.len(), 1, "{pending:?}");
        assert_eq!(
            (pending[0].name.as_str(), pending[0].current.as_str(), pending[0].wanted.as_str()),
            ("max_connections", "30", "40")
        );
        assert!(poller.take(config).await.unwrap().slow.problems.is_empty());

        // A typo: what was in force stays, and the typo is named.
        for (line, name) in
            [("work_men = 9MB\n", "work_men"), ("work_mem = 9XB\n", "work_mem"), ("= 1\n", "syntax error")]
        {
            let written = write(line).await.unwrap();
            assert!(!written.changed);
            assert_eq!(written.problems.len(), 1, "{written:?}");
            assert_eq!(written.problems[0].reason, "ParameterRefused");
            assert!(written.problems[0].message.contains(name), "{}", written.problems[0].message);
        }
        settings::reload(config, supervisor).await.unwrap();
        assert_eq!(show(&node, "work_mem").await, "8MB");

        // What safety rests on can't be turned off, whatever the ConfigMap says.
        write("fsync = off\nrestart_after_crash = on\nssl = off\n").await.unwrap();
        settings::reload(config, supervisor).await.unwrap();
        for (name, value) in
            [("fsync", "on"), ("restart_after_crash", "off"), ("ssl", "on"), ("wal_level", "logical")]
        {
            assert_eq!(show(&node, name).await, value, "{name}");
        }
        assert_eq!(show(&node, "cluster_name").await, config.pod);
        assert_eq!(show(&node, "recovery_init_sync_method").await, "syncfs");

        // ALTER SYSTEM is undone and told.
        let auto = config.pgdata().join("postgresql.auto.conf");
        let mut text = fs::read_to_string(&auto).unwrap();
        text.push_str("work_mem = '1GB'\n");
        fs::write(&auto, text).unwrap();
        let written = write("").await.unwrap();
        assert!(written.changed);
        assert_eq!(written.problems[0].reason, "AlterSystemUndone");
        assert!(written.problems[0].message.contains("work_mem"));
        assert!(!fs::read_to_string(&auto).unwrap().contains("1GB"));

        // A line for clients that Postgres does not understand is left out; the others count.
        let extra = "hostssl all all 10.0.0.0/99 scram-sha-256\nhostssl all friend 127.0.0.1/32 reject\nhost all all all trust";
        let problems = settings::admit(config, supervisor, extra).await.unwrap();
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(
            problems.iter().any(|p| p.message.contains("/99"))
                && problems.iter().any(|p| p.message.contains("trust"))
        );
        let output = node.psql("x", "user=friend dbname=postgres sslmode=verify-full", "SELECT 1");
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains("pg_hba.conf rejects connection"), "{error}");
        // The agent died between writing a file and having it read: it is read now.
        let auto = config.pgdata().join("postgresql.auto.conf");
        fs::write(&auto, "work_mem = '7MB'\n").unwrap();
        settings::reload_if_stale(config, supervisor).await.unwrap();
        assert_eq!(show(&node, "work_mem").await, "7MB");
        // The same again: still reported.
        assert_eq!(settings::admit(config, supervisor, extra).await.unwrap().len(), 2);
    });
}
