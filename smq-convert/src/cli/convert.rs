//! The command line of `smq-convert`.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use anyhow::Context;
use clap::{ArgGroup, Args, CommandFactory, Parser, Subcommand};
use smq_engine::Device;
use smq_format::Family;

use super::auto::{AutoArgs, Width};
use super::export::{self, ExportArgs};
use super::signals::interrupts;
use super::summary::About;
use super::synth::{self, SynthArgs};
use super::{after_work, print_note, print_notes, progress_bar, words};
use crate::apply::exact_scales;
use crate::import::Grouping;
use crate::{
    AutoOptions, CalibrateOptions, CalibrationMethod, Checkpoint, Conversion, ConvertOptions,
    LevelChoice, MeasureOptions, Measuring, Method, QuantizeOptions, ScaleChoice, ScaleRule,
    Target, auto, convert_measured, dry_run, dry_run_auto, dry_run_auto_calibrated,
    dry_run_calibrated, saved_layers,
};

/// Elements a group where neither the user nor the checkpoint says.
const DEFAULT_GROUP: usize = 128;
/// Scales of int4 and lut4 where the user does not say.
const DEFAULT_SCALES: ScaleChoice = ScaleChoice::e5(5);
/// The option that only code books have.
const LEVELS: &str = "--levels";

/// Quantize a safetensors checkpoint once into a .smq file
#[derive(Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  \
                  smq-convert --mbits 5 phi35/ phi35-e5m5.smq\n  \
                  smq-convert --mbits -1 --target all phi35/ phi35-f32.smq\n  \
                  smq-convert --scheme lut4 --mbits 3 phi35/ phi35-lut4.smq\n  \
                  smq-convert --scheme nf4 phi35/ phi35-nf4.smq\n  \
                  smq-convert --mbits 3 --target all --calibrate wiki.txt chats.jsonl -- phi35/ out.smq\n  \
                  smq-convert --mbits auto --budget 4.5 --target all phi35/ phi35-auto.smq\n  \
                  smq-convert --mbits auto --budget 4.5 --target all --calibrate wiki.txt -- phi35/ out.smq\n  \
                  smq-convert --to compressed-tensors phi35-e5m5.smq phi35-int4/\n  \
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
struct ConvertArgs {
    /// A Hugging Face checkpoint directory, or one .safetensors file; with --to, a .smq file. Int4
    /// checkpoints (compressed-tensors pack-quantized, GPTQ, AutoRound; symmetric) keep their
    /// integers and scales
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: Option<PathBuf>,
    /// The file to write; with --to, a directory
    #[arg(value_name = "OUT.smq")]
    out: Option<PathBuf>,
    /// What the weights become: int4 in groups, lut4 with a code book of 16 levels for each tensor
    /// in place of equal steps, bitsandbytes' NF4 with double quantization, or FP8 E4M3 with FP8
    /// activations
    #[arg(long, value_parser = words::family(), default_value_t = Family::Int4)]
    scheme: Family,
    /// int4, lut4: mantissa bits of the E5Mx scales, 0 to 10; -1 keeps exact f32 scales; auto
    /// (int4) chooses them for each tensor from measured errors, and what stays as it is [default:
    /// 5, or the narrowest format that holds an int4 checkpoint's scales exactly]
    #[arg(long, value_name = "N|auto", allow_negative_numbers = true)]
    mbits: Option<Width>,
    /// int4, lut4: scale format instead of --mbits: f32, f16, or eXmY such as e5m5, e4m3, e8m0
    #[arg(long, value_name = "FORMAT", conflicts_with = "mbits")]
    scales: Option<ScaleChoice>,
    /// int4, lut4: consecutive elements of a row that share a scale [default: 128, or an int4
    /// checkpoint's]
    #[arg(long, value_name = "ELEMS")]
    group_size: Option<usize>,
    /// int4, lut4: how a group's scale is chosen [default: reference, of lut4 nearest; with --mbits
    /// auto the better of nearest and signed; with --calibrate weighted]
    #[arg(long, value_parser = words::any_scale_rule())]
    scale_rule: Option<ScaleRule>,
    /// lut4: where the 16 levels come from: learned from each tensor, or NF4's [default: learned]
    #[arg(long, value_parser = words::levels())]
    levels: Option<LevelChoice>,
    /// What to quantize: mlp, all (attention too; embeddings and lm_head never), or a regex over
    /// names [default: mlp, or of an int4 checkpoint what it has in int4]
    #[arg(long)]
    target: Option<Target>,
    /// Quantize an int4 checkpoint's dequantized weights anew instead of keeping its integers
    #[arg(long)]
    requantize: bool,
    /// Choose scales and integers by what the model does on these texts: plain UTF-8, or JSON Lines
    /// (.jsonl) with a text or chat messages a line. Mix kinds of text that resemble the use
    #[arg(long, value_name = "TEXT", num_args = 1..)]
    calibrate: Vec<PathBuf>,
    /// Tokens to calibrate on, from all texts together
    #[arg(
        long,
        value_name = "N",
        default_value_t = 131_072,
        requires = "calibrate"
    )]
    calibrate_tokens: usize,
    /// Tokens of a calibration window, each a sequence of its own
    #[arg(long, value_name = "N", default_value_t = 2048, requires = "calibrate")]
    calibrate_window: usize,
    /// What calibration chooses by the texts
    #[arg(
        long,
        value_parser = words::calibration_method(),
        default_value = CalibrationMethod::Asymmetric.name(),
        requires = "calibrate"
    )]
    calibrate_method: CalibrationMethod,
    /// Where to calibrate, and where --measure-kl runs both models: auto takes a GPU if there is
    /// one. A file calibrated on a GPU has other bytes than one calibrated on a CPU
    #[arg(
        long,
        value_name = "auto|cpu|cuda",
        default_value = "auto",
        requires = "runs_the_model"
    )]
    device: Device,
    /// Memory that calibrating on the CPU may take, in GB (10^9 bytes); beyond it the model's hidden
    /// states are kept in a file beside OUT.smq [default: three quarters of what is available]
    #[arg(long, value_name = "GB", requires = "calibrate")]
    calibrate_memory: Option<f64>,
    /// Go on with a calibration that was killed, from the last layer it had done
    #[arg(long, requires = "calibrate")]
    resume: bool,
    /// Compare the finished file's model with the checkpoint's on this text (plain UTF-8, not one
    /// of --calibrate) and record the KL divergence in the file; may be given more than once
    #[arg(long, value_name = "TEXT", conflicts_with = "dry_run")]
    measure_kl: Vec<PathBuf>,
    /// Leading tokens of each text to measure on, in windows of 512
    #[arg(
        long,
        value_name = "N",
        default_value_t = 10_240,
        requires = "measure_kl"
    )]
    measure_kl_tokens: usize,
    /// Threads, at most 8 for each core; 0 takes one for each (the bytes do not depend on it)
    #[arg(long, default_value_t = 0)]
    jobs: usize,
    /// Replace OUT.smq if it exists; with --to, the checkpoint in a directory that is not empty
    #[arg(long)]
    force: bool,
    /// Show what would be written, without reading the weights (with --mbits auto they are read, to
    /// choose, and with --calibrate the texts go through the model once)
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    auto: AutoArgs,
    #[command(flatten)]
    export: ExportArgs,
}

/// What to do, as the command line says it.
pub(super) enum Task {
    Uniform(ConvertOptions),
    Auto(AutoOptions, Option<CalibrateOptions>),
    Calibrated(ConvertOptions, CalibrateOptions),
}

impl Task {
    /// Whether it goes on with a calibration that was killed.
    fn resumes(&self) -> bool {
        match self {
            Self::Uniform(_) | Self::Auto(_, None) => false,
            Self::Auto(_, Some(texts)) | Self::Calibrated(_, texts) => texts.resume,
        }
    }
}

impl ConvertArgs {
    /// # Errors
    /// Options that do not go together.
    fn task(self, checkpoint: &Checkpoint) -> anyhow::Result<Task> {
        let import = checkpoint.import();
        let target = self.target.clone().unwrap_or(match import {
            Some(_) => Target::Imported,
            None => Target::Mlp,
        });
        let group = match (self.group_size, import.map(|import| import.grouping)) {
            (Some(group), Some(Grouping::Row))
                if checkpoint.keeps_codes() && self.target.is_none() =>
            {
                anyhow::bail!(
                    "--group-size {group}: the checkpoint's integers have one group a row, and \
                     are kept; pass --requantize to make new ones"
                )
            }
            (Some(group), _) | (None, Some(Grouping::Runs(group))) => group,
            (None, Some(Grouping::Row) | None) => DEFAULT_GROUP,
        };
        let int4 = self.scheme == Family::Int4;
        if self.mbits == Some(Width::Auto) && self.scales.is_none() && int4 {
            anyhow::ensure!(
                self.levels.is_none(),
                "{LEVELS} is for --scheme lut4; int4's levels are -8 to 7"
            );
            let (rule, force, jobs) = (self.scale_rule, self.force, self.jobs);
            let options = self
                .auto
                .options(checkpoint, target, group, rule, force, jobs)?;
            let texts = self.texts()?;
            let choose_by = self.auto.choose_by(texts.is_some());
            let options = AutoOptions {
                choose_by,
                ..options
            };
            return Ok(Task::Auto(options, texts));
        }
        let quantize = self.method(checkpoint, group)?;
        self.auto.refuse()?;
        let calibrate = self.calibration(quantize)?;
        let options = ConvertOptions {
            quantize,
            target,
            overwrite: self.force,
            jobs: self.jobs,
        };
        Ok(match calibrate {
            Some(texts) => Task::Calibrated(options, texts),
            None => Task::Uniform(options),
        })
    }

    /// What to calibrate on; `None` without --calibrate.
    ///
    /// # Errors
    /// A scheme or a rule that calibration does not go with.
    fn calibration(&self, quantize: Method) -> anyhow::Result<Option<CalibrateOptions>> {
        let texts = self.texts()?;
        anyhow::ensure!(
            texts.is_none() || quantize != Method::Fp8,
            "--calibrate is for int4, lut4 and nf4; FP8 is rounded to nearest: leave it out"
        );
        Ok(texts)
    }

    /// As given; `None` without --calibrate.
    ///
    /// # Errors
    /// As [`Self::memory_bytes`].
    fn texts(&self) -> anyhow::Result<Option<CalibrateOptions>> {
        if self.calibrate.is_empty() {
            return Ok(None);
        }
        Ok(Some(CalibrateOptions {
            texts: self.calibrate.clone(),
            tokens: self.calibrate_tokens,
            window: self.calibrate_window,
            method: self.calibrate_method,
            device: self.device,
            memory_bytes: self.memory_bytes()?,
            resume: self.resume,
        }))
    }

    /// # Errors
    /// A number that is not positive.
    fn memory_bytes(&self) -> anyhow::Result<Option<u64>> {
        let Some(gb) = self.calibrate_memory else {
            return Ok(None);
        };
        anyhow::ensure!(
            gb > 0.0 && gb.is_finite(),
            "--calibrate-memory {gb}: must be a positive number of GB"
        );
        Ok(Some((gb * 1e9) as u64))
    }

    /// # Errors
    /// An option that the scheme does not have.
    fn method(&self, checkpoint: &Checkpoint, group: usize) -> anyhow::Result<Method> {
        let options = |rule| QuantizeOptions {
            group,
            scales: match (self.scales, self.mbits) {
                (Some(scales), _) => scales,
                (None, Some(Width::Given(bits))) => bits.into(),
                (None, _) if checkpoint.keeps_codes() => exact_scales(checkpoint),
                // `auto` is taken care of by now.
                (None, Some(Width::Auto) | None) => DEFAULT_SCALES,
            },
            rule: self.scale_rule.unwrap_or(match self.calibrate.is_empty() {
                true => rule,
                false => ScaleRule::Weighted,
            }),
        };
        let (method, refused) = match self.scheme {
            Family::Int4 => (Method::Int4(options(ScaleRule::Reference)), self.levels()),
            Family::Lut4 => {
                let auto = self.mbits == Some(Width::Auto) && self.scales.is_none();
                anyhow::ensure!(
                    !auto,
                    "--mbits auto is for --scheme int4; give --scheme lut4 a number, or leave \
                     --mbits out"
                );
                let method = Method::Lut4 {
                    options: options(ScaleRule::Nearest),
                    levels: self.levels.unwrap_or(LevelChoice::Learned),
                };
                (method, None)
            }
            Family::Nf4 => (Method::Nf4, self.option_of_groups().or(self.levels())),
            Family::Fp8 => (Method::Fp8, self.option_of_groups().or(self.levels())),
        };
        match (refused, self.scheme) {
            (None, _) => Ok(method),
            (Some(option), Family::Int4 | Family::Lut4) => {
                anyhow::bail!("{option} is for --scheme lut4; int4's levels are -8 to 7")
            }
            (Some(option), Family::Nf4 | Family::Fp8) => anyhow::bail!(
                "{option} is for --scheme {}; --scheme {} has one form: leave {option} out",
                if option == LEVELS { "lut4" } else { "int4" },
                self.scheme
            ),
        }
    }

    /// The first option given that only schemes with groups have.
    fn option_of_groups(&self) -> Option<&'static str> {
        let given = [
            ("--mbits", self.mbits.is_some()),
            ("--scales", self.scales.is_some()),
            ("--group-size", self.group_size.is_some()),
            ("--scale-rule", self.scale_rule.is_some()),
        ];
        let found = given.into_iter().find(|(_, given)| *given);
        found.map(|(option, _)| option)
    }

    /// The option that only code books have, where it is given.
    fn levels(&self) -> Option<&'static str> {
        self.levels.map(|_| LEVELS)
    }
}

/// Runs the program.
///
/// # Errors
/// What the user should read.
pub fn run() -> anyhow::Result<()> {
    let cli = Cli::parse();
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

fn run_convert(path: PathBuf, args: ConvertArgs) -> anyhow::Result<()> {
    if let Some(format) = args.export.format(&path)? {
        return export::run(&path, args.out, format, args.force, interrupts());
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
    let (dry, out) = (args.dry_run, args.out.clone());
    let measure = MeasureOptions {
        texts: args.measure_kl.clone(),
        tokens: args.measure_kl_tokens,
        device: args.device,
    };
    let sensitivity: Vec<_> = args.auto.sensitivity.iter().cloned().collect();
    let task = args.task(&checkpoint)?;
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
        return about.print_plan(&plan, auto.as_ref());
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
