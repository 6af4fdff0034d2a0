//! Fidelity to the unquantized model: how far next-token distributions move.
//!
//! The figures are those of llama.cpp's `llama-perplexity --kl-divergence`
//! (`tools/perplexity/README.md`: mean, median and 99th percentile of the Kullback-Leibler
//! divergence, the same top token, the ratio of perplexities with its uncertainty from the paired
//! losses). The windows are those of [`super::ppl`], scored from their second token on, where
//! llama.cpp scores the second half of each.

use serde::{Deserialize, Serialize};

use super::metrics::{Score, average, mean, quantile};
use super::ppl::PplOptions;
use smq_engine::divergence::{self, Position};
use smq_engine::{Engine, Result};

/// Logits of the base model kept between comparisons, at most.
const KEPT_BYTES: usize = 2 << 30;

/// How far a model is from its base on a text. Divergences in nats.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct KlReport {
    /// Mean of `sum p_base (ln p_base - ln p)` over positions.
    pub mean_kl: Score,
    /// Half of all positions are below.
    pub median_kl: f64,
    /// 99 % of all positions are below.
    pub p99_kl: f64,
    /// The largest divergence of any position.
    pub max_kl: f64,
    /// Share of positions where both models' most likely token is the same.
    pub top1_agreement: Score,
    /// Perplexity of the model.
    pub perplexity: f64,
    /// Perplexity of the base.
    pub base_perplexity: f64,
    /// `perplexity / base_perplexity`; its standard error from the paired differences of the
    /// losses.
    pub perplexity_ratio: Score,
    /// Mean divergence of each window, which two models of one base and text are compared by.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub window_kl: Vec<f64>,
    /// Positions at which the two were compared.
    pub tokens_scored: usize,
    /// Windows that the text was divided into.
    pub windows: usize,
    /// Tokens of a window.
    pub window: usize,
    /// The rules, in words.
    pub protocol: String,
}

/// A text as the base model sees it, and how it is cut.
pub(crate) struct Base<'a> {
    base: divergence::Base<'a>,
    options: PplOptions,
}

impl<'a> Base<'a> {
    /// A text of the tokens `ids`, of which there is at least one window.
    pub(crate) fn new(engine: &'a mut dyn Engine, ids: Vec<u32>, options: PplOptions) -> Self {
        Self {
            base: divergence::Base::new(engine, ids, options.window, KEPT_BYTES),
            options,
        }
    }

    /// Windows of the text.
    #[must_use]
    pub(crate) fn windows(&self) -> usize {
        self.base.windows()
    }

    /// Compares `model` with the base; `progress` gets windows done.
    ///
    /// # Errors
    /// As [`divergence::Base::compare`].
    pub(crate) fn compare(
        &mut self,
        model: &mut dyn Engine,
        mut progress: impl FnMut(usize),
    ) -> Result<KlReport> {
        let go_on = |done| {
            progress(done);
            true
        };
        let positions = self.base.compare(model, go_on)?;
        Ok(self.report(&positions.unwrap_or_default()))
    }

    fn report(&self, positions: &[Position]) -> KlReport {
        let column = |of: fn(&Position) -> f64| positions.iter().map(of).collect::<Vec<f64>>();
        let kl = column(|p| p.kl);
        let mut sorted = kl.clone();
        sorted.sort_by(f64::total_cmp);
        let log_ratio = mean(&column(|p| p.nll - p.base_nll));
        let ratio = log_ratio.value.exp();
        KlReport {
            mean_kl: mean(&kl),
            median_kl: quantile(&sorted, 0.5),
            p99_kl: quantile(&sorted, 0.99),
            max_kl: quantile(&sorted, 1.0),
            top1_agreement: mean(&column(|p| f64::from(u8::from(p.same_top)))),
            perplexity: mean(&column(|p| p.nll)).value.exp(),
            base_perplexity: mean(&column(|p| p.base_nll)).value.exp(),
            perplexity_ratio: Score {
                value: ratio,
                // d exp(x) = exp(x) dx
                stderr: log_ratio.stderr.map(|e| ratio * e),
            },
            window_kl: kl.chunks(self.options.window - 1).map(average).collect(),
            tokens_scored: positions.len(),
            windows: self.windows(),
            window: self.options.window,
            protocol: self.options.protocol(),
        }
    }
}
