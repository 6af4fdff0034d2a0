//! The HTML page: what the pointer finds, and what scrolls.

use super::*;

/// A name as an attribute has it.
fn escape(name: &str) -> String {
    name.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

/// Every quantized tensor's name is at each of its points, with its figure.
#[test]
fn points_name_their_tensors() {
    let page = page(&report()).unwrap();
    for (name, _, stored, exact) in quantized() {
        let name = escape(name);
        let own = format!("data-tip=\"{name}&#10;mean relative MSE {stored:.3e}\"");
        // One by projection and, in a layer, one by layer.
        let expected = if name.contains("layers") { 2 } else { 1 };
        assert_eq!(page.matches(&own).count(), expected, "{own}");
        let cost = format!(
            "data-tip=\"{name}&#10;mean relative MSE {exact:.3e} with exact scales; stored scales \
             add "
        );
        assert_eq!(page.matches(&cost).count(), 1, "{cost}");
        let rows = format!("data-tip=\"{name}&#10;mean relative MSE\" data-cells=\"");
        let (_, cells) = page.split_once(&rows).unwrap();
        let (cells, _) = cells.split_once('"').unwrap();
        assert_eq!(cells, format!("{stored:.3e} {stored:.3e}"));
    }
}

/// Tensors that share a layer and a projection, such as experts, share a point.
#[test]
fn a_point_of_several_tensors_says_how_many() {
    let mut report = report();
    let first = report
        .tensors
        .iter()
        .find(|t| t.name.contains("layers.0."))
        .unwrap()
        .clone();
    report.tensors.push(first);
    let page = page(&report).unwrap();
    let shared = "data-tip=\"layer 0, mlp.up: 2 tensors&#10;mean relative MSE 1.000e-2\"";
    assert_eq!(page.matches(shared).count(), 1);
}

/// A figure that is no number has neither a point nor a text.
#[test]
fn points_that_are_not_drawn_are_not_found() {
    let mut report = report();
    for t in &mut report.tensors {
        if let Some(e) = &mut t.errors {
            e.stored.mean_rel_mse = f64::NAN;
            e.exact.mean_rel_mse = f64::INFINITY;
        }
    }
    let page = page(&report).unwrap();
    assert!(!page.contains("<circle"));
}

/// What is wider than a phone scrolls by itself; a keyboard reaches the table.
#[test]
fn figures_and_table_scroll_by_themselves() {
    let page = page(&report()).unwrap();
    assert_eq!(page.matches("<div class=\"wide\"><svg").count(), 5);
    assert!(page.contains("<div class=\"wide\" tabindex=\"0\" role=\"region\""));
}
