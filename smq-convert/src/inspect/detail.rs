//! Everything that is known of one tensor, as text.

use super::number::{
    bar, bits, bytes, count, decibels, percent, scientific, shape, signed_percent,
};
use super::outputs;
use super::overview::{plain_table, right_align, table_lines};
use super::report::{ErrorReport, OutputReport, TensorErrors, TensorReport};

/// Widest bar, in characters.
const BAR_WIDTH: usize = 50;

/// Everything known of a tensor.
pub fn tensor_detail(t: &TensorReport) -> String {
    let mut out = format!("{}\n\n{}", t.name, table_lines(facts(t)));
    match &t.errors {
        Some(e) => {
            out.push('\n');
            out.push_str(&summaries(e));
            out.push('\n');
            out.push_str(&table_lines(counts(t, e)));
            out.push_str(&table_lines(output_error(t)));
            out.push_str(&exponents(e));
            out.push_str(&row_blocks(t, e));
        }
        None if t.is_quantized() => out.push_str("\nno error statistics of this tensor\n"),
        None => out.push_str("\nstored as it was: no quantization error\n"),
    }
    out
}

fn facts(t: &TensorReport) -> Vec<(String, String)> {
    let mut lines = vec![
        (
            "shape",
            format!("{}, {} weights", shape(&t.shape), count(t.elems)),
        ),
        (
            "source",
            format!("{}, {}", t.source_dtype, bytes(t.source_bytes)),
        ),
        (
            "stored",
            format!(
                "{}, {}, {} bits per weight",
                t.scheme,
                bytes(t.stored_bytes),
                bits(t.bits_per_weight)
            ),
        ),
    ];
    if let (Some(format), Some(group)) = (&t.scale_format, t.group_elems) {
        let bias = t
            .scale_bias
            .map_or_else(String::new, |b| format!(" with exponent bias {b}"));
        let rule = t
            .scale_rule
            .as_ref()
            .map_or_else(String::new, |rule| format!(", rule {rule}"));
        let groups = count(t.groups);
        lines.push((
            "scales",
            format!("{format}{bias}{rule}, {groups} groups of {group}"),
        ));
    }
    if let Some(levels) = &t.levels {
        lines.push(("levels", levels.map(|level| level.to_string()).join(" ")));
    }
    for b in &t.blobs {
        let s = &b.section;
        let (offset, length) = (count(s.offset_bytes), count(s.length_bytes));
        lines.push((
            "blob",
            format!(
                "{}, offset {offset}, {length} bytes, blake3 {}",
                b.role, s.blake3
            ),
        ));
    }
    let owned = |(name, value): (&str, String)| (format!("{name}:"), value);
    lines.into_iter().map(owned).collect()
}

fn summaries(e: &TensorErrors) -> String {
    let mut table = plain_table();
    table.set_header([
        "relative MSE over groups",
        "as stored",
        "exact f32 scales",
        "cost %",
    ]);
    type Figure = (&'static str, fn(&ErrorReport) -> f64);
    let figures: [Figure; 6] = [
        ("mean", |s| s.mean_rel_mse),
        ("50th percentile", |s| f64::from(s.p50_rel_mse)),
        ("90th percentile", |s| f64::from(s.p90_rel_mse)),
        ("99th percentile", |s| f64::from(s.p99_rel_mse)),
        ("99.9th percentile", |s| f64::from(s.p999_rel_mse)),
        ("maximum", |s| f64::from(s.max_rel_mse)),
    ];
    for (name, of) in figures {
        let (stored, exact) = (of(&e.stored), of(&e.exact));
        let cost = signed_percent(super::collect::cost_percent(stored, exact));
        table.add_row([name.to_owned(), scientific(stored), scientific(exact), cost]);
    }
    let both = |name: &str, of: fn(&ErrorReport) -> String| {
        [name.to_owned(), of(&e.stored), of(&e.exact), String::new()]
    };
    table.add_row(both("mean cosine similarity", |s| {
        format!("{:.6}", s.mean_cosine)
    }));
    table.add_row(both("SQNR, dB", |s| decibels(s.sqnr_db)));
    right_align(&mut table, 1..4);
    format!("{}\n", table.trim_fmt())
}

fn counts(t: &TensorReport, e: &TensorErrors) -> Vec<(String, String)> {
    let of = |name: &str, n: u64, whole: u64, what: &str| {
        let share = percent(n, whole).map_or_else(String::new, |p| format!(" ({p:.4} %)"));
        (
            format!("{name}:"),
            format!("{} of {} {what}{share}", count(n), count(whole)),
        )
    };
    vec![
        of("clipped", e.clipped_weights, t.elems, "weights"),
        of(
            "under the window",
            e.under_window_scales,
            t.groups,
            "scales",
        ),
        of("all zero", e.zero_groups, t.groups, "groups"),
    ]
}

/// The error of the outputs, where the tensor was calibrated.
fn output_error(t: &TensorReport) -> Vec<(String, String)> {
    let of = |output: OutputReport| {
        let [rounded, stored, less] = outputs::cells(&output);
        let change = match output.is_rounded {
            true => "rounded to nearest, since calibration did no better".to_owned(),
            false => format!("rounded -> {stored} stored, {less} % less"),
        };
        let text = format!("{rounded} {change} ({})", outputs::MEANING);
        ("output error:".to_owned(), text)
    };
    t.output_error.map(of).into_iter().collect()
}

fn exponents(e: &TensorErrors) -> String {
    let numbered = e.exponent_counts.iter().zip(i64::from(e.first_exponent)..);
    let rows = numbered.enumerate().map(|(i, (&n, exponent))| {
        let smaller = if i == 0 { "<= " } else { "" };
        (format!("{smaller}2^{exponent}"), n as f64, count(n))
    });
    let rows = rows.skip_while(|r| r.1 == 0.0).collect();
    bars("\nstored scales by exponent\n", rows)
}

fn row_blocks(t: &TensorReport, e: &TensorErrors) -> String {
    let rows = t.shape.first().copied().unwrap_or(0) as u64;
    let block = e.block_rows.max(1);
    let lines = e.row_block_mean_rel_mse.iter().zip(0u64..).map(|(&v, i)| {
        let first = i.saturating_mul(block);
        let last = first.saturating_add(block).min(rows).saturating_sub(1);
        let v = f64::from(v);
        (format!("{first}..={last}"), v, scientific(v))
    });
    bars("\nmean relative MSE by rows\n", lines.collect())
}

fn bars(title: &str, rows: Vec<(String, f64, String)>) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let largest = rows.iter().map(|r| r.1).fold(0.0, f64::max);
    let mut table = plain_table();
    for (label, value, text) in rows {
        table.add_row([label, text, bar(value, largest, BAR_WIDTH)]);
    }
    right_align(&mut table, 0..2);
    format!("{title}{}\n", table.trim_fmt())
}
