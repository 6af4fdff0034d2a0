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

/// Next-token logits after the tokens given so far.
#[derive(Debug)]
pub struct Step<'e> {
    /// `[vocab]`.
    pub logits: &'e [f32],
    /// The sequence outgrew the original context: everything was recomputed with LongRoPE's long
    /// factors, so this step's time is not a decode step's.
    pub rope_switched: bool,
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

    /// Natural-log probability of each token but the first, given those before it, as one new
    /// sequence: `tokens.len() - 1` values.
    ///
    /// # Errors
    /// As [`Engine::extend`].
    fn log_probs(&mut self, tokens: &[u32]) -> Result<Vec<f64>>;
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

    fn log_probs(&mut self, tokens: &[u32]) -> Result<Vec<f64>> {
        self.start(tokens.len())?;
        let (hidden, _) = self.append(tokens, tokens.len())?;
        let (width, vocab) = (self.config().hidden, self.config().vocab);
        let mut out = Vec::with_capacity(tokens.len());
        // Some rows of logits at a time: a vocabulary is wide.
        for (x, targets) in hidden.chunks(width * 256).zip(tokens[1..].chunks(256)) {
            let logits = self.decoder.logits(&x[..targets.len() * width])?;
            let rows = logits.par_chunks_exact(vocab).zip(targets);
            out.par_extend(rows.map(|(row, &target)| log_softmax(row, target as usize)));
        }
        Ok(out)
    }
}

/// `ln softmax(logits)[index]`.
#[must_use]
pub fn log_softmax(logits: &[f32], index: usize) -> f64 {
    f64::from(logits[index]) - log_sum_exp(logits)
}

/// `ln sum exp(logits)`.
#[must_use]
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from((l - max).exp())).sum();
    f64::from(max) + sum.ln()
}
