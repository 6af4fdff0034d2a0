//! Timed generation on synthetic prompts, over the same path as `generate`.

pub(crate) mod guesses;
pub(crate) mod sequences;

use std::time::Duration;

use serde::Serialize;

use crate::measure::{Machine, Memory};
use smq_engine::Engine;
use smq_engine::GpuInfo;
use smq_engine::KvCacheReport;
use smq_engine::LoadReport;
use smq_engine::Summary;
use smq_engine::generate::{GenerateOptions, Timing, generate};
use smq_engine::{Error, Result};
use smq_model::Source;

/// Most warm-up runs, and most repeats: each one's figures are kept.
const MAX_RUNS: usize = 1_000_000;

/// What to time, and how often.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct BenchOptions {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated after it; end-of-sequence tokens do not stop them.
    pub output_tokens: usize,
    /// Runs that are not counted.
    pub warmup: usize,
    /// Runs that are timed.
    pub repeats: usize,
    /// Start of the generator of the prompt's ids.
    pub seed: u64,
}

impl Default for BenchOptions {
    fn default() -> Self {
        Self {
            prompt_tokens: 128,
            output_tokens: 64,
            warmup: 1,
            repeats: 3,
            seed: 42,
        }
    }
}

impl BenchOptions {
    /// Refuses what cannot be timed with a longest context of `limit` tokens.
    ///
    /// # Errors
    /// [`Error::Input`] if they ask for nothing, for more than the context, or for too many runs.
    pub(crate) fn check(&self, limit: usize) -> Result<()> {
        let Self {
            prompt_tokens,
            output_tokens,
            warmup,
            repeats,
            ..
        } = *self;
        if prompt_tokens == 0 || output_tokens == 0 || repeats == 0 {
            return Err(Error::Input(
                "prompt tokens, output tokens and repeats must be at least 1".into(),
            ));
        }
        if prompt_tokens.saturating_add(output_tokens) > limit {
            return Err(Error::Input(format!(
                "{prompt_tokens} prompt and {output_tokens} output tokens exceed the model's \
                 longest context of {limit}"
            )));
        }
        if warmup.max(repeats) > MAX_RUNS {
            return Err(Error::Input(format!(
                "{warmup} warm-up runs and {repeats} repeats: at most {MAX_RUNS} of each can be \
                 timed"
            )));
        }
        Ok(())
    }
}

/// A model as it was timed.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ModelInfo {
    /// The path as it was given.
    pub path: String,
    /// Size of the file, or of all shards, bytes.
    pub file_bytes: u64,
    /// Weight bytes read for each decoded token.
    pub bytes_per_token: usize,
    /// Schemes of its tensors and how many have each.
    pub schemes: String,
}

/// What one timed run took.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct BenchRun {
    /// Prompt submitted to first token, milliseconds.
    pub ttft_ms: f64,
    /// Each token after the first, milliseconds, LongRoPE's switch left out.
    pub token_ms: Vec<f64>,
    /// The token at which LongRoPE's factors switched, milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope_switch_ms: Option<f64>,
    /// Output tokens over the whole run's time.
    pub output_tokens_per_s: f64,
    /// Prompt and output tokens over the whole run's time.
    pub total_tokens_per_s: f64,
}

/// Figures over all repeats.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct BenchReport {
    /// Version of this program.
    pub version: &'static str,
    /// Which model was timed, and how large it is.
    pub model: ModelInfo,
    /// What it ran on: `cpu` or `cuda`.
    pub device: &'static str,
    /// The machine that it ran on.
    pub machine: Machine,
    /// The GPU, where that ran the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuInfo>,
    /// What copying the weights to it took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upload: Option<LoadReport>,
    /// Room for keys and values.
    pub kv_cache: KvCacheReport,
    /// What was timed, and how often.
    pub options: BenchOptions,
    /// How prompts are made.
    pub prompt: &'static str,
    /// Opening the file and building the model, milliseconds: on the CPU pages are read as they are
    /// first used, for a GPU all weights are copied and kernels compiled or found.
    pub load_ms: f64,
    /// Time to first token over repeats, milliseconds.
    pub ttft_ms: Summary,
    /// Time per output token after the first, over all tokens of all repeats, milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tpot_ms: Option<Summary>,
    /// 1000 / mean TPOT.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decode_tokens_per_s: Option<f64>,
    /// Weight bytes over mean TPOT, 10^9 bytes a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decode_gb_per_s: Option<f64>,
    /// Output tokens over the whole time, as the mean over repeats.
    pub output_tokens_per_s: f64,
    /// Prompt and output tokens over the whole time, as the mean over repeats.
    pub total_tokens_per_s: f64,
    /// Memory after the last run.
    #[serde(flatten)]
    pub memory: Memory,
    /// Every timed run by itself.
    pub runs: Vec<BenchRun>,
}

/// Times `engine`, which took `load` to load from `source`.
///
/// # Errors
/// [`Error::Input`] if the options ask for nothing, or for more than the model's context.
pub(crate) fn bench(
    engine: &mut dyn Engine,
    source: &Source,
    load: Duration,
    options: &BenchOptions,
) -> Result<BenchReport> {
    let BenchOptions {
        prompt_tokens,
        output_tokens,
        warmup,
        repeats,
        seed,
    } = *options;
    options.check(engine.config().max_positions)?;
    let prompt = synthetic_prompt(prompt_tokens, engine.config().vocab, seed);
    let mut runs = Vec::with_capacity(repeats);
    for i in 0..warmup + repeats {
        let timing = run_once(engine, &prompt, output_tokens)?;
        if i >= warmup {
            runs.push(BenchRun::new(&timing, options));
        }
    }
    let mean = |f: fn(&BenchRun) -> f64| runs.iter().map(f).sum::<f64>() / repeats as f64;
    let ttfts: Vec<f64> = runs.iter().map(|r| r.ttft_ms).collect();
    let tokens: Vec<f64> = runs
        .iter()
        .flat_map(|r| r.token_ms.iter().copied())
        .collect();
    let ttft_ms = Summary::of(&ttfts).ok_or_else(|| Error::Input("nothing was timed".into()))?;
    let tpot_ms = Summary::of(&tokens);
    Ok(BenchReport {
        version: env!("CARGO_PKG_VERSION"),
        model: ModelInfo {
            path: source.path().display().to_string(),
            file_bytes: source.file_bytes(),
            bytes_per_token: engine.bytes_per_token(),
            schemes: source.schemes(),
        },
        device: engine.device(),
        machine: Machine::this(),
        gpu: engine.gpu().cloned(),
        upload: engine.load_report().copied(),
        kv_cache: engine.kv_cache(),
        options: *options,
        prompt: "pseudo-random token ids, the same in every run; greedy decoding, end-of-sequence \
                 ignored",
        load_ms: ms(load),
        ttft_ms,
        tpot_ms,
        decode_tokens_per_s: tpot_ms.map(|t| 1000.0 / t.mean),
        decode_gb_per_s: tpot_ms.map(|t| engine.bytes_per_token() as f64 / t.mean / 1e6),
        output_tokens_per_s: mean(|r| r.output_tokens_per_s),
        total_tokens_per_s: mean(|r| r.total_tokens_per_s),
        memory: Memory::now(),
        runs,
    })
}

impl BenchRun {
    fn new(timing: &Timing, options: &BenchOptions) -> Self {
        let seconds = timing.total().as_secs_f64();
        Self {
            ttft_ms: ms(timing.ttft),
            token_ms: timing.decode.iter().copied().map(ms).collect(),
            rope_switch_ms: timing.rope_switch.map(ms),
            output_tokens_per_s: options.output_tokens as f64 / seconds,
            total_tokens_per_s: (options.prompt_tokens + options.output_tokens) as f64 / seconds,
        }
    }
}

/// Generates `output_tokens` greedily after `prompt`, end-of-sequence ignored.
///
/// # Errors
/// As [`generate`].
pub(crate) fn run_once(
    engine: &mut dyn Engine,
    prompt: &[u32],
    output_tokens: usize,
) -> Result<Timing> {
    let options = GenerateOptions {
        max_new_tokens: output_tokens,
        ..Default::default()
    };
    Ok(generate(engine, prompt, &options, |_| Ok(()))?.timing)
}

/// Ids from a linear congruential generator that starts at `seed`: speed does not depend on which.
#[must_use]
pub(crate) fn synthetic_prompt(tokens: usize, vocab: usize, seed: u64) -> Vec<u32> {
    let mut state = seed;
    let next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % vocab as u64) as u32
    };
    std::iter::repeat_with(next).take(tokens).collect()
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
