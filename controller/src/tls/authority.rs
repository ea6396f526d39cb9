//! The authority of a cluster, and its change without a moment in which somebody is not trusted.
//!
//! 1. *Prepare*: a new authority is made and its certificate joins the bundle that everybody trusts. It signs nothing yet.
//! 2. *Switch*, when all agents use the new bundle: the new authority signs, all leafs are made anew.
//! 3. *Retire*, when all agents use the new leafs: the old certificate leaves the bundle.
//!
//! Each step waits for the agents, but not for ever: an instance that is away for long must not keep an authority past its end.

use std::collections::BTreeMap;

use k8s_openapi::{ByteString, api::core::v1::Secret, jiff::Timestamp};
use kube::ResourceExt;

use super::{Pair, TlsError, facts, issue, later, renewal, split};
use crate::context::Lifetimes;

/// Annotation of the authority's Secret: when the last step was done.
pub const ANNOTATION_SINCE: &str = "database.example.com/authority-since";

/// An authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// It signs.
    pub signing: Pair,
    /// It is going to.
    pub next: Option<Pair>,
    /// Certificates that are trusted too: of those that have signed before.
    pub old: Vec<String>,
    /// When the last step was done.
    pub since: Timestamp,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Keep,
    /// See the module.
    Prepare,
    /// See the module.
    Switch,
    /// See the module.
    Retire,
}

impl Authority {
    /// A new one, at first use. What `trusted` holds stays trusted: an authority whose key is lost.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn new(
        namespace: &str,
        cluster: &str,
        trusted: Vec<String>,
        now: Timestamp,
        lifetimes: &Lifetimes,
    ) -> Result<Self, TlsError> {
        let signing = issue::authority(namespace, cluster, now, lifetimes.authority)?;
        Ok(Self { signing, next: None, old: trusted, since: now })
    }

    /// Reads a Secret; `None` when it does not hold an authority.
    #[must_use]
    pub fn read(secret: &Secret) -> Option<Self> {
        let data = secret.data.as_ref()?;
        let text = |key: &str| data.get(key).and_then(|b| String::from_utf8(b.0.clone()).ok());
        let pair = |certificate: &str, key: &str| {
            let pair = Pair { certificate: text(certificate)?, key: text(key)? };
            let usable = facts(&pair.certificate).is_some_and(|f| f.is_ca)
                && rcgen::KeyPair::from_pem(&pair.key).is_ok();
            usable.then_some(pair)
        };
        let signing = pair("tls.crt", "tls.key")?;
        let next = pair("next.crt", "next.key");
        let since = secret.annotations().get(ANNOTATION_SINCE).and_then(|s| s.parse().ok());
        let known = [Some(&signing), next.as_ref()];
        let old = split(&text("ca.crt").unwrap_or_default())
            .into_iter()
            .filter(|c| !known.iter().flatten().any(|k| split(&k.certificate).contains(c)))
            .collect();
        Some(Self { signing, next, old, since: since.unwrap_or(Timestamp::UNIX_EPOCH) })
    }

    /// The Secret's contents.
    #[must_use]
    pub fn write(&self) -> BTreeMap<String, ByteString> {
        let mut data = BTreeMap::new();
        let mut put =
            |key: &str, text: &str| data.insert(key.to_owned(), ByteString(text.as_bytes().to_vec()));
        put("tls.crt", &self.signing.certificate);
        put("tls.key", &self.signing.key);
        put("ca.crt", &self.bundle());
        if let Some(next) = &self.next {
            put("next.crt", &next.certificate);
            put("next.key", &next.key);
        }
        data
    }

    /// What is trusted: the signing certificate first.
    #[must_use]
    pub fn bundle(&self) -> String {
        let mut all = vec![self.signing.certificate.as_str()];
        all.extend(self.next.iter().map(|n| n.certificate.as_str()));
        all.extend(self.old.iter().map(String::as_str));
        let mut text = String::new();
        for one in all {
            text.push_str(one.trim_end());
            text.push('\n');
        }
        text
    }

    /// What is to be done; `confirmed`: every agent has said that it uses the certificates as they are now.
    #[must_use]
    pub fn step(&self, now: Timestamp, confirmed: bool, lifetimes: &Lifetimes) -> Step {
        let waited = now >= later(self.since, lifetimes.overlap);
        // Applications mount the bundle too and say nothing: some of the time is theirs.
        let agreed = confirmed && now >= later(self.since, lifetimes.overlap / 10);
        let Some(signing) = facts(&self.signing.certificate) else { return Step::Keep };
        if self.next.is_some() {
            return if agreed || waited || now >= signing.not_after { Step::Switch } else { Step::Keep };
        }
        if now >= renewal(&signing, lifetimes.renew_percent) {
            return Step::Prepare;
        }
        if !self.old.is_empty() && (agreed || waited) { Step::Retire } else { Step::Keep }
    }

    /// Does a step.
    ///
    /// # Errors
    /// When a new authority can't be made.
    pub fn take(
        &self,
        step: Step,
        namespace: &str,
        cluster: &str,
        now: Timestamp,
        lifetimes: &Lifetimes,
    ) -> Result<Self, TlsError> {
        let mut after = self.clone();
        match step {
            Step::Keep => return Ok(after),
            Step::Prepare => {
                after.next = Some(issue::authority(namespace, cluster, now, lifetimes.authority)?)
            }
            Step::Switch => {
                if let Some(next) = after.next.take() {
                    after.old.push(std::mem::replace(&mut after.signing, next).certificate);
                }
            }
            Step::Retire => after.old.clear(),
        }
        after.since = now;
        Ok(after)
    }

    /// When the next step is due at the latest.
    #[must_use]
    pub fn next_change(&self, lifetimes: &Lifetimes) -> Timestamp {
        let renewal =
            facts(&self.signing.certificate).map_or(Timestamp::MAX, |f| renewal(&f, lifetimes.renew_percent));
        if self.next.is_some() || !self.old.is_empty() {
            return renewal
                .min(later(self.since, lifetimes.overlap / 10))
                .max(later(self.since, lifetimes.overlap / 10));
        }
        renewal
    }
}
