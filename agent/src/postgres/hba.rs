//! `pg_hba.conf` and `pg_ident.conf`: who may connect, and how.
//!
//! Two variants. *Internal* admits the agent over the Unix socket and replicas by certificate: Postgres always starts with it, so
//! that a line of the user's that Postgres can't read never keeps it from starting, and no client comes in before the agent
//! says so. *Clients* is Internal plus the user's lines plus passwords over TLS.

use pgwarden_proto::v1;

use super::{MAINTENANCE_DB, MONITOR_ROLE, REPLICATION_ROLE, SUPERUSER};

/// Role that exists nowhere: how a connection attempt of it is refused tells which variant is in force.
pub(crate) const PROBE_ROLE: &str = "pgwarden_probe";
/// Name of the map in `pg_ident.conf`.
const MAP: &str = "pgwarden";

/// Who may connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The agent and the replicas.
    Internal,
    /// Clients too.
    Clients,
}

/// The file, line by line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hba {
    lines: Vec<String>,
    /// Which lines are the user's.
    user: std::ops::Range<usize>,
}

impl Hba {
    /// Only the agent and replicas.
    pub(crate) fn internal() -> Self {
        let mut lines = head();
        lines.push(format!("local {MAINTENANCE_DB} {PROBE_ROLE} reject"));
        let at = lines.len();
        Self { lines, user: at..at }
    }

    /// Clients too; `extra` are the user's lines. Those that would open a hole are left out and reported.
    pub(crate) fn clients(extra: &str) -> (Self, Vec<v1::Problem>) {
        let mut lines = head();
        lines.push(format!("local {MAINTENANCE_DB} {PROBE_ROLE} scram-sha-256"));
        // Nothing in clear, and no system role over the network, whatever the user's lines say.
        lines.push("hostnossl all all all reject".to_owned());
        lines.push("hostnossl replication all all reject".to_owned());
        lines.push(format!("host all {SUPERUSER},{MONITOR_ROLE},{REPLICATION_ROLE},{PROBE_ROLE} all reject"));
        lines.push("host replication all all reject".to_owned());
        let start = lines.len();
        let mut problems = Vec::new();
        for line in extra.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            match objection(line) {
                None => lines.push(line.to_owned()),
                Some(why) => problems.push(refused(line, why)),
            }
        }
        let end = lines.len();
        lines.push("local all all scram-sha-256".to_owned());
        lines.push("hostssl all all all scram-sha-256".to_owned());
        (Self { lines, user: start..end }, problems)
    }

    /// The file without the user's lines of these numbers (from 1, as `pg_hba_file_rules` counts), each with Postgres' objection.
    /// `None` when a line of ours is among them.
    pub(crate) fn without(&self, bad: &[(usize, String)]) -> Option<(Self, Vec<v1::Problem>)> {
        let header = HEADER.lines().count();
        let mut left = self.clone();
        let mut problems = Vec::new();
        for (number, error) in bad {
            let index = number.checked_sub(header + 1)?;
            if !self.user.contains(&index) {
                return None;
            }
            let line = left.lines.get_mut(index)?;
            problems.push(refused(line, error));
            *line = "# left out: PostgreSQL does not understand it".to_owned();
        }
        Some((left, problems))
    }

    pub(crate) fn text(&self) -> String {
        format!("{HEADER}{}\n", self.lines.join("\n"))
    }
}

const HEADER: &str =
    "# Written by the operator; changes made here are lost. The user's lines come from spec.hba.\n";

fn head() -> Vec<String> {
    vec![
        format!("local all {SUPERUSER} peer"),
        format!("local all {MONITOR_ROLE} peer map={MAP}"),
        format!("hostssl replication {REPLICATION_ROLE} all cert"),
    ]
}

/// `pg_ident.conf`: the agent's uid is named `postgres`, and may also be the monitoring role.
pub(crate) fn ident() -> String {
    format!("# Written by the operator.\n{MAP} {SUPERUSER} {MONITOR_ROLE}\n")
}

fn refused(line: &str, why: &str) -> v1::Problem {
    v1::Problem {
        reason: "HbaLineRefused".to_owned(),
        message: format!("line of spec.hba left out of pg_hba.conf: `{line}`: {why}"),
    }
}

/// Why a line of the user's is not taken. The controller refuses these already; the ConfigMap may have been changed by others.
fn objection(line: &str) -> Option<&'static str> {
    let words: Vec<String> =
        line.split_whitespace().map(|word| word.trim_matches('"').to_ascii_lowercase()).collect();
    let word = |at: usize| words.get(at).map_or("", String::as_str);
    if !["local", "host", "hostssl", "hostgssenc"].contains(&word(0)) {
        return Some("it must begin with local, hostssl or host; connections without TLS are refused");
    }
    if word(1).split(',').any(|database| database == "replication") {
        return Some("replication is the operator's");
    }
    if words.iter().skip(3).any(|word| ["trust", "md5", "password"].contains(&word.as_str())) {
        return Some("the methods trust, md5 and password are refused; use scram-sha-256 or cert");
    }
    if line.ends_with('\\') {
        return Some("it must not go on in the next line");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn internal_admits_no_client() {
        let text = Hba::internal().text();
        assert!(text.contains("local all postgres peer\n") && text.contains("cert\n"), "{text}");
        assert!(!text.contains("scram") && !text.contains("all all"), "{text}");
    }

    #[test]
    fn users_lines_stand_between_the_operators() {
        let (hba, problems) = Hba::clients("\n# comment\nhostssl shop ro 10.0.0.0/8 scram-sha-256\n");
        assert!(problems.is_empty());
        let text = hba.text();
        let at = |needle: &str| text.find(needle).unwrap_or_else(|| panic!("{needle} in {text}"));
        assert!(at("host all postgres") < at("hostssl shop"));
        assert!(at("hostnossl all") < at("hostssl shop"));
        assert!(at("hostssl shop") < at("hostssl all all all scram-sha-256"));
        assert!(!text.contains("comment"));
    }

    #[test]
    fn holes_are_refused_and_named() {
        for line in [
            "host all all all trust",
            "hostssl all all 0.0.0.0/0 MD5",
            "hostssl \"replication\" all all scram-sha-256",
            "hostnossl all all all scram-sha-256",
            "include /etc/passwd",
            "@include x",
            "hostssl all all all scram-sha-256 \\",
        ] {
            let (hba, problems) = Hba::clients(line);
            assert_eq!(problems.len(), 1, "{line}");
            assert!(problems[0].message.contains(line), "{}", problems[0].message);
            assert_eq!(hba.text(), Hba::clients("").0.text());
        }
    }

    #[test]
    fn a_line_that_postgres_refuses_is_left_out_and_ours_never() {
        let (hba, _) = Hba::clients("hostssl all all 10.0.0.0/99 scram-sha-256\nhostssl a b all cert");
        let number = hba.text().lines().position(|line| line.contains("/99")).unwrap() + 1;
        let (left, problems) = hba.without(&[(number, "invalid mask".into())]).unwrap();
        assert!(!left.text().contains("/99") && left.text().contains("hostssl a b all cert"));
        assert!(problems[0].message.contains("/99") && problems[0].message.contains("invalid mask"));
        assert_eq!(left.text().lines().count(), hba.text().lines().count(), "line numbers stay");
        assert!(hba.without(&[(2, "x".into())]).is_none());
    }
}
