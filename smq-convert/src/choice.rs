//! What becomes of each tensor, and how that was decided.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::ConvertError;
use crate::import::Grouping;
use crate::quantize::{LevelChoice, Method, QuantizeOptions, ScaleRule};
use crate::source::Checkpoint;
use crate::target::Target;
use crate::tensor::Packed;

/// Provenance key of the scale rule; followed by a space and a tensor's name, of that tensor's
/// where it is another.
const SCALE_RULE: &str = "scale_rule";
/// Provenance key of where the levels of code books come from.
const LEVELS: &str = "levels";

/// What becomes of each tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// One a tensor, in the checkpoint's order; `None` is stored as it is.
    pub methods: Vec<Option<Method>>,
    /// What decided that, for the file's provenance.
    pub parameters: BTreeMap<String, String>,
    /// Names of the tensors whose scales and codes a calibration text decides.
    pub calibrated: BTreeSet<String>,
}

impl Choice {
    /// The same method for every tensor that `target` selects, and for those that are int4 already.
    /// Where their integers are kept, these keep their groups too.
    ///
    /// # Errors
    /// [`ConvertError::NothingToQuantize`]; what [`Target::check`] refuses.
    pub fn uniform(
        checkpoint: &Checkpoint,
        target: &Target,
        method: Method,
    ) -> Result<Self, ConvertError> {
        target.check(checkpoint)?;
        let kept = |packed: &Packed| match method {
            Method::Int4(options) if checkpoint.keeps_codes() => Method::Int4(QuantizeOptions {
                group: packed.group,
                ..options
            }),
            Method::Int4(_) | Method::Lut4 { .. } | Method::Nf4 | Method::Fp8 => method,
        };
        let methods: Vec<_> = checkpoint
            .tensors()
            .iter()
            .map(|t| match &t.packed {
                Some(packed) => Some(kept(packed)),
                None => target.takes(t).then_some(method),
            })
            .collect();
        if methods.iter().all(Option::is_none) {
            return Err(target.selects_nothing(checkpoint));
        }
        let mut parameters = BTreeMap::new();
        // What an import takes is said by the import's own parameters.
        let imported = matches!(target, Target::Imported);
        if !imported {
            parameters.insert("target".to_owned(), target.name().to_owned());
        }
        parameters.extend(match method {
            Method::Int4(int4) => vec![
                (
                    "group_size".to_owned(),
                    match checkpoint.import().map(|import| import.grouping) {
                        Some(Grouping::Row) if imported && checkpoint.keeps_codes() => {
                            "row".to_owned()
                        }
                        Some(Grouping::Row | Grouping::Runs(_)) | None => int4.group.to_string(),
                    },
                ),
                (SCALE_RULE.to_owned(), int4.rule.to_string()),
                ("scales".to_owned(), int4.scales.to_string()),
            ],
            Method::Lut4 { options, levels } => vec![
                ("group_size".to_owned(), options.group.to_string()),
                (LEVELS.to_owned(), levels.to_string()),
                (SCALE_RULE.to_owned(), options.rule.to_string()),
                ("scales".to_owned(), options.scales.to_string()),
                ("scheme".to_owned(), method.family().to_string()),
            ],
            Method::Nf4 | Method::Fp8 => {
                vec![("scheme".to_owned(), method.family().to_string())]
            }
        });
        Ok(Self {
            methods,
            parameters,
            calibrated: BTreeSet::new(),
        })
    }
}

/// Parameters that record the rules of `tensors`, by name: the most frequent one, and each tensor
/// that has another.
pub(crate) fn rule_parameters(tensors: &[(&str, ScaleRule)]) -> Vec<(String, String)> {
    let count = |rule| tensors.iter().filter(|t| t.1 == rule).count();
    let mut rules = ScaleRule::ALL;
    rules.sort_by_key(|rule| std::cmp::Reverse(count(*rule)));
    let others = tensors.iter().filter(|t| t.1 != rules[0]);
    let others = others.map(|(name, rule)| (format!("{SCALE_RULE} {name}"), rule.to_string()));
    let mut out: Vec<_> = others.collect();
    out.push((SCALE_RULE.to_owned(), rules[0].to_string()));
    out
}

/// The rule that a file's provenance records of an int4 or lut4 tensor.
pub(crate) fn recorded_rule(
    parameters: &BTreeMap<String, String>,
    tensor: &str,
) -> Option<ScaleRule> {
    let own = parameters.get(&format!("{SCALE_RULE} {tensor}"));
    let name = own.or_else(|| parameters.get(SCALE_RULE))?;
    name.parse().ok()
}

/// Where a file's provenance says that the levels of its code books come from.
pub(crate) fn recorded_levels(parameters: &BTreeMap<String, String>) -> Option<LevelChoice> {
    parameters.get(LEVELS)?.parse().ok()
}
