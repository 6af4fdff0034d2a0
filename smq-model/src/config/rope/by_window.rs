//! The dictionaries of a family that has one rotary embedding for layers that see everything and
//! another for those with a window (`convert_rope_params_to_dict` of Gemma 3 and OLMo 3).

use serde_json::{Map, Value};

use super::super::keys::{Keys, Read};

/// The names of the dictionaries in `rope_parameters`.
const KINDS: [&str; 2] = ["full_attention", "sliding_attention"];

/// One of them, with its name for messages.
pub(super) struct Dictionary {
    pub(super) map: Map<String, Value>,
    pub(super) name: &'static str,
}

/// Of layers that see everything, and of those with a window.
pub(super) fn dictionaries(keys: Keys<'_>, notes: &mut Vec<String>) -> Read<[Dictionary; 2]> {
    let plain = || Map::from_iter([("rope_type".to_owned(), Value::from("default"))]);
    let object = |name: &str, value: Option<&Value>| match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(map)) => Ok(Some(map.clone())),
        Some(other) => Err(format!("{name} is {other}, expected an object or null")),
    };
    let parameters = object("rope_parameters", keys.get("rope_parameters"))?;
    let scaling = object("rope_scaling", keys.get("rope_scaling"))?;
    let [full, windowed] = match &parameters {
        None => [Some(plain()), Some(plain())],
        Some(parameters) => {
            let ignored = parameters.keys();
            let ignored = ignored.filter(|key| !KINDS.contains(&key.as_str()));
            let ignored: Vec<_> = ignored.map(String::as_str).collect();
            if !ignored.is_empty() {
                notes.push(format!(
                    "config.json's rope_parameters has {} outside of {} and {}; it is not used, as \
                     in transformers",
                    ignored.join(", "),
                    KINDS[0],
                    KINDS[1]
                ));
            }
            let part =
                |kind: &str| object(&format!("rope_parameters.{kind}"), parameters.get(kind));
            [part(KINDS[0])?, part(KINDS[1])?]
        }
    };
    let full = match (full, scaling) {
        (Some(mut full), Some(scaling)) => {
            full.extend(scaling);
            Some(full)
        }
        (None, Some(_)) => {
            return Err(format!(
                "rope_scaling is there beside rope_parameters without {}, with which transformers \
                 fails; move it into rope_parameters.{0}",
                KINDS[0]
            ));
        }
        (full, None) => full,
    };
    Ok([
        Dictionary {
            map: full.unwrap_or_else(plain),
            name: "rope_parameters.full_attention",
        },
        Dictionary {
            map: windowed.unwrap_or_else(plain),
            name: "rope_parameters.sliding_attention",
        },
    ])
}
