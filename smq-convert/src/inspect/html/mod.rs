//! One self-contained HTML page: facts, plots, and the whole table.

pub mod figure;
mod heat_map;
mod marks;
mod plots;
mod sections;
mod series;
mod target;

use figure::escape;
use sections::{about, facts, legend, tensor_table};
use series::{Series, series};

use super::error::InspectError;
use super::report::{Report, StatisticsState};
pub use target::write_page;

const STYLE: &str = include_str!("style.css");
const SORT: &str = include_str!("sort.js");
const TOOLTIP: &str = include_str!("tooltip.js");

/// The page. It refers to nothing outside itself, and a content security policy says so.
///
/// # Errors
/// [`InspectError::Plot`] where the plotting library fails.
pub(super) fn page(report: &Report) -> Result<String, InspectError> {
    let name = report.path.rsplit(['/', '\\']).next().unwrap_or_default();
    let name = escape(name);
    let mut body = format!("<h1>{name}</h1>\n{}", facts(report));
    body.push_str(&statistics_note(report));
    let series = series(report);
    if !series.is_empty() {
        body.push_str(&figures(&series)?);
        body.push_str(&tensor_table(report));
    }
    body.push_str(&about(report));
    Ok(format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; \
         style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{name}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n{body}\
         <script>\n{SORT}{TOOLTIP}</script>\n</body>\n</html>\n"
    ))
}

fn statistics_note(report: &Report) -> String {
    let note = match &report.statistics {
        StatisticsState::Present => return String::new(),
        StatisticsState::Absent => "The file has no error statistics, so there is nothing to plot.",
        StatisticsState::Damaged { .. } => {
            "The error statistics are damaged, so there is nothing to plot. The weights are not \
             affected."
        }
    };
    format!("<p class=\"warning\">{note}</p>\n")
}

fn figures(all: &[Series<'_>]) -> Result<String, InspectError> {
    let mut out = String::new();
    let mut section = |title: &str, text: &str, legend: &str, svg: &str| {
        let figure = match svg {
            "" => String::new(),
            svg => format!("<div class=\"wide\">{svg}</div>\n"),
        };
        out.push_str(&format!(
            "<h2>{title}</h2>\n<p>{text}</p>\n{legend}{figure}"
        ));
    };
    let layered: Vec<&Series<'_>> = all.iter().filter(|s| s.in_layers).collect();
    if let Some(svg) = plots::by_layer(all)? {
        let mut text = "Relative MSE of a group is the sum of (w \u{2212} w\u{2032})\u{b2} over \
                        the sum of w\u{b2}; a point is its mean over a tensor's groups."
            .to_owned();
        if layered.len() < all.len() {
            text.push_str(" Tensors outside the layers are in the next plot.");
        }
        section("Error by layer", &text, &legend(&layered), &svg);
    }
    section(
        "Error by projection",
        "The same error, a dot for each tensor; the bar is the mean over all groups.",
        "",
        &plots::by_projection(all)?,
    );
    let everything: Vec<&Series<'_>> = all.iter().collect();
    match plots::scale_cost(all)? {
        Some(svg) => section(
            "Stored against exact scales",
            "How much the error grows because scales are stored in few bits: each tensor's mean \
             relative MSE as stored, over that of the same quantizer with exact f32 scales.",
            &legend(&everything),
            &svg,
        ),
        None => section(
            "Stored against exact scales",
            "Storing the scales added no error to any tensor.",
            "",
            "",
        ),
    }
    if let Some(svg) = plots::exponents(all)? {
        section(
            "Scales by exponent",
            "Non-zero stored scales of all tensors. A tensor's lowest bucket, 31 binades under \
             its largest exponent, also holds all smaller scales.",
            &legend(&everything),
            &svg,
        );
    }
    if let Some((svg, left_out)) = heat_map::heat_map(all)? {
        let mut text =
            "Mean relative MSE of each block of rows; a line is a tensor, numbered by layer. \
             Colours span the 1st to the 99th percentile of the blocks."
                .to_owned();
        if left_out > 0 {
            text.push_str(&format!(" {left_out} more tensors are left out for space."));
        }
        section("Error by rows", &text, "", &svg);
    }
    Ok(out)
}
