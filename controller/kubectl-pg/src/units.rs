//! Numbers for people.

use jiff::Timestamp;

/// Bytes with a binary unit, in three or four figures: `0 B`, `512 B`, `1.5 KiB`, `12 MiB`.
pub(crate) fn bytes(n: i64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if n.abs() < 1024 {
        return format!("{n} B");
    }
    #[expect(clippy::cast_precision_loss, reason = "two figures are shown")]
    let mut value = n as f64 / 1024.0;
    let mut unit = UNITS[0];
    for next in &UNITS[1..] {
        // What would be rounded to 1024 is one of the next unit.
        if value.abs() < 1023.5 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if value.abs() < 9.95 { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

/// Time since `then`, as kubectl shows ages: `42s`, `3m7s`, `12m`, `5h3m`, `2d4h`, `90d`, `3y`. Clocks that differ give `0s`.
pub(crate) fn age(then: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(then).as_secs().max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    let pair = |big: i64, unit: &str, small: i64, smaller: &str| {
        if small == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{small}{smaller}") }
    };
    match seconds {
        ..120 => format!("{seconds}s"),
        120..600 => pair(minutes, "m", seconds % 60, "s"),
        600..10800 => format!("{minutes}m"),
        10800..28800 => pair(hours, "h", minutes % 60, "m"),
        28800..172_800 => format!("{hours}h"),
        172_800..691_200 => pair(days, "d", hours % 24, "h"),
        691_200..63_072_000 => format!("{days}d"),
        _ => pair(days / 365, "y", days % 365, "d"),
    }
}

/// How far a replica is behind: bytes, and seconds when they say more than "at once".
pub(crate) fn lag(bytes_behind: Option<i64>, seconds: Option<f64>) -> String {
    match (bytes_behind, seconds) {
        (None, None) => "-".to_owned(),
        (Some(b), Some(s)) if s >= 0.05 => format!("{}, {}", bytes(b), seconds_text(s)),
        (Some(b), _) => bytes(b),
        (None, Some(s)) => seconds_text(s),
    }
}

fn seconds_text(seconds: f64) -> String {
    if seconds < 9.95 { format!("{seconds:.1} s") } else { format!("{seconds:.0} s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_few_figures() {
        for (n, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (10 * 1024, "10 KiB"),
            (1024 * 1024 - 1, "1.0 MiB"),
            (16 * 1024 * 1024, "16 MiB"),
            (5 << 30, "5.0 GiB"),
            (i64::MAX, "8.0 EiB"),
            (-2048, "-2.0 KiB"),
        ] {
            assert_eq!(bytes(n), text);
        }
    }

    #[test]
    fn ages_are_kubectls() {
        let then = Timestamp::UNIX_EPOCH;
        for (seconds, text) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (187, "3m7s"),
            (720, "12m"),
            (3 * 3600 + 240, "3h4m"),
            (10 * 3600, "10h"),
            (52 * 3600, "2d4h"),
            (90 * 86400, "90d"),
            (3 * 365 * 86400, "3y"),
        ] {
            assert_eq!(age(then, then + jiff::SignedDuration::from_secs(seconds)), text);
        }
        assert_eq!(age(then + jiff::SignedDuration::from_secs(5), then), "0s");
    }

    #[test]
    fn lag_says_what_is_known() {
        assert_eq!(lag(None, None), "-");
        assert_eq!(lag(Some(0), Some(0.0)), "0 B");
        assert_eq!(lag(Some(2048), Some(1.24)), "2.0 KiB, 1.2 s");
        assert_eq!(lag(None, Some(75.0)), "75 s");
    }
}
