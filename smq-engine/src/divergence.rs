//! How far a model's predictions on a text are from those of another: the windows of a text, and
//! the comparison of every position.

use rayon::prelude::*;
use smq_model::Tokenizer;

use crate::engine::{Engine, log_sum_exp};
use crate::error::{Error, Result};

/// The tokens of `text` that are cut into windows of `window`, which is at least 2: without special
/// tokens, and only the first `max_tokens`. There is at least one window of them.
///
/// # Errors
/// [`Error::Input`] if the text is shorter than one window, or a window does not fit a model of
/// `positions`.
pub fn window_tokens(
    tokenizer: &Tokenizer,
    text: &str,
    window: usize,
    max_tokens: Option<usize>,
    positions: usize,
) -> Result<Vec<u32>> {
    if window < 2 || window > positions {
        return Err(Error::Input(format!(
            "window is {window} tokens, expected 2 to the model's context of {positions}"
        )));
    }
    let mut ids = tokenizer.encode(text, false)?;
    ids.truncate(max_tokens.unwrap_or(usize::MAX));
    if ids.len() < window {
        let n = ids.len();
        return Err(Error::Input(format!(
            "the text has {n} tokens, fewer than one window of {window}"
        )));
    }
    Ok(ids)
}

/// One position's comparison, in nats.
#[derive(Debug, Clone, Copy)]
pub struct Position {
    /// `sum p_base (ln p_base - ln p)` over the vocabulary.
    pub kl: f64,
    /// Whether both models' most likely token is the same.
    pub same_top: bool,
    /// The model's negative log-likelihood of the token that follows.
    pub nll: f64,
    /// The base's.
    pub base_nll: f64,
}

/// A text as the base model sees it: its logits are computed once, as far as memory is set aside
/// for them.
pub struct Base<'a> {
    engine: &'a mut dyn Engine,
    window: usize,
    ids: Vec<u32>,
    kept_bytes: usize,
    /// `[window, vocab]` each, of the first windows.
    kept: Vec<Vec<f32>>,
}

impl<'a> Base<'a> {
    /// A text of the tokens `ids`, of which there is at least one window. Logits of up to
    /// `kept_bytes` are kept from one comparison to the next.
    pub fn new(
        engine: &'a mut dyn Engine,
        ids: Vec<u32>,
        window: usize,
        kept_bytes: usize,
    ) -> Self {
        Self {
            engine,
            window,
            ids,
            kept_bytes,
            kept: Vec::new(),
        }
    }

    /// Windows of the text.
    #[must_use]
    pub fn windows(&self) -> usize {
        self.ids.len() / self.window
    }

    /// Compares `model` with the base, at every position that has a next token in its window;
    /// `progress` gets windows done, and returns whether to go on.
    ///
    /// Returns `None` where it does not.
    ///
    /// # Errors
    /// [`Error::Input`] if the vocabularies differ in size or a logit is not finite; as
    /// [`Engine::logit_rows`].
    pub fn compare(
        &mut self,
        model: &mut dyn Engine,
        mut progress: impl FnMut(usize) -> bool,
    ) -> Result<Option<Vec<Position>>> {
        let vocab = self.engine.config().vocab;
        if model.config().vocab != vocab {
            return Err(Error::Input(format!(
                "the model's vocabulary has {} tokens, the base's {vocab}: they are not the same model",
                model.config().vocab
            )));
        }
        let window = self.window;
        let mut positions: Vec<Position> = Vec::with_capacity(self.ids.len());
        for index in 0..self.windows() {
            if !progress(index) {
                return Ok(None);
            }
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
            if let Some(fresh) = fresh.filter(|_| kept_bytes <= self.kept_bytes) {
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
        Ok(Some(positions))
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

/// Arithmetic mean, and its standard error: the sample deviation over the root of their number,
/// where there are two values or more. The mean is NaN of nothing.
#[must_use]
pub fn mean_and_error(values: &[f64]) -> (f64, Option<f64>) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>();
    let deviation = (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt());
    (mean, deviation.map(|d| d / n.sqrt()))
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
