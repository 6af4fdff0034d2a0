//! Error by layer, by projection, the scale format's cost, and the histogram of exponents.

use std::collections::BTreeMap;
use std::ops::Range;

use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use super::figure::{
    Canvas, Drawn, GRID, INK, MAX_LABEL_CHARS, count_tick, draw, ending_at, label_font, padded,
    tick, title_font, whole_tick,
};
use super::marks::Marks;
use super::series::{LayerPoint, Series};
use crate::inspect::error::InspectError;
use crate::inspect::number::{count, scientific, signed_percent};
use crate::inspect::tensor_name::elide;

/// A chart with both axes in f64.
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// Height of the plots that have no rows to count.
const HEIGHT: u32 = 400;
/// Room for the vertical axis's title and labels, enlarged as in a narrow window.
const LABELS_WIDTH: u32 = 108;
/// Series from this one on repeat colours, with triangles instead of circles.
const CIRCLES: usize = super::figure::PALETTE.len();

/// Mean relative MSE over the layers, a line a projection; `None` where no tensor is in a layer.
pub(super) fn by_layer(all: &[Series<'_>]) -> Result<Option<String>, InspectError> {
    let lines: Vec<_> = all
        .iter()
        .filter(|s| s.in_layers)
        .map(|s| (s, s.by_layer()))
        .collect();
    let points = || lines.iter().flat_map(|(_, p)| p);
    let Some(last) = points().map(|p| p.layer).reduce(f64::max) else {
        return Ok(None);
    };
    let x = -0.5..last + 0.5;
    let y = padded(points().map(|p| p.mean_rel_mse));
    let mut marks = Marks::default();
    let svg = draw("mean relative MSE by layer", HEIGHT, |canvas| {
        let axes = ("layer", "mean relative MSE (ratio)");
        let mut chart = chart(canvas, LABELS_WIDTH, x, y)?;
        mesh(&mut chart, axes, whole_tick, tick, 20)?;
        for (i, (s, points)) in lines.iter().enumerate() {
            let at = |p: &LayerPoint| (p.layer, p.mean_rel_mse);
            let finite = || points.iter().map(at).filter(|p| p.1.is_finite());
            chart.draw_series(LineSeries::new(finite(), s.colour.stroke_width(2)))?;
            let style = s.colour.filled();
            match i < CIRCLES {
                true => chart.draw_series(finite().map(|p| Circle::new(p, 3, style)))?,
                false => chart.draw_series(finite().map(|p| TriangleMarker::new(p, 5, style)))?,
            };
            for p in points.iter().filter(|p| p.mean_rel_mse.is_finite()) {
                let text = format!(
                    "{}\nmean relative MSE {}",
                    p.name,
                    scientific(p.mean_rel_mse)
                );
                marks.point(chart.backend_coord(&at(p)), &text);
            }
        }
        Ok(())
    })?;
    Ok(Some(marks.over(&svg)))
}

/// A row a projection: a dot a tensor, a bar for the mean.
pub(super) fn by_projection(all: &[Series<'_>]) -> Result<String, InspectError> {
    let rows = all.len() as f64;
    let values = || {
        all.iter()
            .flat_map(|s| &s.tensors)
            .map(|(_, e)| e.stored.mean_rel_mse)
    };
    let height = 86 + 30 * all.len() as u32;
    let mut marks = Marks::default();
    let svg = draw("mean relative MSE by projection", height, |canvas| {
        let mut chart = chart(canvas, 260, padded(values()), -(rows - 0.5)..0.5)?;
        let axes = ("mean relative MSE (ratio)", "");
        mesh(&mut chart, axes, tick, |_| String::new(), 8)?;
        let left = chart.plotting_area().get_pixel_range().0.start;
        for (i, s) in all.iter().enumerate() {
            let y = -(i as f64);
            let finite = || {
                let values = s
                    .tensors
                    .iter()
                    .map(|(t, e)| (&t.name, e.stored.mean_rel_mse));
                values.filter(|(_, v)| v.is_finite())
            };
            let dot = s.colour.mix(0.6).filled();
            chart.draw_series(finite().map(|(_, v)| Circle::new((v, y), 4, dot)))?;
            for (name, v) in finite() {
                let text = format!("{name}\nmean relative MSE {}", scientific(v));
                marks.point(chart.backend_coord(&(v, y)), &text);
            }
            let mean = s.mean_rel_mse();
            if mean.is_finite() {
                let bar = Rectangle::new([(-1, -9), (2, 9)], INK.filled());
                chart.draw_series([EmptyElement::at((mean, y)) + bar])?;
            }
            let (_, row) = chart.backend_coord(&(0.0, y));
            canvas.draw(&Text::new(
                elide(&s.label, MAX_LABEL_CHARS),
                (left - 8, row),
                ending_at(label_font()),
            ))?;
        }
        Ok(())
    })?;
    Ok(marks.over(&svg))
}

/// A dot a tensor: its error with exact scales, and what storing the scales added; `None` where
/// that is nothing.
pub(super) fn scale_cost(all: &[Series<'_>]) -> Result<Option<String>, InspectError> {
    let point = |e: &crate::inspect::TensorErrors| {
        Some((e.exact.mean_rel_mse, e.scale_format_cost_percent?)).filter(|p| p.0.is_finite())
    };
    let points = || {
        all.iter()
            .flat_map(|s| &s.tensors)
            .filter_map(|(_, e)| point(e))
    };
    if points().all(|p| p.1 == 0.0) {
        return Ok(None);
    }
    let x = padded(points().map(|p| p.0));
    let y = padded(points().map(|p| p.1).chain([0.0]));
    let mut marks = Marks::default();
    let svg = draw("cost of the scale format", HEIGHT, |canvas| {
        let axes = (
            "mean relative MSE with exact f32 scales (ratio)",
            "added by stored scales (%)",
        );
        let mut chart = chart(canvas, LABELS_WIDTH, x.clone(), y)?;
        mesh(&mut chart, axes, tick, tick, 8)?;
        chart.draw_series([PathElement::new([(x.start, 0.0), (x.end, 0.0)], INK)])?;
        for (i, s) in all.iter().enumerate() {
            let style = s.colour.mix(0.75).filled();
            let points = || s.tensors.iter().filter_map(|(_, e)| point(e));
            match i < CIRCLES {
                true => chart.draw_series(points().map(|p| Circle::new(p, 4, style)))?,
                false => chart.draw_series(points().map(|p| TriangleMarker::new(p, 6, style)))?,
            };
            for (t, e) in &s.tensors {
                let Some(p) = point(e) else { continue };
                let text = format!(
                    "{}\nmean relative MSE {} with exact scales; stored scales add {} %",
                    t.name,
                    scientific(p.0),
                    signed_percent(Some(p.1))
                );
                marks.point(chart.backend_coord(&p), &text);
            }
        }
        Ok(())
    })?;
    Ok(Some(marks.over(&svg)))
}

/// Stored scales by exponent, stacked by projection; `None` where every scale is zero.
pub(super) fn exponents(all: &[Series<'_>]) -> Result<Option<String>, InspectError> {
    let mut counts: BTreeMap<i64, Vec<f64>> = BTreeMap::new();
    for (i, s) in all.iter().enumerate() {
        for (_, e) in &s.tensors {
            let numbered = e.exponent_counts.iter().zip(i64::from(e.first_exponent)..);
            // An f32's exponents, subnormals included: others cannot be real.
            for (&n, exponent) in numbered.filter(|(n, x)| **n > 0 && (-149..=127).contains(x)) {
                counts
                    .entry(exponent)
                    .or_insert_with(|| vec![0.0; all.len()])[i] += n as f64;
            }
        }
    }
    let (Some(&first), Some(&last)) = (counts.keys().next(), counts.keys().next_back()) else {
        return Ok(None);
    };
    let highest = counts
        .values()
        .map(|c| c.iter().sum::<f64>())
        .fold(0.0, f64::max);
    let mut marks = Marks::default();
    let svg = draw("stored scales by exponent", HEIGHT, |canvas| {
        let x = first as f64 - 0.7..last as f64 + 0.7;
        let mut chart = chart(canvas, LABELS_WIDTH, x, 0.0..highest * 1.05)?;
        let axes = (
            "exponent of the stored scale (binade, log2)",
            "scales (count)",
        );
        mesh(&mut chart, axes, whole_tick, count_tick, 20)?;
        for (exponent, parts) in &counts {
            let (x, mut y) = (*exponent as f64, 0.0);
            for (s, n) in all.iter().zip(parts).filter(|(_, n)| **n > 0.0) {
                let corners = [(x - 0.42, y), (x + 0.42, y + n)];
                chart.draw_series([Rectangle::new(corners, s.colour.filled())])?;
                let text = format!(
                    "{}\n{} scales of exponent {exponent}",
                    s.label,
                    count(*n as u64)
                );
                marks.area(corners.map(|c| chart.backend_coord(&c)), &text);
                y += n;
            }
        }
        Ok(())
    })?;
    Ok(Some(marks.over(&svg)))
}

fn chart<'a, 'b>(
    canvas: &'a Canvas<'b>,
    label_width: u32,
    x: Range<f64>,
    y: Range<f64>,
) -> Result<Chart<'a, 'b>, Box<dyn std::error::Error>> {
    Ok(ChartBuilder::on(canvas)
        .margin(10)
        .x_label_area_size(60)
        .y_label_area_size(label_width)
        .build_cartesian_2d(x, y)?)
}

/// Axes, horizontal grid lines, and titles `(x, y)`; at most `x_ticks` labels on the x axis.
fn mesh(
    chart: &mut Chart<'_, '_>,
    (x_title, y_title): (&str, &str),
    x_tick: fn(f64) -> String,
    y_tick: fn(f64) -> String,
    x_ticks: usize,
) -> Drawn {
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(INK)
        .label_style(label_font())
        .axis_desc_style(title_font())
        .x_desc(x_title)
        .y_desc(y_title)
        .x_labels(x_ticks)
        .y_labels(7)
        .x_label_formatter(&|v| x_tick(*v))
        .y_label_formatter(&|v| y_tick(*v))
        .draw()?;
    Ok(())
}
