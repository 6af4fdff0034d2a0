//! What the user reads of a conversion, planned or done.

use std::io::Write;
use std::path::Path;

use comfy_table::{CellAlignment, Table, presets};
use indicatif::DecimalBytes;

use super::auto::{choice_table, print_total};
use super::task::Task;
use super::{print_notes, stdout};
use crate::apply::{ScaleChange, scale_change};
use crate::import::Import;
use crate::number::{count, fixed, plural};
use crate::target::Coverage;
use crate::{Auto, Checkpoint, Method, Plan, Summary};

/// What is known of a conversion before it starts.
pub(super) struct About<'a> {
    checkpoint: &'a Checkpoint,
    coverage: Coverage,
    /// What becomes of the scales of an int4 checkpoint whose integers are kept, and the name of
    /// their new format.
    change: Option<(ScaleChange, String)>,
}

impl<'a> About<'a> {
    pub(super) fn new(checkpoint: &'a Checkpoint, task: &Task) -> Self {
        let (target, method) = match task {
            Task::Uniform(options) | Task::Calibrated(options, _) => {
                (&options.target, Some(options.quantize))
            }
            Task::Auto(options, _) => (&options.target, None),
        };
        let change = match method {
            Some(Method::Int4(options)) if checkpoint.keeps_codes() => Some((
                scale_change(checkpoint, &options),
                options.scales.to_string(),
            )),
            Some(Method::Int4(_) | Method::Lut4 { .. } | Method::Nf4 | Method::Fp8) | None => None,
        };
        Self {
            checkpoint,
            coverage: Coverage::of(checkpoint, target),
            change,
        }
    }

    /// What would be written: how large it would be and what is taken, and of a `verbose` plan what
    /// becomes of each tensor.
    pub(super) fn print_plan(
        &self,
        plan: &Plan,
        auto: Option<&Auto>,
        verbose: bool,
    ) -> anyhow::Result<()> {
        let checkpoint = self.checkpoint;
        let (mut elems, mut quantized_bytes) = (0, 0);
        for (tensor, planned) in checkpoint.tensors().iter().zip(&plan.tensors) {
            if planned.method.is_some() {
                elems += tensor.elems() as u64;
                quantized_bytes += planned.stored_bytes;
            }
        }
        let mut out = stdout();
        writeln!(
            out,
            "{} ({} bytes) would be written for {} of input ({:.1} %); quantized weights take \
             {:.4} bits each",
            DecimalBytes(plan.file_bytes),
            count(plan.file_bytes),
            DecimalBytes(checkpoint.total_bytes()),
            100.0 * plan.file_bytes as f64 / checkpoint.total_bytes() as f64,
            bits_per_weight(quantized_bytes, elems),
        )?;
        self.print_taken(&mut out)?;
        if let Some(auto) = auto {
            print_total(&mut out, auto)?;
        }
        match (verbose, auto) {
            (false, _) => writeln!(
                out,
                "-v shows what becomes of each of the {} tensors",
                count(plan.tensors.len())
            )?,
            (true, Some(auto)) => write!(out, "\n{}", choice_table(auto))?,
            (true, None) => write!(out, "\n{}", self.plan_table(plan))?,
        }
        Ok(())
    }

    /// What becomes of each tensor.
    fn plan_table(&self, plan: &Plan) -> String {
        let mut rows = table(&[
            "tensor",
            "shape",
            "source",
            "becomes",
            "bytes",
            "bits/weight",
        ]);
        for (tensor, planned) in self.checkpoint.tensors().iter().zip(&plan.tensors) {
            let becomes = planned.method.map_or("as it is", |m| m.family().name());
            rows.add_row([
                tensor.name.clone(),
                format!("{:?}", tensor.shape),
                match self.checkpoint.packed(tensor) {
                    Some(_) => format!("int4, {} scales", tensor.dtype),
                    None => tensor.dtype.to_string(),
                },
                becomes.to_owned(),
                count(planned.stored_bytes),
                format!(
                    "{:.3}",
                    bits_per_weight(planned.stored_bytes, tensor.elems().max(1) as u64)
                ),
            ]);
        }
        format!("{rows}\n")
    }

    /// What of the checkpoint is taken, and what an int4 one was taken for.
    fn print_taken(&self, out: &mut impl Write) -> anyhow::Result<()> {
        if let Some(import) = self.checkpoint.import() {
            writeln!(out, "{}", self.imported(import))?;
        }
        write!(out, "{}", self.coverage)?;
        Ok(())
    }

    fn imported(&self, import: &Import) -> String {
        let exactly = matches!(self.change, Some((change, _)) if change.changed == 0);
        format!(
            "imported{}: {} in {} ({}), integers {}; errors are against its own q * s",
            if exactly { " exactly" } else { "" },
            plural(import.tensors, "int4 tensor"),
            import.grouping,
            import.form,
            match &self.change {
                Some((change, format)) if change.changed == 0 => {
                    format!(
                        "kept, all {} scales exact in {format}",
                        count(change.scales)
                    )
                }
                Some((change, format)) => format!(
                    "kept, {} of {} scales changed by {format}, by up to {:.2} %",
                    count(change.changed),
                    count(change.scales),
                    100.0 * change.max_relative
                ),
                None => "derived anew".to_owned(),
            },
        )
    }

    /// What was written, and the tensors with the largest errors.
    pub(super) fn print_summary(
        &self,
        path: &Path,
        summary: &Summary,
        auto: Option<&Auto>,
    ) -> anyhow::Result<()> {
        let mut out = stdout();
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
        if let Some(calibrated) = &summary.calibrated {
            writeln!(
                out,
                "calibrated: {} tensors, squared error of the outputs on the calibration text \
                 {:.4} -> {:.4} of the outputs (median over tensors, rounded to nearest -> as \
                 stored); {} stored rounded, {} with more damping",
                count(calibrated.tensors),
                calibrated.rounded,
                calibrated.stored,
                count(calibrated.fell_back),
                count(calibrated.raised),
            )?;
        }
        for receipt in &summary.receipts {
            writeln!(
                out,
                "measured: KL divergence {:.6} +- {:.6} nats, perplexity {} of {} unquantized, \
                 same most likely token {:.2} %, over {} tokens of {}",
                receipt.mean_kl,
                receipt.kl_stderr,
                fixed(receipt.perplexity, 4),
                fixed(receipt.base_perplexity, 4),
                100.0 * receipt.top1_agreement,
                count(receipt.tokens_scored),
                receipt.text,
            )?;
        }
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
                count(t.clipped),
            ]);
        }
        writeln!(out, "{rows}")?;
        self.print_taken(&mut out)?;
        if let [first, rest @ ..] = summary.not_finite.as_slice() {
            let more = match rest.len() {
                0 => String::new(),
                n => format!(" and {} more", count(n)),
            };
            print_notes(&[format!(
                "carried along although not finite, since no weights: {first}{more}"
            )]);
        }
        if self.checkpoint.files().file("config.json").is_none() {
            writeln!(
                out,
                "note: there is no config.json beside the weights, so smq-run cannot run this file"
            )?;
        }
        Ok(())
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
