//! CEL rules of the CRD: what a schema can't say, each with a message that names the field and the remedy. The API server
//! evaluates them; there is no webhook.
//!
//! `self` is the value that a rule is attached to. A rule that reads `oldSelf` is evaluated on updates only. A rule that parses
//! a value lets a malformed one pass, when another rule reports that: one mistake, one message. The API server refuses a CRD
//! whose rules could cost too much: every string, list and map that a rule reads has a bound.

use kube::core::{Message, Rule};

use crate::{config::OWNED_PARAMETERS, names::MAX_NAME};

/// Smallest volume: less is a typing error, such as `100m` for `100M`.
pub const MINIMUM_STORAGE: &str = "16Mi";
/// Smallest memory limit of the Postgres container.
pub const MINIMUM_MEMORY: &str = "128Mi";
/// Smallest memory limit of the agent.
pub const MINIMUM_AGENT_MEMORY: &str = "32Mi";
/// Least `max_wal_senders` and `max_replication_slots`: 9 instances, their base backups and an upgrade need them.
const MINIMUM_SENDERS: u32 = 20;

/// DNS-1123 subdomain.
const OBJECT_NAME: &str = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$";

fn rule(rule: impl Into<String>, message: impl Into<String>) -> Rule {
    Rule { rule: rule.into(), message: Some(Message::Message(message.into())), ..Rule::default() }
}

/// `self` matches a regular expression.
fn pattern(regex: &str, message: impl Into<String>) -> Rule {
    rule(format!("self.matches({})", literal(regex)), message)
}

/// A CEL string literal.
fn literal(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('\'');
    for c in text.chars() {
        match c {
            '\\' | '\'' => {
                out.push('\\');
                out.push(c);
            }
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
    out.push('\'');
    out
}

// The whole object.

/// Names of a StatefulSet's pods and of a CronJob's jobs must stay within Kubernetes' limits.
pub(crate) fn name_length() -> Rule {
    rule(
        format!("size(self.metadata.name) <= {MAX_NAME}"),
        format!(
            "metadata.name must have at most {MAX_NAME} characters: the names of pods, Services and Secrets are made from it"
        ),
    )
}

/// The name is also a Service's: DNS-1035.
pub(crate) fn name_syntax() -> Rule {
    rule(
        format!("self.metadata.name.matches({})", literal("^[a-z]([-a-z0-9]*[a-z0-9])?$")),
        "metadata.name must start with a letter, end with a letter or digit, and have only lower-case letters, digits and '-': \
         it becomes the name of a Service",
    )
}

/// An older server can't read a newer one's data.
pub(crate) fn version_downgrade() -> Rule {
    rule(
        "int(self.spec.version) >= int(oldSelf.spec.version) || (has(self.status) && has(self.status.rollbackVersion) \
         && self.spec.version == self.status.rollbackVersion)",
        "spec.version can't go down: an older PostgreSQL can't read the data; put the old version back, or restore a backup \
         into a new cluster (after an upgrade, status.rollbackVersion may be set for a while)",
    )
    .field_path(".spec.version")
}

// The spec.

/// A claim's class is fixed at its birth.
pub(crate) fn storage_class_immutable() -> Rule {
    rule(
        "has(self.storageClassName) == has(oldSelf.storageClassName) && (!has(self.storageClassName) \
         || self.storageClassName == oldSelf.storageClassName)",
        "storageClassName can't change: put the old value back, or restore a backup into a new cluster",
    )
    .field_path(".storageClassName")
}

/// initdb has run.
pub(crate) fn initdb_immutable() -> Rule {
    rule(
        "has(self.initdb) == has(oldSelf.initdb) && (!has(self.initdb) || self.initdb == oldSelf.initdb)",
        "initdb can't change, it is used once: put the old value back, or restore a backup into a new cluster",
    )
    .field_path(".initdb")
}

/// initdb's `--locale-provider` came with 15, `builtin` with 17.
pub(crate) fn locale_provider_version() -> Rule {
    rule(
        "!has(self.initdb) || !has(self.initdb.provider) || self.initdb.provider == 'libc' \
         || int(self.version) >= (self.initdb.provider == 'icu' ? 15 : 17)",
        "initdb.provider: icu needs version 15 or newer, builtin needs 17 or newer",
    )
    .field_path(".initdb.provider")
}

/// Nobody could acknowledge.
pub(crate) fn strict_needs_a_replica() -> Rule {
    rule(
        "!has(self.durability) || self.durability.mode != 'strict' || self.replicas >= 2",
        "durability.mode strict needs replicas of 2 or more, or every write would wait for ever: raise replicas or use preferred",
    )
    .field_path(".durability.mode")
}

/// More acknowledgements than replicas never come. The default, 1, is fine with a single instance.
pub(crate) fn synchronous_replicas_exist() -> Rule {
    rule(
        "!has(self.durability) || self.durability.mode == 'async' || self.durability.synchronousReplicas == 1 \
         || self.durability.synchronousReplicas < self.replicas",
        "durability.synchronousReplicas must be at most replicas - 1: lower it or raise replicas",
    )
    .field_path(".durability.synchronousReplicas")
}

/// A server-wide `off`, `local` or `remote_write` would void the durability that was asked for.
pub(crate) fn synchronous_commit() -> Rule {
    rule(
        "!has(self.parameters) || !('synchronous_commit' in self.parameters) \
         || self.parameters['synchronous_commit'] in ['on', 'remote_apply'] \
         || (has(self.durability) && self.durability.mode == 'async')",
        "parameters.synchronous_commit must be on or remote_apply, or a failover would lose acknowledged rows: \
         set durability.mode to async if that is wanted, or set it for single sessions or roles",
    )
    .field_path(".parameters")
}

// Storage and resources.

/// Storage is a quantity.
pub(crate) fn storage_quantity() -> Rule {
    rule("isQuantity(self)", "storage must be a Kubernetes quantity such as 100Gi")
}

/// Storage is not a typing error.
pub(crate) fn storage_minimum() -> Rule {
    rule(
        format!("!isQuantity(self) || !quantity(self).isLessThan(quantity('{MINIMUM_STORAGE}'))"),
        format!(
            "storage must be at least {MINIMUM_STORAGE}: check its unit (Mi, Gi or Ti; m would be thousandths)"
        ),
    )
}

/// No file system shrinks under a running server.
pub(crate) fn storage_shrink() -> Rule {
    rule(
        "!isQuantity(self) || !isQuantity(oldSelf) || quantity(self).compareTo(quantity(oldSelf)) >= 0",
        "storage can grow but not shrink: put the old size back, or restore a backup into a new cluster",
    )
}

/// A CPU or memory amount, written as a number or a string.
pub(crate) fn amount() -> Rule {
    rule(
        "isQuantity(string(self)) && !quantity(string(self)).isLessThan(quantity('0'))",
        "must be a Kubernetes quantity of 0 or more, such as 500m (CPU) or 4Gi (memory)",
    )
}

/// A container that asks for more than it may have is never scheduled.
pub(crate) fn requests_within_limits(name: &str) -> Rule {
    let (request, limit) = (format!("self.requests.{name}"), format!("self.limits.{name}"));
    rule(
        format!(
            "!has(self.requests) || !has(self.limits) || !has({request}) || !has({limit}) || !isQuantity(string({request})) \
             || !isQuantity(string({limit})) || !quantity(string({request})).isGreaterThan(quantity(string({limit})))"
        ),
        format!("requests.{name} is above limits.{name}: lower the request or raise the limit"),
    )
}

/// A container that can't start is a typing error.
pub(crate) fn memory_minimum(minimum: &str) -> Rule {
    rule(
        format!(
            "!has(self.limits) || !has(self.limits.memory) || !isQuantity(string(self.limits.memory)) \
             || !quantity(string(self.limits.memory)).isLessThan(quantity('{minimum}'))"
        ),
        format!("limits.memory must be at least {minimum}: raise it, and check its unit (Mi or Gi)"),
    )
}

// Names.

/// The name of a Kubernetes object.
pub(crate) fn object_name(field: &str) -> Rule {
    pattern(
        OBJECT_NAME,
        format!(
            "{field} must be the name of an object: lower-case letters, digits, '-' and '.'; leave it out for the default"
        ),
    )
}

/// An image reference.
pub(crate) fn image() -> Rule {
    pattern(
        "^([a-zA-Z0-9.-]+(:[0-9]+)?/)?[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*\
         (:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[a-f0-9]{64})?$",
        "image must be an image reference such as postgres:17.6, or one with a digest: NAME@sha256:...",
    )
}

/// Names of S3 buckets; an address or a URL is a common mistake.
pub(crate) fn bucket() -> Rule {
    rule(
        format!(
            "self.matches({}) && !self.contains('..') && !self.matches({})",
            literal("^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$"),
            literal("^([0-9]+\\.){3}[0-9]+$")
        ),
        "s3Bucket must be a bucket's name: 3 to 63 lower-case letters, digits, '-' and '.', without s3:// or a path",
    )
}

/// A locale's name; it becomes an argument of initdb.
pub(crate) fn locale() -> Rule {
    pattern(
        "^[A-Za-z][A-Za-z0-9_.@-]*$",
        "initdb.locale must be a locale's name such as C.UTF-8, en_US.UTF-8 or en-US",
    )
}

/// An encoding's name; it becomes an argument of initdb.
pub(crate) fn encoding() -> Rule {
    pattern(
        "^[A-Za-z][A-Za-z0-9_-]*$",
        "initdb.encoding must be the name of a PostgreSQL encoding such as UTF8 or LATIN1",
    )
}

// Schedules.

/// What a Kubernetes CronJob takes: five fields, or a macro.
pub(crate) fn schedule() -> Rule {
    pattern(
        &schedule_pattern(),
        "backup.schedule must have five fields (minute, hour, day of month, month, day of week) such as '0 2 * * *', \
         or be a macro such as @daily",
    )
}

fn schedule_pattern() -> String {
    let field = |value: &str| {
        let item = format!("(\\*|\\?|{value}(-{value})?)(/[1-9][0-9]?)?");
        format!("{item}(,{item})*")
    };
    let fields = [
        field("[0-5]?[0-9]"),
        field("([01]?[0-9]|2[0-3])"),
        field("(0?[1-9]|[12][0-9]|3[01])"),
        field("(0?[1-9]|1[0-2]|(?i:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec))"),
        field("([0-6]|(?i:sun|mon|tue|wed|thu|fri|sat))"),
    ];
    format!(
        "^({}|@(hourly|daily|midnight|weekly|monthly|yearly|annually)|@every ([0-9]+(h|m|s))+)$",
        fields.join(" +")
    )
}

/// A name of the time zone database.
pub(crate) fn time_zone() -> Rule {
    rule(
        format!(
            "self.matches({}) && self != 'Local'",
            literal("^[A-Z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,2}$")
        ),
        "backup.timeZone must be the name of a time zone such as Europe/Berlin or Etc/UTC",
    )
}

// Settings.

/// Names are compared with those that the operator owns, and become lines of a file.
pub(crate) fn parameter_syntax() -> Rule {
    let regex = literal("^[a-z_][a-z0-9_]{0,62}([.][a-z_][a-z0-9_$]{0,62})*$");
    rule(
        format!("self.all(name, name.matches({regex}))"),
        "parameters: write the names of settings in lower case, without spaces, such as work_mem or \
         auto_explain.log_min_duration",
    )
}

/// What the operator sets itself. The message gives the reason for each name. It is a sum of conditions: the API server can't
/// tell how much a `join` would cost, and refuses it.
pub(crate) fn parameter_owned() -> Rule {
    let names: Vec<_> = OWNED_PARAMETERS.iter().map(|(name, _)| literal(name)).collect();
    let reasons: String = OWNED_PARAMETERS
        .iter()
        .map(|(name, reason)| {
            format!(" + ({} in self ? {} : '')", literal(name), literal(&format!("; {name} ({reason})")))
        })
        .collect();
    Rule {
        rule: format!("self.all(name, !(name in [{}]))", names.join(", ")),
        message: Some(Message::Expression(format!(
            "'parameters: remove what the operator sets itself'{reasons}"
        ))),
        ..Rule::default()
    }
}

/// The operator adds its own libraries.
pub(crate) fn parameter_preload() -> Rule {
    rule(
        "!('shared_preload_libraries' in self)",
        "parameters.shared_preload_libraries: list the libraries in sharedPreloadLibraries instead",
    )
}

/// A value is one line.
pub(crate) fn parameter_value() -> Rule {
    rule(
        format!("self.all(name, !self[name].matches({}))", literal("[\\x00-\\x08\\x0a-\\x1f]")),
        "parameters: a value must be one line without control characters",
    )
}

/// TLS 1.2 is the least.
pub(crate) fn parameter_tls() -> Rule {
    rule(
        "!('ssl_min_protocol_version' in self) || self['ssl_min_protocol_version'] in ['TLSv1.2', 'TLSv1.3']",
        "parameters.ssl_min_protocol_version must be TLSv1.2 or TLSv1.3",
    )
}

/// Fewer would leave no room for replicas.
pub(crate) fn parameter_senders() -> Rule {
    let enough = |name: &str| {
        format!(
            "(!('{name}' in self) || (self['{name}'].matches('^[0-9]{{1,6}}$') && int(self['{name}']) >= {MINIMUM_SENDERS}))"
        )
    };
    rule(
        format!("{} && {}", enough("max_wal_senders"), enough("max_replication_slots")),
        format!(
            "parameters.max_wal_senders and max_replication_slots must be numbers of {MINIMUM_SENDERS} or more: \
             replicas, backups and upgrades need them"
        ),
    )
}

/// One library of shared_preload_libraries.
pub(crate) fn library() -> Rule {
    pattern(
        "^[A-Za-z0-9_$][A-Za-z0-9_$.-]*$",
        "sharedPreloadLibraries: name one library an entry, without path, quotes or commas, such as pg_stat_statements",
    )
}

// pg_hba.conf.

/// A name, bare or in quotes around the whole of it, so that no quoting hides a keyword.
const HBA_ITEM: &str = r##"("[^"]+"|[^\s"#@,]+)"##;

/// The rules of one line.
pub(crate) fn hba() -> Vec<Rule> {
    let list = format!("{HBA_ITEM}(,{HBA_ITEM})*");
    let options = r##"([ \t]+[a-z_]+=("[^"]*"|[^\s"#,]+))*"##;
    let method = "(scram-sha-256|cert|reject|ldap|gss|oauth|pam|radius|trust|md5|password)";
    let address = r"[A-Za-z0-9_.:/-]+([ \t]+[0-9a-fA-F.:]+)?";
    let line = format!(r"^(host|hostssl)[ \t]+{list}[ \t]+{list}[ \t]+{address}[ \t]+{method}{options}$");
    let replication = format!(r#"^[a-z]+[ \t]+({HBA_ITEM},)*"?(?i:replication)"?[, \t]"#);
    let roles = format!(r#"^[a-z]+[ \t]+{list}[ \t]+({HBA_ITEM},)*"?(postgres|pgwarden_[^\s",]*)"?[, \t]"#);
    vec![
        pattern(
            &line,
            "hba: a line must be TYPE DATABASE USER ADDRESS METHOD, with TYPE hostssl or host, METHOD \
             scram-sha-256, cert, reject, ldap, gss, oauth, pam or radius, no comment and no line break, such as: \
             hostssl app app 10.0.0.0/8 scram-sha-256",
        ),
        rule(
            format!("!self.matches({})", literal(r"[ \t](trust|md5|password)([ \t]+[a-z_]+=.*)?$")),
            "hba: the methods trust, md5 and password let attackers in: use scram-sha-256 or cert",
        ),
        rule(
            format!("!self.matches({})", literal(&replication)),
            "hba: the operator alone admits replication connections: remove replication from the line",
        ),
        rule(
            format!("!self.matches({})", literal(&roles)),
            "hba: the operator alone admits postgres and the roles pgwarden_*: name the application's own roles",
        ),
    ]
}
