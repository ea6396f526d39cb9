//! Columns for a terminal: aligned, the last one wrapped to its width, coloured when it can.

/// What the output goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Screen {
    /// Columns of a terminal; none: a file or a pipe, where lines may be long.
    pub width: Option<usize>,
    /// Colours are wanted.
    pub colour: bool,
}

/// What a text means, which gives its colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tone {
    #[default]
    Plain,
    /// Headings.
    Strong,
    /// Less important.
    Faint,
    Good,
    /// Needs attention.
    Warning,
    Bad,
}

impl Tone {
    const fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Strong => "1",
            Self::Faint => "2",
            Self::Good => "32",
            Self::Warning => "33",
            Self::Bad => "31",
        }
    }
}

/// A text in its colour.
pub(crate) fn paint(text: &str, tone: Tone, screen: Screen) -> String {
    if !screen.colour || tone == Tone::Plain || text.is_empty() {
        return text.to_owned();
    }
    format!("\x1b[{}m{text}\x1b[0m", tone.code())
}

/// A cell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    pub(crate) fn new(text: impl AsRef<str>, tone: Tone) -> Self {
        // Other people's text: no line break may spoil the table, no escape code the terminal.
        let text = text.as_ref().split_whitespace().collect::<Vec<_>>().join(" ");
        Self { text: text.chars().filter(|c| !c.is_control()).collect(), tone }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text, Tone::Plain)
    }
}

/// Between columns.
const GAP: usize = 2;
/// A last column with less room than this goes below its row, if it needs more.
const NARROW: usize = 24;
/// How far it is indented there.
const INDENT: usize = 4;

/// Lays out rows under their headings. A column in which no row has anything is left out.
pub(crate) fn table(headings: &[&str], rows: &[Vec<Cell>], screen: Screen) -> String {
    let used: Vec<usize> = (0..headings.len())
        .filter(|i| rows.iter().any(|row| row.get(*i).is_some_and(|c| !c.text.is_empty())))
        .collect();
    let empty = Cell::default();
    let mut lines: Vec<Vec<Cell>> =
        vec![used.iter().filter_map(|i| headings.get(*i)).map(|h| Cell::new(h, Tone::Strong)).collect()];
    for row in rows {
        lines.push(used.iter().map(|i| row.get(*i).unwrap_or(&empty).clone()).collect());
    }
    let Some(last) = used.len().checked_sub(1) else { return String::new() };
    let widths: Vec<usize> =
        (0..last).map(|i| lines.iter().filter_map(|l| l.get(i)).map(length).max().unwrap_or(0)).collect();
    let left: usize = widths.iter().map(|w| w + GAP).sum();

    let room = screen.width.map_or(usize::MAX, |w| w.saturating_sub(left));
    let longest = lines.iter().filter_map(|l| l.last()).map(length).max().unwrap_or(0);
    let below = room < NARROW && longest > NARROW;
    let mut out = String::new();
    for (i, line) in lines.iter().enumerate() {
        let mut text = String::new();
        for (cell, width) in line.iter().zip(&widths) {
            text.push_str(&paint(&cell.text, cell.tone, screen));
            text.push_str(&" ".repeat(width - length(cell) + GAP));
        }
        let cell = line.last().unwrap_or(&empty);
        let (indent, room) = if below {
            push_line(&mut out, &std::mem::take(&mut text));
            (INDENT, screen.width.unwrap_or(usize::MAX).saturating_sub(INDENT))
        } else {
            (left, room.max(NARROW))
        };
        // Below its row a text needs no heading.
        if below && (i == 0 || cell.text.is_empty()) {
            continue;
        }
        for part in wrap(&cell.text, room) {
            let before = if text.is_empty() { " ".repeat(indent) } else { std::mem::take(&mut text) };
            push_line(&mut out, &format!("{before}{}", paint(&part, cell.tone, screen)));
        }
    }
    out
}

fn push_line(out: &mut String, line: &str) {
    out.push_str(line.trim_end());
    out.push('\n');
}

fn length(cell: &Cell) -> usize {
    cell.text.chars().count()
}

/// Breaks a text at spaces; a word longer than `width` is cut. At least one line.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let width = width.max(1);
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let mut word: Vec<char> = word.chars().collect();
        loop {
            let line = lines.last().map_or(0, |l| l.chars().count());
            let gap = usize::from(line > 0);
            if line + gap + word.len() <= width {
                if let Some(l) = lines.last_mut() {
                    l.push_str(&" ".repeat(gap));
                    l.extend(word);
                }
                break;
            }
            if line > 0 {
                lines.push(String::new());
                continue;
            }
            let rest = word.split_off(width);
            if let Some(l) = lines.last_mut() {
                l.extend(word);
            }
            lines.push(String::new());
            word = rest;
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIPE: Screen = Screen { width: None, colour: false };

    fn rows() -> Vec<Vec<Cell>> {
        vec![
            vec![
                "a".into(),
                "".into(),
                Cell::new("bad", Tone::Bad),
                "one two three four five six seven".into(),
            ],
            vec!["long-name".into(), "".into(), "ok".into(), "".into()],
        ]
    }

    #[test]
    fn columns_are_aligned_and_empty_ones_left_out() {
        assert_eq!(
            table(&["NAME", "NOTHING", "STATE", "MESSAGE"], &rows(), PIPE),
            "NAME       STATE  MESSAGE\n\
             a          bad    one two three four five six seven\n\
             long-name  ok\n"
        );
        assert_eq!(table(&["NAME"], &[], PIPE), "");
    }

    #[test]
    fn the_last_column_is_wrapped_to_the_terminal() {
        let screen = Screen { width: Some(44), colour: false };
        let headings = ["NAME", "NOTHING", "STATE", "MESSAGE"];
        assert_eq!(
            table(&headings, &rows(), screen),
            "NAME       STATE  MESSAGE\n\
             a          bad    one two three four five\n\
             \x20                 six seven\n\
             long-name  ok\n"
        );
        let narrow = table(&headings, &rows(), Screen { width: Some(30), ..screen });
        assert_eq!(
            narrow,
            "NAME       STATE\n\
             a          bad\n    one two three four five\n    six seven\n\
             long-name  ok\n"
        );
        assert!(narrow.lines().all(|l| l.chars().count() <= 30));
        // A short last column stays where it is: a little too wide is easier to read.
        let ages = table(
            &["NAME", "AGE"],
            &[vec!["a-long-name".into(), "3m".into()]],
            Screen { width: Some(8), ..screen },
        );
        assert_eq!(ages, "NAME         AGE\na-long-name  3m\n");
    }

    #[test]
    fn colours_do_not_shift_columns() {
        let plain = table(&["NAME", "NOTHING", "STATE", "MESSAGE"], &rows(), PIPE);
        let coloured =
            table(&["NAME", "NOTHING", "STATE", "MESSAGE"], &rows(), Screen { colour: true, ..PIPE });
        assert!(coloured.contains("\x1b[31mbad\x1b[0m    one"), "{coloured:?}");
        assert!(coloured.starts_with("\x1b[1mNAME\x1b[0m       \x1b[1mSTATE"), "{coloured:?}");
        let mut stripped = coloured;
        for code in ["\x1b[0m", "\x1b[1m", "\x1b[31m"] {
            stripped = stripped.replace(code, "");
        }
        assert_eq!(stripped, plain);
    }

    #[test]
    fn text_of_others_can_break_neither_table_nor_terminal() {
        assert_eq!(Cell::from("a\nb\t \x1b[2Jc"), Cell::from("a b [2Jc"));
    }

    #[test]
    fn long_words_are_cut() {
        assert_eq!(wrap("ab abcdefgh c", 3), ["ab", "abc", "def", "gh", "c"]);
        assert_eq!(wrap("", 3), [""]);
        assert_eq!(wrap("a b", 0), ["a", "b"]);
    }
}
