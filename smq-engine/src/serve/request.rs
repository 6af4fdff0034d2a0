//! What a scheduler is asked for, and what it answers.

use std::fmt;

use serde::Serialize;
use smq_model::GenerationSettings;

use super::batch::LogProbs;
use crate::error::{Error, Result};
use crate::generate::Stop;
use crate::sample::Adjustments;

/// A prompt to be continued. Several samples of one prompt are several requests, which share the
/// prompt's pages.
pub struct Request {
    /// The prompt's tokens, at least one.
    pub prompt: Vec<u32>,
    /// At most this many tokens follow, whatever lengths the settings have; none where only the
    /// prompt is to be scored.
    pub max_new_tokens: usize,
    /// How tokens are chosen, and which end the text. Stop strings are not looked for: whoever
    /// has the text does that, and cancels.
    pub settings: GenerationSettings,
    /// What else changes the logits.
    pub adjustments: Adjustments,
    /// Start of the random stream; equal seeds give equal tokens.
    pub seed: u64,
    /// These end the text too.
    pub stop_ids: Vec<u32>,
    /// Whether the settings' end-of-sequence ids are tokens like any other.
    pub ignore_eos: bool,
    /// Whether log-probabilities of the new tokens are wanted, and for how many of the most likely
    /// tokens in the place of each.
    pub log_probs: Option<usize>,
    /// Likewise for the prompt's tokens from the second one on. All of the prompt is computed then.
    pub prompt_log_probs: Option<usize>,
    /// Restricts which tokens may come.
    pub constraint: Option<Box<dyn Constraint>>,
}

impl Request {
    /// A prompt to be continued by the most likely tokens, until there are `max_new_tokens`.
    #[must_use]
    pub fn new(prompt: Vec<u32>, max_new_tokens: usize) -> Self {
        Self {
            prompt,
            max_new_tokens,
            settings: GenerationSettings::default(),
            adjustments: Adjustments::default(),
            seed: 0,
            stop_ids: Vec::new(),
            ignore_eos: false,
            log_probs: None,
            prompt_log_probs: None,
            constraint: None,
        }
    }
}

/// What restricts the tokens of one text, a grammar for example.
pub trait Constraint: Send {
    /// Sets the bit of each token that may come next, bit `id % 32` of word `id / 32`, in a mask
    /// that is all zeros.
    ///
    /// # Errors
    /// Whatever there is to be said of the text so far; it ends the request.
    fn allowed(&mut self, mask: &mut [u32]) -> Result<()>;

    /// Takes the token that came.
    ///
    /// # Errors
    /// If it may not come; it ends the request.
    fn accept(&mut self, token: u32) -> Result<()>;

    /// Another one of the same text so far, which says what may come behind tokens that may turn
    /// out not to come. Without one, nothing is guessed for the text.
    fn fork(&self) -> Option<Box<dyn Constraint>> {
        None
    }
}

/// A request's name. Later requests have greater ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub(super) u64);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What became of a request in a step.
#[derive(Debug)]
pub enum Event {
    /// Log-probabilities of further tokens of the prompt, in order; the first ones are the second
    /// token's. All of them come before the first [`Event::Token`].
    Prompt {
        /// Whose.
        id: RequestId,
        /// One a token.
        log_probs: Vec<LogProbs>,
    },
    /// A new token that did not end the text.
    Token {
        /// Whose.
        id: RequestId,
        /// The token.
        token: u32,
        /// Where they are wanted.
        log_probs: Option<LogProbs>,
    },
    /// The text is complete. It is the request's last event.
    Finished {
        /// Whose.
        id: RequestId,
        /// Why.
        stop: Stop,
        /// The token that ended it and is no part of the text: an end-of-sequence or a stop id.
        ended_by: Option<u32>,
        /// Tokens of the prompt that the cache had already.
        cached_tokens: usize,
    },
    /// The request could not be completed. It is its last event.
    Failed {
        /// Whose.
        id: RequestId,
        /// Why.
        error: Error,
    },
}

impl Event {
    /// The request that it is about.
    #[must_use]
    pub fn id(&self) -> RequestId {
        match self {
            Self::Prompt { id, .. }
            | Self::Token { id, .. }
            | Self::Finished { id, .. }
            | Self::Failed { id, .. } => *id,
        }
    }

    /// Whether nothing follows for its request.
    #[must_use]
    pub fn is_last(&self) -> bool {
        match self {
            Self::Prompt { .. } | Self::Token { .. } => false,
            Self::Finished { .. } | Self::Failed { .. } => true,
        }
    }
}

/// How a scheduler stands, and what it did since it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Counters {
    /// Requests that have pages.
    pub running: usize,
    /// Requests that wait for pages or a place.
    pub waiting: usize,
    /// Pages that requests hold.
    pub pages_held: usize,
    /// Pages of the arena.
    pub pages: usize,
    /// Tokens of prompts that were looked for in the cache.
    pub prefix_queries: u64,
    /// Of those, tokens that were there.
    pub prefix_hits: u64,
    /// How often a request lost its pages to an older one.
    pub preemptions: u64,
    /// Tokens of prompts that were computed to their end, or found.
    pub prompt_tokens: u64,
    /// New tokens, those that ended texts among them.
    pub generated_tokens: u64,
    /// Steps that had something to compute.
    pub steps: u64,
    /// Tokens that those steps computed, guessed ones among them.
    pub computed_tokens: u64,
    /// How often tokens of a request were guessed.
    pub drafts: u64,
    /// Tokens that were guessed and computed.
    pub draft_tokens: u64,
    /// Of those, tokens that were chosen.
    pub accepted_tokens: u64,
    /// How often a guess failed, not by being wrong but by an error.
    pub draft_failures: u64,
    /// What guessing took, in nanoseconds.
    pub draft_nanos: u64,
    /// What of those steps' time the engine took, in nanoseconds.
    pub engine_nanos: u64,
}
