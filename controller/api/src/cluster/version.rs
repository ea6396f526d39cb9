//! The major versions of PostgreSQL that the API accepts.

use std::{fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Major version of PostgreSQL.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub enum Version {
    /// PostgreSQL 11.
    #[serde(rename = "11")]
    V11,
    /// PostgreSQL 12.
    #[serde(rename = "12")]
    V12,
    /// PostgreSQL 13.
    #[serde(rename = "13")]
    V13,
    /// PostgreSQL 14.
    #[serde(rename = "14")]
    V14,
    /// PostgreSQL 15.
    #[serde(rename = "15")]
    V15,
    /// PostgreSQL 16.
    #[serde(rename = "16")]
    V16,
    /// PostgreSQL 17.
    #[serde(rename = "17")]
    V17,
    /// PostgreSQL 18.
    #[default]
    #[serde(rename = "18")]
    V18,
}

impl Version {
    /// All versions, oldest first.
    pub const ALL: [Self; 8] =
        [Self::V11, Self::V12, Self::V13, Self::V14, Self::V15, Self::V16, Self::V17, Self::V18];

    /// The oldest version that the operator runs; older ones are accepted and wait (decision 21).
    pub const OLDEST_RUN: Self = Self::V13;

    /// As the user writes it, and as it stands in the names of objects.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V11 => "11",
            Self::V12 => "12",
            Self::V13 => "13",
            Self::V14 => "14",
            Self::V15 => "15",
            Self::V16 => "16",
            Self::V17 => "17",
            Self::V18 => "18",
        }
    }

    /// The number.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::V11 => 11,
            Self::V12 => 12,
            Self::V13 => 13,
            Self::V14 => 14,
            Self::V15 => 15,
            Self::V16 => 16,
            Self::V17 => 17,
            Self::V18 => 18,
        }
    }

    /// Whether the operator runs it.
    #[must_use]
    pub fn is_run(self) -> bool {
        self >= Self::OLDEST_RUN
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that is no major version known here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownVersion(pub String);

impl fmt::Display for UnknownVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a major version of PostgreSQL from \"11\" to \"18\"", self.0)
    }
}

impl std::error::Error for UnknownVersion {}

impl FromStr for Version {
    type Err = UnknownVersion;
    fn from_str(s: &str) -> Result<Self, UnknownVersion> {
        Self::ALL.into_iter().find(|v| v.as_str() == s).ok_or_else(|| UnknownVersion(s.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_number_and_serialised_form_agree() {
        for v in Version::ALL {
            assert_eq!(v.as_str(), v.number().to_string());
            assert_eq!(v.as_str().parse(), Ok(v));
            assert_eq!(serde_json::to_value(v).unwrap(), serde_json::json!(v.as_str()));
        }
        assert!("10".parse::<Version>().unwrap_err().to_string().contains("\"10\""));
        assert!(!Version::V12.is_run() && Version::V13.is_run());
    }
}
