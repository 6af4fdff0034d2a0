//! The generation loop that `generate` shows and `bench` times.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::engine::{Engine, sampled};
use crate::error::{Error, Result};
use crate::sample::{Sampler, SamplingOptions};

/// What to generate.
#[derive(Debug, Clone)]
pub struct GenerateOptions<'a> {
    /// At most this many tokens.
    pub max_new_tokens: usize,
    /// Ids that end the text; they are not part of it.
    pub stop_ids: &'a [u32],
    /// How tokens are chosen.
    pub sampling: SamplingOptions,
}

/// Why generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stop {
    /// The model produced an end-of-sequence token.
    EndOfSequence,
    /// `max_new_tokens` were generated.
    MaxNewTokens,
    /// The model's longest context is full.
    ContextFull,
}

/// Tokens and when they came.
#[derive(Debug, Clone)]
pub struct Generation {
    /// New tokens, a final end-of-sequence token left out.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub stop: Stop,
    /// When tokens came.
    pub timing: Timing,
}

/// Durations of one generation, measured on the host.
#[derive(Debug, Clone, Default)]
pub struct Timing {
    /// Time to first token: prompt submitted to first token chosen.
    pub ttft: Duration,
    /// Time of each further token, LongRoPE's switch left out.
    pub decode: Vec<Duration>,
    /// Time of the token at which LongRoPE's factors switched and the cache was recomputed.
    pub rope_switch: Option<Duration>,
}

impl Timing {
    /// Mean time per output token after the first, the switch left out; `None` for one token.
    #[must_use]
    pub fn tpot(&self) -> Option<Duration> {
        let sum: Duration = self.decode.iter().sum();
        (!self.decode.is_empty()).then(|| sum / self.decode.len() as u32)
    }

    /// Everything, from the prompt to the last token.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.ttft + self.decode.iter().sum::<Duration>() + self.rope_switch.unwrap_or_default()
    }
}

/// Continues `prompt`; `on_token` sees each new token as it is chosen.
///
/// # Errors
/// [`Error::Input`] for an empty prompt or one that fills the context, and whatever `on_token`
/// returns.
pub fn generate(
    engine: &mut dyn Engine,
    prompt: &[u32],
    options: &GenerateOptions<'_>,
    mut on_token: impl FnMut(u32) -> Result<()>,
) -> Result<Generation> {
    let limit = engine.config().max_positions;
    if prompt.is_empty() {
        return Err(Error::Input("the prompt is empty".into()));
    }
    if prompt.len() >= limit {
        let n = prompt.len();
        return Err(Error::Input(format!(
            "the prompt has {n} tokens, the model's longest context is {limit}"
        )));
    }
    let mut sampler = Sampler::new(&options.sampling)?;
    let room = limit - prompt.len();
    engine.start(prompt.len() + options.max_new_tokens.min(room))?;
    let mut ids = Vec::new();
    let mut timing = Timing::default();
    // The last token needs no place of its own: nothing is computed from it.
    let most = options.max_new_tokens.min(room + 1);
    let mut stop = if most < options.max_new_tokens {
        Stop::ContextFull
    } else {
        Stop::MaxNewTokens
    };
    let mut last = Instant::now();
    let mut take = |token: u32, rope_switched: bool| {
        let now = Instant::now();
        match now - std::mem::replace(&mut last, now) {
            took if ids.is_empty() => timing.ttft = took,
            took if rope_switched => timing.rope_switch = Some(took),
            took => timing.decode.push(took),
        }
        if options.stop_ids.contains(&token) {
            stop = Stop::EndOfSequence;
            return Ok(ControlFlow::Break(()));
        }
        ids.push(token);
        on_token(token)?;
        Ok(ControlFlow::Continue(()))
    };
    if options.sampling.temperature == 0.0 {
        engine.greedy(prompt, most, &mut take)?;
    } else {
        sampled(engine, &mut sampler, prompt, most, &mut take)?;
    }
    Ok(Generation { ids, stop, timing })
}
