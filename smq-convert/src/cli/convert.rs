//! The command line of `smq-convert`.

use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use comfy_table::{CellAlignment, Table, presets};
use indicatif::DecimalBytes;

use super::auto::{AutoArgs, MantissaBits, print_choice, print_total};
use super::export::{self, ExportArgs};
use super::progress_bar;
use crate::{
    Auto, AutoOptions, Checkpoint, ConvertOptions, Method, Plan, QuantizeOptions, ScaleChoice,
    ScaleRule, Summary, Target, auto, convert, convert_auto, dry_run, dry_run_auto, synth,
};

/// Elements a group where neither the user nor the checkpoint says.
const DEFAULT_GROUP: usize = 128;
/// Mantissa bits of an int4 scale where the user does not say.
const DEFAULT_MBITS: MantissaBits = MantissaBits::Given(5);

/// Quantize a safetensors checkpoint once into a .smq file
#[derive(Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  smq-convert --mbits 5 phi35/ phi35-e5m5.smq\n  smq-convert --mbits -1 --target all phi35/ phi35-f32.smq\n  smq-convert --scheme nf4 phi35/ phi35-nf4.smq\n  smq-convert --mbits auto --budget 4.5 --target all phi35/ phi35-auto.smq\n  smq-convert --to compressed-tensors phi35-e5m5.smq phi35-int4/\n  smq-convert synth --like config.json synthetic/"
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
struct ConvertArgs {
    /// A Hugging Face checkpoint directory, or one .safetensors file; with --to, a .smq file. Int4 checkpoints
    /// (compressed-tensors pack-quantized, GPTQ; symmetric) keep their integers
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: Option<PathBuf>,
    /// The file to write; with --to, a directory
    #[arg(value_name = "OUT.smq")]
    out: Option<PathBuf>,
    /// What the weights become: int4 in groups, bitsandbytes' NF4 with double quantization, or FP8 E4M3 with FP8
    /// activations
    #[arg(long, value_enum, default_value_t = SchemeName::Int4)]
    scheme: SchemeName,
    /// int4: mantissa bits of the E5Mx scales, 0 to 10; -1 keeps exact f32 scales; auto chooses them for each tensor
    /// from measured errors, and what stays as it is [default: 5]
    #[arg(long, value_name = "N|auto", allow_negative_numbers = true)]
    mbits: Option<MantissaBits>,
    /// int4: scale format instead of --mbits: f32, f16, or eXmY such as e5m5, e4m3, e8m0
    #[arg(long, value_name = "FORMAT", conflicts_with = "mbits", value_parser = parse_scales)]
    scales: Option<ScaleChoice>,
    /// int4: consecutive elements of a row that share a scale [default: 128, or an int4 checkpoint's]
    #[arg(long, value_name = "ELEMS")]
    group_size: Option<usize>,
    /// int4: how a group's scale is chosen [default: reference; with --mbits auto the better of nearest and signed]
    #[arg(long, value_enum)]
    scale_rule: Option<ScaleRule>,
    /// What to quantize: mlp, all (attention too; embeddings and lm_head never), or a regex over names
    #[arg(long, default_value = "mlp")]
    target: Target,
    /// Quantize an int4 checkpoint's dequantized weights anew instead of keeping its integers
    #[arg(long)]
    requantize: bool,
    /// Threads; 0 takes every core (the bytes do not depend on it)
    #[arg(long, default_value_t = 0)]
    jobs: usize,
    /// Replace OUT.smq if it exists; with --to, the checkpoint in a directory that is not empty
    #[arg(long)]
    force: bool,
    /// Show what would be written, without reading the weights (with --mbits auto they are read, to choose)
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    auto: AutoArgs,
    #[command(flatten)]
    export: ExportArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SchemeName {
    Int4,
    Nf4,
    Fp8,
}

/// What to do, as the command line says it.
enum Task {
    Uniform(ConvertOptions),
    Auto(AutoOptions),
}

impl ConvertArgs {
    /// # Errors
    /// Options that do not go together.
    fn task(self, checkpoint: &Checkpoint) -> anyhow::Result<Task> {
        let group = checkpoint.import().map_or(DEFAULT_GROUP, |i| i.group);
        let group = self.group_size.unwrap_or(group);
        let int4 = self.scheme == SchemeName::Int4;
        let bits = match (self.scales, self.mbits.unwrap_or(DEFAULT_MBITS)) {
            (None, MantissaBits::Auto) if int4 => {
                let options = self.auto.options(
                    checkpoint,
                    self.target,
                    group,
                    self.scale_rule,
                    self.force,
                    self.jobs,
                )?;
                return Ok(Task::Auto(options));
            }
            (_, MantissaBits::Given(bits)) => bits,
            _ => -1, // refused below: another scheme has no mantissa bits
        };
        let quantize = self.method(group, bits)?;
        self.auto.refuse()?;
        Ok(Task::Uniform(ConvertOptions {
            quantize,
            target: self.target,
            overwrite: self.force,
            jobs: self.jobs,
        }))
    }

    /// # Errors
    /// An option that only int4 has.
    fn method(&self, group: usize, mbits: i8) -> anyhow::Result<Method> {
        let method = match self.scheme {
            SchemeName::Int4 => {
                return Ok(Method::Int4(QuantizeOptions {
                    group,
                    scales: self.scales.unwrap_or(scales_of(mbits)),
                    rule: self.scale_rule.unwrap_or(ScaleRule::Reference),
                }));
            }
            SchemeName::Nf4 => Method::Nf4,
            SchemeName::Fp8 => Method::Fp8,
        };
        let given = [
            ("--mbits", self.mbits.is_some()),
            ("--scales", self.scales.is_some()),
            ("--group-size", self.group_size.is_some()),
            ("--scale-rule", self.scale_rule.is_some()),
        ];
        match given.iter().find(|(_, given)| *given) {
            Some((option, _)) => anyhow::bail!(
                "{option} is for --scheme int4; --scheme {} has one form: leave {option} out",
                method.name()
            ),
            None => Ok(method),
        }
    }
}

#[derive(Args)]
struct SynthArgs {
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
    #[arg(long, value_name = "BYTES", default_value_t = synth::DEFAULT_SHARD_BYTES)]
    shard_bytes: u64,
    /// Write into a directory that is not empty
    #[arg(long)]
    force: bool,
}

/// Runs the program.
///
/// # Errors
/// What the user should read.
pub fn run() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match (cli.command, cli.convert.checkpoint.clone()) {
        (Some(Command::Synth(args)), _) => run_synth(args),
        (None, Some(checkpoint)) => run_convert(checkpoint, cli.convert),
        (None, None) => Ok(Cli::command().print_help()?),
    }
}

fn run_convert(path: PathBuf, args: ConvertArgs) -> anyhow::Result<()> {
    if let Some(format) = args.export.format(&path)? {
        return export::run(&path, args.out, format, args.force, interrupts());
    }
    let mut checkpoint = Checkpoint::open(&path)?;
    if args.requantize {
        anyhow::ensure!(
            checkpoint.import().is_some(),
            "--requantize is for int4 checkpoints, and {} holds no int4 tensors; leave it out",
            path.display()
        );
        checkpoint.requantize();
    }
    let (dry, out) = (args.dry_run, args.out.clone());
    let task = args.task(&checkpoint)?;
    let interrupted = interrupts();
    let tensor_bytes = checkpoint.tensors().iter().map(|t| t.range.len() as u64);
    let tensor_bytes: u64 = tensor_bytes.sum();
    let total_bytes = match &task {
        Task::Uniform(_) => tensor_bytes,
        Task::Auto(options) => tensor_bytes + auto::measured_bytes(&checkpoint, options),
    };
    let bar = progress_bar(total_bytes, "converting");
    let progress = |done_bytes: u64| {
        bar.set_position(done_bytes);
        !interrupted.load(Ordering::Relaxed)
    };
    if dry {
        let (auto, plan) = match &task {
            Task::Uniform(options) => (None, dry_run(&checkpoint, options)?),
            Task::Auto(options) => {
                let (auto, plan) = dry_run_auto(&checkpoint, options, &progress)?;
                (Some(auto), plan)
            }
        };
        bar.finish_and_clear();
        return print_plan(&checkpoint, &plan, auto.as_ref());
    }
    let out =
        out.context("no output file given; name it after the checkpoint, or pass --dry-run")?;
    for leftover in smq_format::leftovers(&out) {
        eprintln!(
            "note: {} was left by a run that was killed; delete it",
            leftover.display()
        );
    }
    let result = match &task {
        Task::Uniform(options) => {
            convert(&checkpoint, &out, options, &progress).map(|summary| (None, summary))
        }
        Task::Auto(options) => convert_auto(&checkpoint, &out, options, &progress)
            .map(|(auto, summary)| (Some(auto), summary)),
    };
    bar.finish_and_clear();
    let (auto, summary) = result?;
    print_summary(&out, &checkpoint, &summary, auto.as_ref())
}

fn run_synth(args: SynthArgs) -> anyhow::Result<()> {
    let options = synth::SynthOptions {
        tokenizer: args.tokenizer,
        seed: args.seed,
        shard_bytes: args.shard_bytes,
        layers: args.layers,
        force: args.force,
        ..synth::SynthOptions::new(args.like, args.out_dir.clone())
    };
    let bar = progress_bar(0, "generating");
    let summary = synth::synth(&options, &|done_bytes, total_bytes| {
        bar.set_length(total_bytes);
        bar.set_position(done_bytes);
    });
    bar.finish_and_clear();
    let summary = summary?;
    println!(
        "{}: {}, {} tensors, {} in {} shards, {:.1} s and {:.1} s of fsync; the weights are synthetic: speed, memory and energy carry over to real ones, quality does not",
        args.out_dir.display(),
        summary.architecture,
        summary.tensors,
        DecimalBytes(summary.total_size_bytes),
        summary.shards.len(),
        summary.write_time.as_secs_f64(),
        summary.sync_time.as_secs_f64(),
    );
    Ok(())
}

/// A flag that Ctrl-C sets, so that the unfinished file is removed on the way out.
fn interrupts() -> &'static AtomicBool {
    static INTERRUPTED: AtomicBool = AtomicBool::new(false);
    // Where no handler can be set, Ctrl-C ends the process and the next run reports the leftover.
    let _ = ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::Relaxed));
    &INTERRUPTED
}

fn scales_of(mbits: i8) -> ScaleChoice {
    match u32::try_from(mbits) {
        Ok(mantissa_bits) => ScaleChoice::Mini {
            exponent_bits: 5,
            mantissa_bits,
        },
        Err(_) => ScaleChoice::F32,
    }
}

/// Reads a scale format: `f32`, `f16` or `eXmY`.
///
/// # Errors
/// What is expected.
pub fn parse_scales(s: &str) -> Result<ScaleChoice, String> {
    let lower = s.to_ascii_lowercase();
    match lower.as_str() {
        "f32" => return Ok(ScaleChoice::F32),
        "f16" => return Ok(ScaleChoice::F16),
        _ => {}
    }
    let widths = lower
        .strip_prefix('e')
        .and_then(|rest| rest.split_once('m'));
    let parsed = widths.and_then(|(e, m)| Some((e.parse().ok()?, m.parse().ok()?)));
    match parsed {
        Some((exponent_bits @ 2..=8, mantissa_bits @ 0..=10)) => Ok(ScaleChoice::Mini {
            exponent_bits,
            mantissa_bits,
        }),
        _ => Err("expected f32, f16, or eXmY with X 2 to 8 and Y 0 to 10".to_owned()),
    }
}

/// A borderless table whose columns after the first are right-aligned.
pub(super) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn bits_per_weight(stored_bytes: u64, elems: u64) -> f64 {
    stored_bytes as f64 * 8.0 / elems as f64
}

fn print_plan(checkpoint: &Checkpoint, plan: &Plan, auto: Option<&Auto>) -> anyhow::Result<()> {
    let mut rows = table(&[
        "tensor",
        "shape",
        "source",
        "becomes",
        "bytes",
        "bits/weight",
    ]);
    let (mut elems, mut quantized_bytes) = (0, 0);
    for (tensor, planned) in checkpoint.tensors().iter().zip(&plan.tensors) {
        let becomes = planned.method.map_or("as it is", Method::name);
        if planned.method.is_some() {
            elems += tensor.elems() as u64;
            quantized_bytes += planned.stored_bytes;
        }
        rows.add_row([
            tensor.name.clone(),
            format!("{:?}", tensor.shape),
            match checkpoint.packed(tensor) {
                Some(_) => format!("int4, {} scales", tensor.dtype),
                None => tensor.dtype.to_string(),
            },
            becomes.to_owned(),
            planned.stored_bytes.to_string(),
            format!(
                "{:.3}",
                bits_per_weight(planned.stored_bytes, tensor.elems().max(1) as u64)
            ),
        ]);
    }
    let mut out = std::io::stdout().lock();
    match auto {
        Some(auto) => print_choice(&mut out, auto)?,
        None => writeln!(out, "{rows}")?,
    }
    writeln!(
        out,
        "\n{} bytes would be written for {} of input ({:.1} %); quantized weights take {:.4} bits each",
        plan.file_bytes,
        checkpoint.total_bytes(),
        100.0 * plan.file_bytes as f64 / checkpoint.total_bytes() as f64,
        bits_per_weight(quantized_bytes, elems),
    )?;
    print_import(&mut out, checkpoint)
}

/// What an int4 checkpoint was taken for.
fn print_import(out: &mut impl Write, checkpoint: &Checkpoint) -> anyhow::Result<()> {
    if let Some(import) = checkpoint.import() {
        writeln!(
            out,
            "imported: {} int4 tensor{} in groups of {} ({}), integers {}; errors are against its own q * s",
            import.tensors,
            if import.tensors == 1 { "" } else { "s" },
            import.group,
            import.form,
            match checkpoint.keeps_codes() {
                true => "kept",
                false => "derived anew",
            },
        )?;
    }
    Ok(())
}

fn print_summary(
    path: &std::path::Path,
    checkpoint: &Checkpoint,
    summary: &Summary,
    auto: Option<&Auto>,
) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let seconds = summary.elapsed.as_secs_f64();
    writeln!(
        out,
        "{}: {} -> {} ({:.1} %), {:.2} s ({}/s of input) and {:.2} s of fsync",
        path.display(),
        DecimalBytes(summary.source_bytes),
        DecimalBytes(summary.written.file_bytes),
        100.0 * summary.written.file_bytes as f64 / summary.source_bytes as f64,
        seconds,
        DecimalBytes((summary.source_bytes as f64 / seconds) as u64),
        summary.written.fsync.as_secs_f64(),
    )?;
    writeln!(
        out,
        "scales: {}, {} f16 scales would take ({:+.1} %)",
        DecimalBytes(summary.scale_bytes),
        DecimalBytes(summary.f16_scale_bytes),
        100.0 * (summary.scale_bytes as f64 / summary.f16_scale_bytes as f64 - 1.0),
    )?;
    if let Some(auto) = auto {
        print_total(&mut out, auto)?;
    }
    let mut worst: Vec<_> = summary.statistics.iter().collect();
    worst.sort_by(|a, b| b.stored.mean_rel_mse.total_cmp(&a.stored.mean_rel_mse));
    let mut rows = table(&[
        "worst tensors",
        "rel. MSE",
        "exact scales",
        "SQNR dB",
        "clipped",
    ]);
    for t in worst.into_iter().take(3) {
        rows.add_row([
            t.name.clone(),
            format!("{:.6}", t.stored.mean_rel_mse),
            format!("{:.6}", t.exact.mean_rel_mse),
            format!("{:.2}", t.stored.sqnr_db()),
            t.clipped.to_string(),
        ]);
    }
    writeln!(out, "{rows}")?;
    print_import(&mut out, checkpoint)?;
    if checkpoint.files().file("config.json").is_none() {
        writeln!(
            out,
            "note: there is no config.json beside the weights, so smq-run cannot run this file"
        )?;
    }
    for note in crate::known::notes(checkpoint) {
        writeln!(out, "note: {note}")?;
    }
    Ok(())
}
