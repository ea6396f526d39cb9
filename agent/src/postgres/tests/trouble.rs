//! What goes wrong, and what a person is told.

use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use pgwarden_api::config::InitdbArgs;

use crate::{
    postgres::{
        control::{self, ControlError},
        datadir::{self, Found, Phase},
        describe,
        initdb::{self, InitdbError},
        settings,
        sql::{self, Probe},
        testing::{Authority, Machine, Node, as_postgres, desired, small_volume, until},
    },
    supervisor::{Event, Exit, Mode, Tool},
};

fn test(name: &str, machine: Machine, body: impl AsyncFnOnce()) {
    as_postgres(module_path!(), name, machine, body);
}

#[test]
fn a_full_volume_is_named_with_its_remedy() {
    let machine = Machine { volume_bytes: Some(12 << 20), ..Machine::default() };
    test("a_full_volume_is_named_with_its_remedy", machine, async || {
        let node = Node::on(&Authority::new(), 0, Some(small_volume())).await;
        let identity = datadir::begin(&node.config, Phase::Initdb, "one", 1).await.unwrap();
        for _ in 0..2 {
            let error = initdb::run(&node.config, &node.supervisor, &identity, &InitdbArgs::default()).await;
            let error = error.unwrap_err();
            assert!(
                matches!(error, InitdbError::DiskFull { available, .. } if available > 10 << 20),
                "{error:?}"
            );
            assert!(error.to_string().contains("spec.storage"), "{error}");
        }
        assert!(!node.config.pgdata().exists());
        let found = datadir::inspect(&node.config).await.unwrap();
        assert!(matches!(found, Found::Interrupted { what: Phase::Initdb, .. }), "{found:?}");
        datadir::discard(&node.config).await.unwrap();
        assert_eq!(datadir::inspect(&node.config).await.unwrap(), Found::Empty { promised_epoch: 0 });
        let disk = datadir::disk(&node.config).await.unwrap();
        assert_eq!(disk.total_bytes, 12 << 20);
        assert!(disk.available_bytes > 11 << 20, "nothing was left: {disk:?}");
    });
}

#[test]
fn an_image_without_postgres_is_named_with_its_remedy() {
    let machine = Machine { without_postgres: true, ..Machine::default() };
    test("an_image_without_postgres_is_named_with_its_remedy", machine, async || {
        let node = Node::new(&Authority::new(), 0).await;
        let identity = datadir::begin(&node.config, Phase::Initdb, "one", 1).await.unwrap();
        let error = initdb::run(&node.config, &node.supervisor, &identity, &InitdbArgs::default()).await;
        let error = error.unwrap_err();
        assert!(matches!(error, InitdbError::NoPostgres { .. }), "{error:?}");
        assert!(error.to_string().contains("spec.image"), "{error}");
        let error = control::version(&node.config, &node.supervisor).await.unwrap_err();
        assert!(matches!(error, ControlError::NoPostgres { .. }), "{error:?}");
    });
}

#[test]
fn bad_arguments_and_versions_are_named() {
    test("bad_arguments_and_versions_are_named", Machine::default(), async || {
        let node = Node::new(&Authority::new(), 0).await;
        let identity = datadir::begin(&node.config, Phase::Initdb, "one", 1).await.unwrap();
        let args = InitdbArgs { locale: "xx_XX.nonsense".into(), ..InitdbArgs::default() };
        let error = initdb::run(&node.config, &node.supervisor, &identity, &args).await.unwrap_err();
        assert!(matches!(error, InitdbError::Failed { .. }), "{error:?}");
        assert!(error.to_string().contains("xx_XX.nonsense"), "{error}");
        let mut other = node.config.clone();
        other.version = 99;
        let error = control::version(&other, &node.supervisor).await.unwrap_err();
        assert!(matches!(error, ControlError::OtherVersion { wanted: 99, .. }), "{error:?}");
    });
}

#[test]
fn a_start_that_fails_says_why() {
    test("a_start_that_fails_says_why", Machine::default(), async || {
        let mut node = Node::new(&Authority::new(), 0).await;
        node.initdb().await;
        node.grant(1).await;
        let (config, supervisor) = (&node.config, &node.supervisor);
        let attempt = async |extra: &str| {
            settings::write(config, supervisor, &desired(extra)).await.unwrap();
            let started = control::start(config, supervisor, Mode::Primary, 1).await.unwrap();
            let error = control::wait_ready(config, supervisor, &started.death).await.unwrap_err();
            let ControlError::Exited(why) = error else { panic!("{error:?}") };
            why
        };
        // What a dead container and an fsGroup leave behind is no reason.
        fs::write(config.pgdata().join("postmaster.pid"), format!("{}\n", std::process::id())).unwrap();
        fs::set_permissions(config.pgdata(), fs::Permissions::from_mode(0o770)).unwrap();
        // No parser can know that this does not fit, or is missing.
        let why = attempt("huge_pages = on\n").await;
        assert!(why.contains("shared memory"), "{why}");
        let why = attempt("shared_preload_libraries = 'no_such_library'\n").await;
        assert!(why.contains("no_such_library"), "{why}");
        fs::write(config.tls_dir.join("server.crt"), "garbage").unwrap();
        let why = attempt("").await;
        assert!(why.contains("server.crt"), "{why}");
        // Without a grant there is no primary at all.
        let refused = control::start(config, supervisor, Mode::Primary, 7).await.unwrap_err();
        assert!(describe(&refused).contains("NoGrant"), "{}", describe(&refused));
        assert!(matches!(sql::probe(config, Duration::from_secs(1)).await, Probe::Refused(_)));
        let mut exits = 0;
        while let Ok(event) = node.events.try_recv() {
            exits += usize::from(matches!(event, Event::PostmasterExited(_)));
        }
        assert_eq!(exits, 3);
    });
}

#[test]
fn a_stopped_postmaster_is_hung_and_a_full_one_is_alive() {
    test("a_stopped_postmaster_is_hung_and_a_full_one_is_alive", Machine::default(), async || {
        let node = Node::new(&Authority::new(), 0).await;
        let started = node.primary().await;
        let probe = async || sql::probe(&node.config, Duration::from_millis(500)).await;
        assert_eq!(probe().await, Probe::Alive);
        let mut sessions = Vec::new();
        while sessions.len() < 100 {
            match sql::connect_admin(&node.config).await {
                Ok(session) => sessions.push(session),
                Err(error) => {
                    assert_eq!(error.code().unwrap().code(), "53300");
                    break;
                }
            }
        }
        assert_eq!(probe().await, Probe::TooManyConnections);
        drop(sessions);
        until("room", async || (probe().await == Probe::Alive).then_some(())).await;
        node.supervisor.signal(started.pid, libc::SIGSTOP).await.unwrap();
        assert_eq!(probe().await, Probe::Hung);
        node.supervisor.signal(started.pid, libc::SIGCONT).await.unwrap();
        until("an answer", async || (probe().await == Probe::Alive).then_some(())).await;
        node.supervisor.kill_all().await.unwrap();
        started.death.eof().await.unwrap();
        assert!(matches!(probe().await, Probe::Refused(_)));
    });
}

#[test]
fn a_tool_dies_with_its_future_and_its_output_is_bounded() {
    test("a_tool_dies_with_its_future_and_its_output_is_bounded", Machine::default(), async || {
        let node = Node::new(&Authority::new(), 0).await;
        let output = node
            .supervisor
            .run_tool(Tool {
                argv: ["sh", "-c", "cat; head -c 1000000 /dev/zero; echo oops >&2; exit 3"]
                    .map(str::to_owned)
                    .to_vec(),
                stdin: b"input\n".to_vec(),
                ..Tool::default()
            })
            .await
            .unwrap();
        assert_eq!(output.status, Exit::Code(3));
        assert!(output.stdout.starts_with(b"input\n") && output.stdout.len() == 256 * 1024);
        assert_eq!(output.stderr, "oops\n");

        let sleep = node.supervisor.run_tool(Tool::new(["sh", "-c", "sleep 1000 & sleep 1000"]));
        assert!(tokio::time::timeout(Duration::from_millis(200), sleep).await.is_err());
        until("the tool's end", async || {
            node.supervisor.hello().await.unwrap().tools.is_empty().then_some(())
        })
        .await;
        let missing = node.supervisor.run_tool(Tool::new(["no-such-tool"])).await.unwrap_err();
        assert!(describe(&missing).contains("no-such-tool"), "{}", describe(&missing));

        // A newer agent takes over: this one is told.
        let (newer, _events) =
            crate::supervisor::Supervisor::connect(&node.config.control_socket).await.unwrap();
        until("the end of the connection", async || node.supervisor.is_gone().then_some(())).await;
        assert!(node.supervisor.hello().await.is_err());
        assert_eq!(newer.incarnation(), node.supervisor.incarnation());
    });
}
