//! The facts of a file as text: header, provenance, sizes, schemes.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets::NOTHING};

use super::number::{bits, bytes, count, printable};
use super::outputs::receipt;
use super::report::{Report, SchemeCount, StatisticsState};

/// Hex digits of a short hash.
const SHORT_HASH: usize = 12;

/// Lines of facts, without the error table.
pub fn overview(report: &Report) -> String {
    let mut out = header_lines(report);
    out.push_str(&table_lines(provenance(report)));
    out.push('\n');
    out.push_str(&sizes(report));
    out.push('\n');
    out.push_str(&table_lines(densities(report)));
    out.push('\n');
    out.push_str(&table_lines(
        report.schemes.iter().map(scheme_line).collect(),
    ));
    if !report.receipts.is_empty() {
        out.push('\n');
        out.push_str(&table_lines(
            report.receipts.iter().flat_map(receipt).collect(),
        ));
    }
    match &report.statistics {
        StatisticsState::Present => {}
        StatisticsState::Absent => {
            out.push_str(
                "\nno error statistics: the file was written without them, or they were removed\n",
            );
        }
        StatisticsState::Damaged { .. } => {
            out.push_str(
                "\nno error statistics: their section is damaged; the weights are not affected\n",
            );
        }
    }
    out
}

fn header_lines(report: &Report) -> String {
    let h = &report.header;
    let features = match (
        h.incompatible_feature_bits.as_str(),
        h.compatible_feature_bits.as_str(),
    ) {
        ("0x0", "0x0") => "none".to_owned(),
        (incompatible, compatible) => {
            format!("incompatible {incompatible}, compatible {compatible}")
        }
    };
    format!(
        "{}: .smq {}, {}, feature bits: {features}\n\n",
        printable(&report.path),
        h.version,
        bytes(h.file_bytes)
    )
}

fn provenance(report: &Report) -> Vec<(String, String)> {
    let p = &report.provenance;
    let mut lines = vec![("producer".to_owned(), or_unknown(printable(&p.producer)))];
    let parameters: Vec<_> = p
        .parameters
        .iter()
        .map(|(k, v)| format!("{}={}", printable(k), printable(v)))
        .collect();
    lines.push(("parameters".to_owned(), or_unknown(parameters.join(" "))));
    for (i, s) in p.sources.iter().enumerate() {
        let hash = short(&s.blake3);
        lines.push((
            if i == 0 { "sources" } else { "" }.to_owned(),
            format!("{}, {}, blake3 {hash}", s.name, bytes(s.length_bytes)),
        ));
    }
    for (i, f) in report.embedded_files.iter().enumerate() {
        lines.push((
            if i == 0 { "embedded files" } else { "" }.to_owned(),
            format!("{}, {}", f.name, bytes(f.section.length_bytes)),
        ));
    }
    lines
}

fn or_unknown(text: String) -> String {
    if text.is_empty() {
        return "not recorded".to_owned();
    }
    text
}

/// The first digits of a hash.
pub(crate) fn short(blake3: &str) -> &str {
    blake3.get(..SHORT_HASH).unwrap_or(blake3)
}

fn sizes(report: &Report) -> String {
    let s = &report.sizes;
    let mut table = plain_table();
    for (name, n) in [
        ("source tensors", s.source_tensor_bytes),
        ("file", s.file_bytes),
        ("  codes", s.nibble_bytes),
        ("  scales", s.scale_bytes),
        ("  raw tensors", s.raw_bytes),
        ("  embedded files", s.embedded_bytes),
        ("  index", s.index_bytes),
        ("  error statistics", s.statistics_bytes),
        ("  header and padding", s.header_bytes + s.padding_bytes),
    ] {
        let share = super::number::percent(n, s.source_tensor_bytes);
        let share = share.map_or_else(|| "-".to_owned(), |p| format!("{p:.2}"));
        table.add_row([name.to_owned(), count(n), share]);
    }
    table.set_header(["", "bytes", "% of source"]);
    right_align(&mut table, 1..3);
    format!("{}\n", table.trim_fmt())
}

fn densities(report: &Report) -> Vec<(String, String)> {
    let s = &report.sizes;
    let mut lines = Vec::new();
    if s.quantized_elems > 0 {
        lines.push((
            "bits per weight".to_owned(),
            format!(
                "{} over {} quantized weights (codes and scales)",
                bits(s.bits_per_quantized_weight),
                count(s.quantized_elems)
            ),
        ));
    }
    lines.push((
        if lines.is_empty() {
            "bits per weight"
        } else {
            ""
        }
        .to_owned(),
        format!(
            "{} over all {} weights (the whole file)",
            bits(s.bits_per_weight_in_file),
            count(s.total_elems)
        ),
    ));
    if let Some(savings) = s.scale_savings_vs_f16_percent {
        lines.push((
            "scales".to_owned(),
            format!(
                "{}, {} as f16: {}",
                bytes(s.scale_bytes),
                count(s.scale_f16_bytes),
                savings_text(savings)
            ),
        ));
    }
    lines
}

/// What narrower scales save, in words: `31.2 % saved`.
pub(crate) fn savings_text(percent: f64) -> String {
    match percent {
        p if p >= 0.05 => format!("{p:.1} % saved"),
        p if p <= -0.05 => format!("{:.1} % more", -p),
        _ => "nothing saved".to_owned(),
    }
}

fn scheme_line(c: &SchemeCount) -> (String, String) {
    let how = match (&c.scale_format, c.scale_bits, c.group_elems, &c.dtype) {
        (Some(format), Some(width), Some(group), _) => {
            format!(
                "{}, {format} scales of {width} bits, group {group}",
                c.scheme
            )
        }
        (_, _, _, Some(dtype)) => format!("{} {dtype}", c.scheme),
        _ => c.scheme.clone(),
    };
    let tensors = match c.tensors {
        1 => "1 tensor".to_owned(),
        n => format!("{} tensors", count(n)),
    };
    let (elems, stored) = (count(c.elems), bytes(c.stored_bytes));
    (tensors, format!("{how}: {elems} weights, {stored}"))
}

/// A table without lines, whose width does not depend on a terminal.
pub(crate) fn plain_table() -> Table {
    let mut table = Table::new();
    table
        .load_style(NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table
}

pub(crate) fn right_align(table: &mut Table, columns: std::ops::Range<usize>) {
    for i in columns {
        if let Some(column) = table.column_mut(i) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

/// Two columns: a name and what it is.
pub(crate) fn table_lines(lines: Vec<(String, String)>) -> String {
    if lines.is_empty() {
        return String::new();
    }
    let mut table = plain_table();
    for (name, value) in lines {
        table.add_row([name, value]);
    }
    format!("{}\n", table.trim_fmt())
}
