//! From `kubectl apply` to three instances streaming and Ready, images present on the nodes.

use std::time::{Duration, Instant};

use pgwarden_e2e::{Result, namespace};

use crate::figure::Report;

pub(crate) fn manifest(name: &str, replicas: u32, more: &str) -> String {
    format!(
        "apiVersion: database.example.com/v1\nkind: PostgreSQL\nmetadata: {{name: {name}}}\n\
         spec: {{version: \"17\", replicas: {replicas}, storage: 2Gi, deletionPolicy: Delete, \
         resources: {{limits: {{memory: 1Gi}}}}{more}}}\n"
    )
}

pub(crate) async fn measure(report: &mut Report, times: usize) -> Result {
    let mut ready = Vec::new();
    let mut writable = Vec::new();
    for i in 0..times {
        let ctx = namespace::Ctx::create(&format!("bench-create-{i}")).await?;
        let start = Instant::now();
        ctx.apply(&manifest("bench", 3, "")).await?;
        pgwarden_e2e::until("a primary", Duration::from_secs(120), || async {
            Ok(ctx.cluster("bench").await?.status.and_then(|s| s.primary).map(|_| ()))
        })
        .await?;
        writable.push(start.elapsed().as_secs_f64());
        ctx.ready("bench", Duration::from_secs(180)).await?;
        ready.push(start.elapsed().as_secs_f64());
        ctx.remove().await?;
    }
    report.add("apply → primary named in status", "s", "", writable);
    report.add("apply → 3 instances streaming and Ready", "s", "< 10", ready);
    Ok(())
}
