//! The figures of all rounds: kept one by one, told as medians with their spread.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use serde::{Deserialize, Serialize};

use crate::{Result, load::Figures};

/// What one contestant did in one cell of one round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// Which table.
    pub section: String,
    /// Which line of it.
    pub cell: String,
    /// Which column.
    pub who: String,
    /// From 0.
    pub round: usize,
    /// By name, with its unit at the end of it.
    pub figures: BTreeMap<String, f64>,
}

impl Figures {
    /// By name.
    ///
    /// # Errors
    /// None: they are all numbers.
    pub fn named(&self) -> Result<BTreeMap<String, f64>> {
        Ok(serde_json::from_value(serde_json::to_value(self)?)?)
    }
}

/// A median, and what lies around it.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    /// The middle one.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of these; nothing of none.
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

/// All that was measured.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Results {
    /// The machine and the programs.
    pub machine: String,
    /// One by one.
    pub samples: Vec<Sample>,
}

impl Results {
    /// Adds one.
    pub fn add(&mut self, section: &str, cell: &str, who: &str, round: usize, figures: BTreeMap<String, f64>) {
        let (section, cell, who) = (section.to_owned(), cell.to_owned(), who.to_owned());
        self.samples.push(Sample { section, cell, who, round, figures });
    }

    fn by_round(&self, section: &str, cell: &str, who: &str, figure: &str) -> BTreeMap<usize, f64> {
        let of = self.samples.iter().filter(|s| s.section == section && s.cell == cell && s.who == who);
        of.filter_map(|s| Some((s.round, *s.figures.get(figure)?))).collect()
    }

    /// One figure over all rounds.
    pub fn spread(&self, section: &str, cell: &str, who: &str, figure: &str) -> Option<Spread> {
        Spread::of(self.by_round(section, cell, who, figure).into_values().collect())
    }

    /// One contestant over another, round by round.
    pub fn ratio(&self, section: &str, cell: &str, figure: &str, one: &str, other: &str) -> Option<Spread> {
        let of = |who| self.by_round(section, cell, who, figure);
        round_by_round(of(one), &of(other))
    }

    /// One cell over another, of one contestant, round by round.
    pub fn ratio_of_cells(&self, section: &str, one: &str, other: &str, figure: &str, who: &str) -> Option<Spread> {
        let of = |cell| self.by_round(section, cell, who, figure);
        round_by_round(of(one), &of(other))
    }

    /// One figure over another, of one contestant in one cell, round by round.
    pub fn ratio_of_figures(&self, section: &str, cell: &str, who: &str, one: &str, other: &str) -> Option<Spread> {
        let of = |figure| self.by_round(section, cell, who, figure);
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

    /// A table: a line for each cell, a column for each contestant; medians, and how far the rounds were apart.
    pub fn table(&self, section: &str, figure: &str, columns: &[&str], digits: usize) -> String {
        let mut text =
            format!("| {section}, {figure} | {} |\n|---|{}\n", columns.join(" | "), "---|".repeat(columns.len()));
        for cell in self.distinct(section, |s| &s.cell) {
            let _ = write!(text, "| {cell} |");
            for who in columns {
                let _ = match self.spread(section, &cell, who, figure) {
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

    /// Everyone who was measured in a section, in the order of the first round.
    pub fn contestants(&self, section: &str) -> Vec<String> {
        self.distinct(section, |s| &s.who)
    }

    /// Writes them all as JSON.
    ///
    /// # Errors
    /// When the file cannot be written.
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

/// A number as people read it: with commas between thousands.
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

    #[test]
    fn a_tail_is_that_of_its_own_round() {
        let mut results = Results::default();
        // In the second round everything is late, and the tail no longer than usual.
        for (round, (p50, p99)) in [(100.0, 200.0), (5000.0, 10_000.0), (100.0, 400.0)].into_iter().enumerate() {
            let figures = [("p50_us".to_owned(), p50), ("p99_us".to_owned(), p99)].into();
            results.add("section", "cell", "who", round, figures);
        }
        let ratio = results.ratio_of_figures("section", "cell", "who", "p99_us", "p50_us").unwrap();
        assert_eq!((ratio.min, ratio.median, ratio.max), (2.0, 2.0, 4.0));
    }
}
