//! Numbers, durations and times as the status page shows them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A value that is not known.
pub(super) const UNKNOWN: &str = "–";

/// A lag: in milliseconds below one second.
pub(super) fn lag(lag: Option<Duration>) -> String {
    match lag {
        None => UNKNOWN.to_owned(),
        Some(lag) if lag < Duration::from_secs(1) => {
            format!("{:.1} ms", lag.as_secs_f64() * 1000.0)
        }
        Some(lag) => duration(lag),
    }
}

/// A duration in whole seconds, minutes or hours.
pub(super) fn duration(time: Duration) -> String {
    match time.as_secs() {
        secs @ 0..120 => format!("{secs} s"),
        secs @ 120..7200 => format!("{} min", secs / 60),
        secs => format!("{} h", secs / 3600),
    }
}

/// A count, with its digits in groups of three.
pub(super) fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The time of day in UTC.
pub(super) fn time_of_day(now: SystemTime) -> String {
    let secs = now
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    format!(
        "{:02}:{:02}:{:02}",
        secs / 3600 % 24,
        secs / 60 % 60,
        secs % 60
    )
}

/// Text for HTML.
pub(super) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_lags_and_times_are_readable() {
        assert_eq!(count(0), "0");
        assert_eq!(count(123), "123");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(lag(Some(Duration::from_micros(1500))), "1.5 ms");
        assert_eq!(lag(Some(Duration::from_secs(300))), "5 min");
        assert_eq!(lag(None), UNKNOWN);
        let time = UNIX_EPOCH + Duration::from_secs(86_400 + 3_723);
        assert_eq!(time_of_day(time), "01:02:03");
    }

    #[test]
    fn markup_is_escaped() {
        assert_eq!(escape("<b>\"&'"), "&lt;b&gt;&quot;&amp;&#39;");
    }
}
