//! What runs a model: one interface for every device.

use std::ops::ControlFlow;

use crate::error::{Error, Result};
use crate::kv::KvCacheReport;
use crate::report::{GpuInfo, LoadReport};
use crate::sample::Sampler;
use smq_model::ModelConfig;

/// Next-token logits after the tokens given so far.
#[derive(Debug)]
pub struct Step<'e> {
    /// `[vocab]`.
    pub logits: &'e [f32],
    /// The sequence outgrew the original context: everything was recomputed with LongRoPE's long
    /// factors, so this step's time is not a decode step's.
    pub rope_switched: bool,
}

/// How likely a given token was.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenScore {
    /// Natural logarithm of its probability.
    pub log_prob: f64,
    /// Whether it is the most likely token, the first among equals.
    pub is_top: bool,
}

/// A context, and what may follow it.
#[derive(Debug, Clone, Copy)]
pub struct Continuations<'a> {
    /// At least one token.
    pub context: &'a [u32],
    /// Any number of them, of any length.
    pub continuations: &'a [Vec<u32>],
}

/// A model on a device, with one sequence.
pub trait Engine: Send {
    /// The model's shape.
    fn config(&self) -> &ModelConfig;

    /// The device's short name, `cpu` or `cuda`.
    fn device(&self) -> &'static str;

    /// Weight bytes read for each decoded token.
    fn bytes_per_token(&self) -> usize;

    /// The room for the sequence's keys and values.
    fn kv_cache(&self) -> KvCacheReport;

    /// The GPU it runs on.
    fn gpu(&self) -> Option<&GpuInfo> {
        None
    }

    /// What copying the weights to the GPU took.
    fn load_report(&self) -> Option<&LoadReport> {
        None
    }

    /// Forgets the sequence and makes room for `capacity` tokens.
    ///
    /// # Errors
    /// If the memory is not there.
    fn start(&mut self, capacity: usize) -> Result<()>;

    /// Appends tokens (a prompt, or the one just sampled).
    ///
    /// # Errors
    /// [`Error::Input`] if none are given, if one is outside the vocabulary, or if the sequence
    /// outgrows the model's longest context.
    fn extend(&mut self, tokens: &[u32]) -> Result<Step<'_>>;

    /// Continues the sequence by `prompt` and up to `limit` most likely tokens, each passed to
    /// `on_token` as soon as it is known, with whether LongRoPE's factors switched for it. The
    /// sequence is undefined afterwards.
    ///
    /// # Errors
    /// As [`Engine::extend`]; [`Error::Input`] if a logit is not finite; whatever `on_token`
    /// returns.
    fn greedy(
        &mut self,
        prompt: &[u32],
        limit: usize,
        on_token: &mut dyn FnMut(u32, bool) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        sampled(self, &mut Sampler::greedy(), prompt, limit, on_token)
    }

    /// Scores each token but the first, given those before it, as one new sequence:
    /// `tokens.len() - 1` values.
    ///
    /// # Errors
    /// As [`Engine::extend`].
    fn scores(&mut self, tokens: &[u32]) -> Result<Vec<TokenScore>>;

    /// The natural-log probabilities of [`Engine::scores`].
    ///
    /// # Errors
    /// As [`Engine::scores`].
    fn log_probs(&mut self, tokens: &[u32]) -> Result<Vec<f64>> {
        let scores = self.scores(tokens)?;
        Ok(scores.into_iter().map(|s| s.log_prob).collect())
    }

    /// Scores the tokens of each continuation, given `context` and the continuation's tokens before
    /// them: one list a continuation. The sequence is undefined afterwards.
    ///
    /// The context is computed once, and a continuation's last token is not fed: it needs no place
    /// in the model's context.
    ///
    /// # Errors
    /// As [`Engine::extend`]; [`Error::Input`] if the context is empty.
    fn continuation_scores(
        &mut self,
        context: &[u32],
        continuations: &[Vec<u32>],
    ) -> Result<Vec<Vec<TokenScore>>>;

    /// [`continuation_scores`](Engine::continuation_scores) of every item. An engine that computes
    /// several sequences at once overrides it, and [`Engine::pass_tokens`].
    ///
    /// # Errors
    /// As [`Engine::continuation_scores`].
    fn batch_scores(&mut self, items: &[Continuations<'_>]) -> Result<Vec<Vec<Vec<TokenScore>>>> {
        let scores =
            |item: &Continuations<'_>| self.continuation_scores(item.context, item.continuations);
        items.iter().map(scores).collect()
    }

    /// Tokens of several items that [`Engine::batch_scores`] is best given together.
    fn pass_tokens(&self) -> usize {
        1
    }

    /// Passes the `[vocab]` logits after each of the last `keep` tokens of one new sequence to
    /// `on_rows`, in order, one or more rows at a time.
    ///
    /// # Errors
    /// As [`Engine::extend`]; [`Error::Input`] if `keep` is not 1 to `tokens.len()`; whatever
    /// `on_rows` returns.
    fn logit_rows(
        &mut self,
        tokens: &[u32],
        keep: usize,
        on_rows: &mut dyn FnMut(&[f32]) -> Result<()>,
    ) -> Result<()>;
}

/// Refuses tokens that are not in the vocabulary.
pub(crate) fn check_ids<'a>(
    config: &ModelConfig,
    tokens: impl IntoIterator<Item = &'a u32>,
) -> Result<()> {
    let vocab = config.vocab;
    match tokens.into_iter().find(|id| **id as usize >= vocab) {
        None => Ok(()),
        Some(id) => Err(Error::Input(format!(
            "token id {id} is outside the model's vocabulary of {vocab}"
        ))),
    }
}

/// Refuses a sequence that is longer than the model's context.
pub(crate) fn check_len(config: &ModelConfig, len: usize) -> Result<()> {
    let limit = config.max_positions;
    match len > limit {
        false => Ok(()),
        true => Err(Error::Input(format!(
            "{len} tokens exceed the model's longest context of {limit}"
        ))),
    }
}

pub(crate) fn check_keep(tokens: usize, keep: usize) -> Result<()> {
    if keep == 0 || keep > tokens {
        return Err(Error::Input(format!(
            "logits after {keep} tokens were asked for, expected 1 to the sequence's {tokens}"
        )));
    }
    Ok(())
}

/// As [`Engine::greedy`], with tokens chosen by `sampler` on the host.
///
/// # Errors
/// As [`Engine::greedy`].
pub fn sampled<E: Engine + ?Sized>(
    engine: &mut E,
    sampler: &mut Sampler,
    prompt: &[u32],
    limit: usize,
    on_token: &mut dyn FnMut(u32, bool) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let mut input = prompt;
    let mut token;
    for _ in 0..limit {
        let step = engine.extend(input)?;
        let rope_switched = step.rope_switched;
        token = [sampler.sample(step.logits)?];
        if on_token(token[0], rope_switched)?.is_break() {
            break;
        }
        input = &token;
    }
    Ok(())
}

/// `ln sum exp(logits)`.
#[must_use]
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from((l - max).exp())).sum();
    f64::from(max) + sum.ln()
}
