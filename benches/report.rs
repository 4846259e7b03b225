//! The report of a benchmark: a table of figures and their targets.
//!
//! Owns the format of the figures: each row has a value with its unit and, if it has a target, the
//! target and whether it was met. Collects the missed targets, which are repeated at the end.
//! Filled by every benchmark.

use std::fmt::Write as _;
use std::time::Duration;

use hdrhistogram::Histogram;

/// What a figure must reach.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    /// Less than this.
    Below(f64),
    /// This or more.
    AtLeast(f64),
    /// No target.
    None,
}

impl Target {
    fn met(self, value: f64) -> Option<bool> {
        match self {
            Self::Below(limit) => Some(value < limit),
            Self::AtLeast(limit) => Some(value >= limit),
            Self::None => None,
        }
    }

    fn text(self, unit: &str) -> String {
        match self {
            Self::Below(limit) => format!("< {}", number(limit, unit)),
            Self::AtLeast(limit) => format!(">= {}", number(limit, unit)),
            Self::None => String::new(),
        }
    }
}

#[derive(Debug)]
struct Line {
    what: String,
    value: String,
    target: String,
    met: Option<bool>,
}

/// The figures of one benchmark.
#[derive(Debug)]
pub(crate) struct Report {
    name: &'static str,
    parameters: String,
    lines: Vec<Line>,
}

impl Report {
    pub(crate) fn new(name: &'static str, parameters: String) -> Self {
        eprintln!("{name}: {parameters}");
        Self {
            name,
            parameters,
            lines: Vec::new(),
        }
    }

    /// Adds a figure with its target.
    pub(crate) fn figure(&mut self, what: &str, value: f64, unit: &str, target: Target) {
        let line = Line {
            what: what.to_owned(),
            value: number(value, unit),
            target: target.text(unit),
            met: target.met(value),
        };
        eprintln!("  {what}: {}", line.value);
        self.lines.push(line);
    }

    /// Adds a figure without a target.
    pub(crate) fn record(&mut self, what: &str, value: f64, unit: &str) {
        self.figure(what, value, unit, Target::None);
    }

    /// Adds a remark without a number.
    pub(crate) fn note(&mut self, what: &str, text: &str) {
        eprintln!("  {what}: {text}");
        self.lines.push(Line {
            what: what.to_owned(),
            value: text.to_owned(),
            target: String::new(),
            met: None,
        });
    }

    /// The figures that missed their target.
    pub(crate) fn missed(&self) -> impl Iterator<Item = String> {
        self.lines
            .iter()
            .filter(|line| line.met == Some(false))
            .map(|line| {
                format!(
                    "{}: {} is {}, target {}",
                    self.name, line.what, line.value, line.target
                )
            })
    }

    /// The table.
    pub(crate) fn render(&self) -> String {
        let width = |of: fn(&Line) -> &str| {
            let widest = self.lines.iter().map(|line| of(line).chars().count()).max();
            widest.unwrap_or(0)
        };
        let (what, value, target) = (
            width(|line| &line.what),
            width(|line| &line.value).min(40),
            width(|line| &line.target),
        );
        let mut text = format!("\n{}  ({})\n", self.name, self.parameters);
        for line in &self.lines {
            let outcome = match line.met {
                Some(true) => "met",
                Some(false) => "MISSED",
                None => "",
            };
            let row = format!(
                "  {:what$}  {:>value$}  {:target$}  {outcome}",
                line.what, line.value, line.target
            );
            let _ = writeln!(text, "{}", row.trim_end());
        }
        text
    }
}

fn number(value: f64, unit: &str) -> String {
    let digits = match value.abs() {
        size if size >= 100.0 || size.fract() == 0.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    let plain = format!("{value:.digits$}");
    // Groups of thousands, so that 8,000 and 80,000 are easy to tell apart.
    let (whole, fraction) = plain.split_once('.').unwrap_or((&plain, ""));
    let sign = if whole.starts_with('-') { "-" } else { "" };
    let figures = whole.trim_start_matches('-');
    let mut grouped = String::new();
    for (index, digit) in figures.chars().enumerate() {
        if index > 0 && (figures.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    let point = if fraction.is_empty() { "" } else { "." };
    format!("{sign}{grouped}{point}{fraction} {unit}")
        .trim_end()
        .to_owned()
}

/// Durations, counted in microseconds.
#[derive(Debug)]
pub(crate) struct Durations(Histogram<u64>);

impl Durations {
    pub(crate) fn new() -> Self {
        let histogram = Histogram::new(3).expect("three digits are a valid precision");
        Self(histogram)
    }

    pub(crate) fn record(&mut self, took: Duration) {
        self.record_ms(took.as_secs_f64() * 1e3);
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped, and the histogram grows as far as u64"
    )]
    pub(crate) fn record_ms(&mut self, ms: f64) {
        self.0
            .record((ms.max(0.0) * 1e3) as u64)
            .expect("the histogram grows by itself");
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    /// A quantile (0 to 1), in milliseconds.
    #[expect(clippy::cast_precision_loss, reason = "durations are far below 2^52")]
    pub(crate) fn quantile_ms(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1e3
    }

    /// The longest duration, in milliseconds.
    pub(crate) fn max_ms(&self) -> f64 {
        self.quantile_ms(1.0)
    }
}

/// The median of the values.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[odd / 2],
        even => f64::midpoint(sorted[even / 2 - 1], sorted[even / 2]),
    }
}
