//! What runs a model: one interface for every device.

use std::ops::ControlFlow;
use std::str::FromStr;

use crate::config::ModelConfig;
use crate::cuda::upload::UploadReport;
use crate::cuda::{CudaEngine, Gpu, GpuInfo};
use crate::error::{Error, Result};
use crate::model::{Decoder, Precision, Sequence};
use crate::sample::{Sampler, SamplingOptions};
use crate::source::Source;
use rayon::prelude::*;

/// Rows of logits that the CPU holds at a time: a vocabulary is wide.
const LOGIT_ROWS: usize = 256;

/// Next-token logits after the tokens given so far.
#[derive(Debug)]
pub struct Step<'e> {
    /// `[vocab]`.
    pub logits: &'e [f32],
    /// The sequence outgrew the original context: everything was recomputed with LongRoPE's long
    /// factors, so this step's time is not a decode step's.
    pub rope_switched: bool,
}

/// How likely a given token was.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenScore {
    /// Natural logarithm of its probability.
    pub log_prob: f64,
    /// Whether it is the most likely token, the first among equals.
    pub is_top: bool,
}

/// A context, and what may follow it.
#[derive(Debug, Clone, Copy)]
pub struct Continuations<'a> {
    /// At least one token.
    pub context: &'a [u32],
    /// Any number of them, of any length.
    pub continuations: &'a [Vec<u32>],
}

/// A model on a device, with one sequence.
pub trait Engine: Send {
    /// The model's shape.
    fn config(&self) -> &ModelConfig;

    /// The device's short name, `cpu` or `cuda`.
    fn device(&self) -> &'static str;

    /// Weight bytes read for each decoded token.
    fn bytes_per_token(&self) -> usize;

    /// The GPU it runs on.
    fn gpu(&self) -> Option<&GpuInfo> {
        None
    }

    /// What copying the weights to the GPU took.
    fn load_report(&self) -> Option<&UploadReport> {
        None
    }

    /// Forgets the sequence and makes room for `capacity` tokens.
    ///
    /// # Errors
    /// If the memory is not there.
    fn start(&mut self, capacity: usize) -> Result<()>;

    /// Appends tokens (a prompt, or the one just sampled).
    ///
    /// # Errors
    /// [`Error::Input`] if none are given, if one is outside the vocabulary, or if the sequence
    /// outgrows the model's longest context.
    fn extend(&mut self, tokens: &[u32]) -> Result<Step<'_>>;

    /// Continues the sequence by `prompt` and up to `limit` most likely tokens, each passed to `on_token` as soon as
    /// it is known, with whether LongRoPE's factors switched for it. The sequence is undefined afterwards.
    ///
    /// # Errors
    /// As [`Engine::extend`]; [`Error::Input`] if a logit is not finite; whatever `on_token` returns.
    fn greedy(
        &mut self,
        prompt: &[u32],
        limit: usize,
        on_token: &mut dyn FnMut(u32, bool) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let mut sampler = Sampler::new(&SamplingOptions::default())?;
        sampled(self, &mut sampler, prompt, limit, on_token)
    }

    /// Scores each token but the first, given those before it, as one new sequence: `tokens.len() - 1` values.
    ///
    /// # Errors
    /// As [`Engine::extend`].
    fn scores(&mut self, tokens: &[u32]) -> Result<Vec<TokenScore>>;

    /// The natural-log probabilities of [`Engine::scores`].
    ///
    /// # Errors
    /// As [`Engine::scores`].
    fn log_probs(&mut self, tokens: &[u32]) -> Result<Vec<f64>> {
        let scores = self.scores(tokens)?;
        Ok(scores.into_iter().map(|s| s.log_prob).collect())
    }

    /// Scores the tokens of each continuation, given `context` and the continuation's tokens before them: one list a
    /// continuation. The sequence is undefined afterwards.
    ///
    /// The context is computed once, and a continuation's last token is not fed: it needs no place in the model's context.
    ///
    /// # Errors
    /// As [`Engine::extend`]; [`Error::Input`] if the context is empty.
    fn continuation_scores(
        &mut self,
        context: &[u32],
        continuations: &[Vec<u32>],
    ) -> Result<Vec<Vec<TokenScore>>>;

    /// [`continuation_scores`](Engine::continuation_scores) of every item. An engine that computes several sequences at
    /// once overrides it, and [`Engine::pass_tokens`].
    ///
    /// # Errors
    /// As [`Engine::continuation_scores`].
    fn batch_scores(&mut self, items: &[Continuations<'_>]) -> Result<Vec<Vec<Vec<TokenScore>>>> {
        let scores =
            |item: &Continuations<'_>| self.continuation_scores(item.context, item.continuations);
        items.iter().map(scores).collect()
    }

    /// Tokens of several items that [`Engine::batch_scores`] is best given together.
    fn pass_tokens(&self) -> usize {
        1
    }

    /// Passes the `[vocab]` logits after each of the last `keep` tokens of one new sequence to `on_rows`, in order, one or
    /// more rows at a time.
    ///
    /// # Errors
    /// As [`Engine::extend`]; [`Error::Input`] if `keep` is not 1 to `tokens.len()`; whatever `on_rows` returns.
    fn logit_rows(
        &mut self,
        tokens: &[u32],
        keep: usize,
        on_rows: &mut dyn FnMut(&[f32]) -> Result<()>,
    ) -> Result<()>;
}

pub(crate) fn check_keep(tokens: usize, keep: usize) -> Result<()> {
    if keep == 0 || keep > tokens {
        return Err(Error::Input(format!(
            "logits after {keep} tokens were asked for, expected 1 to the sequence's {tokens}"
        )));
    }
    Ok(())
}

/// As [`Engine::greedy`], with tokens chosen by `sampler` on the host.
///
/// # Errors
/// As [`Engine::greedy`].
pub fn sampled<E: Engine + ?Sized>(
    engine: &mut E,
    sampler: &mut Sampler,
    prompt: &[u32],
    limit: usize,
    on_token: &mut dyn FnMut(u32, bool) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let mut input = prompt;
    let mut token;
    for _ in 0..limit {
        let step = engine.extend(input)?;
        let rope_switched = step.rope_switched;
        token = [sampler.sample(step.logits)?];
        if on_token(token[0], rope_switched)?.is_break() {
            break;
        }
        input = &token;
    }
    Ok(())
}

/// Which engine to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The fastest one there is.
    Auto,
    /// The CPU reference.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}

impl Device {
    /// As given on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(s: &str) -> std::result::Result<Self, String> {
        match s {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda),
            _ => Err("expected auto, cpu or cuda".into()),
        }
    }
}

/// Loads a model onto a device, for sequences of at most `max_tokens` positions (by default the model's longest
/// context).
///
/// # Errors
/// If the device is not there or the model does not fit together.
pub fn load(
    source: &Source,
    device: Device,
    max_tokens: Option<usize>,
) -> Result<Box<dyn Engine + '_>> {
    let gpu = match device {
        // A GPU that cannot run the kernels is none; whoever asks for it is told why.
        Device::Auto => Gpu::open(0).ok(),
        Device::Cpu => None,
        Device::Cuda => Some(Gpu::open(0)?),
    };
    if let Some(gpu) = gpu {
        return Ok(Box::new(CudaEngine::load_on(gpu, source, max_tokens)?));
    }
    let mut engine = CpuEngine::load(source)?;
    if let Some(max) = max_tokens {
        engine.limit(max);
    }
    Ok(Box::new(engine))
}

/// The CPU reference.
#[derive(Debug)]
pub struct CpuEngine<'a> {
    decoder: Decoder<'a>,
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
            sequence,
            tokens: Vec::new(),
            capacity: 0,
            logits: Vec::new(),
        })
    }

    /// Shortens the longest context.
    fn limit(&mut self, max_tokens: usize) {
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
        if len > config.max_positions {
            let limit = config.max_positions;
            return Err(Error::Input(format!(
                "{len} tokens exceed the model's longest context of {limit}"
            )));
        }
        // Hugging Face picks the factors by the whole sequence's length; keys rotated with the
        // others are useless then, so the cache is dropped and everything computed anew.
        let long = config.rope.is_long(len);
        let switch = long != self.sequence.is_long();
        let rope_switched = switch && !self.tokens.is_empty();
        if switch {
            self.sequence = Sequence::new(config, self.capacity.max(len), long);
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
        if let Some(id) = targets.iter().find(|id| **id as usize >= vocab) {
            return Err(Error::Input(format!(
                "token id {id} is outside the model's vocabulary of {vocab}"
            )));
        }
        let mut out = Vec::with_capacity(targets.len());
        let blocks = hidden.chunks(width * LOGIT_ROWS);
        for (x, targets) in blocks.zip(targets.chunks(LOGIT_ROWS)) {
            let logits = self.decoder.logits(&x[..targets.len() * width])?;
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

    fn start(&mut self, capacity: usize) -> Result<()> {
        let config = self.decoder.config();
        self.capacity = capacity.min(config.max_positions);
        self.tokens.clear();
        self.sequence = Sequence::new(config, self.capacity, false);
        Ok(())
    }

    fn extend(&mut self, tokens: &[u32]) -> Result<Step<'_>> {
        let (last, rope_switched) = self.append(tokens, 1)?;
        self.logits = rayon::scope(|_| self.decoder.logits(&last))?;
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
        for continuation in continuations {
            let Some((_, fed)) = continuation.split_last() else {
                out.push(Vec::new());
                continue;
            };
            // Back to the context; `append` computes it anew where the length asks for LongRoPE's other factors.
            self.tokens.truncate(shared.len());
            self.sequence.truncate(shared.len());
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
            on_rows(&rayon::scope(|_| self.decoder.logits(x))?)?;
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

/// `ln sum exp(logits)`.
#[must_use]
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from((l - max).exp())).sum();
    f64::from(max) + sum.ln()
}
