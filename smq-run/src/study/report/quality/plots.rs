//! Plots of distances from C0 and of sensitivity.

use std::collections::BTreeMap;

use smq_convert::inspect::place;
use smq_format::ScaleRule;

use super::super::chart::{Axes, Level, Series, interval, plot, plots};
use super::super::plots::frontier;
use super::verdict::{self, Distance};
use crate::eval::sensitivity::Sensitivity;
use crate::eval::suite::Summary;

/// The place in the palette of smaller groups, whatever the rule.
const SMALLER_GROUPS: usize = 5;
/// The place in the palette of FP8 and NF4, which have no scale rule.
const NO_RULE: usize = 6;
/// Half a 95 % confidence interval, in standard errors of a mean over thousands of positions.
const Z: f64 = 1.96;
/// Points named in a sensitivity plot, the worst first.
const NAMED: usize = 12;

/// The rules have colours in their order, and what has no rule is grey.
fn colour(rule: &str) -> usize {
    let at = ScaleRule::ALL.iter().position(|r| r.name() == rule);
    at.unwrap_or(NO_RULE)
}

/// How scales are stored: the places of the x axis, by the bits of a weight.
#[derive(Default)]
struct Widths<'d>(Vec<(&'d str, Option<usize>, Vec<f64>)>);

impl<'d> Widths<'d> {
    fn of(distances: impl Iterator<Item = &'d Distance>) -> Self {
        let mut found = Self::default();
        for d in distances {
            match found.at(d) {
                Some(i) => found.0[i].2.push(d.bits),
                None => found.0.push((&d.scales, d.group, vec![d.bits])),
            }
        }
        found.0.sort_by(|a, b| mean(&a.2).total_cmp(&mean(&b.2)));
        found
    }

    fn at(&self, d: &Distance) -> Option<usize> {
        let same = |(scales, group, _): &(&str, _, _)| *scales == d.scales && *group == d.group;
        self.0.iter().position(same)
    }

    /// Name and bits of each, and the group where it is not the study's.
    fn names(&self) -> Vec<String> {
        let name = |(scales, group, bits): &(&str, Option<usize>, Vec<f64>)| {
            let group = group.map_or(String::new(), |g| format!("\ngroups of {g}"));
            format!("{}\n{:.3} bits{group}", scales.to_uppercase(), mean(bits))
        };
        self.0.iter().map(name).collect()
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Mean KL of uniform variants by how their scales are stored: a line a rule and target; exact
/// scales, which are far wider, and other formats as levels.
pub(super) fn distances(summary: &Summary) -> anyhow::Result<Option<String>> {
    let all = verdict::distances(summary);
    // FP8 and NF4 have no rule.
    let is_level = |d: &Distance| d.is_exact() || d.rule.is_empty();
    let widths = Widths::of(all.iter().filter(|d| !d.is_auto() && !is_level(d)));
    let mut series: BTreeMap<(usize, bool), Series> = BTreeMap::new();
    let mut levels = Vec::new();
    for d in all.iter().filter(|d| !d.is_auto()) {
        let rule = d.rule.as_str();
        // More levels than these have no room; the tables have them.
        if d.is_exact() && d.group.is_some() {
            continue;
        }
        if is_level(d) {
            let what = match d.is_exact() {
                true => format!("{} scales, {rule}", d.scales),
                false => d.scales.to_uppercase(),
            };
            levels.push(Level {
                y: d.kl,
                label: format!("{}, {what} ({:.3} bits)", d.target, d.bits),
                colour: colour(rule),
            });
            continue;
        }
        // Smaller groups are points of their own: a width has another size there.
        let (at, label) = match d.group {
            None => (colour(rule), rule.to_owned()),
            Some(group) => (SMALLER_GROUPS, format!("groups of {group}")),
        };
        let s = series
            .entry((at, d.target == "all"))
            .or_insert_with(|| Series {
                label,
                line: d.group.is_none(),
                style: Some((at, d.target == "all")),
                ..Series::default()
            });
        let at = widths.at(d).unwrap_or_default() as f64;
        s.points.push((at, d.kl, interval(d.kl, Z * d.stderr)));
        // The rule of smaller groups is not in their colour.
        let name = d.group.map_or("", |_| rule);
        s.names.push(name.to_owned());
    }
    let series: Vec<Series> = series.into_values().map(by_x).collect();
    let axes = Axes {
        title: "Distance from the unquantized model (C0) by int4 scales: circles MLP, triangles \
                all linears",
        x_title: "format of the scales, and bits a quantized weight with them",
        y_title: "mean KL divergence from C0 (nats)",
        names: widths.names(),
        levels,
        log: true,
        ..Axes::default()
    };
    plot("distance from C0 by scales", &axes, &series)
}

/// A line's points by place.
fn by_x(mut s: Series) -> Series {
    let mut all: Vec<_> = s.points.into_iter().zip(s.names).collect();
    all.sort_by(|a, b| a.0.0.total_cmp(&b.0.0));
    (s.points, s.names) = all.into_iter().unzip();
    s
}

/// Auto's points beside the frontier of the uniform variants, by target; none without auto.
pub(super) fn automatic(summary: &Summary) -> anyhow::Result<Option<String>> {
    let all = verdict::distances(summary);
    if !all.iter().any(Distance::is_auto) {
        return Ok(None);
    }
    let mut targets: Vec<&str> = all.iter().map(|d| d.target.as_str()).collect();
    targets.sort_unstable();
    targets.dedup();
    let mut series = Vec::new();
    for target in targets {
        let triangles = target == "all";
        let of = |auto| {
            all.iter()
                .filter(move |d| d.target == target && d.is_auto() == auto)
                // FP8 and NF4 have no rule.
                .filter(move |d| auto || !d.rule.is_empty())
        };
        if of(true).next().is_none() {
            continue;
        }
        let uniform = frontier(of(false).map(|d| (d.bits, d.kl)).collect());
        let name = |x: f64, y: f64| {
            let same = of(false)
                .find(|d| d.bits.to_bits() == x.to_bits() && d.kl.to_bits() == y.to_bits());
            same.map_or(String::new(), |d| d.name.clone())
        };
        series.push(Series {
            label: format!("best uniform int4, {target}"),
            names: uniform.iter().map(|p| name(p.0, p.1)).collect(),
            points: uniform,
            line: true,
            style: Some((6, triangles)),
        });
        if let Some(d) = all.iter().find(|d| d.target == target && d.is_nf4()) {
            series.push(Series {
                label: format!("NF4, {target}"),
                points: vec![(d.bits, d.kl, interval(d.kl, Z * d.stderr))],
                style: Some((2, triangles)),
                ..Series::default()
            });
        }
        for (weighed, colour) in [(false, 1), (true, 0)] {
            let of = || of(true).filter(|d| d.name.ends_with("-weighed") == weighed);
            let how = if weighed { "auto weighed" } else { "auto" };
            series.push(by_x(Series {
                label: format!("{how}, {target}"),
                points: of()
                    .map(|d| (d.bits, d.kl, interval(d.kl, Z * d.stderr)))
                    .collect(),
                names: of().map(|_| String::new()).collect(),
                line: true,
                style: Some((colour, triangles)),
            }));
        }
    }
    let axes = Axes {
        title: "Storage chosen for each tensor (auto) beside the best uniform storage",
        x_title: "bits a quantized weight, scales included",
        y_title: "mean KL divergence from C0 (nats)",
        log: true,
        ..Axes::default()
    };
    plot("auto against uniform", &axes, &series)
}

/// Weight error against KL of each unit, relative on the left, squared on the right; a colour a
/// projection.
pub(super) fn sensitivity(s: &Sensitivity) -> anyhow::Result<Option<String>> {
    let mut worst: Vec<_> = s.points.iter().map(|p| p.mean_kl.value).collect();
    worst.sort_by(|a, b| b.total_cmp(a));
    let named_from = worst.get(NAMED - 1).copied().unwrap_or(0.0);
    let mut by_projection: [BTreeMap<String, Series>; 2] = Default::default();
    for p in &s.points {
        let at = place(&p.name);
        let last = at.projection.rsplit('.').next().unwrap_or_default();
        let label = if last == "*" { "layer" } else { last };
        let name = match at.layer {
            Some(layer) if p.mean_kl.value >= named_from => layer.to_string(),
            _ => String::new(),
        };
        for (series, x) in by_projection
            .iter_mut()
            .zip([p.relative_error, p.squared_error])
        {
            let s = series.entry(label.to_owned()).or_insert_with(|| Series {
                label: label.to_owned(),
                ..Series::default()
            });
            s.points.push((x, p.mean_kl.value, None));
            s.names.push(name.clone());
        }
    }
    let has_layers = s.points.iter().any(|p| place(&p.name).layer.is_some());
    let axes = |x_title, y_title, log_x| Axes {
        title: match has_layers {
            true => {
                "Weight error of one part in int4 against what it does to the model (numbers: \
                     layers)"
            }
            false => "Weight error of one part in int4 against what it does to the model",
        },
        x_title,
        y_title,
        log: true,
        log_x,
        ..Axes::default()
    };
    let axes = [
        axes(
            "relative squared error of the weights",
            "mean KL divergence from C0 (nats)",
            false,
        ),
        axes("squared error of the weights (sum)", "", true),
    ];
    let [left, right] = by_projection.map(|s| s.into_values().collect::<Vec<_>>());
    plots(
        "weight error against distance from C0",
        &axes,
        &[&left, &right],
    )
}
