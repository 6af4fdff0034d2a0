//! A chart of series in the style of `smq-inspect --html`, and where the names of its points go.

use plotters::coord::ranged1d::{Ranged, ValueFormatter};
use plotters::prelude::*;
use smq_convert::inspect::figure::{
    Canvas, Drawn, GRID, INK, PALETTE, draw, label_font, padded, starting_at, tick, title_font,
    under,
};

use super::labels::{LINE, Label, place, spread};
use super::log_axis::LogAxis;

/// Height of a plot that has no rows to count.
pub(super) const HEIGHT: u32 = 500;
/// Height of the rows of the title and of the legend.
pub(super) const TITLE: i32 = 34;
pub(super) const LEGEND: i32 = 70;
/// Width of the levels' labels, right of the chart.
const LEVEL_LABELS: i32 = 250;
/// Width of a character of the legend, at most, pixels.
const LEGEND_CHAR: i32 = 8;
/// Size of points' names; plotters divides by 1.24 for SVG.
const NAME: f64 = 14.0;

/// Points of one colour: value and the ends of an interval, by place on the x axis.
#[derive(Debug, Clone, Default)]
pub(super) struct Series {
    /// In the legend, once where several share it; empty: not there, and without markers.
    pub label: String,
    /// Place, value and interval.
    pub points: Vec<(f64, f64, Option<[f64; 2]>)>,
    /// Names beside the points, by index; an empty one is not written.
    pub names: Vec<String>,
    /// Joined by a line.
    pub line: bool,
    /// Place in the palette, and whether its markers are triangles; by default the series' own
    /// place.
    pub style: Option<(usize, bool)>,
}

impl Series {
    /// Colour, and whether the markers are triangles, of the `i`th series.
    fn style(&self, i: usize) -> (RGBColor, bool) {
        if self.label.is_empty() && self.style.is_none() {
            return (INK, false);
        }
        let (at, triangles) = self.style.unwrap_or((i, i >= PALETTE.len()));
        (PALETTE[at % PALETTE.len()], triangles)
    }
}

/// A horizontal line across the chart.
#[derive(Debug, Clone)]
pub(super) struct Level {
    /// The y at which it lies.
    pub y: f64,
    /// Written right of the chart.
    pub label: String,
    /// Place in the palette.
    pub colour: usize,
}

/// A plot's axes: their titles, scales and marks.
#[derive(Debug, Clone, Default)]
pub(super) struct Axes<'a> {
    /// What the plot shows, over everything.
    pub title: &'a str,
    /// Title under the x axis.
    pub x_title: &'a str,
    /// Title beside the y axis.
    pub y_title: &'a str,
    /// Names under whole x, in place of numbers, of one line or several.
    pub names: Vec<String>,
    /// Horizontal lines across the chart.
    pub levels: Vec<Level>,
    /// Whether x is logarithmic.
    pub log_x: bool,
    /// Whether y is logarithmic.
    pub log: bool,
    /// Whether y begins at 0.
    pub from_zero: bool,
}

/// A value and the ends of the interval around it, half of which is this wide.
pub(super) fn interval(value: f64, half: f64) -> Option<[f64; 2]> {
    Some([value - half, value + half])
}

/// Draws the series; none where no series has a point.
///
/// # Errors
/// If the plotting library fails.
pub(super) fn plot(
    figure: &'static str,
    axes: &Axes<'_>,
    series: &[Series],
) -> anyhow::Result<Option<String>> {
    plots(figure, std::slice::from_ref(axes), &[series])
}

/// Charts side by side under the first one's legend; none where the first has no point.
///
/// # Errors
/// If the plotting library fails.
pub(super) fn plots(
    figure: &'static str,
    axes: &[Axes<'_>],
    series: &[&[Series]],
) -> anyhow::Result<Option<String>> {
    let Some(first) = series.first() else {
        return Ok(None);
    };
    if first.iter().all(|s| s.points.is_empty()) {
        return Ok(None);
    }
    let svg = draw(figure, HEIGHT, |canvas| {
        canvas.fill(&WHITE)?;
        let mut labels: Vec<(&str, (RGBColor, bool))> = Vec::new();
        for (i, s) in first.iter().enumerate() {
            let known = labels.iter().any(|l| l.0 == s.label);
            if !s.label.is_empty() && !s.points.is_empty() && !known {
                labels.push((s.label.as_str(), s.style(i)));
            }
        }
        title(canvas, axes.first().map_or("", |a| a.title))?;
        legend(canvas, &labels)?;
        let panels = canvas.split_evenly((1, axes.len()));
        for ((panel, axes), series) in panels.iter().zip(axes).zip(series) {
            chart(canvas, panel, axes, series)?;
        }
        Ok(())
    })?;
    Ok(Some(stand_alone(&svg)))
}

/// A file of its own, unlike a figure within a page, names its namespace.
pub(super) fn stand_alone(svg: &str) -> String {
    svg.replacen("<svg ", "<svg xmlns=\"http://www.w3.org/2000/svg\" ", 1)
}

/// What a plot shows.
pub(super) fn title(canvas: &Canvas<'_>, text: &str) -> Drawn {
    let style = starting_at(title_font());
    canvas.draw(&Text::new(text, (14, TITLE / 2), style))?;
    Ok(())
}

/// A row of labels above the charts.
pub(super) fn legend(canvas: &Canvas<'_>, labels: &[(&str, (RGBColor, bool))]) -> Drawn {
    let (mut x, y) = (100, (TITLE + LEGEND) / 2);
    // Where there are many they are nearer to each other, so that the last one is whole too.
    let width = |label: &str| 10 + LEGEND_CHAR * label.chars().count() as i32;
    let all: i32 = labels.iter().map(|(label, _)| width(label)).sum();
    let (room, _) = canvas.dim_in_pixel();
    let gap = (room as i32 - 10 - x - all) / (labels.len().max(1) as i32);
    for (label, (colour, triangles)) in labels {
        marker(canvas, (x, y), *colour, *triangles, 5)?;
        canvas.draw(&Text::new(*label, (x + 10, y), starting_at(label_font())))?;
        x += width(label) + gap.clamp(8, 30);
    }
    Ok(())
}

/// A point's marker at a pixel.
pub(super) fn marker(
    canvas: &Canvas<'_>,
    at: (i32, i32),
    colour: RGBColor,
    triangle: bool,
    radius: i32,
) -> Drawn {
    match triangle {
        true => canvas.draw(&TriangleMarker::new(at, radius + 2, colour.filled()))?,
        false => canvas.draw(&Circle::new(at, radius, colour.filled()))?,
    }
    Ok(())
}

/// One chart in `panel`, a part of `canvas`.
fn chart(canvas: &Canvas<'_>, panel: &Canvas<'_>, axes: &Axes<'_>, series: &[Series]) -> Drawn {
    let points = || series.iter().flat_map(|s| &s.points);
    let places = || points().map(|p| p.0);
    let x = match axes.names.len() {
        0 if axes.log_x => {
            let x = log_range(places());
            x.start..x.end
        }
        0 => {
            let (low, high) = places().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| {
                (l.min(v), h.max(v))
            });
            let (size, least) = (high - low, 1e-4 * high.abs().max(low.abs()));
            match size > least {
                true => low - 0.08 * size..high + 0.12 * size,
                false => padded(places()),
            }
        }
        n => -0.5..n as f64 - 0.5,
    };
    // No figure is negative where the axis begins at 0, whatever a wide interval says.
    let lowest = |v: f64| if axes.from_zero { v.max(0.0) } else { v };
    let ends = points().flat_map(|p| p.2.unwrap_or([p.1, p.1]).map(lowest));
    let levels = axes.levels.iter().map(|l| l.y);
    let y = match axes.log {
        true => log_range(ends.chain(levels)),
        false => padded(ends.chain(levels).chain(axes.from_zero.then_some(0.0))),
    };
    let lines = axes.names.iter().map(|name| name.lines().count()).max();
    let mut builder = ChartBuilder::on(panel);
    builder
        .margin(10)
        .margin_top(LEGEND)
        .margin_right(if axes.levels.is_empty() {
            10
        } else {
            LEVEL_LABELS
        })
        .x_label_area_size(34 + LINE * lines.unwrap_or(1) as i32)
        .y_label_area_size(92);
    match (axes.log_x, axes.log) {
        (false, false) => contents(
            canvas,
            builder.build_cartesian_2d(x, y.clone())?,
            axes,
            series,
            y.start..y.end,
        ),
        (false, true) => contents(
            canvas,
            builder.build_cartesian_2d(x, LogAxis(y.clone()))?,
            axes,
            series,
            y,
        ),
        (true, false) => contents(
            canvas,
            builder.build_cartesian_2d(LogAxis(x), y.clone())?,
            axes,
            series,
            y,
        ),
        (true, true) => contents(
            canvas,
            builder.build_cartesian_2d(LogAxis(x), LogAxis(y.clone()))?,
            axes,
            series,
            y,
        ),
    }
}

/// Positive values with a margin in proportion.
fn log_range(values: impl Iterator<Item = f64>) -> std::ops::Range<f64> {
    let positive = values.filter(|v| *v > 0.0 && v.is_finite());
    let (low, high) = positive.fold((f64::INFINITY, 0.0_f64), |(l, h), v| (l.min(v), h.max(v)));
    match low <= high {
        true => {
            let margin = (high / low).powf(0.08).max(1.1);
            low / margin..high * margin
        }
        false => 0.1..1.0,
    }
}

/// Mesh, series and names of a chart.
fn contents<X, Y>(
    canvas: &Canvas<'_>,
    mut chart: ChartContext<'_, SVGBackend<'_>, Cartesian2d<X, Y>>,
    axes: &Axes<'_>,
    series: &[Series],
    y: std::ops::Range<f64>,
) -> Drawn
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let (across, down) = chart.plotting_area().get_pixel_range();
    let across_px = across.end - across.start;
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
        .x_labels(across_px as usize / 80)
        .y_labels(7)
        .x_label_formatter(&x_label)
        .y_label_formatter(&|v| tick(*v))
        .draw()?;
    let mut taken: Vec<Label> = Vec::new();
    let mut levels: Vec<(i32, &Level)> = axes
        .levels
        .iter()
        .map(|level| (chart.backend_coord(&(0.0, level.y)).1, level))
        .collect();
    levels.sort_by_key(|(at, _)| *at);
    let heights: Vec<i32> = levels.iter().map(|(at, _)| *at).collect();
    for ((at, level), label_at) in levels.iter().zip(spread(&heights, &down)) {
        let colour = PALETTE[level.colour % PALETTE.len()];
        for x in across.clone().step_by(10) {
            let dash = [(x, *at), ((x + 6).min(across.end), *at)];
            canvas.draw(&PathElement::new(dash, colour.stroke_width(1)))?;
        }
        taken.push(Label {
            left: across.start,
            right: across.end,
            top: *at - 1,
            bottom: *at + 1,
        });
        let leader = [(across.end, *at), (across.end + 12, label_at)];
        canvas.draw(&PathElement::new(leader, colour.stroke_width(1)))?;
        canvas.draw(&Text::new(
            level.label.as_str(),
            (across.end + 16, label_at),
            starting_at(name_font(colour)),
        ))?;
    }
    let lowest = |v: f64| if axes.from_zero { v.max(0.0) } else { v };
    let mut names = Vec::new();
    for (i, s) in series.iter().enumerate() {
        let (colour, triangles) = s.style(i);
        if s.line {
            let line = s.points.iter().map(|p| (p.0, p.1));
            chart.draw_series(LineSeries::new(line, colour.stroke_width(2)))?;
            let at: Vec<_> = s.points.iter().map(|p| (p.0, p.1)).collect();
            for ends in at.windows(2) {
                let [from, to] = [0, 1].map(|end| chart.backend_coord(&ends[end]));
                taken.extend(Label::along(from, to));
            }
        }
        for (n, &(x, v, ends)) in s.points.iter().enumerate() {
            if let Some([low, high]) = ends {
                let bar = [(x, lowest(low).max(y.start)), (x, high)];
                chart.draw_series([PathElement::new(bar, colour.stroke_width(2))])?;
            }
            let at = chart.backend_coord(&(x, v));
            if !s.label.is_empty() {
                marker(canvas, at, colour, triangles, 4)?;
                taken.push(Label::around(at));
            }
            if let Some(name) = s.names.get(n).filter(|name| !name.is_empty()) {
                names.push((name.as_str(), at, colour));
            }
        }
    }
    for (name, at, colour) in names {
        if let Some(label) = place(name, at, (&across, &down), &taken) {
            canvas.draw(&Text::new(
                name,
                (label.left, (label.top + label.bottom) / 2),
                starting_at(name_font(colour)),
            ))?;
            taken.push(label);
        }
    }
    for (i, name) in axes.names.iter().enumerate() {
        let (at, _) = chart.backend_coord(&(i as f64, y.end));
        for (line, text) in name.lines().enumerate() {
            let under_it = (at, down.end + 10 + LINE * line as i32);
            canvas.draw(&Text::new(text, under_it, under(label_font())))?;
        }
    }
    Ok(())
}

/// The style of points' names.
fn name_font(colour: RGBColor) -> TextStyle<'static> {
    ("sans-serif", NAME).into_font().color(&colour)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithmic_ranges_hold_their_positive_values() {
        let r = log_range([0.0, -1.0, 0.01, 10.0].into_iter());
        assert!(r.start > 0.0 && r.start < 0.01 && r.end > 10.0);
        assert_eq!(log_range(std::iter::empty()), 0.1..1.0);
        let one = log_range([2.0].into_iter());
        assert!(one.start < 2.0 && one.end > 2.0);
    }
}
