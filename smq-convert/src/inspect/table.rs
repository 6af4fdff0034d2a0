//! The error table: one line a tensor, within 120 columns.

use super::number::{bits, count, decibels, scientific, signed_percent, times};
use super::overview::{plain_table, right_align};
use super::report::{Report, TensorErrors, TensorReport, Totals};
use super::sort::{Sort, sorted};
use super::tensor_name::{Shared, elide};

/// Widest line; names are shortened to fit.
const LINE_WIDTH: usize = 120;
/// Names are not shortened below this.
const MIN_NAME_WIDTH: usize = 16;

/// The columns; the HTML page has the same.
pub(crate) const COLUMNS: [&str; 12] = [
    "tensor", "shape", "scales", "bits/w", "rel MSE", "p99", "max", "cosine", "SQNR dB", "cost %",
    "clipped", "under",
];
/// Where the numbers begin in [`COLUMNS`].
pub(crate) const FIRST_NUMBER: usize = 3;

/// What the columns mean, for under the table.
pub(crate) const LEGEND: &str = "\
rel MSE, p99, max: mean, 99th percentile and maximum over groups of the relative MSE, as stored
cost %: how much larger the mean is than with exact f32 scales; clipped: weights beyond int4;
under: scales under the format's window";

/// The table of the first `top` tensors with statistics (0: all); empty where there are none.
pub fn error_table(report: &Report, top: usize, sort: Sort) -> String {
    let Some(totals) = &report.totals else {
        return String::new();
    };
    let known = report.tensors.iter().filter(|t| t.errors.is_some());
    let shared = Shared::of(known.map(|t| t.name.as_str()));
    let shown = match top {
        0 => totals.tensors,
        n => n.min(totals.tensors),
    };
    let mut rows: Vec<_> = sorted(&report.tensors, sort)
        .into_iter()
        .filter_map(|t| Some(cells(t, t.errors.as_ref()?)))
        .take(shown)
        .collect();
    let total = total_cells(report, totals);
    let width = name_width(&rows, &total);
    for row in &mut rows {
        row[0] = elide(shared.strip(&row[0]), width);
    }
    let mut table = plain_table();
    table.set_header(COLUMNS).add_rows(rows).add_row(total);
    right_align(&mut table, FIRST_NUMBER..COLUMNS.len());
    if let Some(column) = table.column_mut(0) {
        column.set_padding((0, 1));
    }
    let all = match totals.tensors - shown {
        0 => "",
        _ => " (--top 0 shows all)",
    };
    let names = match (shared.prefix.as_str(), shared.suffix.as_str()) {
        ("", "") => String::new(),
        (prefix, suffix) => format!("\nnames in full: {prefix}<tensor>{suffix}"),
    };
    format!(
        "errors of {shown} of {} quantized tensors{all}, {}\n\n{}\n\n{LEGEND}{names}\n",
        totals.tensors,
        sort.describe(),
        table.trim_fmt()
    )
}

/// What the other columns, with two spaces between them, leave for the name.
fn name_width(rows: &[[String; COLUMNS.len()]], total: &[String; COLUMNS.len()]) -> usize {
    let column = |i: usize| {
        let cells = rows.iter().chain([total]).map(|r| r[i].chars().count());
        2 + cells.max().unwrap_or(0).max(COLUMNS[i].len())
    };
    let others: usize = (1..COLUMNS.len()).map(column).sum();
    LINE_WIDTH.saturating_sub(others + 1).max(MIN_NAME_WIDTH)
}

/// A tensor's cells, with its full name.
pub(crate) fn cells(t: &TensorReport, e: &TensorErrors) -> [String; COLUMNS.len()] {
    [
        t.name.clone(),
        times(&t.shape),
        scales(t),
        bits(t.bits_per_weight),
        scientific(e.stored.mean_rel_mse),
        scientific(f64::from(e.stored.p99_rel_mse)),
        scientific(f64::from(e.stored.max_rel_mse)),
        format!("{:.5}", e.stored.mean_cosine),
        decibels(e.stored.sqnr_db),
        signed_percent(e.scale_format_cost_percent),
        count(e.clipped_weights),
        count(e.under_window_scales),
    ]
}

/// `e5m5`, and the rule where it is not the reference's.
fn scales(t: &TensorReport) -> String {
    let format = t.scale_format.as_deref().unwrap_or_default();
    match t.scale_rule.as_deref() {
        None | Some("reference") => format.to_owned(),
        Some(rule) => format!("{format} {rule}"),
    }
}

/// The line of totals: means weighted over groups.
pub(crate) fn total_cells(report: &Report, t: &Totals) -> [String; COLUMNS.len()] {
    [
        "all, over groups".to_owned(),
        String::new(),
        String::new(),
        bits(report.sizes.bits_per_quantized_weight),
        scientific(t.mean_rel_mse),
        String::new(),
        scientific(f64::from(t.max_rel_mse)),
        format!("{:.5}", t.mean_cosine),
        decibels(t.sqnr_db),
        signed_percent(t.scale_format_cost_percent),
        count(t.clipped_weights),
        count(t.under_window_scales),
    ]
}
