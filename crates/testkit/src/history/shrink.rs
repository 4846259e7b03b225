//! Reduces a failing list by removing parts of it while it still fails.
//!
//! Owns only the order in which parts are tried: halves first, then smaller parts, down to single
//! steps. Promises a part of the list, in the same order, that failed when it was last tried, and
//! no more trials than allowed. If the trials sufficed, the failure needs every remaining step.

/// The smallest failing part that is found within the given number of trials.
pub async fn shrink<T: Clone>(
    whole: Vec<T>,
    mut trials: usize,
    mut fails: impl AsyncFnMut(&[T]) -> bool,
) -> Vec<T> {
    let mut failing = whole;
    let mut size = failing.len().div_ceil(2);
    while size > 0 {
        let mut smaller = false;
        let mut start = 0;
        while start < failing.len() {
            if trials == 0 {
                return failing;
            }
            trials -= 1;
            let end = (start + size).min(failing.len());
            let candidate = [&failing[..start], &failing[end..]].concat();
            if fails(&candidate).await {
                failing = candidate;
                smaller = true;
            } else {
                start = end;
            }
        }
        // A step may only become superfluous once a later one is gone.
        if size > 1 || !smaller {
            size /= 2;
        }
        size = size.min(failing.len());
    }
    failing
}
