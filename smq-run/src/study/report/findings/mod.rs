//! `findings.md`: one page to act on. Every number comes from the data, and what is said of a
//! number depends on it.

mod calibrated;
mod configs;
mod tasks;

use anyhow::Context;
use minijinja::value::Serde;
use minijinja::{Value, context};
use serde::Serialize;
use smq_format::ScaleChoice;

use super::data::Data;
use super::errors::{self, CLAIM_PERCENT, Increase};
use super::quality::{self, Quality, verdict};
use super::tables::markdown;
use super::{MARK, claim, render_template};
use verdict::{Choice, Comparison, Distance};

const TEMPLATE: &str = include_str!("findings.md.j2");

/// The page.
///
/// # Errors
/// If the template fails.
pub(super) fn page(data: &Data, quality: &Quality) -> anyhow::Result<String> {
    let comparisons = verdict::comparisons(&quality.suites);
    let recommended = verdict::recommended(&comparisons);
    let published = verdict::published(&comparisons);
    let model = data.model();
    let spots = errors::sweet_spots(&errors::sweep(data));
    let values = context! {
        mark => MARK,
        note => model.as_deref().map(|m| quality.note(m)),
        model,
        limit => CLAIM_PERCENT,
        group => data.contract.quantization.group,
        claim => claim(data),
        projections => projections(data),
        trained => (!comparisons.is_empty()).then(|| trained(&comparisons)),
        trained_over => comparisons.iter().filter_map(e5m5_increase).filter(|p| *p >= CLAIM_PERCENT).count(),
        trained_all => comparisons.iter().filter_map(e5m5_increase).count(),
        spot => spots
            .iter()
            .find(|s| s.rule == verdict::PUBLISHED)
            .map(|s| Value::from(Serde(s.clone()))),
        comparisons => comparisons.len(),
        recommended => recommended.as_ref().map(|c| choice(c, &comparisons)),
        published => published.as_ref().map(|c| choice(c, &comparisons)),
        same => recommended.is_some() && recommended == published,
        nf4 => nf4(&comparisons),
        distances => distances(&comparisons, [&published, &recommended]),
        configs => configs::values(data),
        tasks => tasks::values(quality, recommended.as_ref(), published.as_ref()),
        auto => automatic(quality),
        calibrated => calibrated::values(quality),
        sensitivity => sensitivities(quality),
        notes => notes(quality),
    };
    render_template(TEMPLATE, values).context("findings.md")
}

/// A rule and width with how far it is from C0, compared with exact scales by the published rule.
fn choice(c: &Choice, comparisons: &[Comparison]) -> Value {
    let percent = |o: &Comparison| {
        let d = o.find(&c.rule, c.mantissa_bits)?;
        Some(100.0 * (d.kl / o.exact.kl - 1.0))
    };
    let changes: Vec<f64> = comparisons.iter().filter_map(percent).collect();
    context! {
        rule => c.rule.clone(),
        x => c.mantissa_bits,
        scales => ScaleChoice::e5(c.mantissa_bits).to_string(),
        bits => 6 + c.mantissa_bits,
        change => range(&changes),
        better => changes.iter().all(|p| *p < 0.0),
    }
}

/// `-29 to -23 %`, or `-25 %` where both ends round to the same.
fn range(percent: &[f64]) -> String {
    let end = |f: fn(f64, f64) -> f64, from| percent.iter().copied().fold(from, f);
    let low = format!("{:+.0}", end(f64::min, f64::INFINITY));
    let high = format!("{:+.0}", end(f64::max, f64::NEG_INFINITY));
    match low == high {
        true => format!("{low} %"),
        false => format!("{low} to {high} %"),
    }
}

/// What scales add by kind of projection, the worst first, in the E5M5 file with most tensors.
fn projections(data: &Data) -> Option<Value> {
    let files = errors::files(data);
    let e5m5 = files.iter().filter(|(c, ..)| c.mantissa_bits() == Some(5));
    let (config, id, _) = e5m5.max_by_key(|(.., i)| i.tensors)?;
    let (_, file) = data.file(&config.id)?;
    let mut all = errors::by_projection(&file.tensors);
    all.sort_by(|a, b| b.1.mse_percent.total_cmp(&a.1.mse_percent));
    let worst = all.first()?;
    let rows = all.iter().map(|(name, i): &(String, Increase)| {
        vec![
            format!("`{name}`"),
            i.tensors.to_string(),
            format!("{:.4}", i.mse_percent),
            format!("`{}`", i.worst),
            format!("{:.4}", i.worst_mse_percent),
        ]
    });
    let columns = [
        "projection",
        "tensors",
        "squared error, +%",
        "worst tensor",
        "its squared error, +%",
    ];
    let table = markdown(&columns, rows.collect());
    let tensor = all
        .iter()
        .max_by(|a, b| a.1.worst_mse_percent.total_cmp(&b.1.worst_mse_percent))?;
    Some(context! {
        config => config.id.clone(),
        id => *id,
        kind => worst.0.clone(),
        tensor => tensor.1.worst.clone(),
        percent => format!("{:.4}", tensor.1.worst_mse_percent),
        table,
    })
}

/// Increase of the mean relative MSE by E5M5 over exact scales, percent.
fn e5m5_increase(c: &Comparison) -> Option<f64> {
    increase(c, c.find(verdict::PUBLISHED, 5)?)
}

fn increase(c: &Comparison, d: &Distance) -> Option<f64> {
    Some(100.0 * (d.rel_mse? / c.exact.rel_mse? - 1.0))
}

/// The claim on the suites' models.
fn trained(comparisons: &[Comparison]) -> String {
    let rows = comparisons.iter().map(|c| {
        let of = |x| {
            let percent = c.find(verdict::PUBLISHED, x).and_then(|d| increase(c, d));
            percent.map_or("absent".to_owned(), |p| format!("{p:+.3}"))
        };
        vec![c.model.clone(), c.target.clone(), of(5), of(3), of(0)]
    });
    markdown(
        &["model", "target", "e5m5, %", "e5m3, %", "e5m0, %"],
        rows.collect(),
    )
}

/// NF4 beside the nearest int4 of the same tensors.
fn nf4(comparisons: &[Comparison]) -> Option<Value> {
    let of = comparisons
        .iter()
        .filter_map(|c| Some((c.nf4.as_ref()?, c)));
    let same: Vec<_> = of.clone().map(|(nf4, c)| (nf4, &c.best)).collect();
    let smaller: Vec<_> = of
        .filter_map(|(nf4, c)| Some((nf4, c.smaller.as_ref()?)))
        .collect();
    Some(context! {
        bits => format!("{:.3}", same.first()?.0.bits),
        count => same.len(),
        change => change(&same),
        smaller => smaller.first().map(|(_, d)| context! {
            group => d.group,
            change => change(&smaller),
            count => smaller.len(),
        }),
    })
}

/// How the first of each pair differs from the second, percent.
fn change(pairs: &[(&Distance, &Distance)]) -> String {
    let percent = |(a, b): &(&Distance, &Distance)| 100.0 * (a.kl / b.kl - 1.0);
    range(&pairs.iter().map(percent).collect::<Vec<_>>())
}

/// Each comparison's exact scales, and the choices beside them.
fn distances(comparisons: &[Comparison], choices: [&Option<Choice>; 2]) -> Option<String> {
    if comparisons.is_empty() {
        return None;
    }
    let mut choices: Vec<&Choice> = choices.into_iter().flatten().collect();
    choices.dedup();
    let names: Vec<_> = choices
        .iter()
        .map(|c| format!("{}, {}", ScaleChoice::e5(c.mantissa_bits), c.rule))
        .collect();
    let mut columns = vec!["model", "target", "exact f32, reference", "e5m5, reference"];
    columns.extend(names.iter().map(String::as_str));
    let has_smaller = comparisons.iter().any(|c| c.smaller.is_some());
    columns.extend(match has_smaller {
        true => ["nearest in larger groups", "its mean KL"],
        false => ["nearest to C0 of all int4", "its mean KL"],
    });
    if has_smaller {
        columns.extend(["nearest in smaller groups", "its mean KL"]);
    }
    let has_nf4 = comparisons.iter().any(|c| c.nf4.is_some());
    if has_nf4 {
        columns.push("NF4");
    }
    columns.push("source");
    let rows = comparisons.iter().map(|c| {
        let text = |d: Option<&Distance>| d.map_or("absent".to_owned(), Distance::text);
        let mut row = vec![
            c.model.clone(),
            c.target.clone(),
            c.exact.text(),
            text(c.find(verdict::PUBLISHED, 5)),
        ];
        row.extend(
            choices
                .iter()
                .map(|x| text(c.find(&x.rule, x.mantissa_bits))),
        );
        row.extend([format!("`{}`", c.best.name), c.best.text()]);
        if has_smaller {
            let name = |d: &Distance| format!("`{}` ({:.3} bits)", d.name, d.bits);
            let smaller = c.smaller.as_ref();
            row.extend([smaller.map_or("absent".to_owned(), name), text(smaller)]);
        }
        if has_nf4 {
            row.push(text(c.nf4.as_ref()));
        }
        row.push(format!("`quality/{}`", c.file));
        row
    });
    Some(markdown(&columns, rows.collect()))
}

/// Auto against uniform in every suite that has it.
fn automatic(quality: &Quality) -> Vec<Value> {
    let of = quality.suites.iter().filter_map(|(file, summary)| {
        let rows = verdict::automatic(summary);
        let count = |word| rows.iter().filter(|r| r.verdict() == word).count();
        let nf4 = verdict::distances(summary)
            .into_iter()
            .find(|d| d.is_nf4() && rows.iter().any(|r| r.auto.target == d.target));
        (!rows.is_empty()).then(|| {
            context! {
                model => summary.parameters.model.clone(),
                file => file.clone(),
                all => rows.len(),
                better => count("better"),
                worse => count("worse"),
                nf4 => nf4.map(|d| format!("`{}` has {} at {:.3} bits", d.name, d.text(), d.bits)),
                table => quality::automatic_table(&rows),
            }
        })
    });
    of.collect()
}

#[derive(Serialize)]
struct Unit {
    model: String,
    unit: String,
    worst: String,
    kl: String,
    least: String,
    relative: Option<f64>,
    squared: Option<f64>,
    file: String,
}

/// Each sensitivity in a few words.
fn sensitivities(quality: &Quality) -> Vec<Value> {
    let of = quality.sensitivities.iter().filter_map(|(file, s)| {
        let by = |a: &&_, b: &&_| {
            let kl = |p: &crate::eval::sensitivity::Point| p.mean_kl.value;
            kl(a).total_cmp(&kl(b))
        };
        let (most, least) = (s.points.iter().max_by(by)?, s.points.iter().min_by(by)?);
        let rank = |error: &str| *s.rank_correlation.get(&format!("{error} ~ mean_kl"))?;
        Some(Value::from(Serde(Unit {
            model: s.model.clone(),
            unit: quality::unit(s).to_owned(),
            worst: most.name.clone(),
            kl: format!("{:.4}", most.mean_kl.value),
            least: format!("{:.4}", least.mean_kl.value),
            relative: rank("relative_error"),
            squared: rank("squared_error"),
            file: file.clone(),
        })))
    });
    of.collect()
}

/// What must be known of each model that quality was measured with.
fn notes(quality: &Quality) -> Vec<Value> {
    let suites = quality.suites.iter().map(|(_, s)| &s.parameters.model);
    let mut models: Vec<_> = suites
        .chain(quality.sensitivities.iter().map(|(_, s)| &s.model))
        .filter(|m| !quality.note(m).is_empty())
        .collect();
    models.sort();
    models.dedup();
    let note = |m: &String| context! { model => m.clone(), note => quality.note(m) };
    models.into_iter().map(note).collect()
}
