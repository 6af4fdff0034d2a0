//! `smq-run cells`: what `smq-run matrix` starts for each repeat.

use std::path::PathBuf;

use clap::Args;

use super::{Global, Opened};
use crate::study::contract::{EnergyPlan, Flags, Warmup};
use crate::study::worker::{self, Job, JobOptions, Workload};

#[derive(Debug, Args)]
pub(super) struct CellsArgs {
    /// A .smq file or a checkpoint directory
    model: PathBuf,
    /// Prompt and output tokens of each workload
    #[arg(
        long,
        value_name = "PxO",
        value_delimiter = ',',
        required_unless_present = "energy",
        conflicts_with = "energy"
    )]
    workloads: Vec<Workload>,
    /// Measure joules a token of this workload instead
    #[arg(long, value_name = "PxO")]
    energy: Option<Workload>,
    /// Workload that is run first and discarded
    #[arg(long, value_name = "PxO", default_value = "128x32")]
    warmup: Workload,
    /// Then run each prompt length once for its first token
    #[arg(long)]
    each_prompt_length: bool,
    /// Start of the generator of prompts
    #[arg(long, value_name = "N", default_value_t = 42)]
    seed: u64,
    /// Flag what ran above this temperature
    #[arg(long, value_name = "CELSIUS", default_value_t = 75)]
    hot_above: u32,
    /// Milliseconds between power samples
    #[arg(long, value_name = "MS", default_value_t = 100)]
    sample_ms: u64,
    /// Least duration of the generations of an energy run
    #[arg(long, value_name = "S", default_value_t = 10.0)]
    decode_seconds: f64,
    /// Least duration of its prompts
    #[arg(long, value_name = "S", default_value_t = 4.0)]
    prefill_seconds: f64,
    /// Unrecorded work before each
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    settle_seconds: f64,
    /// Idling before the GPU is opened
    #[arg(long, value_name = "S", default_value_t = 2.0)]
    idle_seconds: f64,
}

pub(super) fn run(args: &CellsArgs, global: &Global) -> anyhow::Result<()> {
    let opened = Opened::new(&args.model, global)?;
    let job = match args.energy {
        None => Job::Cells(args.workloads.clone()),
        Some(workload) => Job::Energy(EnergyPlan {
            prompt_tokens: workload.prompt_tokens,
            output_tokens: workload.output_tokens,
            sample_ms: args.sample_ms,
            decode_seconds: args.decode_seconds,
            prefill_seconds: args.prefill_seconds,
            settle_seconds: args.settle_seconds,
            idle_seconds: args.idle_seconds,
        }),
    };
    let options = JobOptions {
        device: global.device(),
        warmup: Warmup {
            prompt_tokens: args.warmup.prompt_tokens,
            output_tokens: args.warmup.output_tokens,
            each_prompt_length: args.each_prompt_length,
        },
        seed: args.seed,
        flags: Flags {
            temperature_above_c: args.hot_above,
        },
    };
    let out = &mut std::io::stdout().lock();
    worker::run(&job, &options, &opened.source, || opened.load(), out)
}
