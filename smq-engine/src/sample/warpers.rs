//! Changes of logits that look at their distribution. Each excludes tokens and keeps at least the
//! most likely one.
//!
//! Probabilities are f32 and limits are rounded to f32 before they are compared, as in
//! transformers: whether a token exactly at a limit stays depends on it. Which of several equally
//! likely tokens at a limit stay is arbitrary there, by the order of an unstable sort, and by their
//! ids here.

/// Keeps the most likely of the 100 most likely tokens, as long as they have at most `share` of the
/// entropy of those.
pub(super) fn top_h(share: f64, scores: &mut [f32]) {
    let mut order = allowed(scores);
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    order.truncate(100);
    let top: Vec<f32> = order.iter().map(|id| scores[*id]).collect();
    let terms: Vec<f64> = probabilities(&top).into_iter().map(information).collect();
    let entropy: f64 = terms.iter().sum();
    let limit = (entropy as f32) * share as f32;
    let mut sum = 0.0;
    let kept = terms.iter().take_while(|term| {
        sum += **term;
        sum as f32 <= limit
    });
    order.truncate(kept.count().max(1));
    keep(&order, scores);
}

/// Keeps the `count` most likely tokens, and those as likely as the last of them.
pub(super) fn top_k(count: usize, scores: &mut [f32]) {
    let mut sorted = scores.to_vec();
    let Some(last) = count.min(sorted.len()).checked_sub(1) else {
        return;
    };
    let (_, least, _) = sorted.select_nth_unstable_by(last, |a, b| b.total_cmp(a));
    let least = *least;
    exclude(scores, |_, score| score < least);
}

/// Excludes the least likely tokens that together have at most the probability `1 - total`.
pub(super) fn top_p(total: f64, scores: &mut [f32]) {
    let probabilities = probabilities(scores);
    let mut order = allowed(scores);
    // The least likely first, and of equals the first one: the sort is stable.
    order.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]));
    let limit = (1.0 - total) as f32;
    let mut sum = 0.0;
    if let Some((_, others)) = order.split_last() {
        for id in others {
            sum += f64::from(probabilities[*id]);
            if sum as f32 > limit {
                break;
            }
            scores[*id] = f32::NEG_INFINITY;
        }
    }
}

/// Keeps the tokens that are at least `share` times as likely as the most likely one.
pub(super) fn min_p(share: f64, scores: &mut [f32]) {
    let probabilities = probabilities(scores);
    let largest = probabilities.iter().copied().fold(0.0, f32::max);
    let least = largest * share as f32;
    exclude(scores, |id, _| probabilities[id] < least);
}

/// Keeps the tokens whose information is closest to the expected one, until they have the
/// probability `total`.
pub(super) fn typical_p(total: f64, scores: &mut [f32]) {
    let probabilities = probabilities(scores);
    let entropy: f64 = probabilities.iter().copied().map(information).sum();
    let log_sum = log_sum(scores);
    let shifted = |id: usize| ((log_sum - f64::from(scores[id])) - entropy).abs() as f32;
    let mut order = allowed(scores);
    order.sort_by(|a, b| shifted(*a).total_cmp(&shifted(*b)));
    let mut sum = 0.0;
    let below = order.iter().take_while(|id| {
        sum += f64::from(probabilities[**id]);
        (sum as f32) < total as f32
    });
    let last = below.count().min(order.len().saturating_sub(1));
    let Some(limit) = order.get(last).map(|id| shifted(*id)) else {
        return;
    };
    let kept: Vec<usize> = order
        .into_iter()
        .filter(|id| shifted(*id) <= limit)
        .collect();
    keep(&kept, scores);
}

/// Keeps the tokens of at least this probability.
pub(super) fn at_least(least: f64, scores: &mut [f32]) {
    let probabilities = probabilities(scores);
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    exclude(scores, |id, score| {
        probabilities[id] < least as f32 && score < largest
    });
}

/// Keeps the tokens of at least the probability `least`, or of what stands for it at this entropy.
pub(super) fn eta(least: f64, scores: &mut [f32]) {
    let entropy: f64 = probabilities(scores).into_iter().map(information).sum();
    at_least(least.min(least.sqrt() * (-entropy).exp()), scores);
}

/// Normalizes to log probabilities.
pub(super) fn normalize(scores: &mut [f32]) {
    let log_sum = log_sum(scores);
    for score in scores {
        *score = (f64::from(*score) - log_sum) as f32;
    }
}

fn log_sum(scores: &[f32]) -> f64 {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = scores
        .iter()
        .map(|score| f64::from(score - max).exp())
        .sum();
    f64::from(max) + sum.ln()
}

fn probabilities(scores: &[f32]) -> Vec<f32> {
    let log_sum = log_sum(scores);
    let probability = |score: &f32| (f64::from(*score) - log_sum).exp() as f32;
    scores.iter().map(probability).collect()
}

/// A token's part of the entropy.
fn information(probability: f32) -> f64 {
    let p = f64::from(probability);
    if p > 0.0 { -p * p.ln() } else { 0.0 }
}

/// Tokens that are not excluded.
fn allowed(scores: &[f32]) -> Vec<usize> {
    let is_allowed = |id: &usize| scores[*id] > f32::NEG_INFINITY;
    (0..scores.len()).filter(is_allowed).collect()
}

fn exclude(scores: &mut [f32], is_excluded: impl Fn(usize, f32) -> bool) {
    for (id, score) in scores.iter_mut().enumerate() {
        if is_excluded(id, *score) {
            *score = f32::NEG_INFINITY;
        }
    }
}

fn keep(kept: &[usize], scores: &mut [f32]) {
    let values: Vec<(usize, f32)> = kept.iter().map(|id| (*id, scores[*id])).collect();
    scores.fill(f32::NEG_INFINITY);
    for (id, score) in values {
        scores[id] = score;
    }
}
