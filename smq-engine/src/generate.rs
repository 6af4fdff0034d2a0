//! The generation loop that `generate` shows and `bench` times.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use serde::Serialize;

use smq_model::{GenerationSettings, StopStrings, Tokenizer};

use crate::engine::{Engine, sampled};
use crate::error::{Error, Result};
use crate::sample::Sampler;
use crate::serve::{BatchEngine, Event, Request, Scheduler};

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
    on_token: impl FnMut(u32) -> Result<()>,
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
    let room = limit - prompt.len();
    engine.start(prompt.len() + options.max_new_tokens.min(room))?;
    let mut text = Text::new(prompt, options, on_token)?;
    // The last token needs no place of its own: nothing is computed from it.
    let most = options.max_new_tokens.min(room + 1);
    if most < options.max_new_tokens {
        text.stop = Stop::ContextFull;
    }
    let mut take = |token: u32, rope_switched: bool| text.take(token, rope_switched);
    if sampler.is_greedy() {
        engine.greedy(prompt, most, &mut take)?;
    } else {
        sampled(engine, &mut sampler, prompt, most, &mut take)?;
    }
    Ok(text.done())
}

/// As [`generate`], as the one request of a scheduler, which may guess tokens
/// ([`Scheduler::speculate`]). A later text that begins alike finds its pages.
///
/// # Errors
/// As [`generate`], and for a prompt that the scheduler's cache has no room for.
pub fn generate_scheduled<E: BatchEngine>(
    scheduler: &mut Scheduler<E>,
    prompt: &[u32],
    options: &GenerateOptions<'_>,
    on_token: impl FnMut(u32) -> Result<()>,
) -> Result<Generation> {
    let mut text = Text::new(prompt, options, on_token)?;
    let rope = scheduler.engine().config().rope.clone();
    let mut request = Request::new(prompt.to_vec(), options.max_new_tokens);
    request.settings = options.settings.clone();
    request.seed = options.seed;
    let id = scheduler.submit(request)?;
    while !scheduler.is_idle() {
        for event in scheduler.step() {
            let (token, stop) = match event {
                Event::Prompt { .. } => continue,
                Event::Token { token, .. } => (Some(token), None),
                Event::Finished { stop, ended_by, .. } => (ended_by, Some(stop)),
                Event::Failed { error, .. } => return Err(error),
            };
            if let Some(stop) = stop {
                text.stop = stop;
            }
            let Some(token) = token else {
                continue;
            };
            let before = prompt.len() + text.ids.len();
            let rope_switched = rope.is_long(before) && !rope.is_long(before - 1);
            let taken = text.take(token, rope_switched);
            if !matches!(taken, Ok(ControlFlow::Continue(()))) {
                // Tokens behind it may have come already.
                scheduler.cancel(id);
                return taken.map(|_| text.done());
            }
        }
    }
    Ok(text.done())
}

/// A text that is being generated.
struct Text<'o, F> {
    eos_ids: &'o [u32],
    stop_strings: Option<StopStrings<'o>>,
    on_token: F,
    ids: Vec<u32>,
    stop: Stop,
    timing: Timing,
    last: Instant,
}

impl<'o, F: FnMut(u32) -> Result<()>> Text<'o, F> {
    /// Time runs from here.
    fn new(prompt: &[u32], options: &'o GenerateOptions<'_>, on_token: F) -> Result<Self> {
        let settings = &options.settings;
        let stop_strings = match options.tokenizer {
            _ if settings.stop_strings.is_empty() => None,
            Some(tokenizer) => Some(StopStrings::new(tokenizer, &settings.stop_strings, prompt)?),
            None => {
                let message = "the generation settings have stop_strings, which need the tokenizer";
                return Err(Error::Input(message.into()));
            }
        };
        Ok(Self {
            eos_ids: &settings.eos_ids,
            stop_strings,
            on_token,
            ids: Vec::new(),
            stop: Stop::MaxNewTokens,
            timing: Timing::default(),
            last: Instant::now(),
        })
    }

    fn take(&mut self, token: u32, rope_switched: bool) -> Result<ControlFlow<()>> {
        let now = Instant::now();
        match now - std::mem::replace(&mut self.last, now) {
            took if self.ids.is_empty() => self.timing.ttft = took,
            took if rope_switched => self.timing.rope_switch = Some(took),
            took => self.timing.decode.push(took),
        }
        if self.eos_ids.contains(&token) {
            self.stop = Stop::EndOfSequence;
            return Ok(ControlFlow::Break(()));
        }
        self.ids.push(token);
        (self.on_token)(token)?;
        if let Some(strings) = &mut self.stop_strings
            && strings.push(token)?
        {
            self.stop = Stop::StopString;
            return Ok(ControlFlow::Break(()));
        }
        Ok(ControlFlow::Continue(()))
    }

    fn done(self) -> Generation {
        Generation {
            ids: self.ids,
            stop: self.stop,
            timing: self.timing,
        }
    }
}
