//! Makes a failing list smaller, by leaving out parts of it for as long as it still fails.
//!
//! Owns only the order in which parts are tried: halves, then smaller and smaller ones, down to
//! single steps. Promises a part of the list, in its order, that failed when it was last tried, and
//! no more trials than allowed; where the trials sufficed, no single step can be left out.

/// The smallest failing part that is found in so many trials.
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
