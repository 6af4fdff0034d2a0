//! What a device does for many sequences at once.

use smq_model::ModelConfig;

use crate::engine::log_sum_exp;
use crate::error::Result;
use crate::kv::{KvCacheFormat, KvCacheReport};
use crate::report::GpuInfo;
use crate::sample::{Sampler, not_finite};

/// A model on a device, with an arena of pages that hold the keys and values of many sequences.
///
/// What it computes for a chunk depends on nothing but the chunk's sequence: not on the other
/// chunks of a step, not on how the sequence was cut into chunks, and not on which pages it lies
/// in, down to the last bit.
pub trait BatchEngine: Send {
    /// The model's shape.
    fn config(&self) -> &ModelConfig;

    /// The device's short name, `cpu` or `cuda`.
    fn device(&self) -> &'static str;

    /// The GPU it runs on.
    fn gpu(&self) -> Option<&GpuInfo> {
        None
    }

    /// Tokens that a page has room for.
    fn page_tokens(&self) -> usize;

    /// Pages of the arena.
    fn pages(&self) -> usize;

    /// How the pages hold keys and values.
    fn kv_format(&self) -> KvCacheFormat;

    /// Chunks that one step takes at most.
    fn max_rows(&self) -> usize;

    /// Tokens of all chunks together that one step is best given. A step may have more where a
    /// single page or `max_rows` single tokens are more.
    fn step_tokens(&self) -> usize;

    /// How much longer a step of one token takes by each token of a draft behind it, as a part of
    /// that step: about 0 where reading the weights takes all of the time, 1 where arithmetic does.
    /// It decides how many tokens are worth guessing, and no token.
    fn draft_cost(&self) -> f64;

    /// Tokens of a draft that a step takes at most.
    fn most_drafts(&self) -> usize {
        usize::MAX
    }

    /// The room that the pages are.
    fn kv_cache(&self) -> KvCacheReport {
        let tokens = self.pages() * self.page_tokens();
        KvCacheReport::of(self.kv_format(), self.config(), tokens)
    }

    /// Computes chunks of different sequences and says for each, in order, what came of it. What
    /// is wrong with one sequence is in its own result: logits that are wanted and not finite, or
    /// settings that leave no token.
    ///
    /// # Errors
    /// If the device failed. Nothing can be said of any chunk then, nor of the arena's contents.
    fn step(&mut self, chunks: &mut [Chunk<'_>]) -> Result<Vec<Result<Computed>>>;

    /// As [`step`](Self::step), with something else for the host to do while the device computes:
    /// once or several times, or never where the step fails.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    fn step_while(
        &mut self,
        chunks: &mut [Chunk<'_>],
        meanwhile: &mut dyn FnMut(),
    ) -> Result<Vec<Result<Computed>>> {
        meanwhile();
        self.step(chunks)
    }
}

impl<T: BatchEngine + ?Sized> BatchEngine for Box<T> {
    fn config(&self) -> &ModelConfig {
        (**self).config()
    }

    fn device(&self) -> &'static str {
        (**self).device()
    }

    fn gpu(&self) -> Option<&GpuInfo> {
        (**self).gpu()
    }

    fn page_tokens(&self) -> usize {
        (**self).page_tokens()
    }

    fn pages(&self) -> usize {
        (**self).pages()
    }

    fn kv_format(&self) -> KvCacheFormat {
        (**self).kv_format()
    }

    fn max_rows(&self) -> usize {
        (**self).max_rows()
    }

    fn step_tokens(&self) -> usize {
        (**self).step_tokens()
    }

    fn draft_cost(&self) -> f64 {
        (**self).draft_cost()
    }

    fn most_drafts(&self) -> usize {
        (**self).most_drafts()
    }

    fn kv_cache(&self) -> KvCacheReport {
        (**self).kv_cache()
    }

    fn step(&mut self, chunks: &mut [Chunk<'_>]) -> Result<Vec<Result<Computed>>> {
        (**self).step(chunks)
    }

    fn step_while(
        &mut self,
        chunks: &mut [Chunk<'_>],
        meanwhile: &mut dyn FnMut(),
    ) -> Result<Vec<Result<Computed>>> {
        (**self).step_while(chunks, meanwhile)
    }
}

/// The next tokens of a sequence.
pub struct Chunk<'a> {
    /// The sequence's pages, enough for `past + tokens.len()` tokens; page `i` holds the tokens
    /// from `i * page_tokens` on. Pages before the one that token `past` lies in may belong to
    /// other sequences too and are only read.
    pub pages: &'a [u32],
    /// Tokens whose keys and values are in the pages already.
    pub past: usize,
    /// The tokens to be computed, at least one.
    pub tokens: &'a [u32],
    /// The last so many of them, not all, are a draft: guesses of what will be chosen. A token is
    /// chosen in the place of each as long as the guesses before it were right.
    pub drafts: usize,
    /// Whether LongRoPE's long factors are used, as for all of the sequence before.
    pub long: bool,
    /// What follows the tokens is to be scored.
    pub scores: Option<Scores<'a>>,
    /// The token that follows the last one is to be chosen, and with a draft those that follow.
    pub choice: Option<Choice<'a>>,
}

impl Chunk<'_> {
    /// Whether another token is to be chosen behind these: every one of them is the draft's.
    pub(crate) fn goes_on(&self, chosen: &[Chosen]) -> bool {
        let draft = &self.tokens[self.tokens.len().saturating_sub(self.drafts)..];
        match chosen.last() {
            None => true,
            Some(last) => draft.get(chosen.len() - 1) == Some(&last.token),
        }
    }
}

/// Tokens to be scored.
pub struct Scores<'a> {
    /// Token `i` is scored as what follows the chunk's token `i`; at most as many as those.
    pub targets: &'a [u32],
    /// How many of the most likely tokens are told beside each.
    pub top: usize,
}

/// How the next token is chosen.
pub struct Choice<'a> {
    /// Chooses it; a device that follows its [`Sampler::plan`] itself calls [`Sampler::accept`].
    pub sampler: &'a mut Sampler,
    /// A bit for each token that may be chosen: bit `id % 32` of word `id / 32`. `None` allows all.
    /// With a draft, as many words again for each of its tokens: what may follow it.
    pub allowed: Option<&'a [u32]>,
    /// Whether log-probabilities are wanted, and for how many of the most likely tokens beside the
    /// chosen one.
    pub top: Option<usize>,
}

impl<'a> Choice<'a> {
    /// What may be chosen behind `row` tokens of a draft, of a vocabulary of `vocab`.
    pub(crate) fn allowed_at(&self, row: usize, vocab: usize) -> Option<&'a [u32]> {
        let words = vocab.div_ceil(32);
        let of_row = self.allowed?.get(row * words..(row + 1) * words);
        Some(of_row.unwrap_or(&[]))
    }
}

/// What came of a chunk.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Computed {
    /// For each of the targets, where scores were wanted.
    pub scores: Vec<LogProbs>,
    /// The next token, where one was to be chosen. Behind a draft's tokens, as far as they were
    /// chosen too, come those that follow: at most one more than the draft has.
    pub chosen: Vec<Chosen>,
}

/// A chosen token.
#[derive(Debug, Clone, PartialEq)]
pub struct Chosen {
    /// The token.
    pub token: u32,
    /// How likely it was, where that was wanted.
    pub log_probs: Option<LogProbs>,
}

/// Natural logarithms of probabilities, of the model's logits as they are: before penalties,
/// temperature, grammar and whatever else decides which token is chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct LogProbs {
    /// The token's.
    pub log_prob: f32,
    /// The most likely tokens in its place and theirs, the most likely first, of equals the one
    /// with the lower id.
    pub top: Vec<(u32, f32)>,
}

impl LogProbs {
    /// Of `token` and the `top` most likely ones, by `[vocab]` logits.
    ///
    /// # Errors
    /// [`Error::Input`](crate::Error::Input) if they are not finite.
    pub fn of(logits: &[f32], token: u32, top: usize) -> Result<Self> {
        let log_sum = log_sum_exp(logits);
        let token = logits.get(token as usize);
        let (Some(logit), true) = (token, log_sum.is_finite()) else {
            return Err(not_finite());
        };
        let log_prob = |logit: f32| (f64::from(logit) - log_sum) as f32;
        let mut ids: Vec<u32> = match top {
            0 => Vec::new(),
            _ => (0..logits.len() as u32).collect(),
        };
        let order = |a: &u32, b: &u32| {
            let by_logit = logits[*b as usize].total_cmp(&logits[*a as usize]);
            by_logit.then(a.cmp(b))
        };
        if ids.len() > top {
            ids.select_nth_unstable_by(top, order);
            ids.truncate(top);
        }
        ids.sort_unstable_by(order);
        let top = ids.into_iter();
        Ok(Self {
            log_prob: log_prob(*logit),
            top: top.map(|id| (id, log_prob(logits[id as usize]))).collect(),
        })
    }
}

/// Chooses by the logits behind `row` tokens of a draft, on the host.
pub(crate) fn choose(choice: &mut Choice<'_>, row: usize, logits: &[f32]) -> Result<Chosen> {
    let allowed = choice.allowed_at(row, logits.len());
    let token = choice.sampler.sample_allowed(logits, allowed)?;
    let log_probs = choice.top.map(|top| LogProbs::of(logits, token, top));
    Ok(Chosen {
        token,
        log_probs: log_probs.transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_likely_tokens_come_in_order_and_equals_by_id() {
        let logits = [1.0, 3.0, 2.0, 3.0, -1.0];
        let sum: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
        let of = |token, top| LogProbs::of(&logits, token, top).unwrap();
        let near = |a: f32, logit: f64| (f64::from(a) - (logit - sum.ln())).abs() < 1e-6;
        let probs = of(4, 3);
        assert!(near(probs.log_prob, -1.0), "{probs:?}");
        let ids: Vec<u32> = probs.top.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, [1, 3, 2]);
        assert!(near(probs.top[2].1, 2.0), "{probs:?}");
        assert!(of(0, 0).top.is_empty());
        assert_eq!(of(0, 9).top.len(), 5);
        assert!(LogProbs::of(&[0.0, f32::NAN], 0, 1).is_err());
        assert!(LogProbs::of(&[0.0, f32::INFINITY], 0, 1).is_err());
    }
}
