//! What int4 costs on tasks, in each model's suite with most items.

use std::collections::BTreeMap;

use minijinja::{Value, context};

use super::super::quality::Quality;
use super::super::quality::verdict::Choice;
use super::super::tables::markdown;
use crate::eval::suite::{Summary, VariantSummary};

/// A value a model, by name.
pub(super) fn values(quality: &Quality, recommended: Option<&Choice>) -> Vec<Value> {
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
        .map(|(file, s)| value(file, s, recommended))
        .collect()
}

fn value(file: &str, s: &Summary, recommended: Option<&Choice>) -> Value {
    let tasks: Vec<_> = s.parameters.tasks.keys().copied().collect();
    let measured = |v: &&VariantSummary| v.mean_relative_drop.is_some();
    // A page has room for a few; the report has all.
    let all_fit = s.variants.iter().filter(measured).count() <= 8;
    let told = |v: &&VariantSummary| {
        let n = &v.variant;
        let chosen = recommended.is_some_and(|c| {
            n.rule.as_deref() == Some(&c.rule)
                && n.scales.as_deref() == Some(&format!("e5m{}", c.mantissa_bits))
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
        let n = f.items.map_or(String::new(), |n| format!(" {n}"));
        format!("{}{n}", task.name())
    });
    let least = all.iter().min_by(|a, b| {
        let drop = |v: &VariantSummary| v.mean_relative_drop.unwrap_or(f64::INFINITY);
        drop(a).total_cmp(&drop(b))
    });
    context! {
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
