//! What is done with measured times: medians, percentiles, and a table's row with its verdict. It does not know what was
//! measured.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// Measured times of one thing.
#[derive(Debug, Clone, Default)]
pub struct Times(Vec<Duration>);

impl Times {
    /// Adds one.
    pub fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// None yet.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// By nearest rank, in ms; `of` from 0 to 1. 0 where nothing was measured.
    pub fn percentile(&self, of: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort();
        let rank = (of * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).map_or(0.0, |t| t.as_secs_f64() * 1e3)
    }

    /// In ms.
    pub fn median(&self) -> f64 {
        self.percentile(0.5)
    }

    /// `7.1 (7.8)`: median and 90th percentile in ms.
    pub fn text(&self) -> String {
        format!("{:.2} ({:.2})", self.median(), self.percentile(0.9))
    }
}

/// A line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row([String; COLUMNS]);

/// A goal's cell.
pub fn verdict(met: bool, goal: &str) -> String {
    format!("{} {goal}", if met { "met:" } else { "MISSED:" })
}

const COLUMNS: usize = 7;
const HEAD: [&str; COLUMNS] = ["what", "Mooring", "against", "takes", "ratio", "goal", "n"];

impl Row {
    /// Cells in the order of the table's head.
    pub fn new(cells: [String; COLUMNS]) -> Self {
        Self(cells)
    }

    /// A figure with nobody against it.
    pub fn alone(what: &str, ours: String, goal: String, n: usize) -> Self {
        let none = || "-".to_owned();
        Self([what.into(), ours, none(), none(), none(), goal, n.to_string()])
    }

    /// `ours` over `theirs`, which must be at most `goal`.
    pub fn ratio(what: &str, ours: (f64, String), against: &str, theirs: (f64, String), goal: Option<f64>, n: String) -> Self {
        let ratio = ours.0 / theirs.0;
        let goal = match goal {
            None => "-".to_owned(),
            Some(most) => verdict(ratio <= most, &format!("at most {most}")),
        };
        Self([what.into(), ours.1, against.into(), theirs.1, format!("{ratio:.2}"), goal, n])
    }

    /// Medians against each other.
    pub fn medians(what: &str, ours: &Times, against: &str, theirs: &Times, goal: Option<f64>) -> Self {
        let n = ours.len().min(theirs.len()).to_string();
        Self::ratio(what, (ours.median(), ours.text()), against, (theirs.median(), theirs.text()), goal, n)
    }

    /// As one line between two processes.
    pub fn to_line(&self) -> String {
        self.0.join("\t")
    }

    /// # Errors
    /// Another number of cells.
    pub fn from_line(line: &str) -> Result<Self> {
        let cells: Vec<String> = line.split('\t').map(str::to_owned).collect();
        ensure!(cells.len() == COLUMNS, "a row of {} cells: {line:?}", cells.len());
        Ok(Self(cells.try_into().ok().context("cells were counted")?))
    }
}

/// The table in Markdown, which reads well in a terminal too.
pub fn table(rows: &[Row]) -> String {
    let head = Row(HEAD.map(str::to_owned));
    let width = |c: usize| rows.iter().chain([&head]).map(|r| r.0[c].chars().count()).max().unwrap_or(0);
    let widths: [usize; COLUMNS] = std::array::from_fn(width);
    let line = |row: &Row| {
        let cells = row.0.iter().zip(widths).map(|(text, width)| format!("{text:<width$}"));
        format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "))
    };
    let rule = format!("|{}|\n", widths.map(|w| "-".repeat(w + 2)).join("|"));
    std::iter::once(line(&head)).chain([rule]).chain(rows.iter().map(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(ms: impl IntoIterator<Item = u64>) -> Times {
        Times(ms.into_iter().map(Duration::from_millis).collect())
    }

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let hundred = times((1..=100).rev());
        assert_eq!((hundred.median(), hundred.percentile(0.9), hundred.percentile(0.99)), (50.0, 90.0, 99.0));
        assert_eq!((times([7]).median(), times([7]).percentile(0.99)), (7.0, 7.0));
        assert_eq!(times([]).median(), 0.0);
    }

    #[test]
    fn a_ratio_above_the_goal_is_missed() {
        let row = Row::medians("ADD", &times([3]), "Go", &times([4]), Some(0.4));
        assert_eq!(row.0, ["ADD", "3.00 (3.00)", "Go", "4.00 (4.00)", "0.75", "MISSED: at most 0.4", "1"]);
        let row = Row::medians("ADD", &times([3]), "Go", &times([4]), Some(0.8));
        assert_eq!(row.0[5], "met: at most 0.8");
    }

    #[test]
    fn a_row_comes_back_from_its_line() {
        let row = Row::medians("ADD", &times([3]), "Go", &times([4]), None);
        assert_eq!(Row::from_line(&row.to_line()).unwrap(), row);
        assert!(Row::from_line("a\tb").is_err());
    }
}
