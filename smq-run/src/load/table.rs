//! A sweep as a table: a column for each level.

use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{CellAlignment, Table};

use super::LoadReport;
use super::figures::Level;
use super::guessed::Guessed;
use smq_convert::number::{count, fixed};

/// The table, and what it is of, in the line before.
pub(crate) fn table(report: &LoadReport) -> String {
    let options = &report.options;
    let prompts = match &options.data {
        Some(path) => format!("prompts of {}", path.display()),
        None => format!("prompts of {} random tokens", count(options.prompt_len)),
    };
    let pace = match options.rate {
        Some(rate) => format!(", {rate} requests/s"),
        None => String::new(),
    };
    let head = format!(
        "{} at {}; {} requests a level, {prompts}, {} output tokens{pace}",
        report.model,
        report.url,
        count(options.num_prompts),
        count(options.output_len)
    );
    let mut table = Table::new();
    let mut header = vec!["clients".to_owned()];
    header.extend(report.levels.iter().map(|l| count(l.max_concurrency)));
    table.load_style(UTF8_HORIZONTAL_ONLY).set_header(header);
    let mut row = |name: &str, value: &dyn Fn(&Level) -> String| {
        let mut cells = vec![name.to_owned()];
        cells.extend(report.levels.iter().map(value));
        table.add_row(cells);
    };
    row("completed", &|l| count(l.completed));
    if report.levels.iter().any(|l| l.failed > 0) {
        row("failed", &|l| count(l.failed));
    }
    row("duration, s", &|l| fixed(l.duration.as_secs_f64(), 2));
    row("input tokens", &|l| count(l.total_input_tokens));
    row("output tokens", &|l| count(l.total_output_tokens));
    row("requests/s", &|l| fixed(l.per_second(l.completed), 2));
    if !options.goodput.is_empty() {
        row("good requests/s", &|l| {
            fixed(l.per_second(l.good.unwrap_or(0)), 2)
        });
    }
    let rate = |tokens, l: &Level| fixed(l.per_second(tokens), 1);
    row("output tokens/s", &|l| rate(l.total_output_tokens, l));
    row("all tokens/s", &|l| {
        rate(l.total_input_tokens + l.total_output_tokens, l)
    });
    if report.levels.iter().any(|l| l.guessed.is_some()) {
        let of = |l: &Level, value: &dyn Fn(&Guessed) -> String| {
            l.guessed.as_ref().map_or("-".to_owned(), value)
        };
        row("guessed tokens", &|l| of(l, &|g| count(g.tokens)));
        row("of which right, %", &|l| {
            of(l, &|g| format!("{:.1}", 100.0 * g.rate()))
        });
    }
    for (index, name) in ["TTFT", "TPOT", "ITL", "E2EL"].into_iter().enumerate() {
        let figures = |l: &Level| *l.times()[index].1;
        let ms = |value: f64| fixed(value, 2);
        row(&format!("{name} mean, ms"), &|l| ms(figures(l).mean));
        row(&format!("{name} median, ms"), &|l| ms(figures(l).median));
        row(&format!("{name} p95, ms"), &|l| {
            ms(figures(l).percentiles[0])
        });
        row(&format!("{name} p99, ms"), &|l| {
            ms(figures(l).percentiles[1])
        });
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!("{head}\n{table}\n")
}
