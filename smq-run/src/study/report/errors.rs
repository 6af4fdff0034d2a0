//! What rounding the scales adds to the weights' error: over exact f32 scales, of all tensors and
//! of the worst.
//!
//! With `E = sum (w - w')^2` over a tensor, or over all, the increase of the squared error is
//! `E(E5Mx) / E(exact) - 1`, and of its root (RMS) `sqrt(E(E5Mx) / E(exact)) - 1`. Exact is always
//! rule `reference` with f32 scales: config C3.

use std::collections::BTreeMap;

use serde::Serialize;
use smq_convert::inspect::place;
use smq_format::ScaleChoice;

use super::data::Data;
use crate::study::contract::Config;
use crate::study::record::{ScaleErrorsRecord, TensorErrors};

/// The claim's limit, percent.
pub(crate) const CLAIM_PERCENT: f64 = 0.5;

/// `sum (w - w')^2 / sum w^2` over all tensors; none without any.
#[must_use]
pub(crate) fn rel_mse(tensors: &[TensorErrors]) -> Option<f64> {
    let (error, weight) = tensors.iter().fold((0.0, 0.0), |(e, w), t| {
        (e + t.stored.squared_error, w + t.stored.squared_weight)
    });
    (weight > 0.0).then(|| error / weight)
}

/// What one rule and width adds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Increase {
    /// Of the squared error over all tensors, percent.
    pub mse_percent: f64,
    /// Increase of the root of that, percent.
    pub rms_percent: f64,
    /// Relative RMS error with exact scales, percent of the weights' RMS.
    pub exact_rms_percent: f64,
    /// Relative RMS error of what is stored, likewise.
    pub stored_rms_percent: f64,
    /// The tensor whose squared error grows most.
    pub worst: String,
    /// How much its squared error grows, percent.
    pub worst_mse_percent: f64,
    /// Increase of the root of that, percent.
    pub worst_rms_percent: f64,
    /// Tensors that were measured.
    pub tensors: usize,
    /// Of them, those whose squared error grows by more than the claim says.
    pub tensors_over: usize,
}

impl Increase {
    /// From pairs of a tensor's name, squared error as stored and with exact scales, and sum of
    /// squared weights.
    fn of<'a>(tensors: impl Iterator<Item = (&'a str, f64, f64, f64)>) -> Option<Self> {
        let tensors: Vec<_> = tensors.filter(|t| t.2 > 0.0).collect();
        let sum = |f: fn(&(&str, f64, f64, f64)) -> f64| tensors.iter().map(f).sum::<f64>();
        let (stored, exact, weight) = (sum(|t| t.1), sum(|t| t.2), sum(|t| t.3));
        let worst = tensors
            .iter()
            .max_by(|a, b| (a.1 / a.2).total_cmp(&(b.1 / b.2)))?;
        let percent = |ratio: f64| 100.0 * (ratio - 1.0);
        Some(Self {
            mse_percent: percent(stored / exact),
            rms_percent: percent((stored / exact).sqrt()),
            exact_rms_percent: 100.0 * (exact / weight).sqrt(),
            stored_rms_percent: 100.0 * (stored / weight).sqrt(),
            worst: worst.0.to_owned(),
            worst_mse_percent: percent(worst.1 / worst.2),
            worst_rms_percent: percent((worst.1 / worst.2).sqrt()),
            tensors: tensors.len(),
            tensors_over: tensors
                .iter()
                .filter(|t| percent(t.1 / t.2) > CLAIM_PERCENT)
                .count(),
        })
    }

    /// Of a file, whose statistics hold both errors.
    #[must_use]
    pub(crate) fn of_file(tensors: &[TensorErrors]) -> Option<Self> {
        Self::of(tensors.iter().filter_map(|t| {
            let (stored, exact) = (t.stored.squared_error, t.exact?.squared_error);
            Some((t.name.as_str(), stored, exact, t.stored.squared_weight))
        }))
    }

    /// Of a line of the sweep, against the line of exact scales.
    #[must_use]
    pub(crate) fn of_sweep(record: &ScaleErrorsRecord, exact: &ScaleErrorsRecord) -> Option<Self> {
        let of = |name: &str| exact.tensors.iter().find(|t| t.name == name);
        Self::of(record.tensors.iter().filter_map(|t| {
            let exact = of(&t.name)?.stored.squared_error;
            let stored = &t.stored;
            Some((
                t.name.as_str(),
                stored.squared_error,
                exact,
                stored.squared_weight,
            ))
        }))
    }
}

/// One point of the sweep.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Point {
    /// Id of its raw line.
    pub id: String,
    /// The scale rule that was used.
    pub rule: String,
    /// Mantissa bits: the x of E5Mx.
    pub mantissa_bits: u32,
    /// What it adds to the errors of exact scales.
    pub increase: Increase,
}

/// The sweep, by rule and width; empty without the line of exact scales.
#[must_use]
pub(crate) fn sweep(data: &Data) -> Vec<Point> {
    let Some((_, exact)) = data.errors.iter().find(|(_, e)| e.mantissa_bits.is_none()) else {
        return Vec::new();
    };
    let point = |(id, e): &(String, ScaleErrorsRecord)| {
        Some(Point {
            id: id.clone(),
            rule: e.rule.clone(),
            mantissa_bits: e.mantissa_bits?,
            increase: Increase::of_sweep(e, exact)?,
        })
    };
    data.errors.iter().filter_map(point).collect()
}

/// The narrowest scales that are good enough, by a rule.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct SweetSpot {
    /// The scale rule that was used.
    pub rule: String,
    /// Of the fewest mantissa bits with an increase within the claim over all tensors.
    pub over_all: Option<ScaleChoice>,
    /// The narrowest scales that keep to it in every tensor.
    pub in_each: Option<ScaleChoice>,
}

/// The narrowest good scales of each rule of the sweep.
#[must_use]
pub(crate) fn sweet_spots(points: &[Point]) -> Vec<SweetSpot> {
    let mut rules: Vec<&str> = points.iter().map(|p| p.rule.as_str()).collect();
    rules.dedup();
    let spot = |rule: &str| {
        let of = || points.iter().filter(|p| p.rule == rule);
        let fewest = |good: fn(&Increase) -> bool| {
            of().filter(|p| good(&p.increase))
                .map(|p| p.mantissa_bits)
                .min()
                .map(ScaleChoice::e5)
        };
        SweetSpot {
            rule: rule.to_owned(),
            over_all: fewest(|i| i.mse_percent < CLAIM_PERCENT),
            in_each: fewest(|i| i.tensors_over == 0),
        }
    };
    rules.into_iter().map(spot).collect()
}

/// What a file's scales add by kind of projection, as `*.mlp.down_proj`.
#[must_use]
pub(crate) fn by_projection(tensors: &[TensorErrors]) -> Vec<(String, Increase)> {
    let mut kinds = BTreeMap::<String, Vec<TensorErrors>>::new();
    for t in tensors {
        kinds
            .entry(place(&t.name).projection)
            .or_default()
            .push(t.clone());
    }
    let increase = |(kind, tensors): (String, Vec<_>)| Some((kind, Increase::of_file(&tensors)?));
    kinds.into_iter().filter_map(increase).collect()
}

/// Each E5Mx file: its config, raw id, and what its scales add over all its tensors.
#[must_use]
pub(crate) fn files(data: &Data) -> Vec<(&Config, &str, Increase)> {
    let mut all = Vec::new();
    for (id, f) in &data.files {
        if let Some(config) = f.configs.first().filter(|c| c.mantissa_bits().is_some())
            && let Some(increase) = Increase::of_file(&f.tensors)
        {
            all.push((config, id.as_str(), increase));
        }
    }
    all
}

/// The rows of `scale_errors.csv`.
#[must_use]
pub(crate) fn rows(data: &Data) -> Vec<Vec<String>> {
    let header = [
        "rule",
        "mantissa_bits",
        "scale_bits",
        "rel_mse",
        "mse_increase_percent",
        "rms_increase_percent",
        "worst_tensor",
        "worst_mse_increase_percent",
        "tensors",
        "tensors_over_0.5_percent",
        "raw_id",
    ];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    let exact = data.errors.iter().find(|(_, e)| e.mantissa_bits.is_none());
    if let Some((id, e)) = exact {
        let mut row = vec![String::new(); header.len()];
        row[0] = "exact".to_owned();
        row[2] = "32".to_owned();
        row[3] = rel_mse(&e.tensors).map_or(String::new(), |v| v.to_string());
        row[8] = e.tensors.len().to_string();
        row[10] = id.clone();
        rows.push(row);
    }
    for p in sweep(data) {
        let i = &p.increase;
        rows.push(vec![
            p.rule,
            p.mantissa_bits.to_string(),
            (6 + p.mantissa_bits).to_string(),
            (i.stored_rms_percent / 100.0).powi(2).to_string(),
            i.mse_percent.to_string(),
            i.rms_percent.to_string(),
            i.worst.clone(),
            i.worst_mse_percent.to_string(),
            i.tensors.to_string(),
            i.tensors_over.to_string(),
            p.id,
        ]);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::study::record::Errors;

    fn tensor(name: &str, stored: f64, exact: f64) -> TensorErrors {
        let errors = |squared_error| Errors {
            mean_rel_mse: 0.0,
            squared_error,
            squared_weight: 10_000.0,
        };
        TensorErrors {
            name: name.to_owned(),
            groups: 1,
            under_window: 0,
            stored: errors(stored),
            exact: Some(errors(exact)),
        }
    }

    #[test]
    fn increases_of_known_errors() {
        // 100 -> 100.4 and 300 -> 321: together 400 -> 421.4, 5.35 %; the second alone 7 %.
        let i = Increase::of_file(&[tensor("a", 100.4, 100.0), tensor("b", 321.0, 300.0)]).unwrap();
        let close = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert!(close(i.mse_percent, 5.35), "{i:?}");
        assert!(
            close(i.rms_percent, 100.0 * (1.0535_f64.sqrt() - 1.0)),
            "{i:?}"
        );
        assert!(
            close(i.exact_rms_percent, 100.0 * (400.0 / 20_000.0_f64).sqrt()),
            "{i:?}"
        );
        assert_eq!((i.worst.as_str(), i.tensors, i.tensors_over), ("b", 2, 1));
        assert!(close(i.worst_mse_percent, 7.0), "{i:?}");
        // All-zero tensors have no error to grow.
        assert!(Increase::of_file(&[tensor("zero", 0.0, 0.0)]).is_none());
        assert_eq!(rel_mse(&[]), None);
    }

    #[test]
    fn sweet_spots_are_the_narrowest_that_are_good_enough() {
        let point = |mantissa_bits, all: f64, b: f64| {
            let tensors = [
                tensor("a", 2.0 * (100.0 + all) - (100.0 + b), 100.0),
                tensor("b", 100.0 + b, 100.0),
            ];
            Point {
                id: String::new(),
                rule: "reference".to_owned(),
                mantissa_bits,
                increase: Increase::of_file(&tensors).unwrap(),
            }
        };
        let points = [point(1, 5.0, 5.0), point(2, 0.4, 0.7), point(3, 0.1, 0.2)];
        let spots = sweet_spots(&points);
        assert_eq!(spots.len(), 1);
        assert_eq!(
            (spots[0].over_all, spots[0].in_each),
            (Some(ScaleChoice::e5(2)), Some(ScaleChoice::e5(3)))
        );
    }
}
