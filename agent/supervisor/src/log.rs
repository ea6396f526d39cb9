//! Log lines: JSON to standard error, one `write` each, never waiting.
//!
//! Standard error is a pipe to the container runtime. If that is frozen the pipe fills up, and a supervisor that waited
//! for it would stop answering; so a line that does not fit is dropped, and the next that fits says how many were.

use std::fmt::{self, Display, Write as _};
use std::sync::atomic::{AtomicU32, Ordering};

use pgwarden_supervisor::clock::{MILLISECOND, SECOND, realtime_ns};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Longer lines are cut. A pipe that is ready takes 4 KiB at once.
const LINE: usize = 2048;

static DROPPED: AtomicU32 = AtomicU32::new(0);

/// How much somebody has to care.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Level {
    Info,
    Warn,
    Error,
}

pub(crate) fn info(message: &str, fields: &[(&str, &dyn Display)]) {
    log(Level::Info, message, fields);
}

pub(crate) fn warn(message: &str, fields: &[(&str, &dyn Display)]) {
    log(Level::Warn, message, fields);
}

pub(crate) fn error(message: &str, fields: &[(&str, &dyn Display)]) {
    log(Level::Error, message, fields);
}

fn log(level: Level, message: &str, fields: &[(&str, &dyn Display)]) {
    let stderr = std::io::stderr();
    let mut fds = [PollFd::new(&stderr, PollFlags::OUT)];
    let ready = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap_or(0) > 0;
    if !ready {
        DROPPED.fetch_add(1, Ordering::Relaxed);
        return;
    }
    let line = format(realtime_ns(), level, message, fields, DROPPED.swap(0, Ordering::Relaxed));
    let _ = rustix::io::write(&stderr, line.as_bytes());
}

fn format(now: u64, level: Level, message: &str, fields: &[(&str, &dyn Display)], dropped: u32) -> Line {
    let mut line = Line { bytes: [0; LINE], length: 0 };
    let level = match level {
        Level::Info => "INFO",
        Level::Warn => "WARN",
        Level::Error => "ERROR",
    };
    // A line that is full ignores the rest.
    let _ =
        write!(line, r#"{{"timestamp":"{}","level":"{level}","target":"supervisor","message":""#, Utc(now));
    line.escaped(message);
    line.raw("\"");
    for (name, value) in fields {
        if !line.has_room(name.len() + 24) {
            break;
        }
        let _ = write!(line, r#","{name}":""#);
        let _ = write!(Escape(&mut line), "{value}");
        line.raw("\"");
    }
    if dropped > 0 && line.has_room(40) {
        let _ = write!(line, r#","dropped_lines":{dropped}"#);
    }
    line.end();
    line
}

/// A line on the stack. The last two bytes are kept for its end.
struct Line {
    bytes: [u8; LINE],
    length: usize,
}

impl Line {
    fn raw(&mut self, text: &str) -> bool {
        let end = self.length + text.len();
        // Room for the quote, the brace and the newline that end a cut line.
        if end + 3 > LINE {
            return false;
        }
        if let Some(free) = self.bytes.get_mut(self.length..end) {
            free.copy_from_slice(text.as_bytes());
            self.length = end;
        }
        true
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.length + bytes <= LINE
    }

    fn escaped(&mut self, text: &str) {
        let _ = write!(Escape(self), "{text}");
    }

    fn end(&mut self) {
        for byte in *b"}\n" {
            if let Some(free) = self.bytes.get_mut(self.length) {
                *free = byte;
                self.length += 1;
            }
        }
    }

    fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.raw(text) { Ok(()) } else { Err(fmt::Error) }
    }
}

/// Writes the inside of a JSON string; what does not fit is left out.
struct Escape<'a>(&'a mut Line);

impl fmt::Write for Escape<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            // Leave room for the rest of the line: a value can't eat the fields' ends.
            if self.0.length + 16 > LINE {
                return Ok(());
            }
            match character {
                '"' => self.0.write_str("\\\"")?,
                '\\' => self.0.write_str("\\\\")?,
                '\n' => self.0.write_str("\\n")?,
                control if control < ' ' => write!(self.0, "\\u{:04x}", u32::from(control))?,
                other => self.0.write_char(other)?,
            }
        }
        Ok(())
    }
}

/// Nanoseconds since 1970 as RFC 3339 with milliseconds.
struct Utc(u64);

impl Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0 / SECOND;
        let (days, second) = (seconds / 86_400, seconds % 86_400);
        // Days since 0000-03-01, in eras of 400 years (Hinnant's civil_from_days).
        let days = days + 719_468;
        let (era, day_of_era) = (days / 146_097, days % 146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * shifted + 2) / 5 + 1;
        let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
        let year = era * 400 + year_of_era + u64::from(month <= 2);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        let milliseconds = self.0 % SECOND / MILLISECOND;
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milliseconds:03}Z")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right() {
        let cases = [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ];
        for (seconds, text) in cases {
            assert_eq!(Utc(seconds * SECOND).to_string(), text);
        }
        assert_eq!(Utc(7 * MILLISECOND + 1).to_string(), "1970-01-01T00:00:00.007Z");
    }

    #[test]
    fn lines_are_json() {
        let line = format(0, Level::Warn, "a \"b\"\n", &[("path", &"c\\\u{1}é")], 3);
        assert_eq!(
            std::str::from_utf8(line.as_bytes()).unwrap(),
            concat!(
                r#"{"timestamp":"1970-01-01T00:00:00.000Z","level":"WARN","target":"supervisor","#,
                r#""message":"a \"b\"\n","path":"c\\\u0001é","dropped_lines":3}"#,
                "\n"
            )
        );
    }

    #[test]
    fn long_lines_are_cut_and_still_end() {
        for length in LINE - 200..LINE + 200 {
            let long = "\"".repeat(length / 2);
            let line = format(0, Level::Info, "m", &[("value", &long), ("more", &long)], 9);
            let text = std::str::from_utf8(line.as_bytes()).unwrap();
            assert!(text.len() <= LINE && text.ends_with("}\n"), "{length}: {text}");
            assert_eq!(text.replace("\\\"", "").matches('"').count() % 2, 0, "{length}: {text}");
        }
    }
}
