//! The search for the fewest failing steps, on plain lists.

use testkit::history::shrink::shrink;

async fn shrunk(whole: &[u32], fails: impl Fn(&[u32]) -> bool) -> Vec<u32> {
    shrink(whole.to_vec(), 10_000, async |part| fails(part)).await
}

#[tokio::test]
async fn a_failing_list_shrinks_to_the_steps_that_are_needed() {
    let whole: Vec<u32> = (0..100).collect();
    assert_eq!(shrunk(&whole, |part| part.contains(&71)).await, [71]);
    let three = |part: &[u32]| [3, 50, 99].iter().all(|one| part.contains(one));
    assert_eq!(shrunk(&whole, three).await, [3, 50, 99]);
    // A step that is superfluous only once a later one is gone.
    let nested = |part: &[u32]| part.contains(&1) && (part.contains(&7) || !part.contains(&8));
    assert_eq!(shrunk(&whole, nested).await, [1]);
    assert_eq!(shrunk(&whole, |part| part.len() >= 10).await.len(), 10);
    assert_eq!(shrunk(&whole, |_| true).await, [0; 0]);
    assert_eq!(shrunk(&whole, |_| false).await, whole);
}

#[tokio::test]
async fn a_list_is_shrunk_in_no_more_trials_than_allowed() {
    for allowed in [0, 1, 7, 40] {
        let mut trials = 0;
        let whole: Vec<u32> = (0..1000).collect();
        let fails = async |part: &[u32]| {
            trials += 1;
            part.contains(&321) && part.contains(&789)
        };
        let left = shrink(whole, allowed, fails).await;
        assert_eq!(trials, allowed);
        assert!(left.contains(&321) && left.contains(&789));
    }
}
