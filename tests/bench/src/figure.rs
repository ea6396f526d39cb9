//! A figure: what was measured, how often, its spread, and the mark it is held against.

use std::fs;

use pgwarden_e2e::{Result, repo};
use serde::Serialize;

/// One measured quantity.
#[derive(Serialize)]
pub(crate) struct Figure {
    name: String,
    unit: &'static str,
    mark: String,
    minimum: f64,
    median: f64,
    maximum: f64,
    samples: Vec<f64>,
}

/// The figures of one bench, printed as a table and written as JSON.
#[derive(Serialize)]
pub(crate) struct Report {
    bench: String,
    conditions: String,
    figures: Vec<Figure>,
}

impl Report {
    pub(crate) fn new(bench: String) -> Self {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        Self {
            bench,
            conditions: format!("{cores} cores shared by all nodes of the test cluster"),
            figures: Vec::new(),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.bench
    }

    /// Adds a figure; nothing is added without samples.
    pub(crate) fn add(
        &mut self,
        name: impl Into<String>,
        unit: &'static str,
        mark: impl Into<String>,
        samples: Vec<f64>,
    ) {
        let mut sorted = samples.clone();
        sorted.sort_by(f64::total_cmp);
        let (Some(&minimum), Some(&maximum)) = (sorted.first(), sorted.last()) else { return };
        let median = median(&sorted);
        self.figures.push(Figure {
            name: name.into(),
            unit,
            mark: mark.into(),
            minimum,
            median,
            maximum,
            samples,
        });
    }

    /// Prints the table and writes `target/bench/NAME.json`.
    pub(crate) fn finish(&self) -> Result {
        let dir = repo().join("target/bench");
        fs::create_dir_all(&dir)?;
        fs::write(dir.join(format!("{}.json", self.bench)), serde_json::to_string_pretty(self)?)?;
        let mut out = format!("\n{} ({})\n", self.bench, self.conditions);
        out += &format!(
            "  {:<58} {:>10} {:>10} {:>10} {:>4}  {}\n",
            "figure", "min", "median", "max", "n", "mark"
        );
        for f in &self.figures {
            let name = format!("{} [{}]", f.name, f.unit);
            out += &format!(
                "  {name:<58} {:>10.2} {:>10.2} {:>10.2} {:>4}  {}\n",
                f.minimum,
                f.median,
                f.maximum,
                f.samples.len(),
                f.mark
            );
        }
        use std::io::Write;
        std::io::stdout().write_all(out.as_bytes())?;
        Ok(())
    }
}

/// Median of sorted values.
pub(crate) fn median(sorted: &[f64]) -> f64 {
    let at = |i: usize| sorted.get(i).copied().unwrap_or(f64::NAN);
    let half = sorted.len() / 2;
    if sorted.len() % 2 == 1 { at(half) } else { f64::midpoint(at(half.wrapping_sub(1)), at(half)) }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn median_of_odd_and_even() {
        assert!((median(&[1.0, 2.0, 9.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[1.0, 2.0, 4.0, 9.0]) - 3.0).abs() < 1e-9);
    }
}
