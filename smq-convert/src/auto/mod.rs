//! Storage chosen for each tensor from measured errors (`--mbits auto`): scale width, scale rule,
//! or as it is.
//!
//! ```text
//!   each tensor quantized at every width -> squared errors of weights, or of outputs on a text,
//!     weighed by sensitivities -> allocation -> Choice
//! ```
//!
//! `spec/method.md`, "Chosen storage", says what is minimized and under which assumption.

mod allocate;
mod measure;
mod outputs;
mod sensitivity;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use allocate::{Bound, Candidate, allocate, total};
use measure::{Curve, Measured, measure, passes};

pub use sensitivity::Sensitivity;

use crate::apply::{check_options, check_rule};
use crate::calibrate::{CalibrationProgress, Prepared};
use crate::choice::{Choice, rule_parameters};
use crate::error::ConvertError;
use crate::products::products;
use crate::quantize::{Method, QuantizeOptions, ScaleChoice, ScaleRule};
use crate::source::Checkpoint;
use crate::target::Target;
use crate::tensor::SourceTensor;
use crate::work::{Progress, pool};

/// What bounds the choice.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// Bits a weight of the selected tensors, scales included, at most.
    Budget(f64),
    /// Predicted mean KL divergence from the unquantized model, nats, at most.
    MaxKl(f64),
}

impl Goal {
    fn option(self) -> (&'static str, String) {
        match self {
            Goal::Budget(bits) => ("--budget", bits.to_string()),
            Goal::MaxKl(nats) => ("--max-kl", nats.to_string()),
        }
    }
}

/// Whose errors decide what a tensor is stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChooseBy {
    /// The errors of the weights themselves.
    Weights,
    /// The outputs' on the calibration text, relative to the outputs; only where the choice is
    /// calibrated on it.
    Outputs,
}

impl ChooseBy {
    /// Every one of them, as the command line lists them.
    pub const ALL: [Self; 2] = [Self::Weights, Self::Outputs];

    /// As the command line and the provenance have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::Outputs => "outputs",
        }
    }
}

/// What to choose from, and by what.
#[derive(Debug, Clone)]
pub struct AutoOptions {
    /// Which tensors are quantized, or left as they are where that is better.
    pub target: Target,
    /// Consecutive elements of a row that share a scale.
    pub group: usize,
    /// The only scale rule; otherwise the best of `nearest` and `signed` for each tensor, or
    /// `weighted` where it is calibrated.
    pub rule: Option<ScaleRule>,
    /// The bound that the choice keeps to.
    pub goal: Goal,
    /// Whose errors decide between the candidates.
    pub choose_by: ChooseBy,
    /// What a squared error costs, by tensor; otherwise all count the same.
    pub sensitivity: Option<Sensitivity>,
    /// A scale width for each product, in place of one for all int4 tensors.
    pub mixed_widths: bool,
    /// Replace an existing file.
    pub overwrite: bool,
    /// Threads; 0 takes every core. Never changes the choice.
    pub jobs: usize,
}

/// A choice and what it comes to.
#[derive(Debug, Clone)]
pub struct Auto {
    /// The choice in the form that the converter takes.
    pub choice: Choice,
    /// The selected tensors, in the checkpoint's order.
    pub tensors: Vec<ChosenTensor>,
    /// Of the selected tensors, those included that are left as they are.
    pub bits_per_weight: f64,
    /// Whose errors decided between the candidates.
    pub chosen_by: ChooseBy,
    /// Mean KL divergence, nats, of weights rounded to nearest, where sensitivities are known.
    pub predicted_kl: Option<f64>,
}

/// What became of a selected tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct ChosenTensor {
    /// Name of the tensor in the checkpoint.
    pub name: String,
    /// Number of its elements.
    pub elems: u64,
    /// How it is quantized; `None`: not at all.
    pub options: Option<QuantizeOptions>,
    /// Bytes of its blobs.
    pub bytes: u64,
    /// `sum (w - w')^2` over all elements, or by [`ChooseBy::Outputs`] `sum |(V - W) x|^2` over the
    /// calibration tokens; either of weights that are rounded to nearest.
    pub squared_error: f64,
    /// What that is compared with: `sum w^2`, or `sum |W x|^2`.
    pub squared_whole: f64,
}

/// Bytes that [`choose`] reports to its progress.
#[must_use]
pub(crate) fn measured_bytes(checkpoint: &Checkpoint, options: &AutoOptions) -> u64 {
    let bytes = selected(checkpoint, &options.target).map(|t| t.range.len() as u64);
    match options.choose_by {
        ChooseBy::Weights => passes(rule_of_weights(options)) * bytes.sum::<u64>(),
        ChooseBy::Outputs => 0,
    }
}

/// The only rule that weights are measured with: one that a text decides says nothing of them.
fn rule_of_weights(options: &AutoOptions) -> Option<ScaleRule> {
    let rule = options.rule;
    rule.filter(|rule| ScaleRule::OF_WEIGHTS.contains(rule))
}

/// Measures every selected tensor and chooses.
///
/// # Errors
/// Bad options, a checkpoint that is int4 already, a sensitivity of other tensors, a bound that
/// cannot be kept or that leaves nothing to quantize, weights that are not finite, `progress`
/// returning false.
pub fn choose(
    checkpoint: &Checkpoint,
    options: &AutoOptions,
    progress: Progress,
) -> Result<Auto, ConvertError> {
    check(checkpoint, options)?;
    options.rule.map_or(Ok(()), check_rule)?;
    if options.choose_by == ChooseBy::Outputs {
        return Err(ConvertError::Option {
            option: "--choose-by",
            value: options.choose_by.name().to_owned(),
            rule: "outputs are measured on a calibration text: give one with --calibrate, or \
                   choose by weights"
                .to_owned(),
        });
    }
    let tensors = tensors(checkpoint, options)?;
    let weights = weights(checkpoint, options, &tensors)?;
    let curves = curves_of_weights(checkpoint, options, &tensors, progress)?;
    let widths = allocated(options, &tensors, &curves, &weights)?;
    Ok(auto(
        checkpoint, options, &tensors, &curves, &weights, &widths,
    ))
}

/// Chooses as [`choose`] what is then calibrated on the text of `prepared`, and records that text.
/// `measuring` is told of the layers where outputs decide, `progress` of the bytes where weights
/// do. Hidden states that memory does not hold go to `directory`.
///
/// # Errors
/// As [`choose`]; by [`ChooseBy::Outputs`] a tensor that is no product of a layer, and activations
/// that are not finite.
pub(crate) fn choose_calibrated(
    checkpoint: &Checkpoint,
    options: &AutoOptions,
    prepared: &Prepared,
    directory: &Path,
    measuring: CalibrationProgress,
    progress: Progress,
) -> Result<Auto, ConvertError> {
    check(checkpoint, options)?;
    let tensors = tensors(checkpoint, options)?;
    let mut weights = weights(checkpoint, options, &tensors)?;
    let rule = options.rule.unwrap_or(ScaleRule::Weighted);
    let mut curves;
    match options.choose_by {
        ChooseBy::Weights => {
            curves = curves_of_weights(checkpoint, options, &tensors, progress)?;
            let widths = outputs::most_mantissa_bits(rule) as usize + 1;
            curves.iter_mut().for_each(|c| c.widths.truncate(widths));
        }
        ChooseBy::Outputs => {
            let measured = pool(options.jobs)?.install(|| {
                outputs::measure(
                    checkpoint, options, &tensors, prepared, directory, measuring,
                )
            })?;
            curves = measured.curves;
            for (weight, factor) in weights.iter_mut().zip(measured.factors) {
                *weight *= factor;
            }
        }
    }
    let widths = allocated(options, &tensors, &curves, &weights)?;
    // Of the tensors that the text decides, scales are found by its rule.
    let products = prepared.products();
    for (tensor, curve) in tensors.iter().zip(&mut curves) {
        if products.contains(&tensor.name) {
            curve.widths.iter_mut().for_each(|m| m.options.rule = rule);
        }
    }
    let mut auto = auto(checkpoint, options, &tensors, &curves, &weights, &widths);
    let by = (
        "auto_choose_by".to_owned(),
        options.choose_by.name().to_owned(),
    );
    auto.choice.parameters.extend([by]);
    prepared.record(checkpoint, &mut auto.choice);
    Ok(auto)
}

/// The selected tensors, of which there are any.
fn tensors<'c>(
    checkpoint: &'c Checkpoint,
    options: &'c AutoOptions,
) -> Result<Vec<&'c SourceTensor>, ConvertError> {
    options.target.check(checkpoint)?;
    let tensors: Vec<_> = selected(checkpoint, &options.target).collect();
    match tensors.is_empty() {
        true => Err(options.target.selects_nothing(checkpoint)),
        false => Ok(tensors),
    }
}

/// What a unit of squared error of a tensor's weights costs.
fn weights(
    checkpoint: &Checkpoint,
    options: &AutoOptions,
    tensors: &[&SourceTensor],
) -> Result<Vec<f64>, ConvertError> {
    match &options.sensitivity {
        Some(sensitivity) => sensitivity.weights(checkpoint, tensors),
        None => Ok(vec![1.0; tensors.len()]),
    }
}

fn curves_of_weights(
    checkpoint: &Checkpoint,
    options: &AutoOptions,
    tensors: &[&SourceTensor],
    progress: Progress,
) -> Result<Vec<Curve>, ConvertError> {
    let rule = rule_of_weights(options);
    let mut done_bytes = 0;
    pool(options.jobs)?.install(|| {
        let curve = |tensor: &&SourceTensor| {
            measure(checkpoint, tensor, options.group, rule, &mut || {
                done_bytes += tensor.range.len() as u64;
                progress(done_bytes)
            })
        };
        tensors.iter().map(curve).collect()
    })
}

fn selected<'c>(
    checkpoint: &'c Checkpoint,
    target: &'c Target,
) -> impl Iterator<Item = &'c SourceTensor> {
    checkpoint.tensors().iter().filter(|t| target.takes(t))
}

fn check(checkpoint: &Checkpoint, options: &AutoOptions) -> Result<(), ConvertError> {
    let wrong = |option, value: String, rule: &str| {
        Err(ConvertError::Option {
            option,
            value,
            rule: rule.to_owned(),
        })
    };
    if checkpoint.import().is_some() {
        return wrong(
            "--mbits",
            "auto".to_owned(),
            "compares with unquantized weights, and the checkpoint is int4 already; give the \
             mantissa bits",
        );
    }
    let (option, value) = options.goal.option();
    match options.goal {
        Goal::Budget(bits) if !bits.is_finite() || bits <= 0.0 => {
            return wrong(option, value, "must be a positive number of bits a weight");
        }
        Goal::MaxKl(nats) if !nats.is_finite() || nats < 0.0 => {
            return wrong(option, value, "must be a number of nats, at least 0");
        }
        Goal::MaxKl(_) if options.sensitivity.is_none() => {
            return wrong(
                option,
                value,
                "is predicted from a measured sensitivity, and there is none: write one with \
                 `smq-run eval sensitivity CHECKPOINT --text FILE --unit projection \
                 --json=sensitivity.json` and pass --sensitivity sensitivity.json",
            );
        }
        Goal::Budget(_) | Goal::MaxKl(_) => {}
    }
    let int4 = QuantizeOptions {
        group: options.group,
        scales: ScaleChoice::F32,
        rule: ScaleRule::Reference,
    };
    check_options(checkpoint, Method::Int4(int4))
}

/// Mantissa bits by tensor; `None`: as it is. Tensors of one product get the same.
fn allocated(
    options: &AutoOptions,
    tensors: &[&SourceTensor],
    curves: &[Curve],
    weights: &[f64],
) -> Result<Vec<Option<usize>>, ConvertError> {
    let names: Vec<&str> = tensors.iter().map(|t| t.name.as_str()).collect();
    let products = products(&names);
    let elems: u64 = tensors.iter().map(|t| t.elems() as u64).sum();
    let bound = match options.goal {
        Goal::Budget(bits) => Bound::Bytes((bits * elems as f64 / 8.0) as u64),
        Goal::MaxKl(nats) => Bound::Error(nats),
    };
    let count = curves[0].widths.len();
    let all: Vec<Vec<usize>> = match options.mixed_widths {
        true => vec![(0..count).collect()],
        false => (0..count).map(|width| vec![width]).collect(),
    };
    // The best of the sets of widths; of equally good ones the first.
    let mut best: Option<(Candidate, Vec<Option<usize>>)> = None;
    for widths in all {
        let storages: Vec<_> = widths.into_iter().map(Some).chain([None]).collect();
        let candidates: Vec<Vec<Candidate>> = products
            .iter()
            .map(|members| {
                let of = |storage| sum(members, curves, weights, storage);
                storages.iter().map(|storage| of(*storage)).collect()
            })
            .collect();
        let Some(chosen) = allocate(&candidates, bound) else {
            continue;
        };
        let total = total(&candidates, &chosen);
        if best
            .as_ref()
            .is_none_or(|(b, _)| bound.compare(total, *b).is_lt())
        {
            let mut of_tensors = vec![None; tensors.len()];
            for (members, &index) in products.iter().zip(&chosen) {
                members
                    .iter()
                    .for_each(|&m| of_tensors[m] = storages[index]);
            }
            best = Some((total, of_tensors));
        }
    }
    let (option, value) = options.goal.option();
    let bits = |bytes: u64| 8.0 * bytes as f64 / elems as f64;
    let raw_bits = bits(curves.iter().map(|c| c.raw_bytes).sum());
    let smallest_bits = bits(curves.iter().map(|c| c.widths[0].bytes).sum());
    let refused = |rule: String| ConvertError::Option {
        option,
        value: value.clone(),
        rule,
    };
    match best {
        None => Err(refused(format!(
            "the selected tensors take {smallest_bits:.4} bits a weight at least ({} scales, \
             groups of {}); raise it",
            ScaleChoice::e5(0),
            options.group
        ))),
        Some((_, chosen)) if chosen.iter().all(Option::is_none) => Err(refused(format!(
            "leaves every selected tensor as it is, at {raw_bits:.4} bits a weight, which is the \
             checkpoint itself; the bound must leave something to quantize"
        ))),
        Some((_, chosen)) => Ok(chosen),
    }
}

/// A product's members together.
fn sum(members: &[usize], curves: &[Curve], weights: &[f64], storage: Option<usize>) -> Candidate {
    let mut sum = Candidate {
        bytes: 0,
        error: 0.0,
    };
    for &member in members {
        let curve = &curves[member];
        let (bytes, error) = match storage {
            Some(width) => {
                let Measured {
                    bytes,
                    squared_error,
                    ..
                } = curve.widths[width];
                (bytes, weights[member] * squared_error)
            }
            None => (curve.raw_bytes, 0.0),
        };
        sum.bytes += bytes;
        sum.error += error;
    }
    sum
}

fn auto(
    checkpoint: &Checkpoint,
    options: &AutoOptions,
    tensors: &[&SourceTensor],
    curves: &[Curve],
    weights: &[f64],
    widths: &[Option<usize>],
) -> Auto {
    let mut chosen = Vec::with_capacity(tensors.len());
    for ((tensor, curve), width) in tensors.iter().zip(curves).zip(widths) {
        let measured = width.map(|width| curve.widths[width]);
        chosen.push(ChosenTensor {
            name: tensor.name.clone(),
            elems: tensor.elems() as u64,
            options: measured.map(|m| m.options),
            bytes: measured.map_or(curve.raw_bytes, |m| m.bytes),
            squared_error: measured.map_or(0.0, |m| m.squared_error),
            squared_whole: curve.squared_whole,
        });
    }
    let elems: u64 = chosen.iter().map(|t| t.elems).sum();
    let bytes: u64 = chosen.iter().map(|t| t.bytes).sum();
    let errors = chosen.iter().zip(weights);
    let cost = errors.map(|(t, w)| w * t.squared_error).sum::<f64>();
    let of_name: BTreeMap<&str, Method> = chosen
        .iter()
        .filter_map(|t| Some((t.name.as_str(), Method::Int4(t.options?))))
        .collect();
    let methods = checkpoint
        .tensors()
        .iter()
        .map(|t| of_name.get(t.name.as_str()).copied())
        .collect();
    Auto {
        choice: Choice {
            methods,
            parameters: parameters(options, &chosen),
            calibrated: BTreeSet::new(),
        },
        bits_per_weight: 8.0 * bytes as f64 / elems as f64,
        chosen_by: options.choose_by,
        predicted_kl: options.sensitivity.as_ref().map(|_| cost),
        tensors: chosen,
    }
}

/// What decided the choice, as far as the file does not say it.
fn parameters(options: &AutoOptions, chosen: &[ChosenTensor]) -> BTreeMap<String, String> {
    let rules = chosen.iter();
    let rules: Vec<_> = rules
        .filter_map(|t| Some((t.name.as_str(), t.options?.rule)))
        .collect();
    let bound = match options.goal {
        Goal::Budget(bits) => ("auto_budget_bits", bits.to_string()),
        Goal::MaxKl(nats) => ("auto_max_kl_nats", nats.to_string()),
    };
    let widths = if options.mixed_widths { "mixed" } else { "one" };
    let mut out: BTreeMap<String, String> = [
        bound,
        ("auto_widths", widths.to_owned()),
        ("group_size", options.group.to_string()),
        ("scales", "auto".to_owned()),
        ("target", options.target.name().to_owned()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    if let Some(sensitivity) = &options.sensitivity {
        let key = "auto_sensitivity_blake3".to_owned();
        out.insert(key, sensitivity.blake3.clone());
    }
    out.extend(rule_parameters(&rules));
    out
}
