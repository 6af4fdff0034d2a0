//! What variants lose on the tasks: a row a variant, a dot a task.

use std::collections::BTreeMap;

use plotters::prelude::*;
use smq_convert::inspect::figure::{
    Canvas, Drawn, GRID, INK, PALETTE, draw, ending_at, label_font, padded, tick, title_font, under,
};

use super::super::chart::{LEGEND, legend, marker, stand_alone, title};
use crate::eval::suite::Summary;

/// Height of a mark.
const MARK: i32 = 8;
/// Where the axis ends at the left: no accuracy falls by more than all of it, though an interval
/// may say so.
const LEAST: f64 = -105.0;
/// Rows of each target: a plot of all variants has no room for names.
pub(super) const ROWS: usize = 12;

/// A variant's changes of accuracy, percent of C0's.
struct Row<'a> {
    name: &'a str,
    target: &'a str,
    /// By task: change and 95 % interval; none where it was not measured or C0 has nothing right.
    tasks: Vec<Option<(f64, [f64; 2])>>,
    /// Mean over the tasks, percent.
    mean: Option<f64>,
}

/// Of each target's variants with the smallest mean losses, these first; none where no task was
/// measured.
pub(super) fn tasks(summary: &Summary) -> anyhow::Result<Option<String>> {
    let tasks: Vec<_> = summary.parameters.tasks.keys().copied().collect();
    let mut rows = Vec::new();
    for v in &summary.variants {
        let change = |task| {
            let metric = v.tasks.get(task)?.get(task.metrics().first()?)?;
            let delta = metric.delta?;
            let base = metric.score.value - delta.mean;
            (base > 0.0).then(|| {
                let percent = |d: f64| 100.0 * d / base;
                (percent(delta.mean), delta.ci95.map(percent))
            })
        };
        let row = Row {
            name: &v.variant.name,
            target: v.variant.name.split('-').next().unwrap_or_default(),
            tasks: tasks.iter().map(change).collect(),
            mean: v.mean_relative_drop.map(|d| -100.0 * d),
        };
        if row.tasks.iter().any(Option::is_some) {
            rows.push(row);
        }
    }
    if rows.is_empty() {
        return Ok(None);
    }
    rows.sort_by(|a, b| {
        let loss = |r: &Row<'_>| -r.mean.unwrap_or(f64::NEG_INFINITY);
        b.target.cmp(a.target).then(loss(a).total_cmp(&loss(b)))
    });
    let mut shown = BTreeMap::new();
    rows.retain(|row| {
        let count: &mut usize = shown.entry(row.target).or_default();
        *count += 1;
        *count <= ROWS
    });
    let names: Vec<_> = tasks.iter().map(|t| t.name()).collect();
    let limit = -100.0 * summary.accepted_relative_drop;
    let each = MARK * (tasks.len() as i32 + 1) + 10;
    let height = (LEGEND + 18 + 60 + each * rows.len() as i32).max(160);
    let svg = draw("change of accuracy by task", height as u32, |canvas| {
        canvas.fill(&WHITE)?;
        chart(canvas, &rows, &names, limit)
    })?;
    Ok(Some(stand_alone(&svg)))
}

fn chart(canvas: &Canvas<'_>, rows: &[Row<'_>], names: &[&str], limit: f64) -> Drawn {
    let measured = |task: usize| rows.iter().any(|row| row.tasks[task].is_some());
    let mut labels: Vec<_> = names
        .iter()
        .enumerate()
        .filter(|(i, _)| measured(*i))
        .map(|(i, n)| (*n, (PALETTE[i % PALETTE.len()], i >= PALETTE.len())))
        .collect();
    labels.push(("mean over tasks", (INK, true)));
    title(
        canvas,
        "Accuracy lost on tasks against the unquantized model (C0), the best of each target",
    )?;
    legend(canvas, &labels)?;
    let ends = rows.iter().flat_map(|r| {
        let intervals = r.tasks.iter().flatten().flat_map(|t| t.1);
        let all = intervals.chain(r.mean).chain([0.0, limit]);
        all.map(|v| v.max(LEAST))
    });
    let n = rows.len() as f64;
    let mut builder = ChartBuilder::on(canvas);
    builder
        .margin(10)
        .margin_top(LEGEND + 18)
        .x_label_area_size(50)
        .y_label_area_size(150);
    let mut chart = builder.build_cartesian_2d(padded(ends), -(n - 0.5)..0.5)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(INK)
        .label_style(label_font())
        .axis_desc_style(title_font())
        .x_desc("change of accuracy (% of C0's)")
        .x_labels(11)
        .y_labels(0)
        .x_label_formatter(&|v| tick(*v))
        .draw()?;
    let (across, down) = chart.plotting_area().get_pixel_range();
    let x_of = |v: f64| chart.backend_coord(&(v, 0.0)).0;
    let zero = [(x_of(0.0), down.start), (x_of(0.0), down.end)];
    canvas.draw(&PathElement::new(zero, INK.stroke_width(1)))?;
    for y in down.clone().step_by(10) {
        let dash = [(x_of(limit), y), (x_of(limit), (y + 6).min(down.end))];
        canvas.draw(&PathElement::new(dash, PALETTE[1].stroke_width(2)))?;
    }
    let accepted = format!("accepted: {limit:.0} %");
    let at = (x_of(limit), down.start - 18);
    canvas.draw(&Text::new(accepted, at, under(label_font())))?;
    for (i, row) in rows.iter().enumerate() {
        let (_, middle) = chart.backend_coord(&(0.0, -(i as f64)));
        let (_, below) = chart.backend_coord(&(0.0, -(i as f64) - 0.5));
        let border = [(across.start, below), (across.end, below)];
        canvas.draw(&PathElement::new(border, GRID.stroke_width(1)))?;
        let style = ending_at(label_font());
        canvas.draw(&Text::new(row.name, (across.start - 10, middle), style))?;
        // Tasks above each other and the mean last, around the row's middle.
        let y_of = |t: usize| middle + MARK * t as i32 - MARK * row.tasks.len() as i32 / 2;
        for (t, task) in row.tasks.iter().enumerate() {
            let Some((change, [low, high])) = *task else {
                continue;
            };
            let colour = PALETTE[t % PALETTE.len()];
            let bar = [(x_of(low.max(LEAST)), y_of(t)), (x_of(high), y_of(t))];
            canvas.draw(&PathElement::new(bar, colour.stroke_width(2)))?;
            marker(
                canvas,
                (x_of(change), y_of(t)),
                colour,
                t >= PALETTE.len(),
                3,
            )?;
        }
        if let Some(mean) = row.mean {
            marker(canvas, (x_of(mean), y_of(row.tasks.len())), INK, true, 3)?;
        }
    }
    Ok(())
}
