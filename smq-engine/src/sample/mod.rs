//! Choosing the next token as Hugging Face's `generate` does: logits go through the processors that
//! the model's settings ask for, and the most likely token is taken or one is drawn.
//!
//! A device that chooses tokens by itself asks [`Sampler::plan`] what there is to do, does it, and
//! says with [`Sampler::accept`] what came of it. Whatever a plan cannot express is done here, on
//! logits that the device hands over.

mod plan;
mod processors;
mod sequences;
#[cfg(test)]
mod tests;
mod warpers;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use smq_model::GenerationSettings;

use crate::error::{Error, Result};
use plan::Text;
pub use plan::{Came, Penalties, Plan, Selection};
use processors::{Processor, processors};

/// Chooses tokens of one sequence.
#[derive(Clone)]
pub struct Sampler {
    processors: Vec<Processor>,
    /// The prompt, and what was chosen after it; kept only for processors.
    ids: Vec<u32>,
    /// Tokens of the prompt among `ids`.
    prompt_tokens: usize,
    /// `ids` as plans have them, once one was asked for that penalizes them.
    text: Option<Text>,
    /// `None` takes the most likely token.
    random: Option<Xoshiro256PlusPlus>,
    /// The number that decides the next token, once somebody has asked for it.
    drawn: Option<f64>,
    allows_invalid: bool,
}

/// What OpenAI's requests change beside what generation_config.json can say. The default changes
/// nothing.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Adjustments {
    /// `presence_penalty`: subtracted from the logit of each token that was generated already.
    pub presence_penalty: f64,
    /// `frequency_penalty`: subtracted once for each time that a token was generated already.
    pub frequency_penalty: f64,
    /// `logit_bias`: added to tokens' logits before anything else.
    pub logit_bias: Vec<(u32, f32)>,
}

impl Adjustments {
    fn check(&self, vocab: usize) -> Result<()> {
        for (name, value) in [
            ("presence_penalty", self.presence_penalty),
            ("frequency_penalty", self.frequency_penalty),
        ] {
            if !value.is_finite() {
                return Err(Error::Input(format!(
                    "{name} is {value}, expected a number"
                )));
            }
        }
        for (id, bias) in &self.logit_bias {
            if *id as usize >= vocab {
                return Err(Error::Input(format!(
                    "logit_bias names token {id}, expected ids below the vocabulary's {vocab}"
                )));
            }
            if !bias.is_finite() {
                return Err(Error::Input(format!(
                    "logit_bias of token {id} is {bias}, expected a number"
                )));
            }
        }
        Ok(())
    }
}

impl Sampler {
    /// Takes the most likely token of the logits as they are.
    #[must_use]
    pub fn greedy() -> Self {
        Self {
            processors: Vec::new(),
            ids: Vec::new(),
            prompt_tokens: 0,
            text: None,
            random: None,
            drawn: None,
            allows_invalid: false,
        }
    }

    /// Chooses by `settings` among `vocab` tokens after `prompt`, of which at most `max_new_tokens`
    /// are to follow. Equal seeds give equal texts.
    ///
    /// # Errors
    /// As [`GenerationSettings::check`].
    pub fn new(
        settings: &GenerationSettings,
        prompt: &[u32],
        max_new_tokens: usize,
        vocab: usize,
        seed: u64,
    ) -> Result<Self> {
        settings.check(vocab)?;
        let random = settings.do_sample;
        Ok(Self {
            processors: processors(settings, prompt.len(), max_new_tokens),
            ids: prompt.to_vec(),
            prompt_tokens: prompt.len(),
            text: None,
            random: random.then(|| Xoshiro256PlusPlus::seed_from_u64(seed)),
            drawn: None,
            allows_invalid: settings.remove_invalid_values,
        })
    }

    /// Applies these too, `vocab` being the number of tokens that there are: the bias before
    /// everything else, the penalties behind the repetition penalty, as OpenAI and vLLM do. What
    /// counts as generated is what comes behind the prompt.
    ///
    /// # Errors
    /// [`Error::Input`] for a value that is not finite or a token outside the vocabulary.
    pub fn adjusted(mut self, adjustments: &Adjustments, vocab: usize) -> Result<Self> {
        adjustments.check(vocab)?;
        let (presence, frequency) = (
            adjustments.presence_penalty as f32,
            adjustments.frequency_penalty as f32,
        );
        if presence != 0.0 || frequency != 0.0 {
            let comes_before = |p: &Processor| {
                matches!(
                    p,
                    Processor::SequenceBias(_)
                        | Processor::PromptPenalty { .. }
                        | Processor::RepetitionPenalty(_)
                )
            };
            let at = self
                .processors
                .iter()
                .take_while(|p| comes_before(p))
                .count();
            let penalty = Processor::CountPenalty {
                prompt: self.prompt_tokens,
                presence,
                frequency,
            };
            self.processors.insert(at, penalty);
        }
        if !adjustments.logit_bias.is_empty() {
            let biases = adjustments.logit_bias.iter();
            let biases = biases.map(|(id, bias)| (vec![*id], *bias)).collect();
            self.processors.insert(0, Processor::SequenceBias(biases));
        }
        Ok(self)
    }

    /// Whether it is [`Sampler::greedy`], which a device may do in its own way.
    #[must_use]
    pub fn is_greedy(&self) -> bool {
        self.processors.is_empty() && self.random.is_none()
    }

    /// The next token, from `[vocab]` logits.
    ///
    /// # Errors
    /// [`Error::Input`] if the model produced NaN or infinity and the settings do not remove them,
    /// or if the settings leave no token.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32> {
        self.sample_allowed(logits, None)
    }

    /// As [`Sampler::sample`], among the tokens whose bit is set in `allowed` where it is given:
    /// bit `id % 32` of word `id / 32`.
    ///
    /// # Errors
    /// As [`Sampler::sample`].
    pub fn sample_allowed(&mut self, logits: &[f32], allowed: Option<&[u32]>) -> Result<u32> {
        if !self.allows_invalid && !logits.iter().all(|l| l.is_finite()) {
            return Err(not_finite());
        }
        if self.is_greedy() && allowed.is_none() {
            return most_likely(logits);
        }
        let mut scores = logits.to_vec();
        if let Some(allowed) = allowed {
            processors::exclude_others(allowed, &mut scores);
        }
        for processor in &self.processors {
            processor.apply(&self.ids, &mut scores);
        }
        let id = match self.number() {
            None => most_likely(&scores)?,
            Some(at) => draw(&scores, at)?,
        };
        self.accept(id);
        Ok(id)
    }

    /// Takes note of a token that was chosen by the [`plan`](Sampler::plan), which
    /// [`Sampler::sample`] does by itself. The number that decided it is used up, also where a copy
    /// of this sampler was asked for the plan.
    pub fn accept(&mut self, id: u32) {
        self.number();
        self.drawn = None;
        if !self.is_greedy() {
            self.ids.push(id);
            if let Some(text) = &mut self.text {
                text.push(id);
            }
        }
    }

    /// The number of 0 to 1 that decides the next token, the same one until a token was chosen;
    /// `None` where none is drawn.
    fn number(&mut self) -> Option<f64> {
        let random = self.random.as_mut()?;
        Some(*self.drawn.get_or_insert_with(|| random.random()))
    }
}

pub(crate) fn not_finite() -> Error {
    Error::Input("the model produced a logit that is not finite: its weights are damaged".into())
}

/// The first token of the largest logit.
fn most_likely(scores: &[f32]) -> Result<u32> {
    let mut best = None;
    for (id, score) in scores.iter().enumerate() {
        if *score > best.map_or(f32::NEG_INFINITY, |(_, largest)| largest) {
            best = Some((id, *score));
        }
    }
    best.map(|(id, _)| id as u32).ok_or_else(nothing_left)
}

/// The token at `at`, of 0 to 1, of the distribution.
fn draw(scores: &[f32], at: f64) -> Result<u32> {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |score: f32| f64::from(score - max).exp();
    let total: f64 = scores.iter().map(|score| weight(*score)).sum();
    // Not a number where every score is minus infinity, or one is infinity.
    if !total.is_finite() {
        return Err(nothing_left());
    }
    let mut rest = at * total;
    let mut last = 0;
    for (id, score) in scores.iter().enumerate() {
        let weight = weight(*score);
        if weight > 0.0 {
            last = id;
            rest -= weight;
            if rest < 0.0 {
                break;
            }
        }
    }
    Ok(last as u32)
}

pub(crate) fn nothing_left() -> Error {
    Error::Input(
        "the generation settings exclude every token, or make one infinitely likely; \
         --greedy generates without them"
            .into(),
    )
}
