//! What can be known wrong is refused by the API server itself, with the field and the remedy.

use anyhow::ensure;
use pgwarden_e2e::{Ctx, Manifest, Result, shared};
use serde_json::{Value, json};

use crate::SOON;

/// The manifest is refused and the message has all these words.
async fn refused(ctx: &Ctx, manifest: &Manifest, words: &[&str]) -> Result {
    let message = ctx.refused(&manifest.to_string()).await?;
    for word in words {
        ensure!(message.contains(word), "the message lacks {word:?}: {message}");
    }
    Ok(())
}

#[tokio::test]
async fn wrong_manifests_are_refused_with_field_and_remedy() -> Result {
    shared("validation_create", |ctx| async move {
        let m = || Manifest::new("v").paused();
        refused(&ctx, &m().spec("version", "19"), &["version", "18"]).await?;
        refused(&ctx, &m().spec("version", "seventeen"), &["version"]).await?;
        refused(&ctx, &m().spec("version", 17), &["version", "string"]).await?;
        refused(&ctx, &m().replicas(0), &["replicas", "1"]).await?;
        refused(&ctx, &m().replicas(10), &["replicas", "9"]).await?;
        for storage in ["10Gx", "", "lots", "-1Gi"] {
            refused(&ctx, &m().spec("storage", storage), &["storage"]).await?;
        }
        refused(&ctx, &m().spec("storage", "0"), &["storage"]).await?;
        refused(&ctx, &m().without("storage"), &["storage"]).await?;
        refused(&ctx, &m().without("version"), &["version"]).await?;
        let parameters = |name: &str, value: &str| m().spec("parameters", json!({name: value}));
        refused(&ctx, &parameters("fsync", "off"), &["fsync"]).await?;
        refused(&ctx, &parameters("wal_level", "replica"), &["wal_level"]).await?;
        refused(&ctx, &parameters("synchronous_standby_names", "*"), &["spec.durability"]).await?;
        refused(&ctx, &parameters("FSYNC", "off"), &["parameters"]).await?;
        refused(&ctx, &parameters("work_mem", "1MB'\nfsync = off"), &["parameters"]).await?;
        refused(&ctx, &parameters("a b", "1"), &["parameters"]).await?;
        let durability = |k: i32| m().replicas(3).spec("durability", json!({"synchronousReplicas": k}));
        refused(&ctx, &durability(3), &["synchronousReplicas", "replicas"]).await?;
        refused(&ctx, &durability(-1), &["synchronousReplicas"]).await?;
        refused(&ctx, &m().spec("durability", json!({"mode": "hopeful"})), &["mode"]).await?;
        for schedule in ["every day", "61 * * * *", "* * *", "0 2 * * * *"] {
            refused(&ctx, &m().spec("backup", json!({"schedule": schedule})), &["schedule"]).await?;
        }
        refused(&ctx, &m().spec("backup", json!({"schedule": "0 2 * * *", "retention": 0})), &["retention"])
            .await?;
        refused(&ctx, &m().spec("deletionPolicy", "Perhaps"), &["deletionPolicy"]).await?;
        refused(&ctx, &m().spec("failover", "instant"), &["failover"]).await?;
        refused(&ctx, &m().spec("storageClassName", "Not A Name"), &["storageClassName"]).await?;
        refused(&ctx, &Manifest::new("9lives").paused(), &["name"]).await?;
        refused(&ctx, &Manifest::new("dotted.name").paused(), &["name"]).await?;
        refused(&ctx, &Manifest::new(&"n".repeat(41)).paused(), &["name", "40"]).await?;
        // A field of the wrong name is told, as kubectl does by default.
        refused(&ctx, &m().spec("replicaz", 3), &["replicaz"]).await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn hostile_strings_are_refused() -> Result {
    shared("validation_hostile", |ctx| async move {
        let m = || Manifest::new("v").paused();
        // `create`: apply would keep a copy of the manifest in an annotation, whose own limit would speak first.
        let long = "x".repeat(1 << 20);
        for (manifest, field) in [
            (m().spec("image", long.as_str()), "spec.image"),
            (m().spec("storage", long.as_str()), "spec.storage"),
            (m().spec("parameters", json!({"work_mem": long})), "spec.parameters.work_mem"),
        ] {
            let message = ctx.refused_by("create", &manifest.to_string()).await?;
            ensure!(message.contains(field), "{}", message.chars().take(500).collect::<String>());
        }
        let many: serde_json::Map<String, Value> =
            (0..5000).map(|i| (format!("a.p{i}"), json!("1"))).collect();
        refused(&ctx, &m().spec("parameters", many), &["parameters"]).await?;
        refused(&ctx, &m().spec("initdb", json!({"locale": "C; DROP TABLE x"})), &["locale"]).await?;
        refused(&ctx, &m().spec("initdb", json!({"locale": "--pwfile=/etc/passwd"})), &["locale"]).await?;
        refused(&ctx, &m().spec("initdb", json!({"encoding": "UTF8\n"})), &["encoding"]).await?;
        refused(&ctx, &m().spec("hba", json!(["host all all all trust\nhost all all all trust"])), &["hba"])
            .await?;
        refused(
            &ctx,
            &m().spec("sharedPreloadLibraries", json!(["../../tmp/evil"])),
            &["sharedPreloadLibraries"],
        )
        .await?;
        refused(&ctx, &m().spec("image", "postgres:17 --privileged"), &["image"]).await?;
        // What a pod could be given to escape with is not in the API at all.
        for field in ["securityContext", "volumes", "podTemplate", "hostNetwork", "serviceAccountName"] {
            refused(&ctx, &m().spec(field, json!({})), &[field]).await?;
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn changes_that_cannot_be_made_are_refused() -> Result {
    shared("validation_update", |ctx| async move {
        let m = || {
            Manifest::new("v")
                .paused()
                .replicas(3)
                .spec("storageClassName", "standard")
                .spec("initdb", json!({"locale": "C"}))
        };
        ctx.apply(&m().to_string()).await?;
        refused(&ctx, &m().spec("storage", "256Mi"), &["storage", "shrink"]).await?;
        refused(&ctx, &m().spec("storage", "511Mi"), &["storage", "shrink"]).await?;
        refused(&ctx, &m().spec("version", "16"), &["version", "can't go down"]).await?;
        refused(&ctx, &m().spec("storageClassName", "other"), &["storageClassName"]).await?;
        refused(&ctx, &m().without("storageClassName"), &["storageClassName"]).await?;
        refused(&ctx, &m().spec("initdb", json!({"locale": "C.UTF-8"})), &["initdb"]).await?;
        refused(&ctx, &m().without("initdb"), &["initdb"]).await?;
        // The same size in other words, and more, is no shrinking.
        ctx.apply(&m().spec("storage", "536870912").to_string()).await?;
        ctx.apply(&m().spec("storage", "1Gi").to_string()).await?;
        ctx.apply(&m().spec("storage", "1Gi").spec("version", "18").to_string()).await?;
        // Not set is not the same as set, in either direction.
        let plain = || Manifest::new("w").paused();
        ctx.apply(&plain().to_string()).await?;
        refused(&ctx, &plain().spec("storageClassName", "standard"), &["storageClassName"]).await?;
        refused(&ctx, &plain().spec("initdb", json!({"locale": "C"})), &["initdb"]).await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_name_of_40_characters_runs() -> Result {
    shared("validation_name", |ctx| async move {
        let name = format!("{}-{}", "a".repeat(20), "b".repeat(19));
        ensure!(name.len() == 40, "{} characters", name.len());
        ctx.apply(&Manifest::new(&name).spec("backup", json!({"schedule": "0 2 * * *"})).to_string()).await?;
        ctx.ready(&name, SOON).await?;
        let login = ctx.login(&name).await?;
        ensure!(login.sql(None, "SELECT 'here'").await? == "here", "the primary's Service");
        ctx.get("cronjob", &format!("{name}-backup")).await?;
        Ok(())
    })
    .await
}
