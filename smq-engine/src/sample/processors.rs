//! What changes logits before a token is chosen, in the order of transformers 5's
//! `_get_logits_processor`. Each is one class of its `logits_process.py`.

use std::collections::BTreeMap;

use smq_model::GenerationSettings;

use super::sequences;
use super::warpers;

/// One change of the logits; what is excluded becomes minus infinity.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Processor {
    /// Adds to the last token of sequences whose other tokens have just come.
    SequenceBias(BTreeMap<Vec<u32>, f32>),
    /// Favours the first `prompt` tokens.
    PromptPenalty { prompt: usize, penalty: f64 },
    /// Disfavours every token so far.
    RepetitionPenalty(f64),
    /// Disfavours tokens behind the first `prompt` ones, for having come and for each time.
    CountPenalty {
        prompt: usize,
        presence: f32,
        frequency: f32,
    },
    /// Excludes what would repeat this many tokens.
    NoRepeat(usize),
    /// Excludes what would repeat `size` of the first `prompt` tokens.
    NoPromptRepeat { prompt: usize, size: usize },
    /// Excludes tokens while the sequence has less than `until` tokens.
    Before { until: usize, ids: Vec<u32> },
    /// Excludes tokens when the sequence has `at` tokens, or always.
    Suppress { at: Option<usize>, ids: Vec<u32> },
    /// Excludes all other tokens when the sequence has `at` tokens.
    Force { at: usize, ids: Vec<u32> },
    /// Replaces what is not finite.
    RemoveInvalid,
    /// Makes tokens more likely once the sequence has more than `start` tokens.
    Favour {
        start: usize,
        factor: f64,
        ids: Vec<u32>,
    },
    /// Divides.
    Temperature(f64),
    /// Keeps a share of the entropy.
    TopH(f64),
    /// Keeps a number of the most likely tokens.
    TopK(usize),
    /// Keeps the most likely tokens of a total probability.
    TopP(f64),
    /// Keeps the tokens of a probability relative to the largest.
    MinP(f64),
    /// Keeps the tokens of the most expected information.
    TypicalP(f64),
    /// Keeps the tokens of a probability.
    Epsilon(f64),
    /// Keeps the tokens of a probability that falls with the entropy.
    Eta(f64),
    /// Normalizes to log probabilities.
    Normalize,
}

/// Those that `settings` ask for after a prompt of `prompt` tokens.
pub(super) fn processors(
    settings: &GenerationSettings,
    prompt: usize,
    max_new_tokens: usize,
) -> Vec<Processor> {
    let s = settings;
    let mut list = Vec::new();
    let mut put = |wanted: bool, processor: Processor| {
        if wanted {
            list.push(processor);
        }
    };
    // The last bias given to a sequence is its only one.
    let biases: BTreeMap<_, _> = s.sequence_bias.iter().cloned().collect();
    put(!biases.is_empty(), Processor::SequenceBias(biases));
    let penalty = s.encoder_repetition_penalty;
    put(penalty != 1.0, Processor::PromptPenalty { prompt, penalty });
    put(
        s.repetition_penalty != 1.0,
        Processor::RepetitionPenalty(s.repetition_penalty),
    );
    put(
        s.no_repeat_ngram_size > 0,
        Processor::NoRepeat(s.no_repeat_ngram_size),
    );
    let size = s.encoder_no_repeat_ngram_size;
    put(size > 0, Processor::NoPromptRepeat { prompt, size });
    // An end of text is not a bad word.
    let is_end = |word: &Vec<u32>| matches!(word.as_slice(), [id] if s.eos_ids.contains(id));
    let words = s.bad_words_ids.iter().filter(|word| !is_end(word));
    let words: BTreeMap<_, _> = words
        .map(|word| (word.clone(), f32::NEG_INFINITY))
        .collect();
    put(!words.is_empty(), Processor::SequenceBias(words));
    let until = s
        .min_new_tokens
        .map_or(s.min_length, |n| prompt.saturating_add(n));
    let ids = s.eos_ids.clone();
    put(
        until > prompt && !ids.is_empty(),
        Processor::Before { until, ids },
    );
    if let Some(id) = s.forced_bos_token_id {
        put(
            true,
            Processor::Force {
                at: 1,
                ids: vec![id],
            },
        );
    }
    let at = prompt.saturating_add(max_new_tokens).saturating_sub(1);
    let ids = s.forced_eos_token_id.clone();
    put(!ids.is_empty(), Processor::Force { at, ids });
    put(s.remove_invalid_values, Processor::RemoveInvalid);
    if let Some((start, factor)) = s.exponential_decay_length_penalty {
        let (start, ids) = (prompt.saturating_add(start), s.eos_ids.clone());
        put(true, Processor::Favour { start, factor, ids });
    }
    let ids = s.suppress_tokens.clone();
    put(!ids.is_empty(), Processor::Suppress { at: None, ids });
    // A forced first token is not the beginning.
    let is_forced = prompt == 1 && s.forced_bos_token_id.is_some();
    let at = Some(prompt + usize::from(is_forced));
    let ids = s.begin_suppress_tokens.clone();
    put(!ids.is_empty(), Processor::Suppress { at, ids });
    if s.do_sample {
        let s = &s.sampling;
        put(s.temperature != 1.0, Processor::Temperature(s.temperature));
        put(s.top_h.is_some(), Processor::TopH(s.top_h.unwrap_or(1.0)));
        put(
            s.top_k > 0,
            Processor::TopK(s.top_k.unsigned_abs() as usize),
        );
        put(s.top_p < 1.0, Processor::TopP(s.top_p));
        put(s.min_p.is_some(), Processor::MinP(s.min_p.unwrap_or(0.0)));
        put(s.typical_p < 1.0, Processor::TypicalP(s.typical_p));
        let is_share = |value: f64| value > 0.0 && value < 1.0;
        put(
            is_share(s.epsilon_cutoff),
            Processor::Epsilon(s.epsilon_cutoff),
        );
        put(is_share(s.eta_cutoff), Processor::Eta(s.eta_cutoff));
    }
    put(s.renormalize_logits, Processor::Normalize);
    list
}

impl Processor {
    /// Whether it looks at which tokens came, and how often.
    pub(super) fn counts_tokens(&self) -> bool {
        matches!(self, Self::RepetitionPenalty(_) | Self::CountPenalty { .. })
    }

    /// Changes the `[vocab]` logits of what follows `ids`.
    pub(super) fn apply(&self, ids: &[u32], scores: &mut [f32]) {
        match self {
            Self::SequenceBias(biases) => sequences::bias(biases, ids, scores),
            Self::PromptPenalty { prompt, penalty } => {
                sequences::penalize(&ids[..*prompt], (1.0 / penalty) as f32, scores);
            }
            Self::RepetitionPenalty(penalty) => {
                sequences::penalize(ids, *penalty as f32, scores);
            }
            Self::CountPenalty {
                prompt,
                presence,
                frequency,
            } => sequences::penalize_counts(&ids[*prompt..], *presence, *frequency, scores),
            Self::NoRepeat(size) => sequences::exclude_repeats(ids, ids, *size, scores),
            Self::NoPromptRepeat { prompt, size } => {
                sequences::exclude_repeats(&ids[..*prompt], ids, *size, scores);
            }
            Self::Before {
                until,
                ids: excluded,
            } => {
                if ids.len() < *until {
                    exclude(excluded, scores);
                }
            }
            Self::Suppress { at, ids: excluded } => {
                if at.is_none_or(|at| at == ids.len()) {
                    exclude(excluded, scores);
                }
            }
            Self::Force { at, ids: forced } => {
                if ids.len() == *at {
                    scores.fill(f32::NEG_INFINITY);
                    each(forced, scores, |score| *score = 0.0);
                }
            }
            Self::RemoveInvalid => {
                for score in scores {
                    *score = if score.is_nan() {
                        0.0
                    } else {
                        score.clamp(f32::MIN, f32::MAX)
                    };
                }
            }
            Self::Favour {
                start,
                factor,
                ids: favoured,
            } => {
                if ids.len() > *start {
                    let more = (factor.powf((ids.len() - start) as f64) - 1.0) as f32;
                    each(favoured, scores, |score| {
                        // What is excluded stays so.
                        if score.is_finite() {
                            *score += score.abs() * more;
                        }
                    });
                }
            }
            Self::Temperature(temperature) => {
                for score in scores {
                    *score /= *temperature as f32;
                }
            }
            Self::TopH(share) => warpers::top_h(*share, scores),
            Self::TopK(count) => warpers::top_k(*count, scores),
            Self::TopP(total) => warpers::top_p(*total, scores),
            Self::MinP(share) => warpers::min_p(*share, scores),
            Self::TypicalP(total) => warpers::typical_p(*total, scores),
            Self::Epsilon(least) => warpers::at_least(*least, scores),
            Self::Eta(least) => warpers::eta(*least, scores),
            Self::Normalize => warpers::normalize(scores),
        }
    }
}

/// Changes the scores of tokens, each once; ids past the vocabulary are no tokens.
fn each(ids: &[u32], scores: &mut [f32], change: impl Fn(&mut f32)) {
    for (index, id) in ids.iter().enumerate() {
        if !ids[..index].contains(id)
            && let Some(score) = scores.get_mut(*id as usize)
        {
            change(score);
        }
    }
}

/// Excludes every token whose bit is not set.
pub(super) fn exclude_others(allowed: &[u32], scores: &mut [f32]) {
    for (id, score) in scores.iter_mut().enumerate() {
        let word = allowed.get(id / 32).copied().unwrap_or(0);
        if word >> (id % 32) & 1 == 0 {
            *score = f32::NEG_INFINITY;
        }
    }
}

fn exclude(ids: &[u32], scores: &mut [f32]) {
    for id in ids {
        if let Some(score) = scores.get_mut(*id as usize) {
            *score = f32::NEG_INFINITY;
        }
    }
}
