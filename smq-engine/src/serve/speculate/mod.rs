//! More than one token a step: the next tokens of a sequence are guessed, and one step computes what
//! follows each of them.
//!
//! A step of one token spends most of its time on reading the weights, which serve a few more
//! tokens as well. So a [`Drafter`] guesses what comes, and the engine computes the last token and
//! the guesses as one chunk. Behind each position the request's own sampler chooses, from the same
//! logits, with the same number of the request's random stream, the same penalties and the same
//! grammar as if nothing had been guessed. As long as what was chosen is what was guessed, the next
//! position is right too; the first other token ends the step, and what was computed behind it is
//! overwritten by the next one. So a text is bit for bit what it is without guesses, whether
//! sampled or not.
//!
//! This is the acceptance rule of Leviathan et al. 2023 (arXiv 2211.17192) and Chen et al. 2023
//! (arXiv 2302.01318) for a draft that is one sequence of tokens and no distribution: such a token
//! is kept with the probability that the model gives it, and otherwise replaced by one of the
//! remaining distribution. To choose by the model and to compare does just that, with one random
//! number a token in place of two or three. A draft model that samples is accepted with probability
//! `sum_x min(p(x), q(x))`, where one that takes its most likely token `x` is with `p(x)`. It would
//! be accepted more often where texts are sampled at high temperatures, but its numbers would be
//! others than those without it, and a text would depend on what was guessed.
//!
//! Guesses cost time where they are wrong, which [`Pace`] bounds.

mod model;
mod ngram;
mod pace;

use super::request::RequestId;
use crate::error::Result;
pub use model::ModelDrafter;
pub use ngram::{NgramDrafter, Repeats};
pub(super) use pace::{Pace, cost_beside};

/// Guesses the next tokens of sequences.
pub trait Drafter: Send {
    /// Guesses for each of the sequences, in order, at most as many tokens as are asked for. What is
    /// guessed never shows in a text.
    ///
    /// # Errors
    /// Of one sequence, where guessing it failed: it goes on without a guess.
    fn draft(&mut self, asked: &[Asked<'_>]) -> Vec<Result<Vec<u32>>>;

    /// A sequence has ended, and its number does not come again.
    fn forget(&mut self, id: RequestId);

    /// What a guessed token costs, as a part of a step of one token.
    fn cost(&self) -> f64;
}

impl<D: Drafter + ?Sized> Drafter for Box<D> {
    fn draft(&mut self, asked: &[Asked<'_>]) -> Vec<Result<Vec<u32>>> {
        (**self).draft(asked)
    }

    fn forget(&mut self, id: RequestId) {
        (**self).forget(id);
    }

    fn cost(&self) -> f64 {
        (**self).cost()
    }
}

/// A sequence whose next tokens are to be guessed.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Which one.
    pub id: RequestId,
    /// The prompt and what came after it. Between two guesses it only grows.
    pub tokens: &'a [u32],
    /// How many are wanted, at least one.
    pub most: usize,
    /// What computing each takes, as a part of the sequence's share of a step: a guess is worth it
    /// where it is right more often than that.
    pub cost: f64,
}

/// How a scheduler guesses.
pub(super) struct Speculation {
    pub(super) drafter: Box<dyn Drafter>,
    /// Most tokens of a guess.
    pub(super) most: usize,
}
