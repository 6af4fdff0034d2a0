//! The parts of the page that are text.

use plotters::style::RGBColor;

use super::figure::{INK, PALETTE, escape};
use super::series::Series;
use crate::inspect::number::{bits, bytes, count, decibels, scientific, signed_percent};
use crate::inspect::outputs::MEANING;
use crate::inspect::overview::savings_text;
use crate::inspect::report::{Report, TensorErrors, TensorReport};
use crate::inspect::sort::{Sort, sorted};
use crate::inspect::table::{COLUMNS, FIRST_NUMBER, LEGEND, cells, total_cells};

/// The columns that a calibrated file has after [`COLUMNS`].
const OUTPUTS: [&str; 2] = ["output error rounded", "stored"];

/// The headline: a tile a fact.
pub(super) fn facts(report: &Report) -> String {
    let s = &report.sizes;
    let of_source = s.file_of_source_percent.map_or_else(String::new, |p| {
        format!(
            "{p:.1} % of the tensors' {} at the source",
            human(s.source_tensor_bytes)
        )
    });
    let mut tiles = vec![("file", human(s.file_bytes), of_source)];
    if s.quantized_elems > 0 {
        tiles.push((
            "bits per quantized weight",
            bits(s.bits_per_quantized_weight),
            format!("{} over the whole file", bits(s.bits_per_weight_in_file)),
        ));
    }
    if let Some(savings) = s.scale_savings_vs_f16_percent {
        let note = format!(
            "{}; {} as f16",
            human(s.scale_bytes),
            human(s.scale_f16_bytes)
        );
        tiles.push(("scales", savings_text(savings), note));
    }
    if let Some(t) = &report.totals {
        tiles.push((
            "mean relative MSE",
            scientific(t.mean_rel_mse),
            format!("{} with exact scales", scientific(t.exact_mean_rel_mse)),
        ));
        tiles.push((
            "cost of the scale format",
            format!("{} %", signed_percent(t.scale_format_cost_percent)),
            "of the mean relative MSE".to_owned(),
        ));
        tiles.push((
            "SQNR",
            format!("{} dB", decibels(t.sqnr_db)),
            format!(
                "{} weights clipped, {} scales under the window",
                count(t.clipped_weights),
                count(t.under_window_scales)
            ),
        ));
    }
    if let Some(o) = &report.output_errors {
        tiles.push((
            "median output error",
            scientific(o.median_stored),
            format!("{} rounded to nearest", scientific(o.median_rounded)),
        ));
    }
    for r in &report.receipts {
        tiles.push((
            "KL divergence, nats",
            scientific(r.mean_kl_nats),
            format!(
                "\u{b1} {} on {} tokens of {}; perplexity {:.4} of {:.4}, same most likely token \
                 {:.2} %",
                scientific(r.kl_stderr_nats),
                count(r.tokens_scored),
                escape(&r.text),
                r.perplexity,
                r.base_perplexity,
                r.top1_agreement_percent
            ),
        ));
    }
    let tile = |(name, value, note): (&str, String, String)| {
        format!("<div><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>\n")
    };
    format!(
        "<dl class=\"facts\">\n{}</dl>\n",
        tiles.into_iter().map(tile).collect::<String>()
    )
}

fn human(n: u64) -> String {
    indicatif::DecimalBytes(n).to_string()
}

/// Colours and what they stand for.
pub(super) fn legend(all: &[&Series<'_>]) -> String {
    let entry = |(i, s): (usize, &&Series<'_>)| {
        let shape = if i < PALETTE.len() { "" } else { " triangle" };
        let (class, style) = match s.colour {
            INK => (format!("ink{shape}"), String::new()),
            RGBColor(r, g, b) => (
                shape.to_owned(),
                format!(" style=\"background:#{r:02x}{g:02x}{b:02x}\""),
            ),
        };
        format!(
            "<li><i class=\"{class}\"{style}></i>{}</li>",
            escape(&s.label)
        )
    };
    let entries: String = all.iter().enumerate().map(entry).collect();
    format!("<ul class=\"legend\">{entries}</ul>\n")
}

/// The whole table, sortable.
pub(super) fn tensor_table(report: &Report) -> String {
    let class = |i: usize| {
        if i < FIRST_NUMBER {
            " class=\"text\""
        } else {
            ""
        }
    };
    let head = |(i, name): (usize, &&str)| {
        let order = if i == FIRST_NUMBER + 1 {
            " aria-sort=\"descending\""
        } else {
            ""
        };
        format!("<th{}{order}><button>{name}</button></th>", class(i))
    };
    // Only calibrated files have the last columns.
    let outputs = report.output_errors.as_ref();
    let own: &[&str] = if outputs.is_some() { &OUTPUTS } else { &[] };
    let heads: String = COLUMNS.iter().chain(own).enumerate().map(head).collect();
    let body: String = sorted(&report.tensors, Sort::RelMse)
        .into_iter()
        .filter_map(|t| Some(row(t, t.errors.as_ref()?, outputs.is_some())))
        .collect();
    let foot = report.totals.as_ref().map_or_else(String::new, |t| {
        let cell = |(i, c): (usize, String)| format!("<td{}>{c}</td>", class(i));
        let medians = outputs.map(|o| [o.median_rounded, o.median_stored].map(median));
        total_cells(report, t)
            .into_iter()
            .chain(medians.into_iter().flatten())
            .enumerate()
            .map(cell)
            .collect()
    });
    format!(
        "<h2>Tensors</h2>\n<p>{}</p>\n<div class=\"wide\" tabindex=\"0\" \
         role=\"region\" aria-label=\"error of every tensor\"><table \
         id=\"tensors\">\n<thead><tr>{heads}</tr></thead>\n\
         <tbody>\n{body}</tbody>\n<tfoot><tr>{foot}</tr></tfoot>\n</table></div>\n",
        LEGEND.replace('\n', "; ").replace(";;", ";")
            + &outputs.map_or_else(String::new, |_| format!("; output error: {MEANING}"))
    )
}

fn median(figure: f64) -> String {
    format!("median {}", scientific(figure))
}

fn row(t: &TensorReport, e: &TensorErrors, has_outputs: bool) -> String {
    let exact = [
        t.bits_per_weight.unwrap_or(0.0),
        e.stored.mean_rel_mse,
        f64::from(e.stored.p99_rel_mse),
        f64::from(e.stored.max_rel_mse),
        e.stored.mean_cosine,
        e.stored.sqnr_db.unwrap_or(f64::MAX),
        e.scale_format_cost_percent.unwrap_or(f64::MAX),
        e.clipped_weights as f64,
        e.under_window_scales as f64,
    ];
    let cell = |(i, text): (usize, String)| match i.checked_sub(FIRST_NUMBER) {
        Some(k) => format!("<td data-v=\"{}\">{text}</td>", exact[k]),
        None => format!("<td class=\"text\">{}</td>", escape(&text)),
    };
    let mut cells: String = cells(t, e).into_iter().enumerate().map(cell).collect();
    let figures = t.output_error.map(|o| [o.rounded, o.stored]);
    if has_outputs {
        cells.push_str(&match figures {
            Some(figures) => figures
                .map(|v| format!("<td data-v=\"{v}\">{}</td>", scientific(v)))
                .concat(),
            None => "<td data-v=\"-1\">-</td>".repeat(OUTPUTS.len()),
        });
    }
    format!("<tr>{cells}</tr>\n")
}

/// Provenance, sources and schemes.
pub(super) fn about(report: &Report) -> String {
    let p = &report.provenance;
    let mut lines = vec![
        (
            "format".to_owned(),
            format!(".smq {}", report.header.version),
        ),
        ("producer".to_owned(), escape(&p.producer)),
    ];
    for (k, v) in &p.parameters {
        lines.push((format!("parameter {}", escape(k)), escape(v)));
    }
    for s in &p.sources {
        let text = format!("{}, BLAKE3 {}", bytes(s.length_bytes), s.blake3);
        lines.push((format!("source {}", escape(&s.name)), text));
    }
    for c in &report.schemes {
        let format = c.scale_format.as_deref().or(c.dtype.as_deref());
        let what = format!("{} {}", escape(&c.scheme), format.unwrap_or_default());
        let group = c
            .group_elems
            .map_or_else(String::new, |g| format!(", group {g}"));
        let (elems, stored) = (count(c.elems), bytes(c.stored_bytes));
        lines.push((
            what,
            format!("{} tensors, {elems} weights{group}, {stored}", c.tensors),
        ));
    }
    let row =
        |(name, value): (String, String)| format!("<tr><th>{name}</th><td>{value}</td></tr>\n");
    let rows: String = lines.into_iter().map(row).collect();
    format!("<h2>About the file</h2>\n<table class=\"about\">\n{rows}</table>\n")
}
