//! Rounds, medians, the table for people and the lines for programs.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

/// What one benchmark measured.
pub(crate) struct Report {
    bench: String,
    metric: &'static str,
    unit: &'static str,
    cases: Vec<Case>,
}

struct Case {
    name: String,
    rounds: Vec<f64>,
    /// For each baseline: its name, and this case's ratio to it, round by round.
    ratios: Vec<(String, Vec<f64>)>,
}

impl Report {
    /// An empty report of `bench`; all its values are `metric` in `unit`.
    pub(crate) fn new(bench: impl Into<String>, metric: &'static str, unit: &'static str) -> Self {
        Self {
            bench: bench.into(),
            metric,
            unit,
            cases: Vec::new(),
        }
    }

    /// Adds one round of `case`.
    pub(crate) fn add(&mut self, case: &str, value: f64) {
        println!("  {case}: {} {}", thousands(value), self.unit);
        self.case(case).rounds.push(value);
    }

    /// Adds the ratio of one round of `case` to the value that `baseline` reached next to it.
    pub(crate) fn compare(&mut self, case: &str, value: f64, baseline: &str, limit: f64) {
        let case = self.case(case);
        let index = case
            .ratios
            .iter()
            .position(|(name, _)| name == baseline)
            .unwrap_or_else(|| {
                case.ratios.push((baseline.to_owned(), Vec::new()));
                case.ratios.len() - 1
            });
        case.ratios[index].1.push(value / limit);
    }

    fn case(&mut self, name: &str) -> &mut Case {
        let index = self
            .cases
            .iter()
            .position(|case| case.name == name)
            .unwrap_or_else(|| {
                self.cases.push(Case {
                    name: name.to_owned(),
                    rounds: Vec::new(),
                    ratios: Vec::new(),
                });
                self.cases.len() - 1
            });
        &mut self.cases[index]
    }

    /// Prints the table and writes `target/bench/<bench>.jsonl`.
    pub(crate) fn finish(&self, target: &Path) -> Result<()> {
        println!("\n{}", self.table());
        let folder = target.join("bench");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let path = folder.join(format!("{}.jsonl", self.bench));
        fs::write(&path, self.lines()).with_context(|| format!("cannot write {}", path.display()))?;
        println!("{}", path.display());
        Ok(())
    }

    fn table(&self) -> String {
        let width = self
            .cases
            .iter()
            .map(|case| case.name.len())
            .max()
            .unwrap_or(0)
            .max(4);
        let mut table = format!(
            "{}\n\n{:width$}  {:>12}  {:>25}  ratio to (median of rounds)\n",
            self.bench, "case", self.unit, "lowest – highest"
        );
        for case in &self.cases {
            let (low, high) = bounds(&case.rounds);
            let span = format!("{} – {}", thousands(low), thousands(high));
            let ratios: Vec<_> = case
                .ratios
                .iter()
                .map(|(name, values)| format!("{:.2} of {name}", median(values)))
                .collect();
            let _infallible = writeln!(
                table,
                "{:width$}  {:>12}  {span:>25}  {}",
                case.name,
                thousands(median(&case.rounds)),
                ratios.join(", ")
            );
        }
        table
    }

    /// One line a case and baseline: `{bench, case, metric, value, unit, rounds, baseline}`.
    fn lines(&self) -> String {
        let mut lines = String::new();
        for case in &self.cases {
            let rounds: Vec<f64> = case.rounds.iter().copied().map(rounded).collect();
            let line = json!({
                "bench": self.bench, "case": case.name, "metric": self.metric,
                "value": rounded(median(&case.rounds)), "unit": self.unit, "rounds": rounds,
                "baseline": null,
            });
            lines += &format!("{line}\n");
            for (baseline, ratios) in &case.ratios {
                let line = json!({
                    "bench": self.bench, "case": case.name, "metric": format!("{}_ratio", self.metric),
                    "value": thousandths(median(ratios)), "unit": "ratio",
                    "rounds": ratios.iter().copied().map(thousandths).collect::<Vec<_>>(),
                    "baseline": baseline,
                });
                lines += &format!("{line}\n");
            }
        }
        lines
    }
}

/// `count` things in `time`, a second.
pub(crate) fn rate(count: u64, time: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let count = count as f64;
    count / time.as_secs_f64()
}

/// The middle value; of an even number of values the mean of the two in the middle. 0 of none.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// The value that `share` of all values do not exceed. 0 of none.
pub(crate) fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share between 0 and 1 of a length"
    )]
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(0.0)
}

fn bounds(values: &[f64]) -> (f64, f64) {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(0.0, f64::max);
    (if low.is_finite() { low } else { 0.0 }, high)
}

fn thousandths(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// Whole numbers, and thousandths of small ones.
fn rounded(value: f64) -> f64 {
    if value.abs() < SMALL {
        thousandths(value)
    } else {
        value.round()
    }
}

/// Below it digits after the point matter.
const SMALL: f64 = 100.0;

fn thousands(value: f64) -> String {
    if value.abs() < SMALL {
        return format!("{value:.2}");
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut report = Report::new("drain-x", "throughput", "rows/s");
        for (copy, relay) in [
            (1_000_000.0, 300_000.0),
            (500_000.0, 200_000.0),
            (2_000_000.0, 500_000.0),
        ] {
            report.add("copy", copy);
            report.add("relay", relay);
            report.compare("relay", relay, "copy", copy);
        }
        report
    }

    #[test]
    fn the_median_is_the_middle_and_not_the_mean() {
        assert!((median(&[9.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(&[4.0, 1.0, 2.0, 100.0]) - 3.0).abs() < f64::EPSILON);
        assert!(median(&[]).abs() < f64::EPSILON);
    }

    #[test]
    fn a_ratio_is_taken_round_by_round() {
        // Ratios 0.3, 0.4, 0.25: the ratio of the medians would be 0.3 too, of the best values 0.25.
        let table = report().table();
        assert!(table.contains("0.30 of copy"), "{table}");
        assert!(
            table.contains("1,000,000") && table.contains("200,000 – 500,000"),
            "{table}"
        );
    }

    #[test]
    fn every_line_names_bench_case_metric_value_unit_rounds_and_baseline() {
        let lines = report().lines();
        assert_eq!(lines.lines().count(), 3, "{lines}");
        for line in lines.lines() {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            for field in ["bench", "case", "metric", "value", "unit", "rounds", "baseline"] {
                assert!(value.get(field).is_some(), "{field} is missing in {line}");
            }
        }
        assert!(lines.contains(r#""baseline":"copy""#), "{lines}");
    }
}
