use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use super::*;

const GB: u64 = 1 << 30;

fn sizing(version: u32, memory: Option<u64>, cpu: Option<u64>, storage: u64) -> Sizing {
    Sizing { version, memory, cpu, storage, huge_pages: false }
}

fn value(sizing: &Sizing, name: &str) -> Option<String> {
    defaults(sizing, 100).get(name).cloned()
}

#[test]
fn memory_follows_the_limit() {
    let rows: [(Option<u64>, [&str; 4]); 5] = [
        // No limit: what fits everywhere.
        (None, ["128MB", "512MB", "64MB", "4096kB"]),
        (Some(256 * MB), ["64MB", "192MB", "16MB", "1024kB"]),
        (Some(2 * GB), ["512MB", "1536MB", "128MB", "3932kB"]),
        (Some(8 * GB), ["2048MB", "6144MB", "512MB", "15728kB"]),
        (Some(512 * GB), ["16384MB", "393216MB", "2047MB", "65536kB"]),
    ];
    for (memory, want) in rows {
        let s = sizing(17, memory, None, 100 * GB);
        let names = ["shared_buffers", "effective_cache_size", "maintenance_work_mem", "work_mem"];
        assert_eq!(names.map(|n| value(&s, n).unwrap()), want, "{memory:?}");
    }
}

#[test]
fn more_connections_leave_less_for_each() {
    let s = sizing(17, Some(8 * GB), None, 100 * GB);
    assert_eq!(defaults(&s, 1000)["work_mem"], "1572kB");
    let user = BTreeMap::from([("max_connections".to_owned(), "1000".to_owned())]);
    assert!(render(&s, &user, &[]).contains("work_mem = '1572kB'\n"));
}

#[test]
fn wal_never_asks_for_more_than_a_part_of_the_volume() {
    for storage in [GB, 5 * GB, 100 * GB, 16_384 * GB] {
        let s = sizing(17, None, None, storage);
        let megabytes = |name| value(&s, name).unwrap().trim_end_matches("MB").parse::<u64>().unwrap() * MB;
        let slots = megabytes("max_slot_wal_keep_size");
        assert!(slots * 10 <= storage * 3, "{storage}: {slots}");
        assert!(slots + megabytes("max_wal_size") + megabytes("wal_keep_size") <= storage / 2, "{storage}");
        assert!(
            megabytes("min_wal_size") >= 32 * MB && megabytes("min_wal_size") <= megabytes("max_wal_size")
        );
    }
}

#[test]
fn names_follow_the_version() {
    let has = |version, name| value(&sizing(version, None, None, GB), name).is_some();
    for (name, from) in [
        ("wal_keep_size", 13),
        ("max_slot_wal_keep_size", 13),
        ("ssl_min_protocol_version", 12),
        ("tcp_user_timeout", 12),
        ("client_connection_check_interval", 14),
        ("allow_alter_system", 17),
    ] {
        for version in 11..=18 {
            assert_eq!(has(version, name), version >= from, "{name} in {version}");
        }
    }
    assert!(has(12, "wal_keep_segments") && !has(13, "wal_keep_segments"));
}

#[test]
fn cpu_bounds_parallel_queries_and_nothing_that_replicas_must_share() {
    let small = defaults(&sizing(17, None, Some(500), GB), 100);
    let large = defaults(&sizing(17, None, Some(64_000), GB), 100);
    assert_eq!((&*small["max_parallel_workers"], &*large["max_parallel_workers"]), ("2", "16"));
    for shared in ["max_connections", "max_worker_processes", "max_wal_senders"] {
        assert_eq!(small[shared], large[shared], "{shared}");
    }
}

#[test]
fn huge_pages_only_with_a_limit_for_them() {
    let mut s = sizing(17, None, None, GB);
    assert_eq!(value(&s, "huge_pages").unwrap(), "off");
    s.huge_pages = true;
    assert_eq!(value(&s, "huge_pages").unwrap(), "try");
}

#[test]
fn the_users_value_replaces_ours_whatever_the_case() {
    let user = BTreeMap::from([("Work_Mem".to_owned(), "9MB".to_owned())]);
    let text = render(&sizing(17, None, None, GB), &user, &[]);
    let lines: Vec<_> = text.lines().filter(|l| l.starts_with("work_mem")).collect();
    assert_eq!(lines, ["work_mem = '9MB'"]);
}

#[test]
fn libraries_of_both_fields_once_each() {
    let field = ["pg_stat_statements".to_owned(), "my-lib".to_owned()];
    assert_eq!(
        libraries(&field, Some("auto_explain, pg_stat_statements")),
        "pg_stat_statements, \"my-lib\", auto_explain"
    );
    assert_eq!(libraries(&[], None), "");
}

#[test]
fn values_can_hold_anything() {
    let mut text = String::new();
    line(&mut text, "x", "it's\na \\ b\t");
    assert_eq!(text, "x = 'it''s\\na \\\\ b\\t'\n");
}

/// The newest PostgreSQL of this machine.
fn postgres() -> (u32, PathBuf) {
    let found = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let versions =
        found.filter_map(|e| Some((e.file_name().to_str()?.parse().ok()?, e.path().join("bin/postgres"))));
    versions.max().expect("PostgreSQL must be installed: /usr/lib/postgresql/VERSION/bin")
}

/// Value of a setting as a real server reads the file; it refuses the file when one name or value in it is wrong.
fn read_by_postgres(binary: &Path, directory: &Path, name: &str) -> String {
    let mut command = if is_root() {
        let mut c = Command::new("setpriv");
        c.args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups"]).arg(binary);
        c
    } else {
        Command::new(binary)
    };
    let out = command.arg("-D").arg(directory).args(["-C", name]).output().unwrap();
    assert!(out.status.success(), "{name}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap().trim_end_matches('\n').to_owned()
}

fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    status.lines().any(|l| l.starts_with("Uid:\t0\t"))
}

#[test]
fn a_real_server_takes_it() {
    let (version, binary) = postgres();
    let directory = std::env::temp_dir().join(format!("pgwarden-settings-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
    for (memory, cpu, storage) in
        [(None, None, GB), (Some(256 * MB), Some(100), GB), (Some(64 * GB), Some(32_000), 900 * GB)]
    {
        let user = BTreeMap::from([
            ("search_path".to_owned(), "\"$user\", public, it's".to_owned()),
            ("log_line_prefix".to_owned(), "%m \\ 'q' ".to_owned()),
            ("my.custom".to_owned(), "ümläut\\n".to_owned()),
            ("max_wal_senders".to_owned(), "33".to_owned()),
        ]);
        let text = render(&sizing(version, memory, cpu, storage), &user, &["pg_stat_statements".to_owned()]);
        fs::write(directory.join("postgresql.conf"), text).unwrap();
        let read = |name: &str| read_by_postgres(&binary, &directory, name);
        assert_eq!(read("search_path"), "\"$user\", public, it's");
        assert_eq!(read("log_line_prefix"), "%m \\ 'q' ");
        assert_eq!(read("my.custom"), "ümläut\\n");
        assert_eq!(read("max_wal_senders"), "33");
        assert_eq!(read("wal_level"), "logical");
        assert_eq!(read("shared_preload_libraries"), "pg_stat_statements");
        assert_eq!(read("wal_receiver_timeout"), "5000");
    }
    fs::remove_dir_all(&directory).unwrap();
}
