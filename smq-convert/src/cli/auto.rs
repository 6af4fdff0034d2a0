//! `smq-convert --mbits auto`: its options, and the table of what was chosen.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{bail, ensure};
use clap::Args;
use smq_format::MantissaBits;
use smq_format::scale::MAX_MANTISSA_BITS;

use super::summary::table;
use super::words;
use crate::auto::{Auto, AutoOptions, ChooseBy, ChosenTensor, Goal, Sensitivity};
use crate::number::count;
use crate::quantize::ScaleRule;
use crate::{Checkpoint, Target};

/// Mantissa bits as given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    /// Chosen for each tensor.
    Auto,
    /// So many for every tensor.
    Given(MantissaBits),
}

impl std::str::FromStr for Width {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "auto" => Ok(Width::Auto),
            bits => bits
                .parse()
                .map(Width::Given)
                .map_err(|_| format!("{s} is not in -1..={MAX_MANTISSA_BITS}, and not auto")),
        }
    }
}

/// Options of the choice.
#[derive(Debug, Args)]
pub(super) struct AutoArgs {
    /// --mbits auto: at most so many bits a weight over the tensors of --target, scales included
    #[arg(long, value_name = "BITS_PER_WEIGHT", conflicts_with = "max_kl")]
    budget: Option<f64>,
    /// --mbits auto: the smallest file whose mean KL divergence, predicted from --sensitivity, is
    /// at most this, in nats
    #[arg(long, value_name = "NATS")]
    max_kl: Option<f64>,
    /// --mbits auto: weigh errors by what smq-run eval sensitivity --json measured
    #[arg(long, value_name = "FILE")]
    pub(super) sensitivity: Option<PathBuf>,
    /// --mbits auto: choose a scale width for each product, in place of one for all, which the CUDA
    /// decode kernel is compiled for
    #[arg(long)]
    mixed_widths: bool,
    /// --mbits auto: whose errors decide [default: outputs with --calibrate, otherwise weights]
    #[arg(long, value_parser = words::choose_by())]
    choose_by: Option<ChooseBy>,
}

impl AutoArgs {
    /// Refuses them where nothing is chosen.
    ///
    /// # Errors
    /// The first that is given.
    pub(super) fn refuse(&self) -> anyhow::Result<()> {
        let given = [
            ("--budget", self.budget.is_some()),
            ("--max-kl", self.max_kl.is_some()),
            ("--sensitivity", self.sensitivity.is_some()),
            ("--mixed-widths", self.mixed_widths),
            ("--choose-by", self.choose_by.is_some()),
        ];
        match given.iter().find(|(_, given)| *given) {
            Some((option, _)) => {
                bail!("{option} is for --mbits auto: add that, or leave {option} out")
            }
            None => Ok(()),
        }
    }

    /// Whose errors decide, with a calibration text or without.
    pub(super) fn choose_by(&self, calibrates: bool) -> ChooseBy {
        self.choose_by.unwrap_or(match calibrates {
            true => ChooseBy::Outputs,
            false => ChooseBy::Weights,
        })
    }

    /// The options without a calibration text; `checkpoint` is for the message.
    ///
    /// # Errors
    /// No bound; a sensitivity that is needed and absent, or cannot be read.
    pub(super) fn options(
        &self,
        checkpoint: &Checkpoint,
        target: Target,
        group: usize,
        rule: Option<ScaleRule>,
        overwrite: bool,
        jobs: usize,
    ) -> anyhow::Result<AutoOptions> {
        let goal = match (self.budget, self.max_kl) {
            (Some(bits), _) => Goal::Budget(bits),
            (None, Some(nats)) => Goal::MaxKl(nats),
            (None, None) => bail!(
                "--mbits auto needs a bound: pass --budget BITS_PER_WEIGHT, or --max-kl NATS with \
                 --sensitivity FILE"
            ),
        };
        ensure!(
            self.max_kl.is_none() || self.sensitivity.is_some(),
            "--max-kl is predicted from a measured sensitivity: run `smq-run eval sensitivity {} \
             --text FILE --unit projection --target '{}' --json=sensitivity.json` and pass \
             --sensitivity sensitivity.json",
            checkpoint.path().display(),
            target.name()
        );
        let sensitivity = self.sensitivity.as_deref().map(Sensitivity::read);
        Ok(AutoOptions {
            target,
            group,
            rule,
            goal,
            choose_by: self.choose_by(false),
            sensitivity: sensitivity.transpose()?,
            mixed_widths: self.mixed_widths,
            overwrite,
            jobs,
        })
    }
}

/// What was chosen, tensor by tensor.
pub(super) fn choice_table(auto: &Auto) -> String {
    let error = match auto.chosen_by {
        ChooseBy::Weights => "rel. error",
        ChooseBy::Outputs => "rel. output error",
    };
    let mut rows = table(&["tensor", "becomes", "rule", "bits/weight", error]);
    for t in &auto.tensors {
        let becomes = t.options.map(|o| format!("int4 {}", o.scales));
        rows.add_row([
            t.name.clone(),
            becomes.unwrap_or_else(|| "as it is".to_owned()),
            t.options
                .map_or_else(|| "-".to_owned(), |o| o.rule.to_string()),
            format!("{:.3}", 8.0 * t.bytes as f64 / t.elems as f64),
            format!("{:.6}", relative(t.squared_error, t.squared_whole)),
        ]);
    }
    format!("{rows}\n")
}

/// What the choice comes to.
pub(super) fn print_total(out: &mut impl Write, auto: &Auto) -> anyhow::Result<()> {
    let sum = |of: fn(&ChosenTensor) -> f64| auto.tensors.iter().map(of).sum::<f64>();
    let kept = auto.tensors.iter().filter(|t| t.options.is_none()).count();
    write!(
        out,
        "chosen: {} tensors in {:.4} bits a weight, {} of them as they are; relative squared error ",
        count(auto.tensors.len()),
        auto.bits_per_weight,
        count(kept),
    )?;
    match auto.chosen_by {
        ChooseBy::Weights => {
            let (error, whole) = (sum(|t| t.squared_error), sum(|t| t.squared_whole));
            writeln!(out, "{:.6}", relative(error, whole))?;
        }
        ChooseBy::Outputs => writeln!(
            out,
            "of the outputs {:.6}, the mean over tensors, rounded to nearest",
            sum(|t| relative(t.squared_error, t.squared_whole)) / auto.tensors.len() as f64,
        )?,
    }
    if let Some(kl) = auto.predicted_kl {
        let before = match auto.choice.calibrated.is_empty() {
            true => "",
            false => " before calibration",
        };
        writeln!(
            out,
            "predicted mean KL divergence{before}: {kl:.6} nats, if the tensors' effects add up; \
             check it with smq-run eval kl"
        )?;
    }
    Ok(())
}

fn relative(error: f64, weight: f64) -> f64 {
    if error == 0.0 { 0.0 } else { error / weight }
}
