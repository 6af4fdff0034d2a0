//! Figures over repeats, and the CSV files.

use std::path::Path;

use anyhow::Context;

use super::data::{Data, Repeats};
use super::errors;
use crate::output::write_bytes;
use crate::study::plan::workload_id;
use crate::study::record::Timed;
use crate::study::statistics::Estimate;
use smq_format::plain_cell;

/// A figure of a cell.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Metric {
    /// Name of the figure, as the CSV files have it.
    pub name: &'static str,
    /// Unit that the figure is in.
    pub unit: &'static str,
    of: fn(&Timed) -> Option<f64>,
}

/// Prompt submitted to first token.
pub(crate) const TTFT: Metric = Metric {
    name: "ttft",
    unit: "ms",
    of: |t| Some(t.ttft_ms),
};
/// Time per output token.
pub(crate) const TPOT: Metric = Metric {
    name: "tpot",
    unit: "ms",
    of: |t| Some(t.tpot_ms?.mean),
};
/// Tokens a second, which is one over that.
pub(crate) const DECODE: Metric = Metric {
    name: "decode_rate",
    unit: "tokens/s",
    of: |t| Some(1e3 / t.tpot_ms?.mean),
};
/// Output tokens over the whole time.
pub(crate) const OUTPUT: Metric = Metric {
    name: "output_rate",
    unit: "tokens/s",
    of: |t| Some(t.output_tokens_per_s),
};
/// Prompt and output tokens over the whole time.
pub(crate) const TOTAL: Metric = Metric {
    name: "total_rate",
    unit: "tokens/s",
    of: |t| Some(t.total_tokens_per_s),
};
/// Opening and loading a model.
pub(crate) const LOAD: Metric = Metric {
    name: "load",
    unit: "ms",
    of: |t| Some(t.load_ms),
};
/// Memory in use on the GPU.
pub(crate) const DEVICE_MEMORY: Metric = Metric {
    name: "device_memory",
    unit: "bytes",
    of: |t| t.device_memory_bytes.map(|b| b as f64),
};
/// Memory of the process on the host, at its peak.
pub(crate) const PEAK_RSS: Metric = Metric {
    name: "peak_rss",
    unit: "bytes",
    of: |t| t.memory.peak_rss_bytes.map(|b| b as f64),
};
/// All of a cell's figures.
pub(crate) const METRICS: [Metric; 11] = [
    TTFT,
    Metric {
        name: "ttft_first_use",
        unit: "ms",
        of: |t| t.ttft_first_use_ms,
    },
    TPOT,
    Metric {
        name: "tpot_p50",
        unit: "ms",
        of: |t| Some(t.tpot_ms?.p50),
    },
    Metric {
        name: "tpot_p95",
        unit: "ms",
        of: |t| Some(t.tpot_ms?.p95),
    },
    DECODE,
    OUTPUT,
    TOTAL,
    LOAD,
    DEVICE_MEMORY,
    PEAK_RSS,
];

impl Metric {
    /// The figure of one repeat, where it has it.
    pub(crate) fn of(&self, timed: &Timed) -> Option<f64> {
        (self.of)(timed)
    }

    /// The least and the largest repeat.
    pub(crate) fn range(&self, repeats: &Repeats) -> Option<[f64; 2]> {
        let values = repeats.cells.iter().filter_map(self.of);
        values.fold(None, |ends, v| {
            let [low, high] = ends.unwrap_or([v, v]);
            Some([f64::min(low, v), f64::max(high, v)])
        })
    }

    /// The figure over the repeats that have it.
    #[must_use]
    pub(crate) fn over(&self, repeats: &Repeats) -> Option<Estimate> {
        let values: Vec<f64> = repeats.cells.iter().filter_map(self.of).collect();
        Estimate::of(&values)
    }
}

/// Writes every CSV file to `dir`. A cell of the table that is empty was not measured.
///
/// # Errors
/// If one cannot be written.
pub(crate) fn write(data: &Data, dir: &Path) -> anyhow::Result<()> {
    save(dir, "cells.csv", &cells(data))?;
    save(dir, "energy.csv", &energy(data))?;
    save(dir, "files.csv", &files(data))?;
    save(dir, "scale_errors.csv", &errors::rows(data))?;
    match data.online.is_empty() {
        true => Ok(()),
        false => save(dir, "online.csv", &data.online.rows()),
    }
}

pub(super) type Rows = Vec<Vec<String>>;

fn save(dir: &Path, name: &str, rows: &Rows) -> anyhow::Result<()> {
    let path = dir.join(name);
    let context = || format!("{}: cannot write it", path.display());
    let mut writer = csv::Writer::from_writer(Vec::new());
    for row in rows {
        let cells: Vec<_> = row.iter().map(|cell| plain_cell(cell)).collect();
        writer
            .write_record(cells.iter().map(|cell| cell.as_bytes()))
            .with_context(context)?;
    }
    write_bytes(&path, &writer.into_inner().map_err(|e| e.into_error())?)
}

pub(super) fn text(values: &[&str]) -> Vec<String> {
    values.iter().map(|&v| v.to_owned()).collect()
}

pub(super) fn optional(value: Option<impl ToString>) -> String {
    value.map_or(String::new(), |v| v.to_string())
}

fn cells(data: &Data) -> Rows {
    let mut rows = vec![text(&[
        "config",
        "section",
        "prompt_tokens",
        "output_tokens",
        "metric",
        "unit",
        "n",
        "mean",
        "sd",
        "ci95_half_width",
        "throttled",
        "hot",
        "raw_ids",
        "absent",
    ])];
    for r in &data.workloads {
        let section = if r.long_context {
            "long_context"
        } else {
            "cells"
        };
        for metric in METRICS {
            let Some(e) = metric.over(r) else {
                continue;
            };
            rows.push(vec![
                r.config.clone(),
                section.to_owned(),
                r.workload.prompt_tokens.to_string(),
                r.workload.output_tokens.to_string(),
                metric.name.to_owned(),
                metric.unit.to_owned(),
                e.n.to_string(),
                e.mean.to_string(),
                optional(e.sd),
                optional(e.ci95_half_width),
                r.flagged("throttled").to_string(),
                r.flagged("hot").to_string(),
                r.ids.join(" "),
                String::new(),
            ]);
        }
    }
    // What could not be measured has a row without a figure.
    for (id, reason) in data
        .absent
        .iter()
        .filter(|(id, _)| !id.ends_with("/energy") && !id.contains("/online"))
    {
        rows.push(absent(rows[0].len(), id, reason));
    }
    rows
}

/// A row that has only its config, and at its end its id and why nothing is there.
pub(super) fn absent(width: usize, id: &str, reason: &str) -> Vec<String> {
    let mut row = vec![String::new(); width];
    row[0] = id.split('/').next().unwrap_or_default().to_owned();
    row[width - 2] = id.to_owned();
    row[width - 1] = reason.to_owned();
    row
}

fn energy(data: &Data) -> Rows {
    let mut rows = vec![text(&[
        "config",
        "prompt_tokens",
        "output_tokens",
        "method",
        "joules_per_token_with_prefill",
        "joules_per_token_without_prefill",
        "mean_watts",
        "idle_watts",
        "seconds",
        "generations",
        "flags",
        "raw_id",
        "absent",
    ])];
    for (id, e) in &data.energy {
        let m = &e.measured;
        for (method, joules) in &m.joules_per_token {
            let all = m.generations.joules(method);
            rows.push(vec![
                e.config.clone(),
                m.prompt_tokens.to_string(),
                m.output_tokens.to_string(),
                method.clone(),
                joules.with_prefill.to_string(),
                joules.without_prefill.to_string(),
                optional(all.map(|j| j / m.generations.seconds)),
                optional(m.idle_watts),
                m.generations.seconds.to_string(),
                m.generations.runs.to_string(),
                m.flags.join(" "),
                id.clone(),
                String::new(),
            ]);
        }
    }
    for (id, reason) in data.absent.iter().filter(|(id, _)| id.ends_with("/energy")) {
        rows.push(absent(rows[0].len(), id, reason));
    }
    rows
}

fn files(data: &Data) -> Rows {
    let mut rows = vec![text(&[
        "config",
        "weights",
        "file_bytes",
        "scale_bytes",
        "convert_seconds",
        "rel_mse_quantized_weights",
        "index_blake3",
        "raw_id",
    ])];
    for (id, f) in &data.files {
        for c in &f.configs {
            rows.push(vec![
                c.id.clone(),
                c.describe(),
                f.file_bytes.to_string(),
                optional(f.scale_bytes),
                optional(f.convert_seconds),
                optional(errors::rel_mse(&f.tensors)),
                optional(f.index_blake3.as_ref()),
                id.clone(),
            ]);
        }
    }
    rows
}

/// Raw ids of a workload's repeats, `C4/p128/o64/r*`.
#[must_use]
pub(crate) fn ids(r: &Repeats) -> String {
    format!("{}/r*", workload_id(&r.config, r.workload))
}
