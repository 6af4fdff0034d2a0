//! What the pointer finds in a figure: the page's script shows a mark's text beside it.

use std::fmt::Write;

use super::figure::escape;

/// Invisible shapes over a drawn figure, each with the text of its tooltip.
#[derive(Default)]
pub(super) struct Marks(String);

impl Marks {
    /// A point at `(x, y)` pixels of the figure; the pointer only has to be near.
    pub(super) fn point(&mut self, (x, y): (i32, i32), text: &str) {
        let text = attribute(text);
        // Writing to a String cannot fail.
        let _ = writeln!(
            self.0,
            "<circle cx=\"{x}\" cy=\"{y}\" r=\"7\" data-tip=\"{text}\"/>"
        );
    }

    /// An area between two corners in pixels of the figure.
    pub(super) fn area(&mut self, corners: [(i32, i32); 2], text: &str) {
        self.rect(corners, &format!("data-tip=\"{}\"", attribute(text)));
    }

    /// An area of equally wide cells from left to right, each with a figure of its own.
    pub(super) fn cells(&mut self, corners: [(i32, i32); 2], text: &str, cells: &[String]) {
        let (text, cells) = (attribute(text), attribute(&cells.join(" ")));
        self.rect(
            corners,
            &format!("data-tip=\"{text}\" data-cells=\"{cells}\""),
        );
    }

    fn rect(&mut self, [(x0, y0), (x1, y1)]: [(i32, i32); 2], attributes: &str) {
        let (x, y) = (x0.min(x1), y0.min(y1));
        let (width, height) = (x0.abs_diff(x1).max(1), y0.abs_diff(y1).max(1));
        let _ = writeln!(
            self.0,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" {attributes}/>"
        );
    }

    /// The figure `svg` with these marks on top.
    pub(super) fn over(self, svg: &str) -> String {
        let end = format!("<g class=\"marks\">\n{}</g>\n</svg>", self.0);
        svg.replacen("</svg>", &end, 1)
    }
}

/// Text for an attribute; a line break in it stays one.
fn attribute(text: &str) -> String {
    escape(text).replace('\n', "&#10;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_lie_on_top_and_escape_their_text() {
        let mut marks = Marks::default();
        marks.point((3, 4), "a\"<b>\nc");
        marks.area([(9, 8), (1, 2)], "area");
        marks.cells(
            [(0, 0), (8, 2)],
            "line",
            &["1e0".to_owned(), "2e0".to_owned()],
        );
        let svg = marks.over("<svg><path/></svg>");
        assert_eq!(
            svg,
            "<svg><path/><g class=\"marks\">\n\
             <circle cx=\"3\" cy=\"4\" r=\"7\" data-tip=\"a&quot;&lt;b&gt;&#10;c\"/>\n\
             <rect x=\"1\" y=\"2\" width=\"8\" height=\"6\" data-tip=\"area\"/>\n\
             <rect x=\"0\" y=\"0\" width=\"8\" height=\"2\" data-tip=\"line\" \
             data-cells=\"1e0 2e0\"/>\n</g>\n</svg>"
        );
    }

    #[test]
    fn areas_are_never_empty() {
        let mut marks = Marks::default();
        marks.area([(i32::MIN, 5), (i32::MAX, 5)], "");
        assert!(marks.0.contains("height=\"1\""));
    }
}
