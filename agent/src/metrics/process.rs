//! The agent's own memory and time, from /proc.

use std::{
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

use rustix::time::{ClockId, clock_gettime};

use super::{families as f, page::Page};

/// Seconds since 1970.
pub(super) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// Adds what is known.
#[allow(clippy::cast_precision_loss, reason = "seconds of CPU time fit")]
pub(super) fn add(page: &mut Page, started: f64) {
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    page.set(&f::PROCESS_CPU, &[], cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9);
    page.set(&f::PROCESS_START, &[], started);
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    // Lines such as "VmRSS:      5120 kB".
    let field = |name: &str| -> Option<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse().ok()
    };
    page.set_some(&f::PROCESS_RSS, &[], field("VmRSS").map(|kb| kb * 1024.0));
    page.set_some(&f::PROCESS_VSIZE, &[], field("VmSize").map(|kb| kb * 1024.0));
    page.set_some(&f::PROCESS_THREADS, &[], field("Threads"));
    let fds = fs::read_dir("/proc/self/fd").map(Iterator::count).ok();
    // One of them is the directory itself.
    page.set_some(&f::PROCESS_FDS, &[], fds.map(|n| n.saturating_sub(1) as f64));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_measured() {
        let mut page = Page::default();
        add(&mut page, 17.0);
        let text = page.encode().unwrap();
        let value = |name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).unwrap();
            line.parse().unwrap()
        };
        let rss = value("process_resident_memory_bytes");
        assert!((1e6..1e9).contains(&rss), "{rss}");
        assert!(value("process_virtual_memory_bytes") > rss);
        assert!(value("process_cpu_seconds_total") > 0.0);
        assert!((3.0..1000.0).contains(&value("process_open_fds")));
        assert!(value("process_threads") >= 1.0);
        assert_eq!(value("process_start_time_seconds"), 17.0);
    }
}
