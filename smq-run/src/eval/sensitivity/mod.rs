//! Which part of a model minds quantization: one layer, or one projection, quantized at a time.
//!
//! ```text
//!   checkpoint -> one unit quantized -> weight error (the file's statistics), distance from C0
//!                                       and, of a task, what becomes of its words
//!              -> rank correlation
//! ```

#[cfg(test)]
mod tests;
mod words;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use smq_convert::cli::print_notes;
use smq_convert::{Checkpoint, ScaleChoice, ScaleRule, Target, kind, product};
use smq_format::{Scratch, SmqFile, read_text};

use super::kl::Base;
use super::metrics::Score;
use super::paired::spearman;
use super::ppl::{MAX_TEXT_BYTES, PplOptions};
use super::suite::file_name;
use crate::convert::{GROUP, convert_to, int4};
use smq_engine::Device;
use smq_model::{Source, Tokenizer};
use words::BaseTask;
pub(crate) use words::{MeasuredTask, WordEffect, Words};

/// What is quantized at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Unit {
    /// All selected matrices of a layer.
    Layer,
    /// Matrices that are multiplied as one: q, k and v; gate and up. Devices that read them as one
    /// can measure no less.
    Product,
    /// One matrix by itself.
    Projection,
    /// The same matrix of every layer: q, k, v, o, gate, up or down.
    Kind,
    /// The same product of every layer.
    ProductKind,
}

impl Unit {
    /// What a matrix is quantized as part of.
    fn of(self, tensor: &str) -> String {
        match self {
            Self::Layer => layer_of(tensor).to_owned(),
            Self::Product => product(tensor),
            Self::Projection => tensor.to_owned(),
            Self::Kind => kind(tensor),
            Self::ProductKind => kind(&product(tensor)),
        }
    }
}

/// What to measure, on what, and where.
#[derive(Debug, Clone)]
pub(crate) struct SensitivityOptions {
    /// The directory of the checkpoint.
    pub checkpoint: PathBuf,
    /// The text for the distance from C0.
    pub text: PathBuf,
    /// How it is cut.
    pub windows: PplOptions,
    /// Which matrices at all.
    pub target: Target,
    /// What is quantized at a time.
    pub unit: Unit,
    /// The format that scales are stored in.
    pub scales: ScaleChoice,
    /// How a group's scale is chosen.
    pub rule: ScaleRule,
    /// A task, beside the text.
    pub words: Option<Words>,
    /// The device that the models run on.
    pub device: Device,
    /// Tokens of the longest sequence that memory is taken for.
    pub max_tokens: Option<usize>,
}

/// What each unit costs, and how errors and costs go together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sensitivity {
    /// The checkpoint directory's name.
    pub model: String,
    /// What it ran on: `cpu` or `cuda`.
    pub device: String,
    /// The text's file name.
    pub text: String,
    /// Positions at which each was compared with C0.
    pub tokens_scored: usize,
    /// Tokens of a window.
    pub window: usize,
    /// `mlp`, `all` or a pattern.
    pub target: String,
    /// What is quantized at a time.
    pub unit: Unit,
    /// The format that scales were stored in.
    pub scales: String,
    /// How a group's scale was chosen.
    pub rule: String,
    /// The task, where one is measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<MeasuredTask>,
    /// What each unit costs, in the checkpoint's order.
    pub points: Vec<Point>,
    /// Spearman's rank correlation over the points, by `error ~ effect`; absent where a side does
    /// not vary.
    pub rank_correlation: BTreeMap<String, Option<f64>>,
}

/// What it costs to quantize one unit alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Point {
    /// `model.layers.3`, or a matrix's name; of a kind with stars for numbers.
    pub name: String,
    /// Elements of its tensors together.
    pub weights: u64,
    /// `sum (w - w')^2 / sum w^2`.
    pub relative_error: f64,
    /// `sum (w - w')^2`.
    pub squared_error: f64,
    /// Mean KL divergence from C0, nats.
    pub mean_kl: Score,
    /// 99th percentile of the KL divergence, nats.
    pub p99_kl: f64,
    /// Loss less C0's, nats a token, as the logarithm of the ratio of perplexities.
    pub loss_delta_nats: f64,
    /// `perplexity / C0's`, with its standard error.
    pub perplexity_ratio: Score,
    /// What becomes of the task's words, where a task is measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub words: Option<WordEffect>,
}

/// Measures every unit; `progress` gets units done, units in all and the name of the one at hand.
///
/// # Errors
/// A target that selects nothing, and whatever converting or measuring meets first.
pub(crate) fn run(
    options: &SensitivityOptions,
    progress: &mut dyn FnMut(usize, usize, &str),
) -> anyhow::Result<Sensitivity> {
    let checkpoint = Checkpoint::open(&options.checkpoint)?;
    print_notes(checkpoint.notes());
    options.target.check(&checkpoint)?;
    let units = units(&checkpoint, options);
    ensure!(
        !units.is_empty(),
        "--target {} selects no matrix of {}",
        options.target.name(),
        options.checkpoint.display()
    );
    let text = read_text(&options.text, MAX_TEXT_BYTES)?;
    let source = Source::open(&options.checkpoint)?;
    let tokenizer = Tokenizer::load(&source)?;
    let mut engine = smq_engine::load(&source, options.device, options.max_tokens)?;
    let device = engine.device().to_owned();
    let positions = engine.config().max_positions;
    let ids = options.windows.tokens(&tokenizer, &text, positions)?;
    let task = options.words.as_ref();
    let task = task
        .map(|words| BaseTask::new(words, tokenizer, &mut *engine))
        .transpose()?;
    let mut base = Base::new(&mut *engine, ids, options.windows);
    let tokens_scored = base.windows() * (options.windows.window - 1);
    let dir = Scratch::beside(&std::env::temp_dir().join("smq-run-sensitivity"))
        .context("cannot make a temporary directory")?;
    let mut points = Vec::with_capacity(units.len());
    for (done, (name, tensors)) in units.iter().enumerate() {
        progress(done, units.len(), name);
        let path = dir.path().join("unit.smq");
        let target = only(tensors)?;
        let method = int4(options.scales, options.rule, GROUP);
        convert_to(&checkpoint, &path, &target, method)?;
        points.push(point(options, name, &path, &mut base, task.as_ref())?);
        std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(Sensitivity {
        model: file_name(&options.checkpoint),
        device,
        text: file_name(&options.text),
        tokens_scored,
        window: options.windows.window,
        target: options.target.name().to_owned(),
        unit: options.unit,
        scales: options.scales.to_string(),
        rule: options.rule.to_string(),
        task: task.map(|task| task.measured),
        rank_correlation: correlations(&points),
        points,
    })
}

fn point(
    options: &SensitivityOptions,
    name: &str,
    path: &Path,
    base: &mut Base<'_>,
    task: Option<&BaseTask>,
) -> anyhow::Result<Point> {
    let file = SmqFile::open(path)?;
    let statistics = file
        .statistics()?
        .with_context(|| format!("{} holds no statistics", path.display()))?;
    let sum = |of: fn(&smq_format::statistics::ErrorSummary) -> f64| {
        statistics
            .tensors
            .iter()
            .map(|t| of(&t.stored))
            .sum::<f64>()
    };
    let (squared_error, squared_weight) = (sum(|e| e.squared_error), sum(|e| e.squared_weight));
    let weights = statistics
        .tensors
        .iter()
        .filter_map(|t| file.tensor(&t.name));
    let weights = weights
        .map(|t| t.shape().iter().product::<usize>() as u64)
        .sum();
    drop(file);
    let source = Source::open(path)?;
    let mut engine = smq_engine::load(&source, options.device, options.max_tokens)?;
    let kl = base.compare(&mut *engine, |_| ())?;
    let words = task.map(|task| task.effect(&mut *engine)).transpose()?;
    Ok(Point {
        name: name.to_owned(),
        weights,
        relative_error: squared_error / squared_weight,
        squared_error,
        mean_kl: kl.mean_kl,
        p99_kl: kl.p99_kl,
        loss_delta_nats: kl.perplexity_ratio.value.ln(),
        perplexity_ratio: kl.perplexity_ratio,
        words,
    })
}

/// Names of units, each with its matrices.
fn units(checkpoint: &Checkpoint, options: &SensitivityOptions) -> Vec<(String, Vec<String>)> {
    let mut units: Vec<(String, Vec<String>)> = Vec::new();
    for tensor in checkpoint.tensors() {
        if !options.target.selects(&tensor.name, tensor.shape.len()) {
            continue;
        }
        let name = options.unit.of(&tensor.name);
        match units.iter_mut().find(|(unit, _)| *unit == name) {
            Some((_, tensors)) => tensors.push(tensor.name.clone()),
            None => units.push((name, vec![tensor.name.clone()])),
        }
    }
    units
}

/// `model.layers.3` of `model.layers.3.mlp.down_proj.weight`; the whole name where no number
/// follows `layers`.
fn layer_of(tensor: &str) -> &str {
    let Some((before, after)) = tensor.split_once("layers.") else {
        return tensor;
    };
    let digits = after.bytes().take_while(u8::is_ascii_digit).count();
    match digits {
        0 => tensor,
        n => &tensor[..before.len() + "layers.".len() + n],
    }
}

/// A target that takes exactly these tensors.
fn only(tensors: &[String]) -> anyhow::Result<Target> {
    let names: Vec<String> = tensors.iter().map(|name| regex::escape(name)).collect();
    Ok(Target::Pattern(regex::Regex::new(&format!(
        "^({})$",
        names.join("|")
    ))?))
}

fn correlations(points: &[Point]) -> BTreeMap<String, Option<f64>> {
    type Column = (&'static str, fn(&Point) -> f64);
    let errors: [Column; 2] = [
        ("relative_error", |p| p.relative_error),
        ("squared_error", |p| p.squared_error),
    ];
    let effects: [Column; 2] = [
        ("mean_kl", |p| p.mean_kl.value),
        ("loss_delta", |p| p.loss_delta_nats),
    ];
    let column = |of: fn(&Point) -> f64| points.iter().map(of).collect::<Vec<_>>();
    let mut out = BTreeMap::new();
    for (error, x) in errors {
        for (effect, y) in effects {
            out.insert(
                format!("{error} ~ {effect}"),
                spearman(&column(x), &column(y)),
            );
        }
    }
    // What words lose, so that all effects grow with the damage.
    let lost = |p: &Point| p.words.as_ref().map(|w| -w.log_likelihood.mean);
    let lost: Option<Vec<f64>> = points.iter().map(lost).collect();
    if let Some(lost) = lost {
        for (other, x) in errors.into_iter().chain(effects) {
            out.insert(format!("{other} ~ word_loss"), spearman(&column(x), &lost));
        }
    }
    out
}
