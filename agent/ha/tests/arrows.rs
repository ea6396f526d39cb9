//! The protocol stays pure: what it depends on is written here.

#[test]
fn the_protocol_depends_on_no_io() {
    let manifest = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).unwrap();
    let section = manifest.split("\n[dependencies]\n").nth(1).unwrap();
    let section = section.split("\n[").next().unwrap();
    let names: Vec<&str> = section
        .lines()
        .filter(|l| !l.trim().is_empty() && !l.starts_with('#'))
        .filter_map(|l| l.split([' ', '=', '.']).next())
        .collect();
    assert_eq!(
        names,
        ["serde"],
        "a new dependency of the protocol needs a reason; tokio, kube, tonic, rand or a clock has none"
    );
}

#[test]
fn the_protocol_names_no_clock_task_or_file() {
    let src = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
    for file in std::fs::read_dir(src).unwrap() {
        let path = file.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        for word in [
            "std::fs",
            "std::net",
            "std::io",
            "std::thread",
            "std::process",
            "SystemTime",
            "HashMap",
            "async ",
            "time::Instant::now",
        ] {
            let used = text.lines().any(|l| !l.trim_start().starts_with("//") && l.contains(word));
            assert!(!used, "{} uses {word}", path.display());
        }
    }
}
