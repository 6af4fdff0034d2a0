//! Synthetic full-size checkpoints: the tensors, shapes, sharding and side files of a model given
//! by its Hugging Face `config.json`, with made-up weights.
//!
//! **The values are synthetic.** Conversion speed, file sizes, memory, decode speed and energy
//! carry over to the real model, because they depend on shapes and formats alone. Quality does not:
//! perplexity, generated text and quantization errors of such a checkpoint say nothing about the
//! trained model's.
//!
//! The weights have the marginal statistics that matter to a quantizer: a per-tensor scale of about
//! `1/sqrt(fan_in)`, lognormal spread over rows and input channels, Student-t tails, and a few
//! outlier channels shared by all tensors that touch the residual stream. Activations stay finite
//! and of order one to a few tens.
//!
//! Each value is a function of the seed, the tensor's name and the element's index, computed with
//! IEEE basic operations only, so that the bytes are the same at any thread count and on any
//! machine.

mod config;
mod error;
mod random;
mod role;
mod shards;
mod side_files;
#[cfg(test)]
mod tests;
mod weights;

use std::path::PathBuf;
use std::time::{Duration, Instant};

pub use error::SynthError;

use config::SynthConfig;
use shards::ShardPlan;
use weights::Generator;

use crate::directory::{DEFAULT_SHARD_BYTES, Staging};

/// What to generate, and where.
#[derive(Debug, Clone)]
pub struct SynthOptions {
    /// The Hugging Face `config.json` that gives architecture and sizes.
    pub config: PathBuf,
    /// Directory whose tokenizer files (and `generation_config.json`) are copied along.
    pub tokenizer: Option<PathBuf>,
    /// Seed of all weights.
    pub seed: u64,
    /// Largest shard, in bytes of tensor data. One tensor over it gets a shard of its own.
    pub shard_bytes: u64,
    /// Layers to generate instead of the config's `num_hidden_layers`; the written config says so
    /// too.
    pub layers: Option<u64>,
    /// Write into a directory that is not empty, replacing the checkpoint in it.
    pub force: bool,
    /// The directory to create and write into.
    pub out_dir: PathBuf,
}

impl SynthOptions {
    /// Options with seed 0, [`DEFAULT_SHARD_BYTES`], all layers, no tokenizer and no overwriting.
    pub fn new(config: impl Into<PathBuf>, out_dir: impl Into<PathBuf>) -> Self {
        Self {
            config: config.into(),
            tokenizer: None,
            seed: 0,
            shard_bytes: DEFAULT_SHARD_BYTES,
            layers: None,
            force: false,
            out_dir: out_dir.into(),
        }
    }
}

/// What was written, and how long it took.
#[derive(Debug, Clone)]
pub struct SynthSummary {
    /// The `architectures` entry that was followed, such as `Phi3ForCausalLM`.
    pub architecture: &'static str,
    /// How many tensors the shards hold.
    pub tensors: usize,
    /// Number of weights in all tensors.
    pub parameters: u64,
    /// Bytes of tensor data, headers left out: `metadata.total_size` of the index.
    pub total_size_bytes: u64,
    /// The safetensors files, in order.
    pub shards: Vec<PathBuf>,
    /// All other files: the index, config and tokenizer.
    pub side_files: Vec<PathBuf>,
    /// Time for generating and writing the tensors, without [`SynthSummary::sync_time`].
    pub write_time: Duration,
    /// Time spent in fsync of the shards.
    pub sync_time: Duration,
}

/// Writes a synthetic checkpoint directory.
///
/// `progress` is called with (bytes of tensor data written, bytes in all), first with zero. Work
/// runs on the current rayon pool; about 32 MiB of buffers are live. Files appear under their names
/// only when all of them are complete and synced; after an error, nothing that this call wrote is
/// left.
///
/// # Errors
/// Every [`SynthError`]: an unusable config, an output directory that may not be written, an I/O
/// error, a full disk.
pub fn synth(
    options: &SynthOptions,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<SynthSummary, SynthError> {
    let config = SynthConfig::read(&options.config, options.layers)?;
    let plan = ShardPlan::new(&config.tensors, options.shard_bytes)?;
    let sources = [Some(options.config.as_path()), options.tokenizer.as_deref()];
    let staging = Staging::open(&options.out_dir, options.force, &sources)?;

    let side_files = side_files::write(&staging, options, &config, &plan)?;

    let generator = Generator::new(options.seed, config.architecture.norm_weight);
    let start = Instant::now();
    let mut sync_time = Duration::ZERO;
    let mut done_bytes = 0;
    progress(0, plan.total_size_bytes);
    for shard in &plan.shards {
        sync_time += shard.write(&staging, &generator, &mut |bytes| {
            done_bytes += bytes;
            progress(done_bytes, plan.total_size_bytes);
        })?;
    }
    let write_time = start.elapsed().saturating_sub(sync_time);

    let shards = plan.shards.iter().map(|shard| shard.file_name.clone());
    let paths = |names: &[String]| names.iter().map(|n| options.out_dir.join(n)).collect();
    let shards: Vec<String> = shards.collect();
    staging.commit(&shards, &side_files)?;
    Ok(SynthSummary {
        architecture: config.architecture.name,
        tensors: config.tensors.len(),
        parameters: plan.total_size_bytes / 2,
        total_size_bytes: plan.total_size_bytes,
        shards: paths(&shards),
        side_files: paths(&side_files),
        write_time,
        sync_time,
    })
}
