//! What the suites' distances from C0 say: which rule and width to take, and whether a choice by
//! tensor beats them.
//!
//! Two mean KL divergences differ where they are more than twice the standard error of their
//! difference apart; the errors are taken as independent, which they are not quite, so that this
//! tends to see no difference.

use std::collections::BTreeMap;

use serde::Serialize;
use smq_format::{Family, ScaleChoice, ScaleRule};

use crate::eval::suite::{Summary, VariantSummary};

/// Name of the rule that the published method has.
pub(crate) const PUBLISHED: &str = ScaleRule::Reference.name();
/// Variants of the same size differ by less than this, bits a weight: rounding of what is printed.
const SAME_SIZE_BITS: f64 = 5e-4;

/// A variant's distance from C0.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Distance {
    /// Name of the variant.
    pub name: String,
    /// What is quantized: `mlp` or `all`.
    pub target: String,
    /// How scales are stored, such as `f32` or `e5m3`.
    pub scales: String,
    /// How a group's scale is chosen.
    pub rule: String,
    /// Columns that share a scale, where these are not the study's.
    pub group: Option<usize>,
    /// Bits of a quantized weight, its share of the scales included.
    pub bits: f64,
    /// Mean KL divergence, nats.
    pub kl: f64,
    /// Standard error of that mean.
    pub stderr: f64,
    /// Mean over groups of the relative MSE.
    pub rel_mse: Option<f64>,
}

impl Distance {
    fn of(v: &VariantSummary) -> Option<Self> {
        let kl = v.kl.as_ref()?;
        let n = &v.variant;
        // What is said of rules and widths is said of rounding to nearest in equal steps.
        if n.calibration.is_some() || n.levels.is_some() {
            return None;
        }
        Some(Self {
            name: n.name.clone(),
            target: n.target.clone().unwrap_or_default(),
            scales: n.scales.clone().unwrap_or_default(),
            rule: n.rule.clone().unwrap_or_default(),
            group: n.group,
            bits: v.file.bits_per_weight?,
            kl: kl.mean_kl.value,
            stderr: kl.mean_kl.stderr.unwrap_or(0.0),
            rel_mse: v.file.mean_rel_mse,
        })
    }

    /// Whether width and rule were chosen for each tensor.
    #[must_use]
    pub(crate) fn is_auto(&self) -> bool {
        self.name.split('-').any(|part| part == "auto")
    }

    /// Mantissa bits of the scales: the x of E5Mx.
    #[must_use]
    pub(crate) fn mantissa_bits(&self) -> Option<u32> {
        let scales: ScaleChoice = self.scales.parse().ok()?;
        scales.e5_mantissa_bits()
    }

    /// Whether its weights are int4 with exact f32 scales.
    #[must_use]
    pub(crate) fn is_exact(&self) -> bool {
        self.scales.parse() == Ok(ScaleChoice::F32)
    }

    /// Whether its weights are NF4.
    #[must_use]
    pub(crate) fn is_nf4(&self) -> bool {
        self.scales.parse() == Ok(Family::Nf4)
    }

    /// Whether it is further from C0 than `other`, beyond noise.
    #[must_use]
    pub(crate) fn is_worse_than(&self, other: &Self) -> bool {
        self.kl - other.kl > 2.0 * self.stderr.hypot(other.stderr)
    }

    /// `0.1234 ± 0.0012`, the standard error behind.
    #[must_use]
    pub(crate) fn text(&self) -> String {
        format!("{:.4} ± {:.4}", self.kl, self.stderr)
    }
}

/// Every variant with a distance and a size.
#[must_use]
pub(crate) fn distances(summary: &Summary) -> Vec<Distance> {
    summary.variants.iter().filter_map(Distance::of).collect()
}

/// The uniform variants of a model and target that have exact scales to be compared with.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Comparison {
    /// File it comes from.
    pub file: String,
    /// The model whose variants are compared.
    pub model: String,
    /// What is quantized: `mlp` or `all`.
    pub target: String,
    /// Exact f32 scales by the published rule.
    pub exact: Distance,
    /// E5Mx of any rule, in the study's groups.
    pub widths: Vec<Distance>,
    /// The nearest to C0 of them.
    pub best: Distance,
    /// The nearest to C0 of E5Mx in smaller groups, where these were measured.
    pub smaller: Option<Distance>,
    /// NF4, where it was measured.
    pub nf4: Option<Distance>,
}

/// A model's comparisons come from its suite with most variants.
#[must_use]
pub(crate) fn comparisons(suites: &[(String, Summary)]) -> Vec<Comparison> {
    let mut largest = BTreeMap::new();
    for (file, summary) in suites {
        let all = distances(summary);
        let model = &summary.parameters.model_blake3;
        let size = |d: &Vec<Distance>| d.len();
        if largest
            .get(model)
            .is_none_or(|(_, _, there)| size(there) < all.len())
        {
            largest.insert(model.clone(), (file, summary, all));
        }
    }
    let mut out = Vec::new();
    for (file, summary, all) in largest.into_values() {
        for target in ["mlp", "all"] {
            let uniform = || all.iter().filter(|d| d.target == target && !d.is_auto());
            let of = || uniform().filter(|d| d.group.is_none());
            let nearest = |a: &&Distance, b: &&Distance| a.kl.total_cmp(&b.kl);
            let smaller = uniform().filter(|d| d.group.is_some() && d.mantissa_bits().is_some());
            let exact = of().find(|d| d.is_exact() && d.rule == PUBLISHED);
            let widths: Vec<_> = of()
                .filter(|d| d.mantissa_bits().is_some())
                .cloned()
                .collect();
            let best = widths.iter().min_by(nearest).cloned();
            if let (Some(exact), Some(best)) = (exact, best) {
                out.push(Comparison {
                    file: file.clone(),
                    model: summary.parameters.model.clone(),
                    target: target.to_owned(),
                    exact: exact.clone(),
                    widths,
                    best,
                    smaller: smaller.min_by(nearest).cloned(),
                    nf4: of().find(|d| d.is_nf4()).cloned(),
                });
            }
        }
    }
    out.sort_by(|a, b| (&a.file, &b.target).cmp(&(&b.file, &a.target)));
    out
}

impl Comparison {
    /// The variant of a rule and width.
    #[must_use]
    pub(crate) fn find(&self, rule: &str, x: u32) -> Option<&Distance> {
        let same = |d: &&Distance| d.rule == rule && d.mantissa_bits() == Some(x);
        self.widths.iter().find(same)
    }
}

/// A rule and width.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Choice {
    /// How a group's scale is chosen.
    pub rule: String,
    /// Mantissa bits of the scales: the x of E5Mx.
    pub mantissa_bits: u32,
}

/// The choices that every comparison has.
fn everywhere(comparisons: &[Comparison]) -> Vec<Choice> {
    let Some(first) = comparisons.first() else {
        return Vec::new();
    };
    let choice = |d: &Distance| {
        Some(Choice {
            rule: d.rule.clone(),
            mantissa_bits: d.mantissa_bits()?,
        })
    };
    let all = |c: &Choice| {
        let has = |o: &Comparison| o.find(&c.rule, c.mantissa_bits).is_some();
        comparisons.iter().all(has)
    };
    first.widths.iter().filter_map(choice).filter(all).collect()
}

/// The fewest mantissa bits of `rule` that are, in every comparison, no worse than `than` there.
fn fewest(
    comparisons: &[Comparison],
    rule: &str,
    than: impl Fn(&Comparison) -> Option<Distance>,
) -> Option<Choice> {
    let good = |c: &Choice| {
        comparisons.iter().all(|o| {
            let (own, other) = (o.find(&c.rule, c.mantissa_bits), than(o));
            own.zip(other).is_some_and(|(a, b)| !a.is_worse_than(&b))
        })
    };
    let choices = everywhere(comparisons).into_iter();
    choices
        .filter(|c| c.rule == rule && good(c))
        .min_by_key(|c| c.mantissa_bits)
}

/// The fewest bits of the published rule that are no worse than its exact scales, everywhere.
#[must_use]
pub(crate) fn published(comparisons: &[Comparison]) -> Option<Choice> {
    fewest(comparisons, PUBLISHED, |c| Some(c.exact.clone()))
}

/// The rule and width nearest to C0 in the geometric mean over comparisons, or fewer bits of that
/// rule that are no worse.
#[must_use]
pub(crate) fn recommended(comparisons: &[Comparison]) -> Option<Choice> {
    let score = |c: &Choice| {
        let ratio = |o: &Comparison| {
            o.find(&c.rule, c.mantissa_bits)
                .map_or(f64::INFINITY, |d| (d.kl / o.exact.kl).ln())
        };
        comparisons.iter().map(ratio).sum::<f64>()
    };
    let choices = everywhere(comparisons).into_iter();
    let best = choices.min_by(|a, b| score(a).total_cmp(&score(b)))?;
    let than = |o: &Comparison| o.find(&best.rule, best.mantissa_bits).cloned();
    fewest(comparisons, &best.rule, than)
}

/// An auto variant beside the best uniform int4 one of its target that is no larger.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Automatic {
    /// The variant of chosen storage.
    pub auto: Distance,
    /// The uniform one; absent where all are larger.
    pub uniform: Option<Distance>,
}

impl Automatic {
    /// How it compares, in a word.
    #[must_use]
    pub(crate) fn verdict(&self) -> &'static str {
        match &self.uniform {
            Some(u) if u.is_worse_than(&self.auto) => "better",
            Some(u) if self.auto.is_worse_than(u) => "worse",
            Some(_) => "no difference seen",
            None => "nothing to compare with",
        }
    }
}

/// Every auto variant of a suite.
#[must_use]
pub(crate) fn automatic(summary: &Summary) -> Vec<Automatic> {
    let all = distances(summary);
    let (autos, uniform): (Vec<_>, Vec<_>) = all.into_iter().partition(Distance::is_auto);
    let beside = |auto: Distance| {
        let no_larger = |u: &&Distance| {
            (auto.target.is_empty() || u.target == auto.target)
                && !u.rule.is_empty() // FP8 and NF4 have none
                && u.bits <= auto.bits + SAME_SIZE_BITS
        };
        let best = uniform.iter().filter(no_larger);
        let uniform = best.min_by(|a, b| a.kl.total_cmp(&b.kl)).cloned();
        Automatic { auto, uniform }
    };
    autos.into_iter().map(beside).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn distance(scales: &str, rule: &str, bits: f64, kl: f64) -> Distance {
        Distance {
            name: format!("all-{scales}-{rule}"),
            target: "all".to_owned(),
            scales: scales.to_owned(),
            rule: rule.to_owned(),
            group: None,
            bits,
            kl,
            stderr: 0.001,
            rel_mse: None,
        }
    }

    fn comparison(widths: Vec<Distance>) -> Comparison {
        Comparison {
            file: String::new(),
            model: String::new(),
            target: "all".to_owned(),
            exact: distance("f32", PUBLISHED, 4.25, 0.2),
            best: widths[0].clone(),
            widths,
            smaller: None,
            nf4: None,
        }
    }

    #[test]
    fn the_fewest_bits_that_are_no_worse() {
        let one = comparison(vec![
            distance("e5m5", PUBLISHED, 4.086, 0.2),
            distance("e5m3", PUBLISHED, 4.071, 0.202),
            distance("e5m2", PUBLISHED, 4.063, 0.203),
            distance("e5m2", "signed", 4.063, 0.16),
            distance("e5m1", "signed", 4.055, 0.162),
            distance("e5m0", "signed", 4.047, 0.18),
        ]);
        let choice = |rule: &str, mantissa_bits| {
            Some(Choice {
                rule: rule.to_owned(),
                mantissa_bits,
            })
        };
        let all = std::slice::from_ref(&one);
        // 0.003 is more than twice the hypotenuse of two errors of 0.001, 0.002 is not.
        assert_eq!(published(all), choice(PUBLISHED, 3));
        assert_eq!(recommended(all), choice("signed", 1));
        // What another model was not measured with is not recommended for it.
        let other = comparison(vec![
            distance("e5m5", PUBLISHED, 4.086, 0.2),
            distance("e5m2", "signed", 4.063, 0.19),
        ]);
        assert_eq!(
            published(&[one.clone(), other.clone()]),
            choice(PUBLISHED, 5)
        );
        assert_eq!(recommended(&[one, other]), choice("signed", 2));
        assert_eq!(recommended(&[]), None);
    }
}
