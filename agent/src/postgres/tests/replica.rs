//! Replicas: the copy, the stream, promotion.

use std::fs;

use tokio::sync::oneshot;

use crate::{
    postgres::{
        REPLICATION_ROLE,
        clone::{self, CloneError, Progress, Source, Upstream},
        control,
        datadir::{self, Found, Identity, Phase},
        settings::{self, Desired, Follow},
        slots,
        snapshot::Poller,
        sql,
        testing::{Authority, Machine, Node, as_postgres, desired, until},
    },
    supervisor::Mode,
};

fn test(name: &str, body: impl AsyncFnOnce()) {
    as_postgres(module_path!(), name, Machine::default(), body);
}

/// A slot on the primary, an identity on the replica, and whom to copy.
async fn prepare(primary: &Node, replica: &Node) -> (Identity, Source) {
    let uuid = uuid::Uuid::new_v4().to_string();
    let slot = pgwarden_api::names::member_name(replica.config.ordinal, &uuid);
    let admin = sql::connect_admin(&primary.config).await.unwrap();
    slots::ensure(&admin, &slot).await.unwrap();
    let system_identifier = datadir::control(&primary.config).await.unwrap().system_identifier;
    let identity = datadir::begin(&replica.config, Phase::Clone, &uuid, 1).await.unwrap();
    (identity, Source { upstream: primary.upstream(), slot, system_identifier })
}

fn following(upstream: Upstream, member: &str) -> Desired {
    Desired {
        follow: Some(Follow { upstream, member: member.to_owned() }),
        synchronous_standby_names: "ANY 1 (nobody)".to_owned(),
        ..desired("")
    }
}

async fn start_standby(replica: &Node, wanted: &Desired) -> crate::supervisor::Started {
    settings::write(&replica.config, &replica.supervisor, wanted).await.unwrap();
    let started = control::start(&replica.config, &replica.supervisor, Mode::Standby, 1).await.unwrap();
    control::wait_ready(&replica.config, &replica.supervisor, &started.death).await.unwrap();
    started
}

#[test]
fn a_replica_is_copied_streams_and_is_promoted() {
    test("a_replica_is_copied_streams_and_is_promoted", async || {
        let authority = Authority::new();
        let primary = Node::new(&authority, 0).await;
        let _alive = primary.primary().await;
        let replica = Node::new(&authority, 1).await;
        let (identity, source) = prepare(&primary, &replica).await;
        let mut steps: Vec<Progress> = Vec::new();
        let (identity, control) =
            clone::run(&replica.config, &replica.supervisor, &identity, &source, |step| steps.push(step))
                .await
                .unwrap();
        assert_eq!(control.system_identifier, source.system_identifier);
        let last = steps.last().expect("progress is told");
        assert!(last.done > 20_000_000 && last.total >= last.done / 2, "{last:?}");
        assert!(!replica.config.pgdata().join("postmaster.pid").exists());

        // Lower settings than the primary's come with the first start after the primary's.
        let mut lower = following(source.upstream.clone(), &source.slot);
        lower.postgresql.push_str("max_connections = 25\nmax_wal_senders = 5\n");
        let _running = start_standby(&replica, &lower).await;
        let admin = sql::connect_admin(&primary.config).await.unwrap();
        admin.run("write", "CREATE TABLE public.t AS SELECT generate_series(1, 1000) AS id").await.unwrap();
        let mut poller = Poller::default();
        let seen = until("the replica to catch up", async || {
            let snapshot = poller.take(&replica.config).await.unwrap();
            (snapshot.streaming() && snapshot.replay_lag_bytes == 0).then_some(snapshot)
        })
        .await;
        assert!(seen.in_recovery);
        assert_eq!((seen.timeline, seen.replay_lag_seconds), (1, 0.0));
        assert_eq!(seen.receiver.as_ref().unwrap().slot, source.slot);
        assert_eq!(seen.slow.system_identifier, source.system_identifier);
        assert_eq!(seen.slow.version.split('.').next().unwrap(), replica.config.version.to_string());
        assert_eq!(seen.synchronous_standby_names, "ANY 1 (nobody)");
        assert!(seen.slow.wal_bytes >= 16 << 20 && seen.connections.max == 30 && seen.connections.used >= 1);

        let there = Poller::default().take(&primary.config).await.unwrap();
        assert!(!there.in_recovery && there.receiver.is_none());
        let stream = &there.replication[0];
        assert_eq!(
            (stream.application_name.as_str(), stream.state.as_str()),
            (source.slot.as_str(), "streaming")
        );
        assert_eq!(stream.pod, replica.config.pod);
        assert_eq!(stream.address, "127.0.0.1");
        assert!(stream.lag_bytes >= 0 && stream.lag_seconds >= 0.0);
        let slot = &there.slots[0];
        assert!(slot.active && slot.name == source.slot && slot.wal_status == "reserved", "{slot:?}");
        assert!(there.lsn.flushed >= stream.flush_lsn && stream.flush_lsn > 0);

        // Replay stops: bytes and seconds grow.
        let there = sql::connect_admin(&replica.config).await.unwrap();
        there.run("pause", "SELECT pg_wal_replay_pause()").await.unwrap();
        admin
            .run("write", "CREATE TABLE public.more AS SELECT generate_series(1, 1000) AS id")
            .await
            .unwrap();
        until("lag", async || {
            poller.refresh();
            let snapshot = poller.take(&replica.config).await.unwrap();
            assert_eq!(snapshot.slow.problems[0].reason, "ReplayPaused");
            (snapshot.replay_lag_bytes > 1000 && snapshot.replay_lag_seconds > 0.0).then_some(())
        })
        .await;
        there.run("resume", "SELECT pg_wal_replay_resume()").await.unwrap();

        // Its slot is in use, until it is not wanted any more.
        assert!(slots::drop_obsolete(&admin, false, |_| false).await.unwrap().is_empty());

        // The primary goes, the replica becomes one on a new timeline, under a grant only.
        primary.supervisor.kill_all().await.unwrap();
        let refused = control::promote(&replica.config, &replica.supervisor, 2, None).await.unwrap_err();
        assert!(
            crate::postgres::describe(&refused).contains("grant"),
            "{}",
            crate::postgres::describe(&refused)
        );
        replica.grant(2).await;
        let timeline = control::promote(&replica.config, &replica.supervisor, 2, Some(2)).await.unwrap();
        assert_eq!(timeline, 2);
        let promoted = Poller::default().take(&replica.config).await.unwrap();
        assert_eq!((promoted.in_recovery, promoted.timeline), (false, 2));
        assert_eq!(control::timeline(&replica.config).await.unwrap(), 2);
        let found = datadir::inspect(&replica.config).await.unwrap();
        assert!(
            matches!(found, Found::Complete { identity: found, standby: false, .. } if found == identity)
        );
    });
}

#[test]
fn a_copy_that_was_cut_off_is_made_anew() {
    test("a_copy_that_was_cut_off_is_made_anew", async || {
        let authority = Authority::new();
        let primary = Node::new(&authority, 0).await;
        let _alive = primary.primary().await;
        let admin = sql::connect_admin(&primary.config).await.unwrap();
        admin.run("fill", "CREATE TABLE public.big AS SELECT repeat(md5(i::text), 30) FROM generate_series(1, 100000) i").await.unwrap();
        let replica = Node::new(&authority, 1).await;
        let (identity, source) = prepare(&primary, &replica).await;
        let temporary = replica.config.data_mount.join("clone.tmp");

        // The agent gives up half-way: the tool dies with the future.
        let (half, mut is_half) = oneshot::channel();
        let mut half = Some(half);
        {
            let copy = clone::run(&replica.config, &replica.supervisor, &identity, &source, |step| {
                if step.done > 0
                    && let Some(half) = half.take()
                {
                    let _ = half.send(());
                }
            });
            tokio::pin!(copy);
            tokio::select! {
                biased;
                _ = &mut is_half => {}
                result = &mut copy => panic!("the copy was not cut off: {result:?}"),
            }
        }
        until("the tool's end", async || {
            replica.supervisor.hello().await.unwrap().tools.is_empty().then_some(())
        })
        .await;
        assert!(temporary.exists());
        assert!(matches!(
            datadir::inspect(&replica.config).await.unwrap(),
            Found::Interrupted { what: Phase::Clone, identity: found } if found == identity
        ));
        fs::write(temporary.join("left-over"), "").unwrap();

        // A source of another cluster is not taken.
        let stranger = Source { system_identifier: 1, ..source.clone() };
        let error = clone::run(&replica.config, &replica.supervisor, &identity, &stranger, |_| {}).await;
        assert!(matches!(error, Err(CloneError::Stranger { wanted: 1, .. })));
        assert!(!replica.config.pgdata().exists());

        // Nor one without our certificate authority, nor without a certificate of ours.
        let other = Node::new(&Authority::new(), 2).await;
        let lost = Source { upstream: primary.upstream(), ..source.clone() };
        let begun = datadir::begin(&other.config, Phase::Clone, "x", 1).await.unwrap();
        let error = clone::run(&other.config, &other.supervisor, &begun, &lost, |_| {}).await.unwrap_err();
        assert!(error.to_string().contains("certificate verify failed"), "{error}");
        fs::copy(primary.config.tls_dir.join("ca.crt"), other.config.tls_dir.join("ca.crt")).unwrap();
        let error = clone::run(&other.config, &other.supervisor, &begun, &lost, |_| {}).await.unwrap_err();
        assert!(error.to_string().contains("unknown ca"), "{error}");
        let wrong_name = Upstream { host: "elsewhere.example".into(), ..primary.upstream() };
        let lost = Source { upstream: wrong_name, ..source.clone() };
        let error =
            clone::run(&replica.config, &replica.supervisor, &identity, &lost, |_| {}).await.unwrap_err();
        assert!(error.to_string().contains("elsewhere.example"), "{error}");

        // The same identity is begun again, from nothing.
        let again = datadir::begin(&replica.config, Phase::Clone, &identity.uuid, 1).await.unwrap();
        clone::run(&replica.config, &replica.supervisor, &again, &source, |_| {}).await.unwrap();
        assert!(!temporary.exists() && !replica.config.pgdata().join("left-over").exists());
        let _running = start_standby(&replica, &following(source.upstream.clone(), &source.slot)).await;
        until("the stream", async || {
            Poller::default().take(&replica.config).await.unwrap().streaming().then_some(())
        })
        .await;

        // Following nobody ends the stream at a reload.
        let alone = Desired { follow: None, ..following(source.upstream.clone(), "") };
        let written = settings::write(&replica.config, &replica.supervisor, &alone).await.unwrap();
        assert!(written.changed);
        settings::reload(&replica.config, &replica.supervisor).await.unwrap();
        until("the stream's end", async || {
            Poller::default().take(&replica.config).await.unwrap().receiver.is_none().then_some(())
        })
        .await;
        let output = primary.psql(
            "x",
            &format!("user={REPLICATION_ROLE} replication=true sslmode=verify-full"),
            "IDENTIFY_SYSTEM",
        );
        assert!(
            !output.status.success(),
            "the replication role has no password, and no certificate was shown"
        );
    });
}
