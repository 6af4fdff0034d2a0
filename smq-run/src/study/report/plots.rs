//! The plots, in the style of `smq-inspect --html`.

use std::collections::BTreeMap;
use std::path::Path;

use super::chart::{Axes, Series, interval, plot};
use super::data::Data;
use super::errors;
use super::summary::{DECODE, DEVICE_MEMORY, Metric, PEAK_RSS, TPOT, TTFT};
use crate::output::write_bytes;
use smq_format::Family;

use crate::study::contract::{Config, Stored};
use crate::study::record::EnergyRecord;
use crate::study::worker::Workload;
use smq_convert::number::{count, fixed};

/// The figure whose workloads differ in their prompts alone.
const TTFT_FIGURE: &str = "time to first token";

/// The report's plots, written as they are added.
#[derive(Debug)]
pub(crate) struct Plots<'a> {
    /// Where they go: a folder of the report's own.
    pub dir: &'a Path,
}

impl Plots<'_> {
    /// Writes a plot and returns it as Markdown, its caption below; empty without one.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn add(
        &mut self,
        name: &str,
        caption: String,
        svg: Option<String>,
    ) -> anyhow::Result<String> {
        let Some(svg) = svg else {
            return Ok(String::new());
        };
        write_bytes(&self.dir.join(name), svg.as_bytes())?;
        let stem = name.trim_end_matches(".svg").replace('_', " ");
        Ok(format!("![{stem}](plots/{name})\n\n{caption}"))
    }
}

/// Draws every plot of the matrix that there are figures for; returns each as Markdown by its name,
/// empty without figures.
///
/// # Errors
/// If one cannot be drawn or written.
pub(super) fn of_matrix(
    data: &Data,
    read_gb_per_s: Option<f64>,
    plots: &mut Plots<'_>,
) -> anyhow::Result<BTreeMap<&'static str, String>> {
    let mut shown = BTreeMap::new();
    let mut add = |name: &'static str, caption: String, svg| -> anyhow::Result<()> {
        shown.insert(name, plots.add(&format!("{name}.svg"), caption, svg)?);
        Ok(())
    };
    let shapes = data.shapes(false);
    let long = data.shapes(true);
    let repeats = "Bars are 95 % confidence intervals over repeats.";
    let range = "Bars run from the fastest to the slowest repeat.";
    add(
        "decode_rate",
        format!(
            "Decode rate (1 / TPOT) by config; a colour a workload (prompt + output tokens). \
             {repeats}"
        ),
        by_config(
            data,
            &ByConfig {
                figure: "decode rate",
                title: "Tokens a second of one sequence, by prompt + output tokens (more is better)",
                y_title: "tokens/s",
                metric: &DECODE,
                scale: 1.0,
                range: false,
            },
            &shapes,
        )?,
    )?;
    let prompts = shortest_outputs(&shapes);
    add(
        "ttft",
        format!("Time to first token by config and prompt length. {range}"),
        by_config(
            data,
            &ByConfig {
                figure: TTFT_FIGURE,
                title: "Time from the prompt to the first token (less is better)",
                y_title: "TTFT (ms)",
                metric: &TTFT,
                scale: 1.0,
                // A repeat that is an outlier makes an interval of the mean that runs below zero.
                range: true,
            },
            &prompts,
        )?,
    )?;
    if let (Some(rate), Some(&shape)) = (read_gb_per_s, shapes.last()) {
        add(
            "roofline",
            format!(
                "TPOT at {} + {} tokens beside the time that reading the weights takes at {} GB/s. \
                 {repeats}",
                count(shape.prompt_tokens),
                count(shape.output_tokens),
                fixed(rate, 0)
            ),
            roofline(data, shape, rate)?,
        )?;
    }
    let mut memory_shapes: Vec<_> = shapes.last().copied().into_iter().collect();
    memory_shapes.extend(&long);
    let on_gpu = data
        .workloads
        .iter()
        .any(|r| DEVICE_MEMORY.over(r).is_some());
    let (metric, y_title) = match on_gpu {
        true => (&DEVICE_MEMORY, "device memory (GB)"),
        false => (&PEAK_RSS, "peak RSS of the host (GB)"),
    };
    add(
        "memory",
        match long.is_empty() {
            true => "Memory by config, of the largest workload.".to_owned(),
            false => "Memory by config: the largest workload, and the long contexts.".to_owned(),
        },
        by_config(
            data,
            &ByConfig {
                figure: "memory",
                title: "Memory while it runs (weights, activations, KV cache), by prompt + output \
                        tokens",
                y_title,
                metric,
                scale: 1e-9,
                range: false,
            },
            &memory_shapes,
        )?,
    )?;
    add(
        "long_context",
        format!("Time per output token after long prompts, by config. {repeats}"),
        by_config(
            data,
            &ByConfig {
                figure: "time per output token",
                title: "Time per output token after long prompts, by prompt + output tokens (less \
                        is better)",
                y_title: "TPOT (ms)",
                metric: &TPOT,
                scale: 1.0,
                range: false,
            },
            &long,
        )?,
    )?;
    add(
        "energy",
        format!(
            "Joules an output token by config: the trapezoid rule over power samples, prefill \
             included. The GPU's energy counter, and either without prefill, lie within {:.1} %.",
            energy_spread(data)
        ),
        energy(data)?,
    )?;
    add(
        "scale_errors",
        "Squared error of the weights over that with exact f32 scales, by mantissa bits and rule."
            .to_owned(),
        scale_errors(data, false)?,
    )?;
    add(
        "scale_errors_log",
        "The same as an increase in percent, on a logarithmic axis; widths that do not increase it \
         have no point.".to_owned(),
        scale_errors(data, true)?,
    )?;
    add(
        "size_error",
        "File size against the relative squared error of the quantized weights; a line joins the \
         files of a target that no smaller one of it beats. Configs under one marker differ by \
         less than 1 % in error."
            .to_owned(),
        pareto(data)?,
    )?;
    add(
        "online",
        format!(
            "Output tokens a second of a server by clients that wait for their answers. {repeats}"
        ),
        data.online.plot()?,
    )?;
    Ok(shown)
}

/// One workload for each prompt length.
fn shortest_outputs(shapes: &[Workload]) -> Vec<Workload> {
    let mut shapes = shapes.to_vec();
    shapes.dedup_by_key(|w| w.prompt_tokens);
    shapes
}

/// A figure by config, a colour a workload.
struct ByConfig<'a> {
    figure: &'static str,
    title: &'a str,
    y_title: &'a str,
    metric: &'a Metric,
    scale: f64,
    /// Bars from the least repeat to the largest, in place of the mean's confidence interval.
    range: bool,
}

fn by_config(
    data: &Data,
    what: &ByConfig<'_>,
    shapes: &[Workload],
) -> anyhow::Result<Option<String>> {
    let mut configs = data.configs();
    configs.retain(|c| shapes.iter().any(|w| data.repeats(&c.id, *w).is_some()));
    let series = shapes.iter().enumerate().map(|(i, &shape)| Series {
        label: match what.figure {
            TTFT_FIGURE => format!("{} prompt tokens", count(shape.prompt_tokens)),
            _ => format!(
                "{} + {}",
                count(shape.prompt_tokens),
                count(shape.output_tokens)
            ),
        },
        points: configs
            .iter()
            .enumerate()
            .filter_map(|(c, config)| {
                let repeats = data.repeats(&config.id, shape)?;
                let e = what.metric.over(repeats)?;
                let ends = match what.range {
                    true => what.metric.range(repeats),
                    false => e.ci95_half_width.and_then(|half| interval(e.mean, half)),
                };
                let ends = ends.map(|ends| ends.map(|v| v * what.scale));
                Some((dodge(c, i, shapes.len()), e.mean * what.scale, ends))
            })
            .collect(),
        ..Series::default()
    });
    let axes = Axes {
        title: what.title,
        y_title: what.y_title,
        names: configs.iter().map(|c| described(c)).collect(),
        from_zero: true,
        ..Axes::default()
    };
    plot(what.figure, &axes, &series.collect::<Vec<_>>())
}

/// A config's name, and under it what it is.
fn described(config: &Config) -> String {
    let [stored, target] = weights(config);
    format!("{}\n{stored}\n{target}", config.id)
}

/// What a config's weights are, and which of them are quantized.
fn weights(config: &Config) -> [String; 2] {
    let scales = config.scales.map(|s| s.to_string().to_uppercase());
    let scales = scales.map(|s| if s == "F32" { "f32".to_owned() } else { s });
    let stored = match config.scheme {
        Stored::Bf16 => "bf16".to_owned(),
        Stored::Quantized(family) => {
            let name = match family {
                Family::Fp8 | Family::Nf4 => family.name().to_uppercase(),
                Family::Int4 | Family::Lut4 => family.name().to_owned(),
            };
            match scales {
                Some(scales) => format!("{name} {scales}"),
                None => name,
            }
        }
    };
    let target = match config.target.as_deref() {
        Some("mlp") => "MLP",
        Some("all") => "all linears",
        Some(other) => other,
        None => "",
    };
    [stored, target.to_owned()]
}

/// Configs of one point: their names, what they are, and which weights are quantized.
fn described_together(configs: &[&Config]) -> String {
    let ids: Vec<_> = configs.iter().map(|c| c.id.as_str()).collect();
    let mut parts: Vec<String> = configs.iter().map(|c| weights(c)[0].clone()).collect();
    parts.extend(configs.first().map(|c| weights(c)[1].clone()));
    let mut seen = Vec::new();
    parts.retain(|part| {
        let is_new = !part.is_empty() && !seen.contains(part);
        seen.push(part.clone());
        is_new
    });
    format!("{}: {}", ids.join(", "), parts.join(", "))
}

/// Place of series `i` of `all` beside the whole number `at`.
fn dodge(at: usize, i: usize, all: usize) -> f64 {
    at as f64 + 0.7 * ((i as f64 + 0.5) / all as f64 - 0.5)
}

fn roofline(data: &Data, shape: Workload, gb_per_s: f64) -> anyhow::Result<Option<String>> {
    let configs = data.configs();
    let mut measured = Vec::new();
    let mut floor = Vec::new();
    for (c, config) in configs.iter().enumerate() {
        let Some(r) = data.repeats(&config.id, shape) else {
            continue;
        };
        if let (Some(e), Some(cell)) = (TPOT.over(r), r.cells.first()) {
            let ends = e.ci95_half_width.and_then(|half| interval(e.mean, half));
            measured.push((dodge(c, 0, 2), e.mean, ends));
            let bytes = cell.weight_bytes_per_token as f64;
            floor.push((dodge(c, 1, 2), bytes / gb_per_s / 1e6, None));
        }
    }
    let series = [("TPOT", measured), ("weight bytes / read rate", floor)];
    let series = series.map(|(label, points)| Series {
        label: label.to_owned(),
        points,
        ..Series::default()
    });
    let axes = Axes {
        title: "Time per output token, and what reading the weights takes",
        y_title: "ms a token",
        names: configs.iter().map(|c| described(c)).collect(),
        from_zero: true,
        ..Axes::default()
    };
    plot("TPOT and its floor", &axes, &series)
}

/// Joules a token by the trapezoid rule, prefill included.
fn energy(data: &Data) -> anyhow::Result<Option<String>> {
    let configs = data.configs();
    let named = |id: &str| {
        let config = configs.iter().find(|c| c.id == id);
        config.map_or(id.to_owned(), |c| described(c))
    };
    let series = Series {
        label: "trapezoid over power samples, with prefill".to_owned(),
        points: data
            .energy
            .iter()
            .enumerate()
            .filter_map(|(c, (_, e))| {
                let joules = e.measured.joules_per_token.get("trapezoid")?;
                Some((c as f64, joules.with_prefill, None))
            })
            .collect(),
        ..Series::default()
    };
    let axes = Axes {
        title: "Energy of an output token, one sequence (less is better)",
        y_title: "joules an output token",
        names: data.energy.iter().map(|(_, e)| named(&e.config)).collect(),
        from_zero: true,
        ..Axes::default()
    };
    plot("energy", &axes, &[series])
}

/// How far the other ways of counting lie from the plotted one, at most, percent.
fn energy_spread(data: &Data) -> f64 {
    let spread = |e: &EnergyRecord| {
        let plotted = e.measured.joules_per_token.get("trapezoid")?.with_prefill;
        let all = e.measured.joules_per_token.values();
        let all = all.flat_map(|j| [j.with_prefill, j.without_prefill]);
        let far = all.map(|j| (j / plotted - 1.0).abs());
        far.reduce(f64::max)
    };
    let all = data.energy.iter().filter_map(|(_, e)| spread(e));
    100.0 * all.fold(0.0, f64::max)
}

fn scale_errors(data: &Data, log: bool) -> anyhow::Result<Option<String>> {
    let points = errors::sweep(data);
    let series = data.contract.scale_errors.rules.iter().map(|rule| Series {
        label: rule.to_string(),
        points: points
            .iter()
            .filter(|p| p.rule == rule.name())
            .map(|p| (f64::from(p.mantissa_bits), p.increase.mse_percent))
            .filter(|(_, percent)| !log || *percent > 0.0)
            .map(|(x, percent)| (x, if log { percent } else { 1.0 + percent / 100.0 }, None))
            .collect(),
        line: true,
        ..Series::default()
    });
    let axes = Axes {
        title: "Squared error of int4 weights by the width of their groups' scales",
        x_title: "mantissa bits x of E5Mx (a scale takes 6 + x bits)",
        y_title: match log {
            true => "squared error over exact scales' (+%)",
            false => "squared error / exact scales'",
        },
        log,
        ..Axes::default()
    };
    plot(
        "weights' error by mantissa bits",
        &axes,
        &series.collect::<Vec<_>>(),
    )
}

fn pareto(data: &Data) -> anyhow::Result<Option<String>> {
    let mut points: Vec<(f64, f64, Vec<&Config>)> = Vec::new();
    let mut by_target = BTreeMap::<_, Vec<(f64, f64)>>::new();
    for (_, f) in &data.files {
        let (Some(error), Some(first)) = (errors::rel_mse(&f.tensors), f.configs.first()) else {
            continue;
        };
        let point = (f.file_bytes as f64 / 1e9, error);
        by_target
            .entry(first.target.clone())
            .or_default()
            .push(point);
        // What lies under another marker has its name beside that.
        let near = |p: &&mut (f64, f64, Vec<&Config>)| {
            let apart = |a: f64, b: f64| (a - b).abs() / a.max(b);
            apart(p.0, point.0) < 0.004 && apart(p.1, point.1) < 0.01
        };
        match points.iter_mut().find(near) {
            Some(there) => there.2.extend(&f.configs),
            None => points.push((point.0, point.1, f.configs.iter().collect())),
        }
    }
    let files = Series {
        label: "files of configs".to_owned(),
        names: points.iter().map(|p| described_together(&p.2)).collect(),
        points: points.iter().map(|p| (p.0, p.1, None)).collect(),
        ..Series::default()
    };
    let mut series = vec![files];
    series.extend(by_target.into_values().map(|files| Series {
        label: String::new(),
        points: frontier(files),
        line: true,
        ..Series::default()
    }));
    let axes = Axes {
        title: "What a smaller file costs in weight error (lines: no smaller file of the same \
                layers is better)",
        x_title: "file (GB)",
        y_title: "relative squared error of quantized weights",
        ..Axes::default()
    };
    plot("size against error", &axes, &series)
}

/// Of `(size, error)`, those with less error than every smaller one, by size.
pub(super) fn frontier(mut files: Vec<(f64, f64)>) -> Vec<(f64, f64, Option<[f64; 2]>)> {
    files.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let mut least = f64::INFINITY;
    files.retain(|(_, error)| {
        let better = *error < least;
        least = least.min(*error);
        better
    });
    files.into_iter().map(|(x, y)| (x, y, None)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frontier_leaves_out_what_is_larger_and_worse() {
        let files = vec![(3.0, 0.1), (1.0, 0.5), (2.0, 0.6), (2.5, 0.2), (3.5, 0.1)];
        let kept: Vec<_> = frontier(files).into_iter().map(|p| (p.0, p.1)).collect();
        assert_eq!(kept, [(1.0, 0.5), (2.5, 0.2), (3.0, 0.1)]);
    }

    #[test]
    fn series_stand_beside_each_other_around_their_config() {
        assert_eq!(dodge(3, 0, 1), 3.0);
        let places: Vec<_> = (0..6).map(|i| dodge(2, i, 6)).collect();
        assert!(
            places.is_sorted() && places[0] > 1.5 && places[5] < 2.5,
            "{places:?}"
        );
        assert!(
            ((places[0] + places[5]) / 2.0 - 2.0).abs() < 1e-12,
            "{places:?}"
        );
    }
}
