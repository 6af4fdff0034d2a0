//! The command line of `smq-convert`.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use anyhow::Context;
use clap::{ArgGroup, Args, CommandFactory, Parser, Subcommand};
use smq_engine::Device;
use smq_format::Family;

use super::auto::{AutoArgs, Width};
use super::export::{self, ExportArgs};
use super::preset::{self, Preset};
use super::signals::interrupts;
use super::summary::About;
use super::synth::{self, SynthArgs};
use super::task::Task;
use super::vllm::{self, Reader};
use super::{after_work, print_note, print_notes, progress_bar, show, words};
use crate::{
    CalibrationMethod, Checkpoint, Conversion, LevelChoice, MeasureOptions, Measuring, ScaleChoice,
    ScaleRule, Target, auto, convert_measured, dry_run, dry_run_auto, dry_run_auto_calibrated,
    dry_run_calibrated, saved_layers,
};

/// Quantize a safetensors checkpoint once into a .smq file
#[derive(Parser)]
#[command(
    name = "smq-convert",
    version,
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  \
                  smq-convert phi35/ phi35.smq\n  \
                  smq-convert --calibrate wiki.txt chats.jsonl -- phi35/ phi35.smq\n  \
                  smq-convert --preset list\n  \
                  smq-convert --preset study-c4 phi35/ phi35-c4.smq\n  \
                  smq-convert --scheme lut4 --mbits 3 phi35/ phi35-lut4.smq\n  \
                  smq-convert --mbits auto --budget 4.5 --calibrate wiki.txt -- phi35/ phi35-auto.smq\n  \
                  smq-convert --for vllm phi35/ phi35-int4.smq\n  \
                  smq-convert --to compressed-tensors phi35-int4.smq phi35-int4/\n  \
                  smq-convert --to gptq phi35-int4.smq phi35-gptq/\n  \
                  smq-convert --to mlx phi35-int4.smq phi35-mlx/\n  \
                  smq-convert --to safetensors phi35.smq phi35-dense/\n  \
                  smq-convert synth --like config.json synthetic/"
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    convert: ConvertArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Write a synthetic checkpoint of any size, to measure speed, memory and energy with
    Synth(SynthArgs),
}

#[derive(Args)]
#[command(group(
    ArgGroup::new("runs_the_model").args(["calibrate", "measure_kl"]).multiple(true)
))]
pub(super) struct ConvertArgs {
    /// A Hugging Face checkpoint directory, or one .safetensors file; with --to, a .smq file. Int4
    /// checkpoints (compressed-tensors pack-quantized, GPTQ, AutoRound; symmetric) keep their
    /// integers and scales
    #[arg(value_name = "CHECKPOINT")]
    pub(super) checkpoint: Option<PathBuf>,
    /// The file to write; with --to, a directory
    #[arg(value_name = "OUT.smq")]
    pub(super) out: Option<PathBuf>,
    /// Options that go together, by name; list shows them with their sizes and what they lose.
    /// Without any option that says what the weights become, it is small with --calibrate and nf4
    /// otherwise
    #[arg(long, value_name = "NAME", value_parser = preset::preset(), hide_possible_values = true,
        conflicts_with_all = ["scheme", "mbits", "scales", "group_size", "scale_rule", "levels",
                              "target"])]
    pub(super) preset: Option<Preset>,
    /// What the weights become: int4 in groups, lut4 with a code book of 16 levels for each tensor
    /// in place of equal steps, bitsandbytes' NF4 with double quantization, or FP8 E4M3 with FP8
    /// activations [default: int4, where another of these options is given]
    #[arg(long, value_parser = words::family())]
    pub(super) scheme: Option<Family>,
    /// int4, lut4: mantissa bits of the E5Mx scales, 0 to 10; -1 keeps exact f32 scales; auto
    /// (int4) chooses them for each tensor from measured errors, and what stays as it is [default:
    /// 5, or the narrowest format that holds an int4 checkpoint's scales exactly]
    #[arg(long, value_name = "N|auto", allow_negative_numbers = true)]
    pub(super) mbits: Option<Width>,
    /// int4, lut4: scale format instead of --mbits: f32, f16, or eXmY such as e5m5, e4m3, e8m0
    #[arg(long, value_name = "FORMAT", conflicts_with = "mbits")]
    pub(super) scales: Option<ScaleChoice>,
    /// int4, lut4: consecutive elements of a row that share a scale [default: 128, or an int4
    /// checkpoint's]
    #[arg(long, value_name = "ELEMS")]
    pub(super) group_size: Option<usize>,
    /// int4, lut4: how a group's scale is chosen [default: reference, of lut4 nearest; with --mbits
    /// auto the better of nearest and signed; with --calibrate weighted]
    #[arg(long, value_parser = words::any_scale_rule())]
    pub(super) scale_rule: Option<ScaleRule>,
    /// lut4: where the 16 levels come from: learned from each tensor, or NF4's [default: learned]
    #[arg(long, value_parser = words::levels())]
    pub(super) levels: Option<LevelChoice>,
    /// What to quantize: mlp, all (attention too; embeddings and lm_head never), or a regex over
    /// names [default: all, or of an int4 checkpoint what it has in int4]
    #[arg(long)]
    pub(super) target: Option<Target>,
    /// Make a file whose export this program can read (int4 or FP8), and refuse options that it
    /// cannot; without options it is int4 in groups that fit
    #[arg(long = "for", value_name = "PROGRAM", value_enum)]
    pub(super) reader: Option<Reader>,
    /// Quantize an int4 checkpoint's dequantized weights anew instead of keeping its integers
    #[arg(long)]
    pub(super) requantize: bool,
    /// Choose scales and integers by what the model does on these texts: plain UTF-8, or JSON Lines
    /// (.jsonl) with a text or chat messages a line. Mix kinds of text that resemble the use
    #[arg(long, value_name = "TEXT", num_args = 1..)]
    pub(super) calibrate: Vec<PathBuf>,
    /// Tokens to calibrate on, from all texts together
    #[arg(
        long,
        value_name = "N",
        default_value_t = 131_072,
        requires = "calibrate"
    )]
    pub(super) calibrate_tokens: usize,
    /// Tokens of a calibration window, each a sequence of its own
    #[arg(long, value_name = "N", default_value_t = 2048, requires = "calibrate")]
    pub(super) calibrate_window: usize,
    /// What calibration chooses by the texts
    #[arg(
        long,
        value_parser = words::calibration_method(),
        default_value = CalibrationMethod::Asymmetric.name(),
        requires = "calibrate"
    )]
    pub(super) calibrate_method: CalibrationMethod,
    /// Where to calibrate, and where --measure-kl runs both models: auto takes a GPU if there is
    /// one. A file calibrated on a GPU has other bytes than one calibrated on a CPU
    #[arg(
        long,
        value_name = "auto|cpu|cuda",
        default_value = "auto",
        requires = "runs_the_model"
    )]
    pub(super) device: Device,
    /// Memory that calibrating on the CPU may take, in GB (10^9 bytes); beyond it the model's
    /// hidden states are kept in a file beside OUT.smq [default: three quarters of what is
    /// available]
    #[arg(long, value_name = "GB", requires = "calibrate")]
    pub(super) calibrate_memory: Option<f64>,
    /// Go on with a calibration that was killed, from the last layer it had done
    #[arg(long, requires = "calibrate")]
    pub(super) resume: bool,
    /// Compare the finished file's model with the checkpoint's on this text (plain UTF-8, not one
    /// of --calibrate) and record the KL divergence in the file; may be given more than once
    #[arg(long, value_name = "TEXT", conflicts_with = "dry_run")]
    pub(super) measure_kl: Vec<PathBuf>,
    /// Leading tokens of each text to measure on, in windows of 512
    #[arg(
        long,
        value_name = "N",
        default_value_t = 10_240,
        requires = "measure_kl"
    )]
    pub(super) measure_kl_tokens: usize,
    /// Worker threads, at most 8 for each core; the bytes do not depend on it [default: one for
    /// each core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) threads: Option<u32>,
    /// Replace OUT.smq if it exists; with --to, the checkpoint in a directory that is not empty
    #[arg(long)]
    pub(super) force: bool,
    /// Show what would be written, without reading the weights (with --mbits auto they are read, to
    /// choose, and with --calibrate the texts go through the model once)
    #[arg(long)]
    pub(super) dry_run: bool,
    /// With --dry-run: show what becomes of each tensor
    #[arg(long, short, requires = "dry_run")]
    pub(super) verbose: bool,
    #[command(flatten)]
    pub(super) auto: AutoArgs,
    #[command(flatten)]
    pub(super) export: ExportArgs,
}

/// The command line, for man pages and completions.
#[must_use]
pub fn convert_interface() -> clap::Command {
    Cli::command()
}

/// Runs the program.
///
/// # Errors
/// What the user should read.
pub fn run() -> anyhow::Result<()> {
    let cli = Cli::parse();
    if let Some(Preset::List) = cli.convert.preset {
        if let Some(checkpoint) = &cli.convert.checkpoint {
            anyhow::bail!(
                "--preset list shows the recipes and converts nothing; leave {} out, or name one \
                 of them",
                checkpoint.display()
            );
        }
        return show(&preset::list());
    }
    match (cli.command, cli.convert.checkpoint.clone()) {
        (Some(Command::Synth(args)), _) => synth::run(args),
        (None, Some(checkpoint)) => run_convert(checkpoint, cli.convert),
        (None, None) => Ok(Cli::command().print_help()?),
    }
}

/// What to say to somebody who gave the output before the checkpoint.
fn swapped(path: &Path, out: Option<&Path>) -> Option<String> {
    let is_checkpoint = |dir: &&Path| {
        let has = |name: &str| dir.join(name).is_file();
        has("config.json") || has("model.safetensors")
    };
    let out = out.filter(is_checkpoint).filter(|_| !path.exists())?;
    Some(format!(
        "{} is a checkpoint, which comes first: smq-convert {} {}",
        out.display(),
        out.display(),
        path.display()
    ))
}

/// Refuses a file's name that says what is not written, before any work.
///
/// # Errors
/// A name that other programs would take for a file of theirs.
fn check_name(out: &Path) -> anyhow::Result<()> {
    let end = out.extension().unwrap_or_default().to_ascii_lowercase();
    let others = ["gguf", "onnx", "bin", "pt", "pth"];
    // One that is there may be of the checkpoint, which is the better reason.
    let is_other = others.iter().any(|other| end == *other)
        || (end == "safetensors" && out.symlink_metadata().is_err());
    anyhow::ensure!(
        !is_other,
        "{} is named as a .{} file, and a .smq file is written, which no program for those reads; \
         name it {}",
        out.display(),
        end.display(),
        out.with_extension("smq").display()
    );
    Ok(())
}

fn run_convert(path: PathBuf, mut args: ConvertArgs) -> anyhow::Result<()> {
    if let Some(format) = args.export.format(&path)? {
        return export::run(&path, args.out, format, args.force, interrupts());
    }
    if let Some(out) = &args.out {
        check_name(out)?;
    }
    let opened = Checkpoint::open(&path);
    let mut checkpoint = opened.map_err(|error| match swapped(&path, args.out.as_deref()) {
        Some(hint) => anyhow::anyhow!("{error}; {hint}"),
        None => error.into(),
    })?;
    print_notes(checkpoint.notes());
    if args.requantize {
        anyhow::ensure!(
            checkpoint.import().is_some(),
            "--requantize is for int4 checkpoints, and {} holds no int4 tensors; leave it out",
            path.display()
        );
        checkpoint.requantize();
    }
    if let Some(line) = args.take_recipe(&checkpoint)? {
        print_note(&line);
    }
    let (dry, verbose, out) = (args.dry_run, args.verbose, args.out.clone());
    let reader = args.reader;
    let measure = MeasureOptions {
        texts: args.measure_kl.clone(),
        tokens: args.measure_kl_tokens,
        device: args.device,
    };
    let sensitivity: Vec<_> = args.auto.sensitivity.iter().cloned().collect();
    let task = args.task(&checkpoint)?;
    if let Some(Reader::Vllm) = reader {
        vllm::check(&checkpoint, &task)?;
    }
    let about = About::new(&checkpoint, &task);
    let interrupted = interrupts();
    let tensor_bytes = checkpoint.tensors().iter().map(|t| t.range.len() as u64);
    let tensor_bytes: u64 = tensor_bytes.sum();
    let total_bytes = match &task {
        Task::Uniform(_) | Task::Calibrated(..) => tensor_bytes,
        Task::Auto(options, _) => tensor_bytes + auto::measured_bytes(&checkpoint, options),
    };
    let bar = progress_bar(total_bytes, "converting");
    let progress = |done_bytes: u64| {
        bar.set_position(done_bytes);
        !interrupted.load(Ordering::Relaxed)
    };
    let counted = |what: &'static str| {
        let bar = progress_bar(0, what);
        move |done: usize, all: usize| {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
            !interrupted.load(Ordering::Relaxed)
        }
    };
    if dry {
        let (auto, plan) = match &task {
            Task::Uniform(options) => (None, dry_run(&checkpoint, options)?),
            Task::Calibrated(options, texts) => {
                (None, dry_run_calibrated(&checkpoint, options, texts)?)
            }
            Task::Auto(options, None) => {
                let (auto, plan) = dry_run_auto(&checkpoint, options, &progress)?;
                (Some(auto), plan)
            }
            Task::Auto(options, Some(texts)) => {
                let measuring = counted("measuring outputs, layers");
                let (auto, plan) =
                    dry_run_auto_calibrated(&checkpoint, options, texts, &measuring, &progress)?;
                (Some(auto), plan)
            }
        };
        bar.finish_and_clear();
        return about.print_plan(&plan, auto.as_ref(), verbose);
    }
    let out =
        out.context("no output file given; name it after the checkpoint, or pass --dry-run")?;
    if let Some(input) = smq_format::input_at(&out, &sensitivity) {
        let path = out;
        return Err(smq_format::Error::OutputIsInput { path, input }.into());
    }
    if let Some((layers, directory)) = saved_layers(&out)
        && !task.resumes()
    {
        print_note(&format!(
            "{} holds {layers} layers of a calibration that was killed; with --resume it goes on",
            directory.display()
        ));
    }
    let calibrating = counted("calibrating, layers");
    let measuring = counted("measuring, windows");
    let conversion = match &task {
        Task::Uniform(options) => Conversion::Uniform(options),
        Task::Auto(options, None) => Conversion::Auto(options),
        Task::Auto(options, Some(texts)) => {
            Conversion::AutoCalibrated(options, texts, &calibrating)
        }
        Task::Calibrated(options, texts) => Conversion::Calibrated(options, texts, &calibrating),
    };
    let measuring = (!measure.texts.is_empty()).then_some(Measuring {
        options: &measure,
        progress: &measuring,
    });
    let result = convert_measured(&checkpoint, &out, conversion, measuring, &progress);
    bar.finish_and_clear();
    let (auto, summary) = result?;
    after_work(about.print_summary(&out, &summary, auto.as_ref()))
}
