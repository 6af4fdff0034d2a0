//! config.json: as the checkpoint had it, with what compressed-tensors adds.

use std::path::Path;

use serde_json::{Value, json};
use smq_model::parse_object;

use crate::error::ConvertError;
use crate::synth::config::pretty;

const KEY: &str = "quantization_config";

/// What Hugging Face transformers and vLLM read: every Linear module but `ignore` is int4 in groups of `group` elements.
pub(super) fn quantization_config(group: usize, ignore: &[String]) -> Value {
    json!({
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "dynamic": false,
                    "group_size": group,
                    "num_bits": 4,
                    "strategy": "group",
                    "symmetric": true,
                    "type": "int",
                },
            },
        },
        "format": "pack-quantized",
        "ignore": ignore,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    })
}

/// `text` with `quantization` as its [`KEY`], or without one. All else stays byte for byte, so that no number is
/// rounded on the way, unless the text has that key already.
pub(super) fn adapt(
    smq: &Path,
    text: &[u8],
    quantization: &Option<Value>,
) -> Result<Vec<u8>, ConvertError> {
    let label = format!("{}: embedded config.json", smq.display());
    let mut json = parse_object(&label, text)?;
    let text = match json.remove(KEY) {
        Some(_) => pretty(&json),
        None => text.to_vec(),
    };
    let Some(quantization) = quantization else {
        return Ok(text);
    };
    let mut out = text.trim_ascii_end().to_vec();
    out.pop(); // the closing brace
    out.truncate(out.trim_ascii_end().len());
    let comma = if json.is_empty() { "" } else { "," };
    let value = format!("{quantization:#}").replace('\n', "\n  ");
    out.extend(format!("{comma}\n  \"{KEY}\": {value}\n}}\n").into_bytes());
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapted(text: &str, quantization: Option<Value>) -> String {
        let out = adapt(Path::new("a.smq"), text.as_bytes(), &quantization);
        String::from_utf8(out.unwrap()).unwrap()
    }

    #[test]
    fn other_keys_stay_as_they_are() {
        let text = "{\n  \"b\": 1.0800000429153442,\n  \"a\": 1e-05\n}\n";
        assert_eq!(adapted(text, None), text);
        assert_eq!(
            adapted(text, Some(json!({"x": [1]}))),
            "{\n  \"b\": 1.0800000429153442,\n  \"a\": 1e-05,\n  \"quantization_config\": {\n    \"x\": [\n      1\n    ]\n  }\n}\n"
        );
        let empty = adapted(" {} ", Some(json!(1)));
        assert_eq!(empty, " {\n  \"quantization_config\": 1\n}\n");
    }

    /// Python's JSON has infinities, and a config.json may hold one.
    #[test]
    fn an_infinity_stays() {
        let text = "{\"time_step_limit\": [0.0, Infinity]}\n";
        assert_eq!(adapted(text, None), text);
        let packed = adapted(text, Some(json!(1)));
        assert!(
            packed.starts_with("{\"time_step_limit\": [0.0, Infinity],\n"),
            "{packed}"
        );
    }

    #[test]
    fn an_older_quantization_goes() {
        let text = r#"{"a": 1, "quantization_config": {"bits": 8}}"#;
        let json: Value = serde_json::from_str(&adapted(text, None)).unwrap();
        assert_eq!(json, json!({"a": 1}));
        let json: Value = serde_json::from_str(&adapted(text, Some(json!(2)))).unwrap();
        assert_eq!(json, json!({"a": 1, "quantization_config": 2}));
    }

    #[test]
    fn a_config_that_is_no_object_is_refused() {
        let error = adapt(Path::new("a.smq"), b"[1]", &None).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("a.smq: embedded config.json: holds a JSON array"),
            "{error}"
        );
    }
}
