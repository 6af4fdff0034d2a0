//! Keys that change what transformers computes, for a family that does not say so.
//!
//! transformers keeps every key of config.json that a family's class does not know, and some of its
//! parts that all families share then ask for it.

use serde_json::Value;

use super::keys::{Keys, Read};
use crate::architecture::Architecture;

/// Keys that put the model's sizes elsewhere.
pub(super) fn elsewhere(keys: Keys<'_>) -> Read<()> {
    for (key, why) in [
        (
            "configuration_files",
            "names other files that transformers reads in place of this one",
        ),
        (
            "per_layer_config",
            "gives layers sizes of their own, which is not supported",
        ),
        (
            "compression_config",
            "is how quantized weights were once declared, which is not read; say \
             quantization_config, or remove it if the weights are not quantized",
        ),
        ("text_config", PART),
        ("decoder", PART),
        ("generator", PART),
    ] {
        let empty = |value: &Value| {
            let no_keys = value.as_object().is_some_and(serde_json::Map::is_empty);
            no_keys && key == "per_layer_config"
        };
        if keys.given(key).is_some_and(|value| !empty(value)) {
            return Err(format!("{key} {why}"));
        }
    }
    Ok(())
}

const PART: &str =
    "is there, so that this is a model of several parts, of which a decoder alone is supported";

/// Keys that change attention.
pub(super) fn attention(keys: Keys<'_>, architecture: &Architecture) -> Read<()> {
    if let Some(value @ Value::Bool(false)) = keys.get("is_causal") {
        return Err(format!(
            "is_causal is {value}; only attention to earlier positions is supported"
        ));
    }
    if let Some(value @ Value::Bool(true)) = keys.get("is_encoder_decoder") {
        return Err(format!(
            "is_encoder_decoder is {value}; only decoders are supported"
        ));
    }
    for key in ["attention_chunk_size", "kv_sharing_modes"] {
        if let Some(value) = keys.given(key) {
            return Err(format!(
                "{key} is {value}, which changes the cache of transformers and is not supported; \
                 set it to null"
            ));
        }
    }
    for key in architecture.refused_flags {
        if let Some(value @ Value::Bool(true)) = keys.get(key) {
            return Err(format!(
                "{key} is {value}; only attention to earlier positions is supported"
            ));
        }
    }
    Ok(())
}
