//! A [`Diff`] as text: facts, a table, one line that sums it up.

use super::super::number::{bytes, count, printable, scientific};
use super::super::overview::{plain_table, right_align};
use super::super::tensor_name::{Shared, elide};
use super::{Change, Counted, Diff, Fact, TensorDiff};
use crate::number::plural;

/// Widest line of the table; names are shortened to fit.
const LINE_WIDTH: usize = 120;
/// Names are not shortened below this.
const MIN_NAME_WIDTH: usize = 16;
/// Facts and their values are not longer, so that three columns fit the line.
const MAX_VALUE_WIDTH: usize = 38;

const COLUMNS: [&str; 10] = [
    "tensor",
    "A",
    "B",
    "nibbles",
    "scales",
    "max",
    "rms",
    "rel. rms",
    "rel MSE A",
    "rel MSE B",
];
/// Where the numbers begin in [`COLUMNS`].
const FIRST_NUMBER: usize = 3;
const LEGEND: &str = "\
nibbles, scales: how many differ, scales by value; max, rms: of the dequantized weights' difference;
rel. rms: root of its squares over A's; rel MSE: mean over groups from the statistics";

/// `diff` as text, `top` tensors (0: all), `file_bytes` the length of each where they are
/// identical.
pub fn diff_text(diff: &Diff, top: usize, file_bytes: u64) -> String {
    let mut out = String::new();
    for (name, path) in [("A", &diff.a), ("B", &diff.b)] {
        out.push_str(&format!("{name}  {}\n", printable(path)));
    }
    out.push('\n');
    if diff.identical {
        out.push_str(&format!(
            "identical: {} tensors, {} blobs, {}\n",
            diff.tensors_in_both,
            diff.blobs.equal,
            bytes(file_bytes)
        ));
        return out;
    }
    if !diff.file.is_empty() {
        out.push_str(&facts(&diff.file));
        out.push('\n');
    }
    let limit = if top == 0 { usize::MAX } else { top };
    for (name, tensors) in [("A", &diff.only_in_a), ("B", &diff.only_in_b)] {
        if tensors.is_empty() {
            continue;
        }
        out.push_str(&format!(
            "only in {name}: {}\n",
            plural(tensors.len(), "tensor")
        ));
        for tensor in tensors.iter().take(limit) {
            out.push_str(&format!("  {}\n", printable(tensor)));
        }
        if tensors.len() > limit {
            out.push_str("  ... (--top 0 shows all)\n");
        }
        out.push('\n');
    }
    if !diff.tensors.is_empty() {
        out.push_str(&table(diff, limit));
        out.push('\n');
    }
    out.push_str(&summary(diff));
    out
}

fn facts(changes: &[Change]) -> String {
    let value = |fact: &Option<Fact>| {
        let text = fact.as_ref().map(Fact::to_string);
        let text = text.map_or_else(|| "absent".to_owned(), |text| printable(&text));
        elide(&text, MAX_VALUE_WIDTH)
    };
    let mut table = plain_table();
    table.set_header(["", "A", "B"]);
    for change in changes {
        let what = elide(&printable(&change.what), MAX_VALUE_WIDTH);
        table.add_row([what, value(&change.a), value(&change.b)]);
    }
    format!("{}\n", table.trim_fmt())
}

fn table(diff: &Diff, limit: usize) -> String {
    let shown = &diff.tensors[..diff.tensors.len().min(limit)];
    let shared = Shared::of(shown.iter().map(|t| t.name.as_str()));
    let mut rows: Vec<_> = shown.iter().map(cells).collect();
    let column = |i: usize| {
        let widest = rows.iter().map(|row| row[i].chars().count()).max();
        2 + widest.unwrap_or(0).max(COLUMNS[i].len())
    };
    let others: usize = (1..COLUMNS.len()).map(column).sum();
    let width = LINE_WIDTH.saturating_sub(others + 1).max(MIN_NAME_WIDTH);
    for row in &mut rows {
        row[0] = elide(&printable(shared.strip(&row[0])), width);
    }
    let mut table = plain_table();
    table.set_header(COLUMNS).add_rows(rows);
    right_align(&mut table, FIRST_NUMBER..COLUMNS.len());
    if let Some(column) = table.column_mut(0) {
        column.set_padding((0, 1));
    }
    let names = match (shared.prefix.as_str(), shared.suffix.as_str()) {
        ("", "") => String::new(),
        (prefix, suffix) => format!(
            "\nnames in full: {}<tensor>{}",
            printable(prefix),
            printable(suffix)
        ),
    };
    let all = match shown.len() == diff.tensors.len() {
        true => "",
        false => " (--top 0 shows all)",
    };
    format!(
        "{} of {} that differ{all}, largest difference first\n\n{}\n\n{LEGEND}{names}\n",
        shown.len(),
        plural(diff.tensors.len(), "tensor"),
        table.trim_fmt()
    )
}

fn cells(t: &TensorDiff) -> [String; COLUMNS.len()] {
    // Where the shapes differ, nothing else can be said.
    let shape = t.changes.iter().find(|c| c.what == "shape");
    // Only the statistics differ, or the name of the source's element type.
    let same = t.weights.is_none() && t.blobs.is_empty() && shape.is_none();
    let dash = || if same { "same" } else { "-" }.to_owned();
    let number = |v: Option<f64>| v.map_or_else(dash, scientific);
    let error = |v: Option<f64>| v.map_or_else(|| "-".to_owned(), scientific);
    let counted = |c: Option<Counted>| c.map_or_else(dash, |c| count(c.differ));
    let with_shape =
        |stored: &str, shape: Option<&Option<Fact>>| match shape.and_then(Option::as_ref) {
            Some(shape) => format!("{shape} {stored}"),
            None => stored.to_owned(),
        };
    let w = t.weights.as_ref();
    [
        t.name.clone(),
        with_shape(&t.stored_a, shape.map(|c| &c.a)),
        with_shape(&t.stored_b, shape.map(|c| &c.b)),
        counted(w.and_then(|w| w.nibbles)),
        counted(w.and_then(|w| w.scales)),
        number(w.and_then(|w| w.max_abs)),
        number(w.and_then(|w| w.rms)),
        number(w.and_then(|w| w.relative_rms)),
        error(t.mean_rel_mse_a),
        error(t.mean_rel_mse_b),
    ]
}

fn summary(diff: &Diff) -> String {
    let blobs = &diff.blobs;
    let mean = |v: Option<f64>| v.map_or_else(|| "none".to_owned(), scientific);
    let mut parts = vec![
        format!(
            "{} of {} in both",
            count(diff.tensors.len()),
            plural(diff.tensors_in_both, "tensor")
        ),
        format!(
            "{} of {} equal",
            count(blobs.equal),
            plural(
                blobs.equal + blobs.differing + blobs.only_in_a + blobs.only_in_b,
                "blob"
            )
        ),
    ];
    for (name, tensors) in [("A", &diff.only_in_a), ("B", &diff.only_in_b)] {
        if !tensors.is_empty() {
            parts.push(format!(
                "{} only in {name}",
                plural(tensors.len(), "tensor")
            ));
        }
    }
    parts.push(format!(
        "mean rel. MSE {} -> {}",
        mean(diff.mean_rel_mse_a),
        mean(diff.mean_rel_mse_b)
    ));
    format!("differ: {}\n", parts.join(", "))
}
