//! Which family a config.json is of.

use serde_json::Value;

use super::keys::Keys;
use crate::architecture::{ARCHITECTURES, Architecture};
use crate::error::{Error, Result};

/// transformers goes by `model_type` alone; `architectures` must agree with it, and decides where
/// there is none.
///
/// # Errors
/// [`Error::Architecture`] for a family that is not in the table, [`Error::Config`] where the two
/// name different ones.
pub(super) fn identify(keys: Keys<'_>) -> Result<&'static Architecture> {
    let found = keys.get("architectures");
    let names: Vec<&str> = match found {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).collect(),
        Some(other) => {
            let problem = format!("architectures is {other}, expected a list of names");
            return Err(Error::Config(problem));
        }
    };
    let shown = |key, value: Option<&Value>| match value {
        Some(value) => format!("{key} is {value}"),
        None => format!("{key} is missing"),
    };
    let architectures = shown("architectures", found);
    let unknown = |found: String| {
        let found = format!("{found}{}", what_it_is(keys));
        Err(Error::Architecture { found })
    };
    let contradiction = |known: &Architecture, model_type: &str| {
        Err(Error::Config(format!(
            "{architectures} but model_type is {model_type:?}, and {} has model_type {:?}; correct \
             the one that is wrong",
            known.name, known.model_type
        )))
    };
    let model_type = match keys.get("model_type") {
        None => None,
        Some(Value::String(name)) => Some(name.as_str()),
        Some(other) => {
            let problem = format!("model_type is {other}, expected a name");
            return Err(Error::Config(problem));
        }
    };
    let listed = names.iter().find_map(|name| Architecture::named(name));
    match (
        model_type,
        model_type.and_then(Architecture::of_type),
        listed,
    ) {
        (None, _, Some(known)) if names.len() == 1 => Ok(known),
        (None, _, Some(_)) => Err(Error::Config(format!(
            "{architectures} and model_type is missing, so that either may be meant; leave one, or \
             give model_type"
        ))),
        (None, _, None) => unknown(architectures),
        (Some(_), Some(known), _) if names.is_empty() || names.contains(&known.name) => Ok(known),
        // Another model on top of the family's layers, such as a classifier.
        (Some(_), Some(_), None) => unknown(architectures),
        (Some(model_type), _, Some(other)) => contradiction(other, model_type),
        (Some(_), None, None) if names.is_empty() => {
            unknown(shown("model_type", keys.get("model_type")))
        }
        (Some(_), None, None) => unknown(architectures),
    }
}

/// What a model of an unknown family is, where its config.json shows that it is of a kind that no
/// engine runs.
fn what_it_is(keys: Keys<'_>) -> &'static str {
    let several = |key: &&str| keys.get(key).and_then(Value::as_u64).is_some_and(|n| n > 1);
    let experts = ["num_experts", "num_local_experts", "n_routed_experts"];
    let towers = ["vision_config", "audio_config", "text_config"];
    if experts.iter().any(several) {
        " (a mixture of experts: it converts, and does not run)"
    } else if towers.iter().any(|key| keys.given(key).is_some()) {
        " (a model of text and something else: it converts, and does not run)"
    } else {
        ""
    }
}

/// The families in words: `A (models), B (models) and C (models)`.
pub(crate) fn supported() -> String {
    let all = ARCHITECTURES.iter();
    let all: Vec<_> = all.map(|a| format!("{} ({})", a.name, a.models)).collect();
    match all.split_last() {
        Some((last, others)) if !others.is_empty() => format!("{} and {last}", others.join(", ")),
        _ => all.join(""),
    }
}
