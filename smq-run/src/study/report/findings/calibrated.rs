//! What calibration makes of widths, rules and formats, in each registered plan's results.

use minijinja::{Value, context};
use smq_convert::CalibrationMethod;

use super::super::quality::Quality;
use super::super::tables::markdown;
use crate::eval::paired::spearman;
use crate::eval::suite::{Calibration, Summary, VariantSummary};
use crate::eval::task::{Metric, Task};

/// A width is enough whose divergence is within this of the widest's.
const ENOUGH_PERCENT: f64 = 5.0;
/// The task that minds most.
const TASK: (Task, Metric) = (Task::Lambada, Metric::Acc);
/// The rule of calibration's own search.
const SEARCHED: &str = "weighted";

/// A value a file.
pub(super) fn values(quality: &Quality) -> Vec<Value> {
    let value = |(file, s): &(String, Summary)| value(file, s);
    quality.calibrations.iter().filter_map(value).collect()
}

fn value(file: &str, s: &Summary) -> Option<Value> {
    let main = main_calibration(s)?;
    let scales = scales(s);
    let asymmetric = Some(CalibrationMethod::Asymmetric);
    let of = |scales: &str, method| find(s, "all", scales, &main, method);
    let kl = |v: Option<&VariantSummary>| Some(v?.kl.as_ref()?.mean_kl.value);
    let widest = scales.iter().rev().find_map(|w| kl(of(w, asymmetric)))?;
    let costs: Vec<(String, f64)> = scales
        .iter()
        .filter_map(|w| {
            let percent = 100.0 * (kl(of(w, asymmetric))? / widest - 1.0);
            Some((w.clone(), percent))
        })
        .collect();
    let enough = costs.iter().find(|(_, p)| *p <= ENOUGH_PERCENT)?;
    let told: Vec<String> = costs
        .iter()
        .map(|(w, p)| format!("`{w}` {p:+.0} %"))
        .collect();
    let signed = s.variants.iter().find(|v| {
        let n = &v.variant;
        n.rule.as_deref() == Some("signed") && n.scales.as_deref() == Some(&enough.0)
    });
    let gain = |v| Some(100.0 * (kl(Some(v))? / kl(of(&enough.0, asymmetric))? - 1.0));
    let quantized = |v: &&VariantSummary| v.kl.is_some() && points(v).is_some();
    let measured: Vec<_> = s.variants.iter().filter(quantized).collect();
    let is_calibrated = |v: &&VariantSummary| v.variant.calibration.is_some();
    let calibrated: Vec<_> = measured.iter().copied().filter(is_calibrated).collect();
    Some(context! {
        file,
        model => s.parameters.model.clone(),
        device => s.parameters.device.clone(),
        positions => s.variants.iter().find_map(|v| Some(v.kl.as_ref()?.tokens_scored)),
        text => main.text.clone(),
        tokens => main.tokens,
        enough => enough.0.clone(),
        within => ENOUGH_PERCENT,
        costs => told.join(", "),
        signed => signed.and_then(gain),
        width_range => costs.iter().map(|(_, p)| *p).fold(0.0, f64::max),
        text_range => text_range(s, &enough.0),
        agreement => agreement(&measured),
        agreement_calibrated => agreement(&calibrated),
        measured => measured.len(),
        calibrated => calibrated.len(),
        widths => widths(s, &scales, &main),
        formats => formats(s, &enough.0, &main),
        texts => texts(s, &enough.0),
        spread => spread(s, &enough.0),
    })
}

/// Rank correlation of the divergence and what the task lost.
fn agreement(variants: &[&VariantSummary]) -> Option<f64> {
    let kl: Vec<f64> = variants
        .iter()
        .filter_map(|v| Some(v.kl.as_ref()?.mean_kl.value))
        .collect();
    let lost: Vec<f64> = variants
        .iter()
        .filter_map(|v| points(v).map(|[mean, ..]| -mean))
        .collect();
    spearman(&kl, &lost)
}

/// How much more divergence the worst text gives than the best, percent, at one place and number of
/// tokens.
fn text_range(s: &Summary, scales: &str) -> Option<f64> {
    let main = main_calibration(s)?;
    let all = same_but_texts(s, scales);
    let kl = all.iter().filter_map(|v| {
        let c = v.variant.calibration.as_ref()?;
        let alike = (c.start_percent, c.tokens) == (main.start_percent, main.tokens);
        Some(v.kl.as_ref().filter(|_| alike)?.mean_kl.value)
    });
    let (least, most) = kl.fold((f64::INFINITY, 0.0_f64), |(l, m), k| (l.min(k), m.max(k)));
    least.is_finite().then(|| 100.0 * (most / least - 1.0))
}

/// The calibration that most variants have.
fn main_calibration(s: &Summary) -> Option<Calibration> {
    let all = || {
        s.variants
            .iter()
            .filter_map(|v| v.variant.calibration.as_ref())
    };
    let same = |a: &Calibration, b: &Calibration| {
        (&a.text, a.start_percent, a.tokens) == (&b.text, b.start_percent, b.tokens)
    };
    all()
        .max_by_key(|c| all().filter(|o| same(c, o)).count())
        .cloned()
}

/// Scales of int4, in the plan's order.
fn scales(s: &Summary) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for v in s.variants.iter().filter(|v| is_int4(v)) {
        if let Some(scales) = v.variant.scales.as_ref().filter(|w| !out.contains(w)) {
            out.push(scales.clone());
        }
    }
    out
}

fn is_int4(v: &VariantSummary) -> bool {
    let n = &v.variant;
    n.levels.is_none() && n.rule.is_some()
}

/// int4 in groups of 128: rounded by the published rule without a method, or calibrated on `main`
/// with searched scales.
fn find<'s>(
    s: &'s Summary,
    target: &str,
    scales: &str,
    main: &Calibration,
    method: Option<CalibrationMethod>,
) -> Option<&'s VariantSummary> {
    let wanted = method.map(|method| Calibration {
        method,
        ..main.clone()
    });
    s.variants.iter().find(|v| {
        let n = &v.variant;
        let rule = if method.is_some() {
            SEARCHED
        } else {
            "reference"
        };
        is_int4(v)
            && n.group.is_none()
            && n.target.as_deref() == Some(target)
            && n.scales.as_deref() == Some(scales)
            && n.rule.as_deref() == Some(rule)
            && n.calibration == wanted
    })
}

/// Divergence and points of the task.
fn cell(v: Option<&VariantSummary>) -> String {
    let Some(v) = v else {
        return "absent".to_owned();
    };
    let kl = v.kl.as_ref().map(|k| format!("{:.3}", k.mean_kl.value));
    let points = points(v).map(|[mean, ..]| format!("{mean:+.1}"));
    [kl, points]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join("; ")
}

/// What the task lost, points, with its interval.
fn points(v: &VariantSummary) -> Option<[f64; 3]> {
    let delta = v.tasks.get(&TASK.0)?.get(&TASK.1)?.delta?;
    Some([delta.mean, delta.ci95[0], delta.ci95[1]].map(|x| 100.0 * x))
}

fn widths(s: &Summary, scales: &[String], main: &Calibration) -> String {
    let methods = [
        None,
        Some(CalibrationMethod::Search),
        Some(CalibrationMethod::Gptq),
        Some(CalibrationMethod::Asymmetric),
    ];
    let rows = scales.iter().map(|w| {
        let mut row = vec![w.clone()];
        row.extend(methods.map(|m| cell(find(s, "all", w, main, m))));
        let mlp = |m| cell(find(s, "mlp", w, main, m));
        row.extend([mlp(None), mlp(Some(CalibrationMethod::Asymmetric))]);
        row
    });
    let columns = [
        "scales",
        "all: rounded",
        "scales by the text",
        "gptq",
        "asymmetric",
        "mlp: rounded",
        "asymmetric",
    ];
    markdown(&columns, rows.collect())
}

/// Formats at about the same bits, rounded and calibrated, over all linears.
fn formats(s: &Summary, scales: &str, main: &Calibration) -> String {
    let row = |label: &str, of: &dyn Fn(&VariantSummary) -> bool| -> Option<Vec<String>> {
        let all = |v: &&VariantSummary| v.variant.target.as_deref() == Some("all") && of(v);
        let with = |calibration: Option<&Calibration>| {
            let mut those = s.variants.iter().filter(all);
            those.find(|v| v.variant.calibration.as_ref() == calibration)
        };
        let calibrated = with(Some(main))?;
        let interval = points(calibrated)
            .map(|[mean, low, high]| format!("{mean:+.1} [{low:+.1}, {high:+.1}]"));
        let percent =
            |v: &VariantSummary| v.mean_relative_drop.map(|d| format!("{:.1}", 100.0 * d));
        Some(vec![
            label.to_owned(),
            calibrated
                .file
                .bits_per_weight
                .map_or(String::new(), |b| format!("{b:.2}")),
            cell(with(None)),
            cell(Some(calibrated)),
            interval.unwrap_or_default(),
            percent(calibrated).unwrap_or_default(),
        ])
    };
    let of_group = |v: &VariantSummary, group| v.variant.group == group;
    let is_width = |v: &VariantSummary| v.variant.scales.as_deref() == Some(scales);
    let is_rule = |v: &VariantSummary| match v.variant.calibration {
        None => v.variant.rule.as_deref() != Some(SEARCHED),
        Some(_) => v.variant.rule.as_deref() == Some(SEARCHED),
    };
    let is_lut4 = |v: &VariantSummary| v.variant.levels.is_some();
    let rows = [
        row(&format!("int4 {scales}, groups of 128"), &|v| {
            is_int4(v) && is_width(v) && is_rule(v) && of_group(v, None)
        }),
        row(&format!("int4 {scales}, groups of 64"), &|v| {
            is_int4(v) && is_width(v) && is_rule(v) && of_group(v, Some(64))
        }),
        row(&format!("lut4 {scales}, groups of 128"), &|v| {
            is_lut4(v) && is_width(v) && of_group(v, None)
        }),
        row(&format!("lut4 {scales}, groups of 64"), &|v| {
            is_lut4(v) && is_width(v) && of_group(v, Some(64))
        }),
        row("NF4, blocks of 64", &|v| {
            v.variant.scales.as_deref() == Some("nf4")
        }),
    ];
    let columns = [
        "weights",
        "bits/weight",
        "rounded",
        "calibrated",
        "its lambada acc, points",
        "its mean drop, %",
    ];
    markdown(&columns, rows.into_iter().flatten().collect())
}

/// Calibrated alike on other texts, from another start, on more or fewer tokens.
fn texts(s: &Summary, scales: &str) -> String {
    let rows = same_but_texts(s, scales).into_iter().filter_map(|v| {
        let c = v.variant.calibration.as_ref()?;
        let kl = v.kl.as_ref()?;
        let [mean, low, high] = points(v)?;
        Some(vec![
            c.text.clone(),
            c.start_percent.to_string(),
            c.tokens.to_string(),
            format!(
                "{:.3} ± {:.3}",
                kl.mean_kl.value,
                kl.mean_kl.stderr.unwrap_or_default()
            ),
            format!("{mean:+.1} [{low:+.1}, {high:+.1}]"),
            v.mean_relative_drop
                .map_or(String::new(), |d| format!("{:.1}", 100.0 * d)),
        ])
    });
    let columns = [
        "text",
        "begun at, %",
        "tokens",
        "mean KL",
        "lambada acc, points",
        "mean drop, %",
    ];
    markdown(&columns, rows.collect())
}

fn same_but_texts<'s>(s: &'s Summary, scales: &str) -> Vec<&'s VariantSummary> {
    let asymmetric = |c: &Calibration| c.method == CalibrationMethod::Asymmetric;
    let those = s.variants.iter().filter(|v| {
        let n = &v.variant;
        is_int4(v)
            && n.group.is_none()
            && n.target.as_deref() == Some("all")
            && n.scales.as_deref() == Some(scales)
            && n.rule.as_deref() == Some(SEARCHED)
            && n.calibration.as_ref().is_some_and(asymmetric)
    });
    those.collect()
}

/// How far two calibrations on one text are apart that begin at different places of it, percent of
/// their mean, at most.
fn spread(s: &Summary, scales: &str) -> Option<String> {
    let all = same_but_texts(s, scales);
    let mut most: Option<f64> = None;
    for a in &all {
        for b in &all {
            let (Some(of_a), Some(of_b)) = (&a.variant.calibration, &b.variant.calibration) else {
                continue;
            };
            let alike = of_a.text == of_b.text && of_a.tokens == of_b.tokens;
            if let (true, Some(a), Some(b)) = (alike, &a.kl, &b.kl) {
                let (a, b) = (a.mean_kl.value, b.mean_kl.value);
                let percent = 200.0 * (a - b).abs() / (a + b);
                most = Some(most.map_or(percent, |m| m.max(percent)));
            }
        }
    }
    most.map(|p| format!("{p:.0}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The measured results in the repository, read as the report reads them.
    fn measured() -> Summary {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../results/quality/calibration-smollm2.json"
        );
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    #[test]
    fn the_narrowest_width_that_is_near_the_widest_is_told() {
        let mut s = measured();
        let enough = |s: &Summary| {
            let value = value("file", s).unwrap();
            value.get_attr("enough").unwrap().to_string()
        };
        assert_eq!(enough(&s), "e5m3");
        // Were E5M0 as near, it would be enough.
        let main = main_calibration(&s).unwrap();
        assert_eq!((main.text.as_str(), main.tokens), ("mix", 32768));
        let name = |v: &VariantSummary| v.variant.name == "all-e5m0-weighted-cal-mix-0-32768";
        let e5m0 = s.variants.iter_mut().find(|v| name(v)).unwrap();
        e5m0.kl.as_mut().unwrap().mean_kl.value = 0.13;
        assert_eq!(enough(&s), "e5m0");
    }

    #[test]
    fn tables_have_a_row_for_what_was_measured_alone() {
        let mut s = measured();
        let main = main_calibration(&s).unwrap();
        let rows = |table: &str| table.lines().count() - 2;
        assert_eq!(rows(&widths(&s, &scales(&s), &main)), 7);
        assert_eq!(rows(&formats(&s, "e5m3", &main)), 5);
        // Three texts at two starts, and two other numbers of tokens.
        assert_eq!(rows(&texts(&s, "e5m3")), 8);
        assert_eq!(spread(&s, "e5m3").as_deref(), Some("13"));
        s.variants.retain(|v| v.variant.calibration.is_none());
        assert!(value("file", &s).is_none());
    }
}
