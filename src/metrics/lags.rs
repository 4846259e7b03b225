//! Quantiles of a histogram, for readers without a Prometheus.
//!
//! Computes what Prometheus's `histogram_quantile` computes: linear within a bucket, so the result is
//! as exact as the buckets are narrow. Called by the status page and by the demo.

use std::time::Duration;

use prometheus::Histogram;
use prometheus::core::Metric as _;

/// Counts of each bucket, at one moment or between two.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Lags {
    /// Upper bound in seconds, and the observations at or below it.
    buckets: Vec<(f64, u64)>,
    count: u64,
}

impl Lags {
    /// The counts of a histogram of seconds so far.
    #[must_use]
    pub fn of(histogram: &Histogram) -> Self {
        let metric = histogram.metric();
        let counted = metric.get_histogram();
        Self {
            buckets: counted
                .get_bucket()
                .iter()
                .map(|bucket| (bucket.upper_bound(), bucket.cumulative_count()))
                .collect(),
            count: counted.get_sample_count(),
        }
    }

    /// The counts since `earlier`, a reading of the same histogram.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let buckets = self.buckets.iter().enumerate().map(|(i, (bound, count))| {
            let before = earlier.buckets.get(i).map_or(0, |(_, count)| *count);
            (*bound, count.saturating_sub(before))
        });
        Self {
            buckets: buckets.collect(),
            count: self.count.saturating_sub(earlier.count),
        }
    }

    /// The number of observations.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The lag that the share `q` (0 to 1) of the observations does not exceed; none without any.
    /// Beyond the last bucket it is that bucket's bound.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        reason = "shares of counts need no 53 bits"
    )]
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        if self.count == 0 {
            return None;
        }
        let rank = q.clamp(0.0, 1.0) * self.count as f64;
        let (mut lower, mut below) = (0.0, 0);
        for (bound, count) in &self.buckets {
            if *count > below && *count as f64 >= rank {
                let share = (rank - below as f64) / (*count - below) as f64;
                return Duration::try_from_secs_f64(lower + (bound - lower) * share).ok();
            }
            (lower, below) = (*bound, *count);
        }
        Duration::try_from_secs_f64(lower).ok()
    }
}

#[cfg(test)]
mod tests {
    use prometheus::HistogramOpts;

    use super::*;

    fn histogram(observed: &[f64]) -> Histogram {
        let buckets = vec![0.001, 0.01, 0.1];
        let histogram = Histogram::with_opts(HistogramOpts::new("t", "t").buckets(buckets))
            .expect("a valid name");
        for secs in observed {
            histogram.observe(*secs);
        }
        histogram
    }

    #[test]
    fn nothing_observed_has_no_quantile() {
        assert_eq!(Lags::of(&histogram(&[])).quantile(0.5), None);
        assert_eq!(Lags::default().quantile(0.5), None);
    }

    #[test]
    fn a_quantile_lies_in_the_bucket_of_its_observation() {
        let lags = Lags::of(&histogram(&[0.0005, 0.005, 0.005, 0.05]));
        let p50 = lags.quantile(0.5).expect("there are observations");
        assert!(p50 > Duration::from_millis(1) && p50 <= Duration::from_millis(10));
        assert_eq!(lags.quantile(1.0), Some(Duration::from_millis(100)));
        assert_eq!(
            Lags::of(&histogram(&[7.0])).quantile(0.99),
            Some(Duration::from_millis(100))
        );
    }

    #[test]
    fn a_difference_counts_only_what_came_between() {
        let histogram = histogram(&[0.05; 100]);
        let earlier = Lags::of(&histogram);
        histogram.observe(0.0005);
        let between = Lags::of(&histogram).since(&earlier);
        assert_eq!(between.count(), 1);
        assert_eq!(between.quantile(1.0), Some(Duration::from_millis(1)));
    }
}
