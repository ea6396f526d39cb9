//! A report for people.

use jiff::Timestamp;

use crate::{
    report::{Condition, EventLine, List, Member, Report, Summary},
    table::{Cell, Screen, Tone, paint, table, wrap},
    units,
};

/// The clusters, one a line.
pub(crate) fn list(list: &List, namespaces: bool, now: Timestamp, screen: Screen) -> String {
    let rows: Vec<_> = list
        .clusters
        .iter()
        .map(|c| {
            vec![
                Cell::from(if namespaces { c.namespace.as_str() } else { "" }),
                Cell::from(&c.name),
                Cell::from(&c.version),
                phase(c),
                ready(c),
                Cell::from(or_dash(c.primary.as_deref())),
                Cell::from(
                    c.last_backup.as_deref().map_or_else(|| "-".to_owned(), |t| since(t.parse().ok(), now)),
                ),
                Cell::from(since(c.created, now)),
            ]
        })
        .collect();
    table(
        &["NAMESPACE", "CLUSTER", "VERSION", "PHASE", "READY", "PRIMARY", "LAST BACKUP", "AGE"],
        &rows,
        screen,
    )
}

/// One cluster.
pub(crate) fn report(report: &Report, now: Timestamp, screen: Screen) -> String {
    let mut out = head(report, now, screen);
    section(&mut out, "MEMBERS", &members(&report.members, screen), "none yet", screen);
    section(&mut out, "CONDITIONS", &conditions(&report.conditions, now, screen), "none yet", screen);
    section(
        &mut out,
        "EVENTS, newest last",
        &events(&report.events, now, screen),
        "none in the last hour",
        screen,
    );
    out
}

fn head(report: &Report, now: Timestamp, screen: Screen) -> String {
    let s = &report.summary;
    let row = vec![
        Cell::new(&s.name, Tone::Strong),
        Cell::from(&s.version),
        phase(s),
        ready(s),
        Cell::from(or_dash(s.primary.as_deref())),
        Cell::from(report.timeline().map_or_else(|| "-".to_owned(), |t| t.to_string())),
        Cell::from(report.record.as_ref().map_or_else(|| "-".to_owned(), |r| r.epoch.to_string())),
        Cell::from(since(s.created, now)),
    ];
    let headings = ["CLUSTER", "VERSION", "PHASE", "READY", "PRIMARY", "TIMELINE", "EPOCH", "AGE"];
    let mut out = table(&headings, &[row], screen);
    let mut facts = vec![format!("namespace {}", s.namespace)];
    if let Some(id) = &report.system_identifier {
        facts.push(format!("system identifier {id}"));
    }
    if let Some(record) = &report.record {
        let holder = record.holder.as_ref().map(|h| format!(" by {h}")).unwrap_or_default();
        let renewed = record.renewed.as_deref().and_then(|t| t.parse().ok());
        let renewed = renewed.map(|t| format!(", renewed {} ago", since(Some(t), now))).unwrap_or_default();
        facts.push(format!("record {}{holder}{renewed}", record.state));
    }
    if let Some(backup) = &s.last_backup {
        facts.push(format!("last backup {} ago", since(backup.parse().ok(), now)));
    }
    lines(&mut out, &facts.join("; "), Tone::Faint, screen);
    for note in &report.notes {
        lines(&mut out, &format!("Note: {note}"), Tone::Warning, screen);
    }
    out
}

fn lines(out: &mut String, text: &str, tone: Tone, screen: Screen) {
    for line in wrap(text, screen.width.unwrap_or(usize::MAX)) {
        out.push_str(&paint(&line, tone, screen));
        out.push('\n');
    }
}

fn section(out: &mut String, title: &str, table: &str, nothing: &str, screen: Screen) {
    out.push('\n');
    lines(out, title, Tone::Strong, screen);
    if table.is_empty() {
        lines(out, nothing, Tone::Faint, screen);
    } else {
        out.push_str(table);
    }
}

fn members(members: &[Member], screen: Screen) -> String {
    let rows: Vec<_> = members
        .iter()
        .map(|m| {
            let primary = m.role == "primary";
            let trouble = ["Fenced", "Blocked", "Unknown"].contains(&m.state.as_str());
            vec![
                Cell::new(&m.pod, if primary { Tone::Strong } else { Tone::Plain }),
                Cell::new(&m.role, if primary { Tone::Strong } else { Tone::Plain }),
                Cell::new(&m.state, if trouble { Tone::Bad } else { Tone::Plain }),
                if m.ready { Cell::new("yes", Tone::Good) } else { Cell::new("no", Tone::Bad) },
                Cell::from(m.timeline.map_or_else(|| "-".to_owned(), |t| t.to_string())),
                Cell::from(if primary { "-".to_owned() } else { units::lag(m.lag_bytes, m.lag_seconds) }),
                Cell::from(or_dash(m.node.as_deref())),
                message(m),
            ]
        })
        .collect();
    let headings = ["POD", "ROLE", "STATE", "READY", "TIMELINE", "LAG", "NODE", "MESSAGE"];
    table(&headings, &rows, screen)
}

fn message(member: &Member) -> Cell {
    let text = member.message.clone().unwrap_or_default();
    if member.pending_restart.is_empty() {
        return Cell::from(text);
    }
    let gap = if text.is_empty() { "" } else { "; " };
    Cell::new(format!("{text}{gap}restart pending for {}", member.pending_restart.join(", ")), Tone::Warning)
}

fn conditions(conditions: &[Condition], now: Timestamp, screen: Screen) -> String {
    let rows: Vec<_> = conditions
        .iter()
        .map(|c| {
            // What is under way, or waits, is no trouble.
            let waits = ["Progressing", "Paused"].contains(&c.kind.as_str()) || c.kind.ends_with("Pending");
            let tone = match c.good {
                Some(true) => Tone::Good,
                Some(false) if waits => Tone::Warning,
                Some(false) => Tone::Bad,
                None => Tone::Warning,
            };
            vec![
                Cell::from(&c.kind),
                Cell::new(&c.status, tone),
                Cell::from(&c.reason),
                Cell::from(since(c.since, now)),
                Cell::from(&c.message),
            ]
        })
        .collect();
    table(&["TYPE", "STATUS", "REASON", "SINCE", "MESSAGE"], &rows, screen)
}

fn events(events: &[EventLine], now: Timestamp, screen: Screen) -> String {
    let rows: Vec<_> = events
        .iter()
        .map(|e| {
            let times = if e.count > 1 { format!(" ({} times)", e.count) } else { String::new() };
            vec![
                Cell::from(since(e.time, now)),
                Cell::new(&e.kind, if e.kind == "Warning" { Tone::Warning } else { Tone::Plain }),
                Cell::from(&e.reason),
                Cell::from(&e.object),
                Cell::from(format!("{}{times}", e.message)),
            ]
        })
        .collect();
    table(&["AGE", "TYPE", "REASON", "OBJECT", "MESSAGE"], &rows, screen)
}

fn phase(summary: &Summary) -> Cell {
    let tone = match summary.phase.as_str() {
        "Running" => Tone::Good,
        "Blocked" => Tone::Bad,
        _ => Tone::Warning,
    };
    Cell::new(or_dash(Some(&summary.phase)), tone)
}

fn ready(summary: &Summary) -> Cell {
    let tone = match summary.ready_replicas {
        0 => Tone::Bad,
        n if n < summary.replicas => Tone::Warning,
        _ => Tone::Good,
    };
    Cell::new(&summary.ready, tone)
}

fn or_dash(text: Option<&str>) -> &str {
    text.filter(|t| !t.is_empty()).unwrap_or("-")
}

fn since(then: Option<Timestamp>, now: Timestamp) -> String {
    then.map_or_else(|| "-".to_owned(), |t| units::age(t, now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::{at, cluster, event, object, record};

    fn example() -> Report {
        let events = vec![event("shop-17-0", "Started", 30), event("shop-17-2", "Cloning", 40)];
        Report::assemble(&object(cluster()), Ok(Some(object(record()))), Ok(events)).unwrap()
    }

    fn now() -> Timestamp {
        "2026-11-22T10:01:00Z".parse().unwrap()
    }

    const PIPE: Screen = Screen { width: None, colour: false };

    #[test]
    fn a_report_reads_from_top_to_bottom() {
        let mut report = example();
        report.events[1].kind = "Warning".into();
        report.events[1].count = 3;
        assert_eq!(
            super::report(&report, now(), PIPE),
            "\
CLUSTER  VERSION  PHASE     READY  PRIMARY    TIMELINE  EPOCH  AGE
shop     17       Degraded  2/3    shop-17-1  2         5      60s
namespace prod; system identifier 7431; record Held by shop-17-1, renewed 1s ago

MEMBERS
POD        ROLE     STATE    READY  TIMELINE  LAG             NODE   MESSAGE
shop-17-0  replica  Standby  yes    2         2.0 KiB, 0.4 s  node1  restart pending for max_connections
shop-17-1  primary  Primary  yes    2         -               node2
shop-17-2  none     Clone    no     -         -               node3  base backup: 41 %

CONDITIONS
TYPE         STATUS   REASON            SINCE  MESSAGE
Ready        True     Serving           50s    clients can write
Degraded     True     InstanceNotReady  40s    shop-17-2 is not ready
Progressing  Unknown  NoAnswer          40s

EVENTS, newest last
AGE  TYPE     REASON   OBJECT         MESSAGE
30s  Normal   Started  Pod/shop-17-0  it Started
20s  Warning  Cloning  Pod/shop-17-2  it Cloning (3 times)
"
        );
    }

    #[test]
    fn colours_say_what_is_wrong_and_only_a_terminal_gets_them() {
        let plain = super::report(&example(), now(), PIPE);
        assert!(!plain.contains('\x1b'));
        let coloured = super::report(&example(), now(), Screen { colour: true, ..PIPE });
        for part in [
            "\x1b[33mDegraded\x1b[0m",
            "\x1b[33m2/3\x1b[0m",
            "\x1b[32myes\x1b[0m",
            "\x1b[31mno\x1b[0m",
            "\x1b[33mrestart pending for max_connections\x1b[0m",
            "\x1b[32mTrue\x1b[0m",
            "\x1b[31mTrue\x1b[0m",
            "\x1b[33mUnknown\x1b[0m",
            "\x1b[1mMEMBERS\x1b[0m",
        ] {
            assert!(coloured.contains(part), "{part:?} in {coloured:?}");
        }
    }

    #[test]
    fn nothing_is_wider_than_a_terminal_of_80_columns_or_more() {
        let mut report = example();
        report.conditions[1].message = "a long message ".repeat(20);
        report.notes.push("a note".into());
        for width in [80, 120, 200] {
            let text = super::report(&report, now(), Screen { width: Some(width), colour: false });
            let widest = text.lines().map(|l| l.chars().count()).max().unwrap();
            assert!(widest <= width, "{width}: {widest}\n{text}");
            assert!(text.contains("Note: a note"));
        }
    }

    #[test]
    fn a_cluster_without_status_says_so() {
        let mut bare = cluster();
        bare["status"].take();
        let report = Report::assemble(&object(bare), Ok(None), Ok(Vec::new())).unwrap();
        let text = super::report(&report, now(), PIPE);
        for part in [
            "0/3",
            "MEMBERS\nnone yet",
            "EVENTS, newest last\nnone in the last hour",
            "Note: there is no record",
        ] {
            assert!(text.contains(part), "{part:?} in\n{text}");
        }
    }

    #[test]
    fn the_list_shows_namespaces_when_asked() {
        let mut one = example().summary;
        one.last_backup = Some(at(0));
        let list = List { clusters: vec![one] };
        assert_eq!(
            super::list(&list, false, now(), PIPE),
            "CLUSTER  VERSION  PHASE     READY  PRIMARY    LAST BACKUP  AGE\n\
             shop     17       Degraded  2/3    shop-17-1  60s          60s\n"
        );
        assert!(super::list(&list, true, now(), PIPE).starts_with("NAMESPACE  CLUSTER"));
    }
}
