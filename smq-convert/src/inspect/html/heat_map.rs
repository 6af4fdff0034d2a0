//! Error by row block: a line a tensor, a cell a block of rows.

use std::fmt::Write;

use plotters::prelude::*;

use super::figure::{
    Canvas, Drawn, INK, MAX_LABEL_CHARS, WIDTH, draw, ending_at, label_font, starting_at, tick,
    title_font, under,
};
use super::marks::Marks;
use super::series::Series;
use crate::inspect::error::InspectError;
use crate::inspect::number::scientific;
use crate::inspect::report::{TensorErrors, TensorReport};
use crate::inspect::tensor_name::elide;

/// Pixels left of the cells, for names.
const LEFT: i32 = 270;
/// Pixels right of the cells, for the colour scale.
const RIGHT: i32 = 150;
/// Pixels above the cells.
const TOP: i32 = 10;
/// Pixels below the cells, for the axis.
const BOTTOM: i32 = 62;
/// Pixels that keep the projections apart.
const GAP: i32 = 8;
/// Pixels from one layer's number to the next: narrow pages draw them larger.
const NUMBERS_APART: i32 = 26;
/// Tensors that a page can show as lines of at least two pixels.
const MAX_LINES: usize = 800;
/// Cells of a line (`MAX_ROW_BLOCKS` of the format; a file that has more is cut).
const MAX_CELLS: usize = smq_format::statistics::MAX_ROW_BLOCKS;

/// Viridis (van der Walt and Smith, 2015) at equal steps: perceptually even, colour-blind-safe.
const VIRIDIS: [(u8, u8, u8); 16] = [
    (68, 1, 84),
    (72, 26, 108),
    (71, 47, 125),
    (65, 68, 135),
    (57, 86, 140),
    (49, 104, 142),
    (42, 120, 142),
    (35, 136, 142),
    (31, 152, 139),
    (34, 168, 132),
    (53, 183, 121),
    (84, 197, 104),
    (122, 209, 81),
    (165, 219, 54),
    (210, 226, 27),
    (253, 231, 37),
];

struct Line<'a> {
    tensor: &'a TensorReport,
    top: i32,
    cells: &'a [f32],
}

/// The map and how many tensors did not fit; `None` where no tensor has row blocks.
pub(super) fn heat_map(all: &[Series<'_>]) -> Result<Option<(String, usize)>, InspectError> {
    let has_cells = |(_, e): &&(&TensorReport, &TensorErrors)| !e.row_block_mean_rel_mse.is_empty();
    let total = all
        .iter()
        .flat_map(|s| &s.tensors)
        .filter(has_cells)
        .count();
    if total == 0 {
        return Ok(None);
    }
    let line_height = (1000 / total.min(MAX_LINES) as i32).clamp(2, 14);
    let mut budget = MAX_LINES;
    let mut blocks = Vec::new();
    let mut y = TOP;
    for s in all {
        let mut lines = Vec::new();
        let top = y;
        for (tensor, e) in s.tensors.iter().filter(has_cells).take(budget) {
            let cells = &e.row_block_mean_rel_mse;
            let cells = &cells[..cells.len().min(MAX_CELLS)];
            lines.push(Line {
                tensor,
                top: y,
                cells,
            });
            y += line_height;
        }
        if lines.is_empty() {
            continue;
        }
        budget -= lines.len();
        // Room for the projection's name.
        y = y.max(top + 16) + GAP;
        blocks.push((s, lines));
    }
    let bottom = y - GAP;
    let scale = Scale::of(blocks.iter().flat_map(|(_, l)| l).flat_map(|l| l.cells));
    let lines: Vec<&Line<'_>> = blocks.iter().flat_map(|(_, l)| l).collect();
    let paths = cell_paths(&lines, line_height, &scale);
    let svg = draw(
        "mean relative MSE by block of rows",
        (bottom + BOTTOM) as u32,
        |canvas| {
            for (s, lines) in &blocks {
                names(canvas, s, lines, line_height)?;
            }
            x_axis(canvas, bottom)?;
            scale.draw(canvas, bottom)
        },
    )?;
    let svg = svg.replacen("</svg>", &format!("{paths}</svg>"), 1);
    let mut marks = Marks::default();
    for line in &lines {
        let corners = [(LEFT, line.top), (right_edge(), line.top + line_height)];
        let cells: Vec<String> = line
            .cells
            .iter()
            .map(|v| scientific(f64::from(*v)))
            .collect();
        let text = format!("{}\nmean relative MSE", line.tensor.name);
        marks.cells(corners, &text, &cells);
    }
    Ok(Some((marks.over(&svg), total.saturating_sub(MAX_LINES))))
}

fn right_edge() -> i32 {
    WIDTH as i32 - RIGHT
}

/// The projection's name, and layer numbers as far apart as they can be read.
fn names(canvas: &Canvas<'_>, s: &Series<'_>, lines: &[Line<'_>], line_height: i32) -> Drawn {
    let (Some(first), Some(last)) = (lines.first(), lines.last()) else {
        return Ok(());
    };
    let middle = (first.top + last.top + line_height) / 2;
    let x = if s.in_layers { LEFT - 40 } else { LEFT - 8 };
    let style = ending_at(label_font());
    canvas.draw(&Text::new(
        elide(&s.label, MAX_LABEL_CHARS),
        (x, middle),
        style.clone(),
    ))?;
    if s.in_layers {
        let layers: Vec<_> = lines.iter().map(|l| (l.top, l.tensor.layer)).collect();
        for (top, layer) in numbered(&layers, last.top + line_height) {
            let number = layer.map(|n| n.to_string()).unwrap_or_default();
            let at = (LEFT - 6, top + line_height / 2);
            canvas.draw(&Text::new(number, at, style.clone()))?;
        }
    }
    Ok(())
}

/// Those of a projection's lines, which end at `bottom`, whose layer is written beside them, each
/// its place and layer: the first of a layer, as far from the number before it, and from the next
/// projection's first one, as numbers need.
fn numbered(lines: &[(i32, Option<u32>)], bottom: i32) -> Vec<(i32, Option<u32>)> {
    let mut shown: Vec<(i32, Option<u32>)> = Vec::new();
    for &(top, layer) in lines {
        let fits = match shown.last() {
            None => true,
            // The next projection's first number comes right below the last line.
            Some(&(before, of)) => {
                layer != of && top >= before + NUMBERS_APART && top + NUMBERS_APART <= bottom
            }
        };
        if fits {
            shown.push((top, layer));
        }
    }
    shown
}

fn x_axis(canvas: &Canvas<'_>, bottom: i32) -> Drawn {
    for percent in [0, 25, 50, 75, 100] {
        let x = LEFT + (right_edge() - LEFT) * percent / 100;
        canvas.draw(&PathElement::new([(x, bottom + 2), (x, bottom + 6)], INK))?;
        let at = (x, bottom + 9);
        canvas.draw(&Text::new(percent.to_string(), at, under(label_font())))?;
    }
    let at = ((LEFT + right_edge()) / 2, bottom + 36);
    let title = "block of rows, by position in the tensor's rows (%)";
    canvas.draw(&Text::new(title, at, under(title_font())))?;
    Ok(())
}

/// One `<path>` a colour: a tenth of the bytes that a `<rect>` a cell takes.
fn cell_paths(lines: &[&Line<'_>], line_height: i32, scale: &Scale) -> String {
    let mut paths = vec![String::new(); VIRIDIS.len()];
    let height = if line_height > 4 {
        line_height - 1
    } else {
        line_height
    };
    for line in lines {
        let edge = |i: usize| LEFT + (right_edge() - LEFT) * i as i32 / line.cells.len() as i32;
        for (i, &v) in line.cells.iter().enumerate() {
            if let Some(step) = scale.step(v) {
                let (x, width) = (edge(i), edge(i + 1) - edge(i));
                // Writing to a String cannot fail.
                let _ = write!(paths[step], "M{x} {}h{width}v{height}h-{width}z", line.top);
            }
        }
    }
    let mut out = String::new();
    for (path, (r, g, b)) in paths.iter().zip(VIRIDIS).filter(|(p, _)| !p.is_empty()) {
        let _ = writeln!(out, "<path fill=\"#{r:02x}{g:02x}{b:02x}\" d=\"{path}\"/>");
    }
    out
}

/// Values to colours, from the 1st to the 99th percentile, so that one outlier does not hide the
/// rest.
struct Scale {
    low: f32,
    high: f32,
}

impl Scale {
    fn of<'a>(values: impl Iterator<Item = &'a f32>) -> Self {
        let mut finite: Vec<f32> = values.copied().filter(|v| v.is_finite()).collect();
        finite.sort_by(f32::total_cmp);
        let last = finite.len().saturating_sub(1);
        let rank = |percent: usize| finite.get(last * percent / 100).copied().unwrap_or(0.0);
        Scale {
            low: rank(1),
            high: rank(99),
        }
    }

    fn step(&self, v: f32) -> Option<usize> {
        let steps = VIRIDIS.len();
        let (low, high) = (f64::from(self.low), f64::from(self.high));
        if !v.is_finite() {
            return None;
        }
        if high <= low {
            return Some(steps / 2);
        }
        let position = (f64::from(v) - low) / (high - low) * steps as f64;
        Some((position.max(0.0) as usize).min(steps - 1))
    }

    fn draw(&self, canvas: &Canvas<'_>, bottom: i32) -> Drawn {
        let (x, height) = (right_edge() + 26, (bottom - TOP).clamp(16, 200));
        let steps = VIRIDIS.len() as i32;
        for (i, (r, g, b)) in VIRIDIS.iter().rev().enumerate() {
            let edge = |i: i32| TOP + height * i / steps;
            let corners = [(x, edge(i as i32)), (x + 14, edge(i as i32 + 1))];
            canvas.draw(&Rectangle::new(corners, RGBColor(*r, *g, *b).filled()))?;
        }
        let short = |v: f32| tick(format!("{v:.2e}").parse().unwrap_or(f64::from(v)));
        let style = starting_at(label_font());
        let top = format!("\u{2265} {}", short(self.high));
        canvas.draw(&Text::new(top, (x + 20, TOP + 6), style.clone()))?;
        let low = format!("\u{2264} {}", short(self.low));
        canvas.draw(&Text::new(low, (x + 20, TOP + height - 6), style.clone()))?;
        canvas.draw(&Text::new("relative MSE", (x, TOP + height + 14), style))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Thirty layers of two tensors each, in lines of any height, then the next projection's.
    #[test]
    fn numbers_keep_apart_from_each_other_and_from_the_next_projections() {
        for line_height in 2..=14 {
            let line = |i: i32| (TOP + i * line_height, Some(i as u32 / 2));
            let lines: Vec<_> = (0..60).map(line).collect();
            let bottom = TOP + 60 * line_height;
            let shown = numbered(&lines, bottom);
            assert_eq!(shown[0], lines[0], "{line_height}");
            let tops = shown.iter().map(|(top, _)| *top).chain([bottom]);
            let tops: Vec<_> = tops.collect();
            assert!(
                tops.windows(2).all(|w| w[1] - w[0] >= NUMBERS_APART),
                "{tops:?}"
            );
            assert!(shown.windows(2).all(|w| w[0].1 < w[1].1), "{shown:?}");
            // Not fewer than there is room for.
            let room = (bottom - TOP) / (NUMBERS_APART + 2 * line_height);
            assert!(shown.len() >= room as usize, "{line_height}: {shown:?}");
        }
        // A projection of one line has its number, however low it is.
        assert_eq!(numbered(&[(3, Some(7))], 5), [(3, Some(7))]);
    }
}
