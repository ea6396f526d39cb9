//! Processes of a pod, found by the pod's UID in their cgroup: the test cluster's nodes share this machine's kernel.

use std::fs;

use anyhow::ensure;
use k8s_openapi::api::core::v1::Pod;
use pgwarden_e2e::Result;

/// Resident memory in MB of all processes of a pod that run `program`.
pub(crate) fn resident_mb(pod: &Pod, program: &str) -> Result<f64> {
    let uid = pod.metadata.uid.as_deref().unwrap_or("none");
    let mut kb = 0_u64;
    for entry in fs::read_dir("/proc")?.flatten() {
        let dir = entry.path();
        // A process may end between two reads.
        let Ok(cgroup) = fs::read_to_string(dir.join("cgroup")) else { continue };
        if !cgroup.contains(uid) {
            continue;
        }
        let Ok(exe) = fs::read_link(dir.join("exe")) else { continue };
        if exe.file_name().is_none_or(|n| n.to_string_lossy() != program) {
            continue;
        }
        let Ok(status) = fs::read_to_string(dir.join("status")) else { continue };
        let rss = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
        kb += rss.and_then(|v| v.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0);
    }
    ensure!(kb > 0, "no process {program} in pod {uid}");
    #[expect(clippy::cast_precision_loss, reason = "kilobytes")]
    Ok(kb as f64 / 1024.0)
}
