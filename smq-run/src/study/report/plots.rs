//! The plots, in the style of `smq-inspect --html`.

use std::path::Path;

use plotters::prelude::*;
use smq_convert::inspect::figure::{
    Canvas, GRID, INK, PALETTE, draw, label_font, padded, starting_at, tick, title_font, under,
};

use super::data::Data;
use super::errors;
use super::summary::{DECODE, DEVICE_MEMORY, Metric, PEAK_RSS, TPOT, TTFT};
use crate::cli::output::write_bytes;
use crate::study::worker::Workload;

/// Height of every plot.
const HEIGHT: u32 = 440;

/// A colour's points: value and half of its confidence interval, by place on the x axis.
struct Series {
    label: String,
    points: Vec<(f64, f64, Option<f64>)>,
    /// Joined by a line.
    line: bool,
}

/// A plot's axes.
struct Axes<'a> {
    x_title: &'a str,
    y_title: &'a str,
    /// Names under whole x, in place of numbers.
    names: Vec<String>,
    log: bool,
    /// Whether y begins at 0.
    from_zero: bool,
}

/// Writes every plot that there are figures for to `dir`; returns file name and caption of each.
///
/// # Errors
/// If one cannot be drawn or written.
pub fn write(
    data: &Data,
    read_gb_per_s: Option<f64>,
    dir: &Path,
) -> anyhow::Result<Vec<(String, String)>> {
    let mut plots = Vec::new();
    let mut add = |name: &str, caption: String, svg: Option<String>| -> anyhow::Result<()> {
        if let Some(svg) = svg {
            write_bytes(&dir.join(name), svg.as_bytes())?;
            plots.push((name.to_owned(), caption));
        }
        Ok(())
    };
    let shapes = data.shapes(false);
    let repeats = "Bars are 95 % confidence intervals over repeats.";
    add(
        "decode_rate.svg",
        format!("Decode rate (1 / TPOT) by config and workload. {repeats}"),
        by_config(data, "decode rate", "tokens/s", &shapes, &DECODE, 1.0)?,
    )?;
    let prompts = shortest_outputs(&shapes);
    add(
        "ttft.svg",
        format!("Time to first token by config and prompt length. {repeats}"),
        by_config(
            data,
            "time to first token",
            "TTFT (ms)",
            &prompts,
            &TTFT,
            1.0,
        )?,
    )?;
    if let (Some(rate), Some(&shape)) = (read_gb_per_s, shapes.last()) {
        add(
            "roofline.svg",
            format!(
                "TPOT of {shape} tokens beside the time that reading the weights takes at {rate:.0} GB/s. {repeats}"
            ),
            roofline(data, shape, rate)?,
        )?;
    }
    let mut memory_shapes: Vec<_> = shapes.last().copied().into_iter().collect();
    memory_shapes.extend(data.shapes(true));
    let on_gpu = data
        .workloads
        .iter()
        .any(|r| DEVICE_MEMORY.over(r).is_some());
    let (metric, y) = match on_gpu {
        true => (&DEVICE_MEMORY, "device memory (GB)"),
        false => (&PEAK_RSS, "peak RSS of the host (GB)"),
    };
    add(
        "memory.svg",
        "Memory by config: the largest workload, and the long contexts.".to_owned(),
        by_config(data, "memory", y, &memory_shapes, metric, 1e-9)?,
    )?;
    add(
        "energy.svg",
        "Joules an output token by config and method.".to_owned(),
        energy(data)?,
    )?;
    add(
        "scale_errors.svg",
        "Squared error of the weights over that with exact f32 scales, by mantissa bits and scale rule.".to_owned(),
        scale_errors(data, false)?,
    )?;
    add(
        "scale_errors_log.svg",
        "The same as an increase in percent, on a logarithmic axis; widths that do not increase it have no point.".to_owned(),
        scale_errors(data, true)?,
    )?;
    add(
        "size_error.svg",
        "File size against the relative squared error of the quantized weights; a line joins the files of a target that no smaller one of it beats.".to_owned(),
        pareto(data)?,
    )?;
    Ok(plots)
}

/// One workload for each prompt length.
fn shortest_outputs(shapes: &[Workload]) -> Vec<Workload> {
    let mut shapes = shapes.to_vec();
    shapes.dedup_by_key(|w| w.prompt_tokens);
    shapes
}

fn by_config(
    data: &Data,
    figure: &'static str,
    y_title: &str,
    shapes: &[Workload],
    metric: &Metric,
    scale: f64,
) -> anyhow::Result<Option<String>> {
    let configs = data.configs();
    let series = shapes.iter().enumerate().map(|(i, &shape)| Series {
        label: match figure {
            "time to first token" => format!("{} prompt", shape.prompt_tokens),
            _ => format!("{} + {}", shape.prompt_tokens, shape.output_tokens),
        },
        points: configs
            .iter()
            .enumerate()
            .filter_map(|(c, config)| {
                let e = metric.over(data.repeats(&config.id, shape)?)?;
                let half = e.ci95_half_width.map(|h| h * scale);
                Some((dodge(c, i, shapes.len()), e.mean * scale, half))
            })
            .collect(),
        line: false,
    });
    let axes = Axes {
        x_title: "",
        y_title,
        names: configs.iter().map(|c| c.id.clone()).collect(),
        log: false,
        from_zero: true,
    };
    plot(figure, &axes, &series.collect::<Vec<_>>())
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
            measured.push((dodge(c, 0, 2), e.mean, e.ci95_half_width));
            let bytes = cell.weight_bytes_per_token as f64;
            floor.push((dodge(c, 1, 2), bytes / gb_per_s / 1e6, None));
        }
    }
    let series = [("TPOT", measured), ("weight bytes / read rate", floor)];
    let series = series.map(|(label, points)| Series {
        label: label.to_owned(),
        points,
        line: false,
    });
    let axes = Axes {
        x_title: "",
        y_title: "ms a token",
        names: configs.iter().map(|c| c.id.clone()).collect(),
        log: false,
        from_zero: true,
    };
    plot("TPOT and its floor", &axes, &series)
}

fn energy(data: &Data) -> anyhow::Result<Option<String>> {
    let names: Vec<_> = data.energy.iter().map(|(_, e)| e.config.clone()).collect();
    let series = ["trapezoid", "counter"].into_iter().flat_map(|method| {
        [(true, "with prefill"), (false, "without")].map(|(with, what)| (method, with, what))
    });
    let series = series.enumerate().map(|(i, (method, with, what))| Series {
        label: format!("{method}, {what}"),
        points: data
            .energy
            .iter()
            .enumerate()
            .filter_map(|(c, (_, e))| {
                let joules = e.measured.joules_per_token.get(method)?;
                let joules = if with {
                    joules.with_prefill
                } else {
                    joules.without_prefill
                };
                Some((dodge(c, i, 4), joules, None))
            })
            .collect(),
        line: false,
    });
    let axes = Axes {
        x_title: "",
        y_title: "joules an output token",
        names,
        log: false,
        from_zero: true,
    };
    plot("energy", &axes, &series.collect::<Vec<_>>())
}

fn scale_errors(data: &Data, log: bool) -> anyhow::Result<Option<String>> {
    let points = errors::sweep(data);
    let series = data.contract.scale_errors.rules.iter().map(|rule| Series {
        label: rule.clone(),
        points: points
            .iter()
            .filter(|p| p.rule == *rule)
            .map(|p| (f64::from(p.mantissa_bits), p.increase.mse_percent))
            .filter(|(_, percent)| !log || *percent > 0.0)
            .map(|(x, percent)| (x, if log { percent } else { 1.0 + percent / 100.0 }, None))
            .collect(),
        line: true,
    });
    let axes = Axes {
        x_title: "mantissa bits x of E5Mx (a scale takes 6 + x bits)",
        y_title: match log {
            true => "squared error over exact scales' (+%)",
            false => "squared error / exact scales'",
        },
        names: Vec::new(),
        log,
        from_zero: false,
    };
    plot(
        "weights' error by mantissa bits",
        &axes,
        &series.collect::<Vec<_>>(),
    )
}

fn pareto(data: &Data) -> anyhow::Result<Option<String>> {
    let mut series = Vec::new();
    let mut by_target = std::collections::BTreeMap::<_, Vec<(f64, f64)>>::new();
    for (_, f) in &data.files {
        let (Some(error), Some(first)) = (errors::rel_mse(&f.tensors), f.configs.first()) else {
            continue;
        };
        let names: Vec<_> = f.configs.iter().map(|c| c.id.as_str()).collect();
        let point = (f.file_bytes as f64 / 1e9, error);
        by_target
            .entry(first.target.clone())
            .or_default()
            .push(point);
        series.push(Series {
            label: names.join(", "),
            points: vec![(point.0, point.1, None)],
            line: false,
        });
    }
    series.extend(by_target.into_values().map(|files| Series {
        label: String::new(),
        points: frontier(files),
        line: true,
    }));
    let axes = Axes {
        x_title: "file (GB)",
        y_title: "relative squared error of quantized weights",
        names: Vec::new(),
        log: false,
        from_zero: false,
    };
    plot("size against error", &axes, &series)
}

/// Of `(size, error)`, those with less error than every smaller one, by size.
fn frontier(mut files: Vec<(f64, f64)>) -> Vec<(f64, f64, Option<f64>)> {
    files.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let mut least = f64::INFINITY;
    files.retain(|(_, error)| {
        let better = *error < least;
        least = least.min(*error);
        better
    });
    files.into_iter().map(|(x, y)| (x, y, None)).collect()
}

/// Draws the series; none where no series has a point.
fn plot(
    figure: &'static str,
    axes: &Axes<'_>,
    series: &[Series],
) -> anyhow::Result<Option<String>> {
    let points = || series.iter().flat_map(|s| &s.points);
    if points().next().is_none() {
        return Ok(None);
    }
    let x = match axes.names.len() {
        0 => {
            let x = padded(points().map(|p| p.0));
            let pad = 0.04 * (x.end - x.start);
            x.start - pad..x.end + pad
        }
        n => -0.5..n as f64 - 0.5,
    };
    // No figure is negative where the axis begins at 0, whatever a wide interval says.
    let lowest = |v: f64| if axes.from_zero { v.max(0.0) } else { v };
    let ends = points().flat_map(|p| {
        let half = p.2.unwrap_or(0.0);
        [lowest(p.1 - half), p.1 + half]
    });
    let zero = axes.from_zero.then_some(0.0);
    let y = padded(ends.chain(zero));
    let svg = draw(figure, HEIGHT, |canvas| {
        canvas.fill(&WHITE)?;
        legend(canvas, series)?;
        let mut builder = ChartBuilder::on(canvas);
        builder
            .margin(10)
            .margin_top(44)
            .x_label_area_size(50)
            .y_label_area_size(92);
        // The chart's type differs with the axis, its drawing does not.
        macro_rules! draw_on {
            ($y:expr) => {{
                let mut chart = builder.build_cartesian_2d(x, $y)?;
                let named = !axes.names.is_empty();
                let x_label = |v: &f64| if named { String::new() } else { tick(*v) };
                chart
                    .configure_mesh()
                    .disable_x_mesh()
                    .light_line_style(TRANSPARENT)
                    .bold_line_style(GRID)
                    .axis_style(INK)
                    .label_style(label_font())
                    .axis_desc_style(title_font())
                    .x_desc(axes.x_title)
                    .y_desc(axes.y_title)
                    .x_labels(11)
                    .y_labels(7)
                    .x_label_formatter(&x_label)
                    .y_label_formatter(&|v| tick(*v))
                    .draw()?;
                for (i, s) in series.iter().enumerate() {
                    let colour = if s.label.is_empty() {
                        INK
                    } else {
                        PALETTE[i % PALETTE.len()]
                    };
                    if s.line {
                        let line = s.points.iter().map(|p| (p.0, p.1));
                        chart.draw_series(LineSeries::new(line, colour.stroke_width(2)))?;
                    }
                    for &(x, y, half) in &s.points {
                        if let Some(half) = half {
                            let bar = [(x, lowest(y - half)), (x, y + half)];
                            chart.draw_series([PathElement::new(bar, colour.stroke_width(2))])?;
                        }
                        if !s.label.is_empty() {
                            match i < PALETTE.len() {
                                true => {
                                    chart.draw_series([Circle::new((x, y), 4, colour.filled())])?
                                }
                                false => chart.draw_series([TriangleMarker::new(
                                    (x, y),
                                    6,
                                    colour.filled(),
                                )])?,
                            };
                        }
                    }
                }
                let bottom = chart.plotting_area().get_pixel_range().1.end;
                for (i, name) in axes.names.iter().enumerate() {
                    let (at, _) = chart.backend_coord(&(i as f64, y.end));
                    canvas.draw(&Text::new(
                        name.as_str(),
                        (at, bottom + 10),
                        under(label_font()),
                    ))?;
                }
            }};
        }
        match axes.log {
            true => {
                let least = points().map(|p| p.1).fold(f64::INFINITY, f64::min);
                draw_on!((least / 2.0..y.end * 1.5).log_scale());
            }
            false => draw_on!(y.clone()),
        }
        Ok(())
    })?;
    // A file of its own, unlike a figure within a page, names its namespace.
    Ok(Some(svg.replacen(
        "<svg ",
        "<svg xmlns=\"http://www.w3.org/2000/svg\" ",
        1,
    )))
}

/// A row of labels above the chart.
fn legend(canvas: &Canvas<'_>, series: &[Series]) -> Result<(), Box<dyn std::error::Error>> {
    let mut x = 100;
    for (i, s) in series
        .iter()
        .enumerate()
        .filter(|(_, s)| !s.label.is_empty())
    {
        let colour = PALETTE[i % PALETTE.len()].filled();
        match i < PALETTE.len() {
            true => canvas.draw(&Circle::new((x, 22), 5, colour))?,
            false => canvas.draw(&TriangleMarker::new((x, 22), 7, colour))?,
        }
        canvas.draw(&Text::new(
            s.label.as_str(),
            (x + 10, 22),
            starting_at(label_font()),
        ))?;
        x += 28 + 8 * s.label.len() as i32;
    }
    Ok(())
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
