//! Figures: the results of all rounds, which are kept one by one and shown as medians with their spread.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use serde::{Deserialize, Serialize};

use crate::{Result, load::Figures};

/// Figures of one target in one cell of one round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// Name of the table.
    pub section: String,
    /// Name of the line.
    pub cell: String,
    /// Name of the column.
    pub target: String,
    /// Number of the round, from 0.
    pub round: usize,
    /// Figures by name. A name ends with its unit.
    pub figures: BTreeMap<String, f64>,
}

impl Figures {
    /// Returns the figures by name.
    ///
    /// # Errors
    /// None, because all figures are numbers.
    pub fn named(&self) -> Result<BTreeMap<String, f64>> {
        Ok(serde_json::from_value(serde_json::to_value(self)?)?)
    }
}

/// A median with its extremes.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    /// Median value.
    pub median: f64,
    /// Smallest value.
    pub min: f64,
    /// Largest value.
    pub max: f64,
}

impl Spread {
    /// Returns the spread of the values, or `None` without values.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            0 => (values.get(middle.checked_sub(1)?)? + values.get(middle)?) / 2.0,
            _ => *values.get(middle)?,
        };
        Some(Self { median, min: *values.first()?, max: *values.last()? })
    }
}

/// Results of all measurements.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Results {
    /// Description of the machine and the programs.
    pub machine: String,
    /// Samples in the order of the measurements.
    pub samples: Vec<Sample>,
}

impl Results {
    /// Adds a sample.
    pub fn add(&mut self, section: &str, cell: &str, target: &str, round: usize, figures: BTreeMap<String, f64>) {
        let (section, cell, target) = (section.to_owned(), cell.to_owned(), target.to_owned());
        self.samples.push(Sample { section, cell, target, round, figures });
    }

    fn by_round(&self, section: &str, cell: &str, target: &str, figure: &str) -> BTreeMap<usize, f64> {
        let of = self.samples.iter().filter(|s| s.section == section && s.cell == cell && s.target == target);
        of.filter_map(|s| Some((s.round, *s.figures.get(figure)?))).collect()
    }

    /// Returns the spread of a figure over all rounds.
    pub fn spread(&self, section: &str, cell: &str, target: &str, figure: &str) -> Option<Spread> {
        Spread::of(self.by_round(section, cell, target, figure).into_values().collect())
    }

    /// Returns the ratio of two targets, round by round.
    pub fn ratio(&self, section: &str, cell: &str, figure: &str, one: &str, other: &str) -> Option<Spread> {
        let of = |target| self.by_round(section, cell, target, figure);
        round_by_round(of(one), &of(other))
    }

    /// Returns the ratio of two cells of one target, round by round.
    pub fn ratio_of_cells(&self, section: &str, one: &str, other: &str, figure: &str, target: &str) -> Option<Spread> {
        let of = |cell| self.by_round(section, cell, target, figure);
        round_by_round(of(one), &of(other))
    }

    /// Returns the ratio of two figures of one target in one cell, round by round.
    pub fn ratio_of_figures(&self, section: &str, cell: &str, target: &str, one: &str, other: &str) -> Option<Spread> {
        let of = |figure| self.by_round(section, cell, target, figure);
        round_by_round(of(one), &of(other))
    }

    fn distinct(&self, section: &str, of: impl Fn(&Sample) -> &str) -> Vec<String> {
        let mut seen = Vec::new();
        for sample in self.samples.iter().filter(|s| s.section == section) {
            if !seen.iter().any(|s: &String| s == of(sample)) {
                seen.push(of(sample).to_owned());
            }
        }
        seen
    }

    /// Returns a table with a line for each cell and a column for each target. A field is the median and half of the
    /// range of the rounds in percent.
    pub fn table(&self, section: &str, figure: &str, columns: &[&str], digits: usize) -> String {
        let mut text =
            format!("| {section}, {figure} | {} |\n|---|{}\n", columns.join(" | "), "---|".repeat(columns.len()));
        for cell in self.distinct(section, |s| &s.cell) {
            let _ = write!(text, "| {cell} |");
            for target in columns {
                let _ = match self.spread(section, &cell, target, figure) {
                    Some(s) if s.median != 0.0 => {
                        let apart = 100.0 * (s.max - s.min) / s.median / 2.0;
                        write!(text, " {} ± {apart:.0} % |", thousands(s.median, digits))
                    }
                    Some(_) => write!(text, " 0 |"),
                    None => write!(text, " – |"),
                };
            }
            text.push('\n');
        }
        text
    }

    /// Returns the targets of a section, in the order of the first round.
    pub fn targets(&self, section: &str) -> Vec<String> {
        self.distinct(section, |s| &s.target)
    }

    /// Writes all samples as JSON.
    ///
    /// # Errors
    /// An I/O error if the file cannot be written.
    pub fn save(&self, to: &Path) -> Result<()> {
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder)?;
        }
        Ok(fs::write(to, serde_json::to_vec_pretty(self)?)?)
    }
}

fn round_by_round(ones: BTreeMap<usize, f64>, others: &BTreeMap<usize, f64>) -> Option<Spread> {
    Spread::of(ones.into_iter().filter_map(|(round, one)| Some(one / others.get(&round)?)).collect())
}

/// Formats a number with commas between thousands.
pub fn thousands(number: f64, digits: usize) -> String {
    let plain = format!("{number:.digits$}");
    let (whole, rest) = plain.split_once('.').map_or((plain.as_str(), ""), |(whole, rest)| (whole, rest));
    let mut text = String::new();
    for (n, digit) in whole.chars().enumerate() {
        if n > 0 && (whole.len() - n).is_multiple_of(3) && digit.is_ascii_digit() && !text.ends_with('-') {
            text.push(',');
        }
        text.push(digit);
    }
    if rest.is_empty() { text } else { format!("{text}.{rest}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A slow round must not make the tail look longer than it is within each round.
    #[test]
    fn ratio_of_figures_is_taken_within_each_round() {
        let mut results = Results::default();
        // The second round is slow throughout, and the ratio of its tail is as usual.
        for (round, (p50, p99)) in [(100.0, 200.0), (5000.0, 10_000.0), (100.0, 400.0)].into_iter().enumerate() {
            let figures = [("p50_us".to_owned(), p50), ("p99_us".to_owned(), p99)].into();
            results.add("section", "cell", "target", round, figures);
        }
        let ratio = results.ratio_of_figures("section", "cell", "target", "p99_us", "p50_us").unwrap();
        assert_eq!((ratio.min, ratio.median, ratio.max), (2.0, 2.0, 4.0));
    }
}
