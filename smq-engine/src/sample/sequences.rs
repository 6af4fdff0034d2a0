//! Changes of logits that look at the tokens so far.

use std::collections::{BTreeMap, HashMap, HashSet};

/// Adds each bias to the last token of its sequence, if the tokens before that one end `ids`.
pub(super) fn bias(biases: &BTreeMap<Vec<u32>, f32>, ids: &[u32], scores: &mut [f32]) {
    let mut sums = BTreeMap::new();
    for (sequence, bias) in biases {
        if let Some((last, before)) = sequence.split_last()
            && ids.ends_with(before)
        {
            *sums.entry(*last).or_insert(0.0) += bias;
        }
    }
    for (id, sum) in sums {
        if let Some(score) = scores.get_mut(id as usize) {
            *score += sum;
        }
    }
}

/// Makes each token of `ids` less likely if `penalty` is more than 1, whatever the logit's sign.
pub(super) fn penalize(ids: &[u32], penalty: f32, scores: &mut [f32]) {
    for id in ids.iter().collect::<HashSet<_>>() {
        if let Some(score) = scores.get_mut(*id as usize) {
            match *score < 0.0 {
                true => *score *= penalty,
                false => *score /= penalty,
            }
        }
    }
}

/// Subtracts `presence` from each token of `ids`, and `frequency` for each time that it is there.
pub(super) fn penalize_counts(ids: &[u32], presence: f32, frequency: f32, scores: &mut [f32]) {
    let mut counts = HashMap::new();
    for id in ids {
        *counts.entry(*id).or_insert(0u32) += 1;
    }
    for (id, count) in counts {
        if let Some(score) = scores.get_mut(id as usize) {
            *score -= presence + frequency * count as f32;
        }
    }
}

/// Excludes each token that would make the end of `ids` a sequence of `size` tokens of `seen`.
pub(super) fn exclude_repeats(seen: &[u32], ids: &[u32], size: usize, scores: &mut [f32]) {
    let Some(start) = (ids.len() + 1).checked_sub(size) else {
        return;
    };
    let end = &ids[start..];
    for window in seen.windows(size) {
        if let Some((last, before)) = window.split_last()
            && before == end
            && let Some(score) = scores.get_mut(*last as usize)
        {
            *score = f32::NEG_INFINITY;
        }
    }
}
