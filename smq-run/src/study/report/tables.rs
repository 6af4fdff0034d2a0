//! The report's tables, in Markdown.

use comfy_table::{CellAlignment, Table, presets};
use smq_format::ScaleChoice;

use super::data::{Data, Repeats};
use super::errors::{self, Increase};
use super::summary::{
    self, DECODE, DEVICE_MEMORY, LOAD, Metric, OUTPUT, PEAK_RSS, TOTAL, TPOT, TTFT,
};
use crate::study::statistics::Estimate;
use crate::study::worker::Workload;
use smq_convert::number::{count, fixed, fixed_or};

/// A Markdown table whose columns after the first are right-aligned.
#[must_use]
pub(super) fn markdown(columns: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::ASCII_MARKDOWN)
        .set_header(columns);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for row in rows {
        table.add_row(row.into_iter().map(|cell| cell.replace('|', "\\|")));
    }
    // GitHub wants the alignment in the rule as well.
    let text = table.to_string();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    if let Some(rule) = lines.get_mut(1) {
        let cells: Vec<_> = rule.trim_matches('|').split('|').enumerate().collect();
        let cells: Vec<String> = cells
            .into_iter()
            .map(|(i, c)| match i {
                0 => c.to_owned(),
                _ => format!("{}:", &c[..c.len().saturating_sub(1)]),
            })
            .collect();
        *rule = format!("|{}|", cells.join("|"));
    }
    lines.join("\n")
}

fn number(value: Option<f64>, digits: usize) -> String {
    fixed_or(value, digits, "absent")
}

/// `1.234 ± 0.005`, the 95 % confidence half-width where there is one.
pub(super) fn estimate(e: Option<Estimate>, scale: f64, digits: usize) -> String {
    match e {
        None => "absent".to_owned(),
        Some(Estimate {
            mean,
            ci95_half_width: Some(half),
            ..
        }) => format!(
            "{} ± {}",
            fixed(mean * scale, digits),
            fixed(half * scale, digits)
        ),
        Some(e) => fixed(e.mean * scale, digits),
    }
}

/// A row a config, a column a workload, for one figure.
#[must_use]
pub(super) fn by_workload(
    data: &Data,
    shapes: &[Workload],
    metric: &Metric,
    scale: f64,
    digits: usize,
) -> String {
    let mut columns = vec!["config".to_owned(), "weights".to_owned()];
    columns.extend(
        shapes
            .iter()
            .map(|w| format!("{} + {}", count(w.prompt_tokens), count(w.output_tokens))),
    );
    let rows = data.configs().into_iter().filter_map(|c| {
        let cells: Vec<_> = shapes.iter().map(|w| data.repeats(&c.id, *w)).collect();
        cells.iter().any(Option::is_some).then(|| {
            let mut row = vec![c.id.clone(), c.describe()];
            let figure =
                |r: &Option<&Repeats>| estimate(r.and_then(|r| metric.over(r)), scale, digits);
            row.extend(cells.iter().map(figure));
            row
        })
    });
    let rows = rows.collect();
    markdown(
        &columns.iter().map(String::as_str).collect::<Vec<_>>(),
        rows,
    )
}

/// Every figure of every workload: a row each.
#[must_use]
pub(super) fn cells(data: &Data, long_context: bool) -> String {
    let columns = [
        "raw lines",
        "n",
        "TTFT, ms",
        "TPOT, ms",
        "p50",
        "p95",
        "decode, tokens/s",
        "output, tokens/s",
        "total, tokens/s",
        "load, ms",
        "device memory, GB",
        "host RSS, GB",
        "flags",
    ];
    let of = data
        .workloads
        .iter()
        .filter(|r| r.long_context == long_context);
    let rows = of.map(|r| {
        let figure = |m: &Metric, scale, digits| estimate(m.over(r), scale, digits);
        let plain = |name: &str, digits| {
            let metric = summary::METRICS.iter().find(|m| m.name == name);
            number(metric.and_then(|m| m.over(r)).map(|e| e.mean), digits)
        };
        let flag = |name: &str| match r.flagged(name) {
            0 => None,
            n => Some(format!("{name} {n} of {}", r.cells.len())),
        };
        let flags: Vec<_> = ["throttled", "hot"].into_iter().filter_map(flag).collect();
        vec![
            format!("`{}`", summary::ids(r)),
            r.cells.len().to_string(),
            figure(&TTFT, 1.0, 2),
            figure(&TPOT, 1.0, 3),
            plain("tpot_p50", 3),
            plain("tpot_p95", 3),
            figure(&DECODE, 1.0, 1),
            figure(&OUTPUT, 1.0, 1),
            figure(&TOTAL, 1.0, 1),
            figure(&LOAD, 1.0, 0),
            figure(&DEVICE_MEMORY, 1e-9, 3),
            figure(&PEAK_RSS, 1e-9, 3),
            flags.join(", "),
        ]
    });
    markdown(&columns, rows.collect())
}

/// TPOT beside the time that reading the weights takes, at `gb_per_s`.
#[must_use]
pub(super) fn roofline(data: &Data, shape: Workload, gb_per_s: f64) -> String {
    let columns = [
        "config",
        "weight bytes a token",
        "floor, ms",
        "TPOT, ms",
        "floor / TPOT, %",
    ];
    let rows = data.configs().into_iter().filter_map(|c| {
        let r = data.repeats(&c.id, shape)?;
        let bytes = r.cells.first()?.weight_bytes_per_token as f64;
        let floor_ms = bytes / gb_per_s / 1e6;
        let tpot = TPOT.over(r)?;
        Some(vec![
            c.id.clone(),
            fixed(bytes, 0),
            format!("{floor_ms:.3}"),
            estimate(Some(tpot), 1.0, 3),
            format!("{:.1}", 100.0 * floor_ms / tpot.mean),
        ])
    });
    markdown(&columns, rows.collect())
}

/// Joules a token by method.
#[must_use]
pub(super) fn energy(data: &Data) -> String {
    let columns = [
        "config",
        "method",
        "J a token",
        "without prefill",
        "mean W",
        "idle W",
        "s",
        "generations",
        "flags",
        "raw line",
    ];
    let rows = data.energy.iter().flat_map(|(id, e)| {
        let m = &e.measured;
        m.joules_per_token.iter().map(move |(method, joules)| {
            let all = m.generations.joules(method);
            vec![
                e.config.clone(),
                method.clone(),
                format!("{:.4}", joules.with_prefill),
                format!("{:.4}", joules.without_prefill),
                number(all.map(|j| j / m.generations.seconds), 1),
                number(m.idle_watts, 1),
                format!("{:.1}", m.generations.seconds),
                count(m.generations.runs),
                m.flags.join(", "),
                format!("`{id}`"),
            ]
        })
    });
    markdown(&columns, rows.collect())
}

/// Sizes and errors of the files.
#[must_use]
pub(super) fn files(data: &Data) -> String {
    let columns = [
        "config",
        "weights",
        "file, bytes",
        "scales, bytes",
        "rel. MSE of quantized weights",
        "converted in, s",
        "raw line",
    ];
    let rows = data.files.iter().flat_map(|(id, f)| {
        f.configs.iter().map(move |c| {
            vec![
                c.id.clone(),
                c.describe(),
                count(f.file_bytes),
                f.scale_bytes.map_or("none".to_owned(), count),
                errors::rel_mse(&f.tensors).map_or("none".to_owned(), |v| format!("{v:.6}")),
                f.convert_seconds
                    .map_or("absent".to_owned(), |s| format!("{s:.1}")),
                format!("`{id}`"),
            ]
        })
    });
    markdown(&columns, rows.collect())
}

/// What E5Mx adds in the files, over all of their tensors.
#[must_use]
pub(super) fn file_increases(data: &Data) -> String {
    let rows = errors::files(data).into_iter().map(|(c, id, i)| {
        let mut row = vec![c.id.clone(), c.describe()];
        row.extend(increase(&i));
        row.push(format!("`{id}`"));
        row
    });
    let mut columns = vec!["config", "weights"];
    columns.extend(INCREASE);
    columns.push("raw line");
    markdown(&columns, rows.collect())
}

const INCREASE: [&str; 7] = [
    "squared error, +%",
    "RMS error, +%",
    "rel. RMS exact, %",
    "stored, %",
    "worst tensor",
    "its squared error, +%",
    "tensors over 0.5 %",
];

fn increase(i: &Increase) -> [String; 7] {
    [
        format!("{:.4}", i.mse_percent),
        format!("{:.4}", i.rms_percent),
        format!("{:.4}", i.exact_rms_percent),
        format!("{:.4}", i.stored_rms_percent),
        format!("`{}`", i.worst),
        format!("{:.4}", i.worst_mse_percent),
        format!("{} of {}", i.tensors_over, i.tensors),
    ]
}

/// Increase of the squared error by width, a column a rule.
#[must_use]
pub(super) fn sweep(data: &Data) -> String {
    let points = errors::sweep(data);
    let rules = &data.contract.scale_errors.rules;
    let mut columns = vec!["scale", "bits"];
    columns.extend(rules.iter().map(|rule| rule.name()));
    let rows = data.contract.scale_errors.mantissa_bits.iter().map(|&x| {
        let scales = ScaleChoice::e5(x);
        let mut row = vec![scales.to_string(), scales.width_bits().to_string()];
        row.extend(rules.iter().map(|rule| {
            let point = points
                .iter()
                .find(|p| p.rule == rule.name() && p.mantissa_bits == x);
            point.map_or("absent".to_owned(), |p| {
                format!("{:+.4}", p.increase.mse_percent)
            })
        }));
        row
    });
    markdown(&columns, rows.collect())
}

/// The narrowest good scales by rule.
#[must_use]
pub(super) fn sweet_spots(data: &Data) -> String {
    let bits = |scales: Option<ScaleChoice>| {
        scales.map_or("none measured".to_owned(), |scales| {
            format!("{scales}, {} bits", scales.width_bits())
        })
    };
    let spots = errors::sweet_spots(&errors::sweep(data));
    let rows = spots
        .into_iter()
        .map(|s| vec![s.rule, bits(s.over_all), bits(s.in_each)]);
    markdown(
        &[
            "rule",
            "under 0.5 % over all tensors",
            "under 0.5 % in each",
        ],
        rows.collect(),
    )
}

/// What is absent; repeats that lack for the same reason share a row.
#[must_use]
pub(super) fn absent(data: &Data) -> String {
    let mut rows: Vec<(&str, Vec<&str>, &str)> = Vec::new();
    for (id, reason) in &data.absent {
        let (workload, repeat) = match id.rsplit_once('/') {
            Some((workload, repeat)) if repeat.starts_with('r') => (workload, Some(repeat)),
            _ => (id.as_str(), None),
        };
        let same = |(w, _, r): &&mut (&str, Vec<&str>, &str)| *w == workload && r == reason;
        match rows.iter_mut().find(same) {
            Some((_, repeats, _)) => repeats.extend(repeat),
            None => rows.push((workload, repeat.into_iter().collect(), reason)),
        }
    }
    let rows = rows.into_iter().map(|(workload, repeats, reason)| {
        let id = match repeats.is_empty() {
            true => format!("`{workload}`"),
            false => format!("`{workload}/` {}", repeats.join(", ")),
        };
        vec![id, reason.to_owned()]
    });
    markdown(&["what", "why"], rows.collect())
}
