//! What the suite compares: C0 and every config, scale rule and width, each over the MLP alone and over all linears.

use serde::{Deserialize, Serialize};
use smq_convert::{ScaleChoice, ScaleRule, Target};

/// Mantissa bits measured, of E5Mx scales.
const WIDTHS: [u32; 5] = [0, 1, 2, 3, 5];

/// A model to measure.
#[derive(Debug, Clone)]
pub struct Variant {
    /// `C0`, or `target-scales`, `target-scales-rule` where the rule is not the reference.
    pub name: String,
    /// How it is made; `None` is the checkpoint itself.
    pub quantized: Option<Quantized>,
}

/// How a file is made.
#[derive(Debug, Clone)]
pub struct Quantized {
    /// Which tensors.
    pub target: Target,
    /// Scale format.
    pub scales: ScaleChoice,
    /// Scale rule.
    pub rule: ScaleRule,
}

/// [`Variant`] as results name it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VariantName {
    /// See [`Variant::name`].
    pub name: String,
    /// The study's name, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<String>,
    /// `mlp` or `all`; absent for C0, as all that follows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// `f32`, `e5m5`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scales: Option<String>,
    /// `reference`, `nearest`, `search` or `signed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
}

impl Variant {
    /// All, C0 first.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let mut variants = vec![Self {
            name: "C0".into(),
            quantized: None,
        }];
        for target in [Target::Mlp, Target::All] {
            let mut add = |scales: ScaleChoice, rule| {
                let suffix = match rule {
                    ScaleRule::Reference => String::new(),
                    rule => format!("-{}", rule_name(rule)),
                };
                variants.push(Self {
                    name: format!("{}-{}{suffix}", target.name(), scales.name()),
                    quantized: Some(Quantized {
                        target: target.clone(),
                        scales,
                        rule,
                    }),
                });
            };
            let e5 = |mantissa_bits| ScaleChoice::Mini {
                exponent_bits: 5,
                mantissa_bits,
            };
            // Exact scales have no neighbours to search and nothing to round.
            add(ScaleChoice::F32, ScaleRule::Reference);
            add(ScaleChoice::F32, ScaleRule::Signed);
            for x in WIDTHS.into_iter().rev() {
                add(e5(x), ScaleRule::Reference);
            }
            // At other widths nearest and reference are the same bytes.
            add(e5(0), ScaleRule::Nearest);
            for rule in [ScaleRule::Search, ScaleRule::Signed] {
                for x in WIDTHS.into_iter().rev() {
                    add(e5(x), rule);
                }
            }
        }
        variants
    }

    /// As results name it.
    #[must_use]
    pub fn named(&self) -> VariantName {
        let config = match self.name.as_str() {
            "C0" => Some("C0"),
            "mlp-f32" => Some("C3"),
            "mlp-e5m5" => Some("C4"),
            "mlp-e5m3" | "mlp-e5m0" => Some("C5"),
            "all-e5m5" => Some("C6"),
            _ => None,
        };
        let of = |get: fn(&Quantized) -> String| self.quantized.as_ref().map(get);
        VariantName {
            name: self.name.clone(),
            config: config.map(str::to_owned),
            target: of(|q| q.target.name().to_owned()),
            scales: of(|q| q.scales.name()),
            rule: of(|q| rule_name(q.rule)),
        }
    }
}

/// The rule's name on the command line.
pub(in crate::eval) fn rule_name(rule: ScaleRule) -> String {
    let value = clap::ValueEnum::to_possible_value(&rule);
    value.map_or_else(String::new, |v| v.get_name().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_and_rule_once() {
        let all = Variant::all();
        let mut names: Vec<_> = all.iter().map(|v| v.name.as_str()).collect();
        assert_eq!(names[0], "C0");
        for name in [
            "mlp-f32",
            "mlp-e5m5",
            "all-e5m5",
            "mlp-e5m0-nearest",
            "all-e5m3-search",
            "all-e5m1-signed",
        ] {
            assert!(names.contains(&name), "{name}");
        }
        assert_eq!(names.len(), 1 + 2 * (2 + 5 + 1 + 10));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all.len());
        let configs: Vec<_> = all.iter().filter_map(|v| v.named().config).collect();
        assert_eq!(configs, ["C0", "C3", "C4", "C5", "C5", "C6"]);
    }
}
