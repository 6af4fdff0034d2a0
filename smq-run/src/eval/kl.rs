//! Fidelity to the unquantized model: how far next-token distributions move.
//!
//! The figures are those of llama.cpp's `llama-perplexity --kl-divergence`
//! (`tools/perplexity/README.md`: mean, median and 99th percentile of the Kullback-Leibler
//! divergence, the same top token, the ratio of perplexities with its uncertainty from the paired
//! losses). The windows are those of [`super::ppl`], scored from their second token on, where
//! llama.cpp scores the second half of each.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::metrics::{Score, mean, quantile};
use super::ppl::PplOptions;
use smq_engine::{Engine, log_sum_exp};
use smq_engine::{Error, Result};

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
    /// The largest one.
    pub max_kl: f64,
    /// Share of positions where both models' most likely token is the same.
    pub top1_agreement: Score,
    /// Of the model.
    pub perplexity: f64,
    /// Of the base.
    pub base_perplexity: f64,
    /// `perplexity / base_perplexity`; its standard error from the paired differences of the
    /// losses.
    pub perplexity_ratio: Score,
    /// Positions compared.
    pub tokens_scored: usize,
    /// Windows.
    pub windows: usize,
    /// Tokens a window.
    pub window: usize,
    /// The rules, in words.
    pub protocol: String,
}

/// A text as the base model sees it: its logits are computed once, as far as memory is set aside
/// for them.
pub(crate) struct Base<'a> {
    engine: &'a mut dyn Engine,
    options: PplOptions,
    ids: Vec<u32>,
    /// `[window, vocab]` each, of the first windows.
    kept: Vec<Vec<f32>>,
}

/// One position's comparison.
#[derive(Debug, Clone, Copy)]
struct Position {
    kl: f64,
    same_top: bool,
    nll: f64,
    base_nll: f64,
}

impl<'a> Base<'a> {
    /// A text of the tokens `ids`, of which there is at least one window.
    pub(crate) fn new(engine: &'a mut dyn Engine, ids: Vec<u32>, options: PplOptions) -> Self {
        Self {
            engine,
            options,
            ids,
            kept: Vec::new(),
        }
    }

    /// Windows of the text.
    #[must_use]
    pub(crate) fn windows(&self) -> usize {
        self.ids.len() / self.options.window
    }

    /// Compares `model` with the base; `progress` gets windows done.
    ///
    /// # Errors
    /// [`Error::Input`] if the vocabularies differ in size or a logit is not finite; as
    /// [`Engine::logit_rows`].
    pub(crate) fn compare(
        &mut self,
        model: &mut dyn Engine,
        mut progress: impl FnMut(usize),
    ) -> Result<KlReport> {
        let vocab = self.engine.config().vocab;
        if model.config().vocab != vocab {
            return Err(Error::Input(format!(
                "the model's vocabulary has {} tokens, the base's {vocab}: they are not the same model",
                model.config().vocab
            )));
        }
        let window = self.options.window;
        let mut positions: Vec<Position> = Vec::with_capacity(self.ids.len());
        for index in 0..self.windows() {
            progress(index);
            let tokens = &self.ids[index * window..(index + 1) * window];
            let fresh = match self.kept.get(index) {
                Some(_) => None,
                None => Some(logits(self.engine, tokens)?),
            };
            let mut base = &fresh.as_ref().unwrap_or_else(|| &self.kept[index])[..];
            // The last position has no next token in its window.
            let mut targets = &tokens[1..];
            model.logit_rows(tokens, window, &mut |rows| {
                let (these, rest) = base.split_at(rows.len());
                let (next, later) = targets.split_at(targets.len().min(rows.len() / vocab));
                (base, targets) = (rest, later);
                let pairs = these
                    .par_chunks_exact(vocab)
                    .zip(rows.par_chunks_exact(vocab));
                positions.par_extend(
                    pairs
                        .zip(next)
                        .map(|((base, row), target)| compare_rows(base, row, *target as usize)),
                );
                Ok(())
            })?;
            let kept_bytes = (self.kept.len() + 1) * window * vocab * size_of::<f32>();
            if let Some(fresh) = fresh.filter(|_| kept_bytes <= KEPT_BYTES) {
                self.kept.push(fresh);
            }
        }
        if !positions
            .iter()
            .all(|p| p.kl.is_finite() && p.nll.is_finite())
        {
            return Err(Error::Input(
                "the model produced a logit that is not finite: its weights are damaged".into(),
            ));
        }
        Ok(self.report(&positions))
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
            tokens_scored: positions.len(),
            windows: self.windows(),
            window: self.options.window,
            protocol: self.options.protocol(),
        }
    }
}

/// Logits after every token, `[tokens, vocab]`.
fn logits(engine: &mut dyn Engine, tokens: &[u32]) -> Result<Vec<f32>> {
    let mut rows = Vec::with_capacity(tokens.len() * engine.config().vocab);
    engine.logit_rows(tokens, tokens.len(), &mut |some| {
        rows.extend_from_slice(some);
        Ok(())
    })?;
    Ok(rows)
}

fn compare_rows(base: &[f32], row: &[f32], target: usize) -> Position {
    let (base_sum, sum) = (log_sum_exp(base), log_sum_exp(row));
    let mut kl = 0.0;
    let (mut base_top, mut top) = (0, 0);
    for (i, (&b, &r)) in base.iter().zip(row).enumerate() {
        let base_log = f64::from(b) - base_sum;
        kl += f64::from((base_log as f32).exp()) * (base_log - (f64::from(r) - sum));
        if b > base[base_top] {
            base_top = i;
        }
        if r > row[top] {
            top = i;
        }
    }
    Position {
        // Rounding can leave a little less than nothing.
        kl: if kl < 0.0 { 0.0 } else { kl },
        same_top: base_top == top,
        nll: sum - f64::from(row[target]),
        base_nll: base_sum - f64::from(base[target]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_against_another_is_the_definition() {
        // p = (1/2, 1/4, 1/4), q = (1/4, 1/4, 1/2), both with an arbitrary offset.
        let logs = |p: [f32; 3], offset: f32| p.map(|p| p.ln() + offset);
        let position = compare_rows(
            &logs([0.5, 0.25, 0.25], 3.0),
            &logs([0.25, 0.25, 0.5], -1.0),
            1,
        );
        // KL = 1/2 ln 2 + 0 - 1/4 ln 2; f32 logits of magnitude 4 carry 2.4e-7 each.
        assert!(
            (position.kl - 0.25 * 2f64.ln()).abs() < 1e-6,
            "{position:?}"
        );
        assert!((position.nll - 4f64.ln()).abs() < 1e-6);
        assert!(!position.same_top);
        let same = compare_rows(&[1.0, 2.0], &[3.0, 4.0], 0);
        assert!(same.kl < 1e-7 && same.same_top, "{same:?}");
    }
}
