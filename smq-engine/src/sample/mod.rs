//! Choosing the next token as Hugging Face's `generate` does: logits go through the processors that
//! the model's settings ask for, and the most likely token is taken or one is drawn.

mod processors;
mod sequences;
#[cfg(test)]
mod tests;
mod warpers;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use smq_model::GenerationSettings;

use crate::error::{Error, Result};
use processors::{Processor, processors};

/// Chooses tokens of one sequence.
pub struct Sampler {
    processors: Vec<Processor>,
    /// The prompt, and what was chosen after it; kept only for processors.
    ids: Vec<u32>,
    /// `None` takes the most likely token.
    random: Option<Xoshiro256PlusPlus>,
    allows_invalid: bool,
}

impl Sampler {
    /// Takes the most likely token of the logits as they are.
    #[must_use]
    pub fn greedy() -> Self {
        Self {
            processors: Vec::new(),
            ids: Vec::new(),
            random: None,
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
            random: random.then(|| Xoshiro256PlusPlus::seed_from_u64(seed)),
            allows_invalid: settings.remove_invalid_values,
        })
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
        if !self.allows_invalid && !logits.iter().all(|l| l.is_finite()) {
            return Err(Error::Input(
                "the model produced a logit that is not finite: its weights are damaged".into(),
            ));
        }
        if self.is_greedy() {
            return most_likely(logits);
        }
        let mut scores = logits.to_vec();
        for processor in &self.processors {
            processor.apply(&self.ids, &mut scores);
        }
        let id = match &mut self.random {
            None => most_likely(&scores)?,
            Some(random) => draw(&scores, random.random())?,
        };
        self.ids.push(id);
        Ok(id)
    }
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

fn nothing_left() -> Error {
    Error::Input(
        "the generation settings exclude every token, or make one infinitely likely; \
         --greedy generates without them"
            .into(),
    )
}
