//! What every plot shares: canvas, colours, ranges, labels.

use std::ops::Range;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::inspect::error::InspectError;
use crate::number::fixed;

/// Text and axes. The page's style sheet maps these two to the reader's light or dark theme.
pub const INK: RGBColor = RGBColor(0x33, 0x33, 0x34);
/// Colour of the grid's lines.
pub const GRID: RGBColor = RGBColor(0xdd, 0xdd, 0xde);

/// Okabe and Ito's colour-blind-safe palette, without the yellow and black that a light or dark
/// page hides.
pub const PALETTE: [RGBColor; 7] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x7f, 0x7f, 0x80),
];

/// Width of every plot.
pub(super) const WIDTH: u32 = 960;
/// Characters of a name beside a plot. The page's style sheet enlarges text where it shrinks a plot
/// to a narrow window, and these must then still fit.
pub(super) const MAX_LABEL_CHARS: usize = 26;
/// Size of tick labels; plotters divides by 1.24 for SVG.
const LABEL: f64 = 16.0;
/// Size of axis titles.
const TITLE: f64 = 18.0;

/// What a figure is drawn on.
pub type Canvas<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// Whether it could be drawn.
pub type Drawn = Result<(), Box<dyn std::error::Error>>;

/// Draws a figure of `height` pixels and returns its `<svg>` element for a page.
///
/// # Errors
/// [`InspectError::Plot`] where the plotting library fails.
pub fn draw(
    figure: &'static str,
    height: u32,
    body: impl FnOnce(&Canvas<'_>) -> Drawn,
) -> Result<String, InspectError> {
    let mut svg = String::new();
    let canvas = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
    let drawn = body(&canvas).and_then(|()| Ok(canvas.present()?));
    drawn.map_err(|e| InspectError::Plot {
        figure,
        reason: e.to_string(),
    })?;
    drop(canvas);
    // Inline SVG needs no namespace, and the rest are defaults that only take space.
    let namespace = " xmlns=\"http://www.w3.org/2000/svg\"";
    let label = format!(" role=\"img\" aria-label=\"{figure}\"");
    Ok(svg
        .replacen(namespace, &label, 1)
        .replace(" opacity=\"1\"", "")
        .replace(" stroke=\"none\"", ""))
}

/// The style of tick labels.
pub fn label_font() -> TextStyle<'static> {
    ("sans-serif", LABEL).into_font().color(&INK)
}

/// The style of axis titles.
pub fn title_font() -> TextStyle<'static> {
    ("sans-serif", TITLE).into_font().color(&INK)
}

/// Text that ends at a point, vertically centred on it.
pub fn ending_at(style: TextStyle<'static>) -> TextStyle<'static> {
    style.pos(Pos::new(HPos::Right, VPos::Center))
}

/// Text that begins at a point, vertically centred on it.
pub fn starting_at(style: TextStyle<'static>) -> TextStyle<'static> {
    style.pos(Pos::new(HPos::Left, VPos::Center))
}

/// Text centred under a point.
pub fn under(style: TextStyle<'static>) -> TextStyle<'static> {
    style.pos(Pos::new(HPos::Center, VPos::Top))
}

/// A range around the finite ones of `values`, wide enough for axis ticks to be distinct.
pub fn padded(values: impl Iterator<Item = f64>) -> Range<f64> {
    /// Figures beyond this, which only a broken file has, are drawn at the edge.
    const FAR: f64 = 1e30;
    let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
    for v in values.filter(|v| v.is_finite()) {
        low = low.min(v.clamp(-FAR, FAR));
        high = high.max(v.clamp(-FAR, FAR));
    }
    if low > high {
        return 0.0..1.0;
    }
    let size = low.abs().max(high.abs());
    let pad = (0.06 * (high - low)).max(0.01 * size).max(1e-9);
    let bottom = if low >= 0.0 {
        (low - pad).max(0.0)
    } else {
        low - pad
    };
    bottom..high + pad
}

/// A tick label with no more digits than it needs.
pub fn tick(v: f64) -> String {
    // Sums of tick steps miss zero by a rounding error.
    if v.abs() < 1e-12 {
        return "0".to_owned();
    }
    if (1e-4..1e5).contains(&v.abs()) {
        let text = fixed(v, 6);
        return text.trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    format!("{v:.2e}")
}

/// A whole number, or nothing: for axes of counted things.
pub(super) fn whole_tick(v: f64) -> String {
    if (v - v.round()).abs() > 1e-6 {
        return String::new();
    }
    fixed(v.round(), 0)
}

/// `12k`, `3.4M`: counts on an axis.
pub(super) fn count_tick(v: f64) -> String {
    let (scaled, unit) = match v.abs() {
        a if a >= 1e9 => (v / 1e9, "G"),
        a if a >= 1e6 => (v / 1e6, "M"),
        a if a >= 1e3 => (v / 1e3, "k"),
        _ => (v, ""),
    };
    format!("{}{unit}", tick((scaled * 100.0).round() / 100.0))
}

/// Text for HTML, attributes included.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_everything_html_reads() {
        assert_eq!(
            escape("<a b='c' d=\"e\">&amp;"),
            "&lt;a b=&#39;c&#39; d=&quot;e&quot;&gt;&amp;amp;"
        );
    }

    #[test]
    fn ranges_are_finite_and_not_empty() {
        for values in [
            vec![],
            vec![f64::NAN, f64::INFINITY],
            vec![0.0],
            vec![5e-324, 0.0],
            vec![f64::MAX, -f64::MAX],
            vec![0.0087, 0.0087],
        ] {
            let r = padded(values.iter().copied());
            assert!(
                r.start.is_finite() && r.end.is_finite() && r.start < r.end,
                "{values:?}"
            );
        }
    }

    #[test]
    fn ticks_are_short() {
        assert_eq!(tick(0.0085), "0.0085");
        assert_eq!(tick(20_000.0), "20,000");
        assert_eq!(tick(-5.55e-17), "0");
        assert_eq!(tick(2e-7), "2.00e-7");
        assert_eq!(whole_tick(2.5), "");
        assert_eq!(whole_tick(3.0), "3");
        assert_eq!(count_tick(1_250_000.0), "1.25M");
    }
}
