//! What became of the outputs, as text: the calibrated tensors', and the whole model's.

use super::number::{count, printable, scientific};
use super::overview::{plain_table, right_align, short};
use super::report::{OutputReport, ReceiptReport, Report, TensorReport};
use super::tensor_name::{Shared, elide, natural};

/// Names are shortened to this.
const NAME_WIDTH: usize = 72;

/// What the two figures are, for headings.
pub(crate) const MEANING: &str = "squared error of a tensor's outputs on the calibration text, \
     with the inputs it has in this file, against its outputs in the unquantized model, over their \
     squares";

/// The output errors of the `top` worst calibrated tensors (0: all); empty where none is.
pub fn output_table(report: &Report, top: usize) -> String {
    let Some(totals) = &report.output_errors else {
        return String::new();
    };
    let calibrated = worst_first(report);
    let shown = match top {
        0 => calibrated.len(),
        n => n.min(calibrated.len()),
    };
    let shared = Shared::of(calibrated.iter().map(|(t, _)| t.name.as_str()));
    let mut table = plain_table();
    table.set_header(["tensor", "rounded", "-> stored", "less %"]);
    for (tensor, output) in &calibrated[..shown] {
        let name = elide(&printable(shared.strip(&tensor.name)), NAME_WIDTH);
        let [rounded, stored, less] = cells(output);
        table.add_row([name, rounded, stored, less]);
    }
    let (rounded, stored) = (totals.median_rounded, totals.median_stored);
    table.add_row([
        "median".to_owned(),
        scientific(rounded),
        scientific(stored),
        less(rounded, stored),
    ]);
    right_align(&mut table, 1..4);
    let all = match calibrated.len() - shown {
        0 => "",
        _ => " (--top 0 shows all)",
    };
    let fell_back = match totals.rounded_tensors {
        0 => String::new(),
        n => format!("; =: {n} stored rounded to nearest, since calibration did no better"),
    };
    format!(
        "output errors of {shown} of {} calibrated tensors{all}, worst first\n\n{}\n\n\
         rounded -> stored: {MEANING}{fell_back}\n",
        calibrated.len(),
        table.trim_fmt()
    )
}

/// Calibrated tensors with their output errors, the largest stored one first.
pub(crate) fn worst_first(report: &Report) -> Vec<(&TensorReport, OutputReport)> {
    let calibrated = report.tensors.iter();
    let mut calibrated: Vec<_> = calibrated
        .filter_map(|t| Some((t, t.output_error?)))
        .collect();
    calibrated.sort_by(|(a, x), (b, y)| {
        let larger_first = y.stored.total_cmp(&x.stored);
        larger_first.then_with(|| natural(&a.name, &b.name))
    });
    calibrated
}

/// Rounded, stored, and what the latter is less, in percent.
pub(crate) fn cells(output: &OutputReport) -> [String; 3] {
    let last = match output.is_rounded {
        true => "=".to_owned(),
        false => less(output.rounded, output.stored),
    };
    [scientific(output.rounded), scientific(output.stored), last]
}

fn less(rounded: f64, stored: f64) -> String {
    match rounded > 0.0 {
        true => format!("{:.1}", 100.0 * (1.0 - stored / rounded)),
        false => "-".to_owned(),
    }
}

/// A receipt in two lines, each after a name.
pub(crate) fn receipt(r: &ReceiptReport) -> [(String, String); 2] {
    let text = format!(
        "{}, {} tokens in windows of {}, blake3 {}",
        printable(&r.text),
        count(r.tokens_scored),
        count(r.window_tokens),
        short(&r.blake3)
    );
    let figures = format!(
        "KL divergence {:.6} +- {:.6} nats, perplexity {:.4} ({:.4} unquantized), same top token \
         {:.2} %",
        r.mean_kl_nats, r.kl_stderr_nats, r.perplexity, r.base_perplexity, r.top1_agreement_percent,
    );
    [("measured on".to_owned(), text), (String::new(), figures)]
}
