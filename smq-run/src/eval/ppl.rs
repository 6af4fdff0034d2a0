//! Perplexity over non-overlapping windows.

use serde::Serialize;

use smq_engine::Engine;
use smq_engine::divergence::window_tokens;
use smq_engine::{Error, Result};
use smq_model::Tokenizer;

/// Longest text, whole: tokens of all of it are held.
pub(crate) const MAX_TEXT_BYTES: u64 = 256 << 20;

/// How a text is cut and scored.
#[derive(Debug, Clone, Copy)]
pub struct PplOptions {
    /// Tokens of a window, each of which is a sequence of its own.
    pub window: usize,
    /// Only this many leading tokens of the text; windows that do not fit are dropped.
    pub max_tokens: Option<usize>,
}

impl Default for PplOptions {
    fn default() -> Self {
        Self {
            window: 512,
            max_tokens: None,
        }
    }
}

impl PplOptions {
    /// The text's tokens, at least one window of them, for a model of `positions`.
    ///
    /// # Errors
    /// As [`perplexity`].
    pub fn tokens(&self, tokenizer: &Tokenizer, text: &str, positions: usize) -> Result<Vec<u32>> {
        window_tokens(tokenizer, text, self.window, self.max_tokens, positions)
    }

    /// How the figure is taken, in one line.
    #[must_use]
    pub fn protocol_in_short(&self) -> String {
        format!(
            "windows of {} tokens, each scored alone but for its first token",
            self.window
        )
    }

    /// How windows are cut and scored, in words.
    #[must_use]
    pub fn protocol(&self) -> String {
        format!(
            "text tokenized as one string without special tokens; non-overlapping windows of {} \
             tokens from the start, each scored alone; the first token of a window is not scored; \
             an incomplete last window is dropped; mean over all scored tokens; f32 arithmetic",
            self.window
        )
    }
}

/// A perplexity and how it was taken.
#[derive(Debug, Clone, Serialize)]
pub struct PplReport {
    /// `exp` of the loss.
    pub perplexity: f64,
    /// Mean negative log-likelihood of a scored token, nats.
    pub loss_nats_per_token: f64,
    /// Tokens whose prediction counts.
    pub tokens_scored: usize,
    /// Tokens of the text (after `max_tokens`).
    pub tokens: usize,
    /// Windows that were scored.
    pub windows: usize,
    /// Tokens of a window.
    pub window: usize,
    /// The rules, in words.
    pub protocol: String,
    /// Mean negative log-likelihood of each window, nats.
    pub window_nll: Vec<f64>,
}

/// Scores `text`; `progress` gets windows done, windows in all, and the perplexity of those done.
///
/// # Errors
/// [`Error::Input`] if the text is shorter than one window, or a window does not fit the model.
pub fn perplexity(
    engine: &mut dyn Engine,
    tokenizer: &Tokenizer,
    text: &str,
    options: &PplOptions,
    mut progress: impl FnMut(usize, usize, Option<f64>),
) -> Result<PplReport> {
    let window = options.window;
    let ids = options.tokens(tokenizer, text, engine.config().max_positions)?;
    let windows = ids.len() / window;
    let mut window_nll = Vec::with_capacity(windows);
    progress(0, windows, None);
    for tokens in ids.chunks_exact(window) {
        let log_probs = engine.log_probs(tokens)?;
        let nll = -log_probs.iter().sum::<f64>() / log_probs.len() as f64;
        if !nll.is_finite() {
            return Err(Error::Input(
                "the model produced a logit that is not finite: its weights are damaged".into(),
            ));
        }
        window_nll.push(nll);
        let mean = window_nll.iter().sum::<f64>() / window_nll.len() as f64;
        progress(window_nll.len(), windows, Some(mean.exp()));
    }
    // Windows have equally many scored tokens, so this is the mean over tokens.
    let loss = window_nll.iter().sum::<f64>() / windows as f64;
    Ok(PplReport {
        perplexity: loss.exp(),
        loss_nats_per_token: loss,
        tokens_scored: windows * (window - 1),
        tokens: ids.len(),
        windows,
        window,
        protocol: options.protocol(),
        window_nll,
    })
}
