//! The generation loop that `generate` shows and `bench` times.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use serde::Serialize;

use smq_model::{GenerationSettings, StopStrings, Tokenizer};

use crate::engine::{Engine, sampled};
use crate::error::{Error, Result};
use crate::sample::Sampler;

/// What to generate.
#[derive(Clone, Default)]
pub struct GenerateOptions<'a> {
    /// At most this many tokens.
    pub max_new_tokens: usize,
    /// How tokens are chosen, and which end the text.
    pub settings: GenerationSettings,
    /// Finds the settings' stop strings; needed where there are any.
    pub tokenizer: Option<&'a Tokenizer>,
    /// Start of the random stream; equal seeds give equal texts.
    pub seed: u64,
}

/// Why generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stop {
    /// The model produced an end-of-sequence token.
    EndOfSequence,
    /// The text has one of the stop strings at its end.
    StopString,
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
/// [`Error::Input`] for an empty prompt or one that fills the context, [`Error::Model`] for
/// settings out of their range, and whatever `on_token` returns.
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
    let settings = &options.settings;
    let vocab = engine.config().vocab;
    let new_tokens = options.max_new_tokens;
    let mut sampler = Sampler::new(settings, prompt, new_tokens, vocab, options.seed)?;
    let mut stop_strings = match options.tokenizer {
        _ if settings.stop_strings.is_empty() => None,
        Some(tokenizer) => Some(StopStrings::new(tokenizer, &settings.stop_strings, prompt)?),
        None => {
            let message = "the generation settings have stop_strings, which need the tokenizer";
            return Err(Error::Input(message.into()));
        }
    };
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
        if settings.eos_ids.contains(&token) {
            stop = Stop::EndOfSequence;
            return Ok(ControlFlow::Break(()));
        }
        ids.push(token);
        on_token(token)?;
        if let Some(strings) = &mut stop_strings
            && strings.push(token)?
        {
            stop = Stop::StopString;
            return Ok(ControlFlow::Break(()));
        }
        Ok(ControlFlow::Continue(()))
    };
    if sampler.is_greedy() {
        engine.greedy(prompt, most, &mut take)?;
    } else {
        sampled(engine, &mut sampler, prompt, most, &mut take)?;
    }
    Ok(Generation { ids, stop, timing })
}
