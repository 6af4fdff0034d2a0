//! The CPU reference engine.

use rayon::prelude::*;
use smq_model::{ModelConfig, Source};

use crate::engine::{Engine, Step, TokenScore, check_ids, check_keep, check_len, log_sum_exp};
use crate::error::{Error, Result};
use crate::kv::{KvCacheFormat, KvCacheReport};
use crate::model::{Decoder, Precision, Sequence};

/// Rows of logits that are held at a time: a vocabulary is wide.
const LOGIT_ROWS: usize = 256;

/// The CPU reference.
#[derive(Debug)]
pub struct CpuEngine<'a> {
    decoder: Decoder<'a>,
    format: KvCacheFormat,
    sequence: Sequence,
    /// Kept for the recomputation at LongRoPE's switch.
    tokens: Vec<u32>,
    capacity: usize,
    logits: Vec<f32>,
}

impl<'a> CpuEngine<'a> {
    /// Loads a model; weights stay mapped.
    ///
    /// # Errors
    /// As [`Decoder::load`].
    pub fn load(source: &'a Source) -> Result<Self> {
        Self::load_with(source, Precision::F32)
    }

    /// As [`CpuEngine::load`], with activations of this precision.
    ///
    /// # Errors
    /// As [`Decoder::load`].
    pub fn load_with(source: &'a Source, precision: Precision) -> Result<Self> {
        let decoder = Decoder::load_with(source, precision)?;
        let sequence = Sequence::new(decoder.config(), 0, false);
        Ok(Self {
            decoder,
            format: KvCacheFormat::F32,
            sequence,
            tokens: Vec::new(),
            capacity: 0,
            logits: Vec::new(),
        })
    }

    /// The same with keys and values held in this format, from here on.
    #[must_use]
    pub fn with_cache(mut self, format: KvCacheFormat) -> Self {
        self.format = format;
        self.tokens.clear();
        self.sequence = self.new_sequence(0, false);
        self
    }

    fn new_sequence(&self, capacity: usize, long: bool) -> Sequence {
        Sequence::with_cache(self.decoder.config(), self.format, capacity, long)
    }

    /// Shortens the longest context.
    pub(crate) fn limit(&mut self, max_tokens: usize) {
        self.decoder.limit(max_tokens);
    }

    /// Appends tokens; returns the last `keep` positions after the final norm, and whether the
    /// factors switched.
    fn append(&mut self, tokens: &[u32], keep: usize) -> Result<(Vec<f32>, bool)> {
        let config = self.decoder.config();
        let len = self.tokens.len() + tokens.len();
        if tokens.is_empty() {
            return Err(Error::Input("no tokens given".into()));
        }
        check_len(config, len)?;
        // Hugging Face picks the factors by the whole sequence's length; keys rotated with the
        // others are useless then, so the cache is dropped and everything computed anew.
        let long = config.rope.is_long(len);
        let switch = long != self.sequence.is_long();
        let rope_switched = switch && !self.tokens.is_empty();
        if switch {
            self.sequence = self.new_sequence(self.capacity.max(len), long);
        }
        self.tokens.extend_from_slice(tokens);
        let pending = &self.tokens[self.sequence.len()..];
        let (decoder, sequence) = (&self.decoder, &mut self.sequence);
        // Inside the pool, so that each of a token's many products forks without a hand-over.
        let result = rayon::scope(|_| decoder.extend(sequence, pending, keep));
        if result.is_err() {
            self.start(0)?;
        }
        Ok((result?, rope_switched))
    }

    /// Scores each target after its row of `hidden`, `[targets or more, hidden]`.
    fn target_scores(&self, hidden: &[f32], targets: &[u32]) -> Result<Vec<TokenScore>> {
        let (width, vocab) = (self.config().hidden, self.config().vocab);
        check_ids(self.config(), targets)?;
        let mut out = Vec::with_capacity(targets.len());
        let blocks = hidden.chunks(width * LOGIT_ROWS);
        for (x, targets) in blocks.zip(targets.chunks(LOGIT_ROWS)) {
            let logits = self.decoder.logits(&x[..targets.len() * width]);
            let rows = logits.par_chunks_exact(vocab).zip(targets);
            out.par_extend(rows.map(|(row, &target)| score(row, target as usize)));
        }
        Ok(out)
    }
}

impl Engine for CpuEngine<'_> {
    fn config(&self) -> &ModelConfig {
        self.decoder.config()
    }

    fn device(&self) -> &'static str {
        "cpu"
    }

    fn bytes_per_token(&self) -> usize {
        self.decoder.bytes_per_token()
    }

    fn kv_cache(&self) -> KvCacheReport {
        KvCacheReport::of(self.format, self.config(), self.sequence.capacity())
    }

    fn start(&mut self, capacity: usize) -> Result<()> {
        let config = self.decoder.config();
        self.capacity = capacity.min(config.max_positions);
        self.tokens.clear();
        self.sequence = self.new_sequence(self.capacity, false);
        Ok(())
    }

    fn extend(&mut self, tokens: &[u32]) -> Result<Step<'_>> {
        let (last, rope_switched) = self.append(tokens, 1)?;
        self.logits = rayon::scope(|_| self.decoder.logits(&last));
        Ok(Step {
            logits: &self.logits,
            rope_switched,
        })
    }

    fn scores(&mut self, tokens: &[u32]) -> Result<Vec<TokenScore>> {
        self.start(tokens.len())?;
        let (hidden, _) = self.append(tokens, tokens.len())?;
        self.target_scores(&hidden, &tokens[1..])
    }

    fn continuation_scores(
        &mut self,
        context: &[u32],
        continuations: &[Vec<u32>],
    ) -> Result<Vec<Vec<TokenScore>>> {
        let Some((&last, shared)) = context.split_last() else {
            return Err(Error::Input("the context is empty".into()));
        };
        let longest = continuations.iter().map(Vec::len).max().unwrap_or(0);
        self.start(context.len() + longest)?;
        if !shared.is_empty() {
            self.append(shared, 0)?;
        }
        let mut out = Vec::with_capacity(continuations.len());
        let mut grown = self.config().grows(shared.len());
        for continuation in continuations {
            let Some((_, fed)) = continuation.split_last() else {
                out.push(Vec::new());
                continue;
            };
            // Back to the context; `append` computes it anew where the length asks for LongRoPE's
            // other factors, or for frequencies of its own.
            self.tokens.truncate(shared.len());
            let grows = self.config().grows(shared.len() + continuation.len());
            let is_stale = grows || grown;
            grown = grows;
            self.sequence
                .truncate(if is_stale { 0 } else { shared.len() });
            let fed = [&[last], fed].concat();
            let (hidden, _) = self.append(&fed, fed.len())?;
            out.push(self.target_scores(&hidden, continuation)?);
        }
        Ok(out)
    }

    fn logit_rows(
        &mut self,
        tokens: &[u32],
        keep: usize,
        on_rows: &mut dyn FnMut(&[f32]) -> Result<()>,
    ) -> Result<()> {
        check_keep(tokens.len(), keep)?;
        self.start(tokens.len())?;
        let (hidden, _) = self.append(tokens, keep)?;
        let config = self.config();
        let width = config.hidden;
        for x in hidden.chunks(width * LOGIT_ROWS) {
            on_rows(&rayon::scope(|_| self.decoder.logits(x)))?;
        }
        Ok(())
    }
}

/// Scores token `index` by the logits before it.
fn score(logits: &[f32], index: usize) -> TokenScore {
    let chosen = logits[index];
    let beats = |(i, logit): (usize, &f32)| *logit > chosen || (*logit == chosen && i < index);
    TokenScore {
        log_prob: f64::from(chosen) - log_sum_exp(logits),
        is_top: !logits.iter().enumerate().any(beats),
    }
}
