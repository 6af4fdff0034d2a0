//! What the suite compares: C0 and every config, scale rule and width, and a few in smaller groups,
//! each over the MLP alone and over all linears.

use serde::{Deserialize, Serialize};
use smq_convert::{
    CalibrationMethod, LevelChoice, Method, QuantizeOptions, ScaleChoice, ScaleRule, Target,
};
use smq_format::Family;

use crate::convert::{GROUP, int4};

/// Mantissa bits measured, of E5Mx scales.
const WIDTHS: [u32; 5] = [0, 1, 2, 3, 5];
/// Columns of a smaller group: those of an NF4 block.
const SMALL_GROUP: usize = 64;

/// A model to measure.
#[derive(Debug, Clone)]
pub(crate) struct Variant {
    /// `C0`; `target-fp8`, `target-nf4`; `target-scales`, `target-scales-rule` where the rule is
    /// not the reference, with `-g64` in groups of 64; `target-auto-bits`, with `-weighed` where a
    /// sensitivity weighs the errors. Variants of a plan: `target-lut4-scales-rule` too, and
    /// `-cal-text-start-tokens` behind where they are calibrated, or another method's name in
    /// place of `cal`.
    pub name: String,
    /// How it is made; `None` is the checkpoint itself.
    pub quantized: Option<Quantized>,
    /// Where it stands among those that differ in their scales alone; none outside a plan.
    pub ladder: Option<Ladder>,
}

/// A variant's place among those that differ in their scales alone.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ladder {
    /// What they have in common.
    pub key: String,
    /// Neighbours are one apart.
    pub step: usize,
}

/// How a file is made.
#[derive(Debug, Clone)]
pub(crate) struct Quantized {
    /// Which tensors are quantized.
    pub target: Target,
    /// What they are quantized to.
    pub storage: Storage,
    /// On what it is calibrated; `None`: rounded to nearest.
    pub calibration: Option<Calibration>,
}

/// The text that a variant is calibrated on, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Calibration {
    /// The plan's id of the text.
    pub text: String,
    /// Where in each of its files it begins.
    pub start_percent: u8,
    /// Tokens that are taken of all its files together.
    pub tokens: usize,
    /// What is chosen by it.
    pub method: CalibrationMethod,
}

/// What the selected tensors are stored as.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Storage {
    /// All to int4 alike.
    Uniform {
        /// The format that scales are stored in.
        scales: ScaleChoice,
        /// How a group's scale is chosen.
        rule: ScaleRule,
        /// Columns that share a scale.
        group: usize,
    },
    /// Code books of each tensor.
    Lut4 {
        /// The format that scales are stored in.
        scales: ScaleChoice,
        /// How a group's scale is chosen.
        rule: ScaleRule,
        /// Columns that share a scale.
        group: usize,
        /// Where the levels come from.
        levels: LevelChoice,
    },
    /// NF4 with double quantization, as bitsandbytes has it.
    Nf4,
    /// E4M3 weights, and activations too.
    Fp8,
    /// What `smq-convert --mbits auto` chooses for each tensor.
    Auto {
        /// Bits a weight of the target's tensors, at most.
        budget_bits: f64,
        /// Whether errors are weighed by measured sensitivities.
        weighed: bool,
    },
}

impl Storage {
    /// How results name it: the scales of int4, or what it is instead.
    fn name(self) -> String {
        match self {
            Self::Uniform { scales, .. } | Self::Lut4 { scales, .. } => scales.to_string(),
            Self::Nf4 => Family::Nf4.to_string(),
            Self::Fp8 => Family::Fp8.to_string(),
            Self::Auto { .. } => "auto".to_owned(),
        }
    }

    /// How the converter is asked for it; `None` where it chooses for each tensor.
    #[must_use]
    pub(crate) fn method(self) -> Option<Method> {
        match self {
            Self::Uniform {
                scales,
                rule,
                group,
            } => Some(int4(scales, rule, group)),
            Self::Lut4 {
                scales,
                rule,
                group,
                levels,
            } => Some(Method::Lut4 {
                options: QuantizeOptions {
                    group,
                    scales,
                    rule,
                },
                levels,
            }),
            Self::Nf4 => Some(Method::Nf4),
            Self::Fp8 => Some(Method::Fp8),
            Self::Auto { .. } => None,
        }
    }
}

impl Quantized {
    /// The name that the variant goes by, made of what it is.
    #[must_use]
    pub(crate) fn name(&self) -> String {
        self.name_with(&self.storage.name())
    }

    /// The name with another word in place of the scales'.
    #[must_use]
    pub(crate) fn name_with(&self, scales: &str) -> String {
        let mut name = format!("{}-", self.target.name());
        let (rule, group) = match self.storage {
            Storage::Uniform { rule, group, .. } => (rule, group),
            Storage::Lut4 { rule, group, .. } => {
                name += &format!("{}-", Family::Lut4);
                (rule, group)
            }
            Storage::Nf4 | Storage::Fp8 | Storage::Auto { .. } => (ScaleRule::Reference, GROUP),
        };
        name += scales;
        if rule != ScaleRule::Reference {
            name += &format!("-{rule}");
        }
        if group != GROUP {
            name += &format!("-g{group}");
        }
        if let Some(c) = &self.calibration {
            let method = match c.method {
                CalibrationMethod::Asymmetric => "cal",
                CalibrationMethod::Gptq | CalibrationMethod::Search => c.method.name(),
            };
            name += &format!("-{method}-{}-{}-{}", c.text, c.start_percent, c.tokens);
        }
        name
    }
}

/// [`Variant`] as results name it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct VariantName {
    /// The name that it goes by, see [`Variant::name`].
    pub name: String,
    /// The study's name, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<String>,
    /// `mlp` or `all`; absent for C0, as all that follows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// `f32`, `e5m5`; where the weights are not int4 or storage is chosen, `fp8`, `nf4`, `auto`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scales: Option<String>,
    /// `reference`, `nearest`, `search` or `signed`; absent where there is none, or one for each
    /// tensor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Columns that share a scale, where these are not the study's 128.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<usize>,
    /// Where the levels of a code book come from; absent where the weights have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub levels: Option<String>,
    /// On what it is calibrated; absent where it is rounded to nearest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
}

impl Variant {
    /// C0, which is the checkpoint itself.
    #[must_use]
    pub(crate) fn base() -> Self {
        Self {
            name: "C0".into(),
            quantized: None,
            ladder: None,
        }
    }

    /// All but those of a plan and of chosen storage, C0 first.
    #[must_use]
    pub(crate) fn all() -> Vec<Self> {
        let mut variants = vec![Self::base()];
        for target in [Target::Mlp, Target::All] {
            let mut push = |storage| {
                let quantized = Quantized {
                    target: target.clone(),
                    storage,
                    calibration: None,
                };
                variants.push(Self {
                    name: quantized.name(),
                    quantized: Some(quantized),
                    ladder: None,
                });
            };
            push(Storage::Fp8);
            push(Storage::Nf4);
            let mut add_in = |group, scales, rule| {
                push(Storage::Uniform {
                    scales,
                    rule,
                    group,
                });
            };
            let mut add = |scales, rule| add_in(GROUP, scales, rule);
            let e5 = ScaleChoice::e5;
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
            add_in(SMALL_GROUP, ScaleChoice::F32, ScaleRule::Reference);
            add_in(SMALL_GROUP, e5(5), ScaleRule::Reference);
            add_in(SMALL_GROUP, e5(2), ScaleRule::Signed);
        }
        variants
    }

    /// A variant of chosen storage by its name, such as `all-auto-4.5` or `mlp-auto-6-weighed`.
    #[must_use]
    pub(crate) fn auto(name: &str) -> Option<Self> {
        let (target, rest) = name.split_once("-auto-")?;
        let (bits, weighed) = match rest.strip_suffix("-weighed") {
            Some(bits) => (bits, true),
            None => (rest, false),
        };
        let digits = |b: u8| b.is_ascii_digit() || b == b'.';
        let target = match target {
            "mlp" => Target::Mlp,
            "all" => Target::All,
            _ => return None,
        };
        let budget_bits = bits.parse().ok().filter(|_| bits.bytes().all(digits))?;
        Some(Self {
            name: name.to_owned(),
            quantized: Some(Quantized {
                target,
                storage: Storage::Auto {
                    budget_bits,
                    weighed,
                },
                calibration: None,
            }),
            ladder: None,
        })
    }

    /// The name and the facts that results give it.
    #[must_use]
    pub(crate) fn named(&self) -> VariantName {
        let config = match self.name.as_str() {
            "C0" => Some("C0"),
            "mlp-fp8" => Some("C1"),
            "all-fp8" => Some("C1-all"),
            "mlp-nf4" => Some("C2"),
            "all-nf4" => Some("C2-all"),
            "mlp-f32" => Some("C3"),
            "mlp-e5m5" => Some("C4"),
            "mlp-e5m3" | "mlp-e5m0" => Some("C5"),
            "all-e5m5" => Some("C6"),
            _ => None,
        };
        let quantized = self.quantized.as_ref();
        let (rule, group) = match quantized.map(|q| q.storage) {
            Some(Storage::Uniform { rule, group, .. } | Storage::Lut4 { rule, group, .. }) => {
                (Some(rule.to_string()), Some(group).filter(|g| *g != GROUP))
            }
            Some(Storage::Nf4 | Storage::Fp8 | Storage::Auto { .. }) | None => (None, None),
        };
        let levels = match quantized.map(|q| q.storage) {
            Some(Storage::Lut4 { levels, .. }) => Some(levels.to_string()),
            Some(Storage::Uniform { .. } | Storage::Nf4 | Storage::Fp8 | Storage::Auto { .. })
            | None => None,
        };
        VariantName {
            name: self.name.clone(),
            config: config.map(str::to_owned),
            target: quantized.map(|q| q.target.name().to_owned()),
            scales: quantized.map(|q| q.storage.name()),
            rule,
            group,
            levels,
            calibration: quantized.and_then(|q| q.calibration.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chosen_storage_has_a_name() {
        let storage = |name: &str| Variant::auto(name).and_then(|v| v.quantized);
        let found = storage("mlp-auto-4.5-weighed").unwrap();
        assert_eq!(found.target.name(), "mlp");
        let expected = Storage::Auto {
            budget_bits: 4.5,
            weighed: true,
        };
        assert_eq!(found.storage, expected);
        assert!(storage("all-auto-6").is_some());
        for wrong in [
            "C0",
            "all-e5m5",
            "all-auto-",
            "all-auto-1e1",
            "lm_head-auto-5",
            "all-auto-inf",
        ] {
            assert!(storage(wrong).is_none(), "{wrong}");
        }
    }

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
            "mlp-f32-g64",
            "all-e5m5-g64",
            "all-e5m2-signed-g64",
        ] {
            assert!(names.contains(&name), "{name}");
        }
        assert_eq!(names.len(), 1 + 2 * (2 + 2 + 5 + 1 + 10 + 3));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all.len());
        let small: Vec<_> = all.iter().filter(|v| v.named().group.is_some()).collect();
        assert!(small.iter().all(|v| v.name.ends_with("-g64")) && small.len() == 6);
        let configs: Vec<_> = all.iter().filter_map(|v| v.named().config).collect();
        assert_eq!(
            configs,
            [
                "C0", "C1", "C2", "C3", "C4", "C5", "C5", "C1-all", "C2-all", "C6"
            ]
        );
    }
}
