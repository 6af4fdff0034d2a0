//! The result as Markdown.

use comfy_table::{CellAlignment, Table, presets};

use super::store::DataFile;
use super::summary::{Compared, Summary, VariantSummary};
use crate::eval::metrics::Score;
use crate::eval::paired::{Delta, McNemar};
use crate::eval::task::{Metric, Task};
use smq_convert::number::{count, fixed, fixed_or};

/// The whole page, tasks before distances.
#[must_use]
pub(crate) fn page(summary: &Summary) -> String {
    let p = &summary.parameters;
    let mut out = match p.tasks.is_empty() {
        true => format!("# {}: distance from C0\n\n", p.model),
        false => format!("# {}: what quantization costs on tasks\n\n", p.model),
    };
    out += &format!(
        "`{}` on {}. Every difference is against C0 of the same weights.\n\n",
        p.producer, p.device
    );
    if !p.tasks.is_empty() {
        let used = |(task, file): (&Task, &DataFile)| {
            let n = count(file.items.unwrap_or(0));
            format!("{} ({n} items of {})", task.name(), file.name)
        };
        let used: Vec<String> = p.tasks.iter().map(used).collect();
        out += &format!(
            "Tasks: {}. Differences are on the same items: the 95 % confidence interval is the \
             paired bootstrap's, p is McNemar's exact test. The drop is the mean over published \
             tasks of the relative loss of each one's first figure; the study accepts up to {:.0} \
             %.\n\n{}\n\n",
            used.join(", "),
            100.0 * summary.accepted_relative_drop,
            tasks(summary)
        );
    }
    if let Some(text) = &p.text {
        out += &format!(
            "Distance from C0 on {}, windows of {} tokens{}; KL divergence in nats.\n\n{}\n",
            text.name,
            p.window,
            p.text_tokens.map_or(String::new(), |n| format!(
                ", the first {} tokens",
                count(n)
            )),
            fidelity(summary)
        );
    }
    if !summary.neighbours.is_empty() {
        out += &format!(
            "\nNeighbouring widths, the first less the second, on the same items and windows: \
             points of an accuracy, the ratio of perplexities, nats of KL divergence, each with \
             its 95 % confidence interval.\n\n{}\n",
            neighbours(summary)
        );
    }
    out
}

/// What fits a terminal: a line a variant.
#[must_use]
pub(crate) fn brief(summary: &Summary) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "variant",
        "config",
        "bits/weight",
        "mean KL",
        "drop, %",
        "accepted",
    ]);
    for variant in &summary.variants {
        let mut row = head(variant);
        row.push(number(variant.kl.as_ref().map(|kl| kl.mean_kl.value), 5));
        row.push(number(variant.mean_relative_drop.map(|d| 100.0 * d), 2));
        row.push(accepted(variant));
        table.add_row(row);
    }
    aligned(table).to_string()
}

fn accepted(variant: &VariantSummary) -> String {
    match variant.accepted {
        Some(true) => "yes".to_owned(),
        Some(false) => "no".to_owned(),
        None => absent(),
    }
}

fn neighbours(summary: &Summary) -> Table {
    let tasks: Vec<Task> = summary.parameters.tasks.keys().copied().collect();
    let mut header = vec!["first".to_owned(), "second".to_owned()];
    for task in &tasks {
        for metric in task.metrics() {
            header.push(format!("{} {}", task.name(), metric.name()));
        }
    }
    header.push("mean KL".to_owned());
    let mut table = markdown(&header);
    for pair in &summary.neighbours {
        let mut row = vec![pair.first.clone(), pair.second.clone()];
        for task in &tasks {
            for metric in task.metrics() {
                let found = pair.tasks.get(task).and_then(|t| t.get(metric));
                row.push(found.map_or_else(absent, |difference| {
                    let changed = change(*metric, &difference.delta);
                    changed.trim_start().to_owned() + &p_value(difference.mcnemar.as_ref())
                }));
            }
        }
        row.push(pair.kl.map_or_else(absent, |d| {
            let [low, high] = d.ci95;
            format!("{:+.5} [{low:+.5}, {high:+.5}]", d.mean)
        }));
        table.add_row(row);
    }
    aligned(table)
}

/// Percentage points of an accuracy, a ratio of a perplexity.
fn change(metric: Metric, d: &Delta) -> String {
    if !metric.is_accuracy() {
        let [low, high] = d.ci95.map(|x| (-x).exp());
        return format!(" x{:.4} [{high:.4}, {low:.4}]", (-d.mean).exp());
    }
    let [low, high] = d.ci95.map(|x| 100.0 * x);
    format!(" {:+.2} [{low:+.2}, {high:+.2}]", 100.0 * d.mean)
}

fn p_value(test: Option<&McNemar>) -> String {
    test.map_or(String::new(), |m| match m.p_value < 0.001 {
        true => " p<0.001".to_owned(),
        false => format!(" p={:.3}", m.p_value),
    })
}

fn tasks(summary: &Summary) -> Table {
    let tasks: Vec<Task> = summary.parameters.tasks.keys().copied().collect();
    let mut header = vec![
        "variant".to_owned(),
        "config".to_owned(),
        "bits/weight".to_owned(),
    ];
    for task in &tasks {
        for metric in task.metrics() {
            header.push(format!("{} {}", task.name(), metric.name()));
        }
    }
    header.extend(["drop, %".to_owned(), "accepted".to_owned()]);
    let mut table = markdown(&header);
    for variant in &summary.variants {
        let mut row = head(variant);
        for task in &tasks {
            for metric in task.metrics() {
                let compared = variant.tasks.get(task).and_then(|t| t.get(metric));
                row.push(compared.map_or_else(absent, |c| figure(*metric, c)));
            }
        }
        row.push(number(variant.mean_relative_drop.map(|d| 100.0 * d), 2));
        row.push(accepted(variant));
        table.add_row(row);
    }
    aligned(table)
}

/// A figure with its difference.
fn figure(metric: Metric, compared: &Compared) -> String {
    let Score { value, .. } = compared.score;
    let change = compared
        .delta
        .as_ref()
        .map(|d| change(metric, d))
        .unwrap_or_default();
    match metric.is_accuracy() {
        true => format!(
            "{:.2}{change}{}",
            100.0 * value,
            p_value(compared.mcnemar.as_ref())
        ),
        false => format!("{}{change}", fixed(value, 3)),
    }
}

fn fidelity(summary: &Summary) -> Table {
    let header = [
        "variant",
        "config",
        "bits/weight",
        "rel. MSE",
        "mean KL",
        "median KL",
        "99 % KL",
        "same top-1, %",
        "perplexity",
        "ratio to C0",
    ];
    let mut table = markdown(&header.map(str::to_owned));
    for variant in &summary.variants {
        let Some(kl) = &variant.kl else { continue };
        let mut row = head(variant);
        let error = |score: Score, digits: usize| {
            let stderr = score
                .stderr
                .map_or(String::new(), |e| format!(" ± {e:.digits$}"));
            format!("{:.digits$}{stderr}", score.value)
        };
        row.extend([
            number(variant.file.mean_rel_mse, 6),
            error(kl.mean_kl, 5),
            format!("{:.5}", kl.median_kl),
            format!("{:.4}", kl.p99_kl),
            format!("{:.2}", 100.0 * kl.top1_agreement.value),
            fixed(kl.perplexity, 4),
            error(kl.perplexity_ratio, 4),
        ]);
        table.add_row(row);
    }
    aligned(table)
}

fn head(variant: &VariantSummary) -> Vec<String> {
    vec![
        variant.variant.name.clone(),
        variant.variant.config.clone().unwrap_or_else(absent),
        number(variant.file.bits_per_weight, 3),
    ]
}

fn number(value: Option<f64>, digits: usize) -> String {
    fixed_or(value, digits, "-")
}

fn absent() -> String {
    "-".to_owned()
}

fn markdown(header: &[String]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(header);
    table
}

fn aligned(mut table: Table) -> Table {
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
