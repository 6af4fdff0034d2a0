//! `smq-convert synth`, which makes a checkpoint of any size up.

use std::path::PathBuf;

use clap::Args;
use indicatif::DecimalBytes;

use super::{after_work, progress_bar, show};
use crate::number::count;
use crate::{DEFAULT_SHARD_BYTES, SynthOptions, synth};

#[derive(Args)]
pub(super) struct SynthArgs {
    /// config.json that gives architecture and sizes
    #[arg(long, value_name = "CONFIG")]
    like: PathBuf,
    /// The directory to write
    #[arg(value_name = "OUT_DIR")]
    out_dir: PathBuf,
    /// Directory whose tokenizer files are copied
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
    /// The weights are a function of this
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Layers, in place of the config's
    #[arg(long)]
    layers: Option<u64>,
    /// Largest size of a shard
    #[arg(long, value_name = "BYTES", default_value_t = DEFAULT_SHARD_BYTES)]
    shard_bytes: u64,
    /// Write into a directory that is not empty
    #[arg(long)]
    force: bool,
}

/// Writes a checkpoint.
///
/// # Errors
/// What the user should read.
pub(super) fn run(args: SynthArgs) -> anyhow::Result<()> {
    let options = SynthOptions {
        tokenizer: args.tokenizer,
        seed: args.seed,
        shard_bytes: args.shard_bytes,
        layers: args.layers,
        force: args.force,
        ..SynthOptions::new(args.like, args.out_dir.clone())
    };
    let bar = progress_bar(0, "generating");
    let summary = synth(&options, &|done_bytes, total_bytes| {
        bar.set_length(total_bytes);
        bar.set_position(done_bytes);
    });
    bar.finish_and_clear();
    let summary = summary?;
    after_work(show(&format!(
        "{}: {}, {} tensors, {} in {} shards, {:.1} s and {:.1} s of fsync; the weights are \
         synthetic: speed, memory and energy carry over to real ones, quality does not\n",
        args.out_dir.display(),
        summary.architecture,
        count(summary.tensors),
        DecimalBytes(summary.total_size_bytes),
        count(summary.shards.len()),
        summary.write_time.as_secs_f64(),
        summary.sync_time.as_secs_f64(),
    )))
}
