//! What int4 costs on tasks, in each model's suite with most items.

use smq_format::ScaleChoice;
use std::collections::BTreeMap;

use minijinja::{Value, context};

use super::super::quality::Quality;
use super::super::quality::verdict::{Choice, PUBLISHED};
use super::super::tables::markdown;
use crate::eval::suite::{Summary, VariantSummary};
use smq_convert::number::count;

/// A value a model, by name.
pub(super) fn values(
    quality: &Quality,
    recommended: Option<&Choice>,
    published: Option<&Choice>,
) -> Vec<Value> {
    let items = |s: &Summary| -> usize {
        let files = s.parameters.tasks.values();
        files.filter_map(|f| f.items).sum()
    };
    let mut most: BTreeMap<_, (&str, &Summary)> = BTreeMap::new();
    for (file, summary) in &quality.suites {
        let p = &summary.parameters;
        let key = (&p.model, &p.model_blake3);
        let more = most.get(&key).is_none_or(|(_, there)| {
            (items(there), there.variants.len()) < (items(summary), summary.variants.len())
        });
        if !p.tasks.is_empty() && more {
            most.insert(key, (file, summary));
        }
    }
    most.into_values()
        .map(|(file, s)| value(file, s, recommended, published))
        .collect()
}

fn value(
    file: &str,
    s: &Summary,
    recommended: Option<&Choice>,
    published: Option<&Choice>,
) -> Value {
    let tasks: Vec<_> = s.parameters.tasks.keys().copied().collect();
    let measured = |v: &&VariantSummary| v.mean_relative_drop.is_some();
    // A page has room for a few; the report has all.
    let all_fit = s.variants.iter().filter(measured).count() <= 8;
    let told = |v: &&VariantSummary| {
        let n = &v.variant;
        let chosen = recommended.is_some_and(|c| {
            let width = ScaleChoice::e5(c.mantissa_bits).to_string();
            [&c.rule, PUBLISHED].contains(&n.rule.as_deref().unwrap_or_default())
                && n.scales.as_deref() == Some(&width)
                && n.group.is_none()
        });
        n.config.is_some() || chosen || all_fit || n.name.contains("auto-")
    };
    let rows = s.variants.iter().filter(measured).filter(told).map(|v| {
        let mut row = vec![
            v.variant.name.clone(),
            v.variant.config.clone().unwrap_or_default(),
        ];
        for task in &tasks {
            let metric = task.metrics().first();
            let compared = metric.and_then(|m| v.tasks.get(task)?.get(m));
            let delta = compared.and_then(|c| c.delta);
            row.push(delta.map_or("absent".to_owned(), |d| {
                let [low, high] = d.ci95.map(|x| 100.0 * x);
                format!("{:+.1} [{low:+.1}, {high:+.1}]", 100.0 * d.mean)
            }));
        }
        row.push(
            v.mean_relative_drop
                .map_or(String::new(), |d| format!("{:.1}", 100.0 * d)),
        );
        row.push(
            if v.accepted == Some(true) {
                "yes"
            } else {
                "no"
            }
            .to_owned(),
        );
        row
    });
    let mut columns = vec!["variant".to_owned(), "config".to_owned()];
    columns.extend(tasks.iter().map(|t| {
        let metric = t.metrics().first().map_or("", |m| m.name());
        format!("{} {metric}, points", t.name())
    }));
    columns.extend(["mean drop, %".to_owned(), "accepted".to_owned()]);
    let columns: Vec<_> = columns.iter().map(String::as_str).collect();
    let all: Vec<_> = s.variants.iter().filter(measured).collect();
    let accepted: Vec<_> = all
        .iter()
        .filter(|v| v.accepted == Some(true))
        .map(|v| v.variant.name.clone())
        .collect();
    let counts = s.parameters.tasks.iter().map(|(task, f)| {
        let n = f.items.map_or(String::new(), |n| format!(" {}", count(n)));
        format!("{}{n}", task.name())
    });
    let least = all.iter().min_by(|a, b| {
        let drop = |v: &VariantSummary| v.mean_relative_drop.unwrap_or(f64::INFINITY);
        drop(a).total_cmp(&drop(b))
    });
    let beside = recommended.map_or(Vec::new(), |c| beside(s, c));
    let enough = published.map_or(Vec::new(), |c| enough(s, c));
    context! {
        enough => enough.iter().map(|(target, drop, exact)| {
            format!("{target} {:.1} % ({:.1})", 100.0 * drop, 100.0 * exact)
        }).collect::<Vec<_>>().join(", "),
        not_enough => enough.iter().any(|(_, drop, exact)| drop - exact > s.accepted_relative_drop),
        disagrees => !beside.is_empty() && beside.iter().all(|b| b.recommended > b.published),
        beside => beside.iter().map(Beside::text).collect::<Vec<_>>().join("; "),
        model => s.parameters.model.clone(),
        file,
        items => counts.collect::<Vec<_>>().join(", "),
        limit => format!("{:.0}", 100.0 * s.accepted_relative_drop),
        measured => all.len(),
        accepted,
        least => least.map(|v| v.variant.name.clone()),
        least_drop => least.and_then(|v| v.mean_relative_drop).map(|d| format!("{:.1}", 100.0 * d)),
        table => markdown(&columns, rows.collect()),
    }
}

/// Mean relative drops of a target.
struct Beside {
    target: String,
    recommended: f64,
    /// The published rule at the same width.
    published: f64,
    /// The published rule with exact scales.
    exact: Option<f64>,
}

impl Beside {
    fn text(&self) -> String {
        let percent = |d: f64| format!("{:.1}", 100.0 * d);
        let exact = self.exact.map_or(String::new(), |d| {
            format!(", {} with exact scales", percent(d))
        });
        format!(
            "{} {} % with the recommended rule, {} with the published one{exact}",
            self.target,
            percent(self.recommended),
            percent(self.published)
        )
    }
}

/// The mean relative drop of a target's int4 in groups of the study's size.
fn drop(s: &Summary, target: &str, scales: ScaleChoice, rule: &str) -> Option<f64> {
    let scales = scales.to_string();
    let is = |v: &&VariantSummary| {
        let n = &v.variant;
        (n.target.as_deref(), n.scales.as_deref(), n.rule.as_deref())
            == (Some(target), Some(scales.as_str()), Some(rule))
            && n.group.is_none()
    };
    s.variants.iter().find(is)?.mean_relative_drop
}

/// By target: the drop of what is enough by its divergence, and that of exact scales, both by the
/// published rule.
fn enough(s: &Summary, c: &Choice) -> Vec<(&'static str, f64, f64)> {
    let width = ScaleChoice::e5(c.mantissa_bits);
    let of = |target: &'static str| {
        let exact = drop(s, target, ScaleChoice::F32, PUBLISHED)?;
        Some((target, drop(s, target, width, &c.rule)?, exact))
    };
    ["mlp", "all"].into_iter().filter_map(of).collect()
}

fn beside(s: &Summary, c: &Choice) -> Vec<Beside> {
    let width = ScaleChoice::e5(c.mantissa_bits);
    let of = |target: &str| {
        Some(Beside {
            target: target.to_owned(),
            recommended: drop(s, target, width, &c.rule)?,
            published: drop(s, target, width, PUBLISHED).filter(|_| c.rule != PUBLISHED)?,
            exact: drop(s, target, ScaleChoice::F32, PUBLISHED),
        })
    };
    ["mlp", "all"].into_iter().filter_map(of).collect()
}
