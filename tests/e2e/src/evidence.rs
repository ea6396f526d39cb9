//! What a failed test leaves behind: objects, events and logs of its namespace, in `target/e2e/NAMESPACE/`.

use std::{fs::OpenOptions, io::Write, time::Duration};

use crate::{
    Ctx,
    ctl::{kubectl_output, repo},
};

/// Writes the state of the test's namespace to its directory; never fails, for it runs when something else already has.
pub async fn dump(ctx: &Ctx) {
    let _ = std::fs::create_dir_all(&ctx.dir);
    let kinds = "postgresqls,postgresqlrecords,statefulsets,pods,pvc,services,endpointslices,configmaps,poddisruptionbudgets";
    let ns = ctx.ns.as_str();
    save(ctx, "objects.yaml", &["-n", ns, "get", kinds, "-o", "yaml"]).await;
    save(ctx, "events.txt", &["-n", ns, "get", "events", "--sort-by=.lastTimestamp"]).await;
    save(ctx, "pods.txt", &["-n", ns, "describe", "pods"]).await;
    let controller = [
        "-n",
        "pgwarden-system",
        "logs",
        "-l",
        "app.kubernetes.io/name=pgwarden-controller",
        "--tail=400",
        "--prefix",
    ];
    save(ctx, "controller.log", &controller).await;
    let Ok(list) = kubectl_output(&["-n", ns, "get", "pods", "-o", "name"]).await else { return };
    for pod in String::from_utf8_lossy(&list.stdout).lines() {
        let file = format!("{}.log", pod.trim_start_matches("pod/"));
        save(ctx, &file, &["-n", ns, "logs", pod, "--all-containers", "--prefix", "--tail=600"]).await;
    }
}

/// Adds a line to `target/e2e/times.txt`: what ran, how it ended, how long it took without waiting for others.
pub(crate) fn note(name: &str, passed: bool, took: Duration) {
    let path = repo().join("target/e2e/times.txt");
    let line = format!("{} {:7.1} s  {name}\n", if passed { "ok  " } else { "FAIL" }, took.as_secs_f64());
    let _ = std::fs::create_dir_all(repo().join("target/e2e"));
    let file = OpenOptions::new().create(true).append(true).open(path);
    let _ = file.and_then(|mut f| f.write_all(line.as_bytes()));
}

async fn save(ctx: &Ctx, name: &str, args: &[&str]) {
    if let Ok(out) = kubectl_output(args).await {
        let _ = std::fs::write(ctx.dir.join(name), [out.stdout, out.stderr].concat());
    }
}
