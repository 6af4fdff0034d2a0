//! The side files that export changes: config.json says what is written, and nothing names code or
//! files that are not there.

use std::path::Path;

use serde_json::{Value, json};
use smq_format::Dtype;
use smq_model::parse_object;

use crate::error::ConvertError;
use crate::import::Grouping;

pub(super) const QUANTIZATION: &str = "quantization_config";
const TIED: &str = "tie_word_embeddings";
/// What transformers reads first, and its older name.
const DTYPES: [&str; 2] = ["dtype", "torch_dtype"];
/// Keys that name Python files of the repository or one of its weight files, none of which a .smq
/// file holds.
const OF_OTHER_FILES: [&str; 3] = ["auto_map", "custom_pipelines", "transformers_weights"];

/// Model types of transformers with Conv1D modules in their layers.
const CONV1D_MODELS: [&str; 4] = ["gpt2", "openai-gpt", "imagegpt", "decision_transformer"];

/// What config.json is to say of the weights that are written.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Edit {
    /// Keys and values that say the quantization; none for dequantized weights.
    pub(super) quantization: Vec<(&'static str, Value)>,
    /// The element type of the weights, where it is to say another.
    pub(super) dtype: Option<Dtype>,
    /// The head has weights of its own.
    pub(super) untie: bool,
}

/// What Hugging Face transformers and vLLM read: every Linear module but `ignore` is int4 in
/// groups, and so are the modules `named`, which vLLM does not count among these.
pub(super) fn pack_quantized(grouping: Grouping, ignore: &[String], named: &[String]) -> Value {
    let mut weights = json!({
        "dynamic": false,
        "num_bits": 4,
        "symmetric": true,
        "type": "int",
    });
    match grouping {
        Grouping::Runs(group) => {
            weights["group_size"] = group.into();
            weights["strategy"] = "group".into();
        }
        Grouping::Row => weights["strategy"] = "channel".into(),
    }
    compressed_tensors(
        "pack-quantized",
        json!({ "weights": weights }),
        ignore,
        named,
    )
}

/// The same of FP8: weights with a scale a row, and activations with one a token, which the reader
/// takes from each.
pub(super) fn float_quantized(ignore: &[String], named: &[String]) -> Value {
    let e4m3 = |strategy: &str, dynamic: bool| {
        json!({
            "dynamic": dynamic,
            "num_bits": 8,
            "strategy": strategy,
            "symmetric": true,
            "type": "float",
        })
    };
    let group = json!({
        "input_activations": e4m3("token", true),
        "weights": e4m3("channel", false),
    });
    compressed_tensors("float-quantized", group, ignore, named)
}

fn compressed_tensors(
    format: &str,
    mut group: Value,
    ignore: &[String],
    named: &[String],
) -> Value {
    let named = named.iter().map(String::as_str);
    group["targets"] = ["Linear"].into_iter().chain(named).collect();
    json!({
        "config_groups": { "group_0": group },
        "format": format,
        "ignore": ignore,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    })
}

/// What GPTQ's readers find: every Linear module of the layers is int4, and the head is or is not.
/// Where modules are `left` as they are, GPTQModel and vLLM read that from `dynamic`, and
/// transformers, which knows no `dynamic`, from the list of those that are `quantized`; vLLM takes
/// that as well, and finds q, k and v in it, which `dynamic` has no name for once they are one.
pub(super) fn gptq(grouping: Grouping, left: &[String], quantized: &[String], head: bool) -> Value {
    let group: Value = match grouping {
        Grouping::Runs(group) => group.into(),
        Grouping::Row => (-1).into(),
    };
    let mut config = json!({
        "bits": 4,
        "checkpoint_format": "gptq",
        "desc_act": false,
        "group_size": group,
        "lm_head": head,
        "pack_dtype": "int32",
        "quant_method": "gptq",
        "sym": true,
    });
    let left = left.iter().filter(|module| module.as_str() != "lm_head");
    let patterns = left.map(|module| match module.strip_prefix("re:") {
        Some(pattern) => format!("-:^{pattern}$"),
        None => format!("-:^{}$", regex::escape(module)),
    });
    let left: serde_json::Map<_, _> = patterns.map(|pattern| (pattern, json!({}))).collect();
    if !left.is_empty() {
        config["dynamic"] = left.into();
        config["modules_in_block_to_quantize"] = json!([quantized]);
    }
    config
}

/// The element type that a config.json says the model is loaded with, where it says one.
pub(super) fn dtype_of(text: &[u8]) -> Option<Dtype> {
    let config = parse_object("config.json", text).ok()?;
    let said = DTYPES
        .into_iter()
        .find_map(|key| config.get(key)?.as_str())?;
    let dtypes = [Dtype::Bf16, Dtype::F16, Dtype::F32];
    dtypes.into_iter().find(|dtype| torch_name(*dtype) == said)
}

/// Whether a config.json says that the head is the embedding.
pub(super) fn ties_head(text: &[u8]) -> bool {
    let config = parse_object("config.json", text).unwrap_or_default();
    config.get(TIED) == Some(&Value::Bool(true))
}

/// Whether a config.json is of a model whose matrices are those of Conv1D modules, `[in, out]`.
pub(super) fn has_conv1d(text: &[u8]) -> bool {
    let config = parse_object("config.json", text).unwrap_or_default();
    let kind = config.get("model_type").and_then(Value::as_str);
    kind.is_some_and(|kind| CONV1D_MODELS.contains(&kind))
}

/// As torch and config.json name it.
pub(super) fn torch_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::Bf16 => "bfloat16",
        Dtype::F16 => "float16",
        Dtype::F32 => "float32",
    }
}

/// The config.json `text` with `edit`, and without what names other files. What stays is byte for
/// byte what it was, so that no number is rounded on the way.
pub(super) fn adapt(smq: &Path, text: &[u8], edit: &Edit) -> Result<Vec<u8>, ConvertError> {
    let label = format!("{}: embedded config.json", smq.display());
    let mut members = Members::read(&label, text)?;
    members.remove(|key| key == QUANTIZATION);
    members.remove_code();
    if let Some(dtype) = edit.dtype {
        let name = format!("{:?}", torch_name(dtype));
        let said: Vec<_> = DTYPES.into_iter().filter(|key| members.has(key)).collect();
        for key in if said.is_empty() { &DTYPES[1..] } else { &said } {
            members.set(key, name.clone());
        }
    }
    if edit.untie {
        members.set(TIED, "false".to_owned());
    }
    for (key, quantization) in &edit.quantization {
        let value = format!("{quantization:#}").replace('\n', "\n  ");
        members.set(key, value);
    }
    Ok(members.written(text))
}

/// The JSON file `text` without what names other files, where it does.
pub(super) fn without_code(text: &[u8]) -> Option<Vec<u8>> {
    let mut members = Members::read("tokenizer_config.json", text).ok()?;
    members.remove_code();
    members.changed.then(|| members.written(text))
}

/// The members of a JSON object in their order, values as they are written.
#[derive(Debug)]
struct Members {
    members: Vec<(String, String)>,
    changed: bool,
}

impl Members {
    /// # Errors
    /// A text that is no JSON object.
    fn read(file: &str, text: &[u8]) -> smq_model::Result<Self> {
        parse_object(file, text)?;
        let text = std::str::from_utf8(text).unwrap_or_default().trim();
        let inner = text.strip_prefix('{').and_then(|t| t.strip_suffix('}'));
        let mut members = Vec::new();
        for member in split(inner.unwrap_or_default(), ',') {
            if let [key, value] = split(member, ':')[..] {
                let key = serde_json::from_str(key).unwrap_or_default();
                members.push((key, value.trim().to_owned()));
            }
        }
        Ok(Self {
            members,
            changed: false,
        })
    }

    fn has(&self, key: &str) -> bool {
        self.members.iter().any(|(k, _)| k == key)
    }

    fn remove(&mut self, goes: impl Fn(&str) -> bool) {
        let before = self.members.len();
        self.members.retain(|(key, _)| !goes(key));
        self.changed |= self.members.len() != before;
    }

    /// Removes what names other files, from the configs in it as well, such as a text_config.
    fn remove_code(&mut self) {
        self.remove(|key| OF_OTHER_FILES.contains(&key));
        let configs = self.members.iter_mut();
        for (_, value) in configs.filter(|(key, _)| key.ends_with("_config")) {
            let Ok(mut inner) = Members::read("", value.as_bytes()) else {
                continue;
            };
            inner.remove_code();
            if inner.changed {
                *value = inner.text().replace('\n', "\n  ");
                self.changed = true;
            }
        }
    }

    /// Gives every member of the name the value, or adds one at the end.
    fn set(&mut self, key: &str, value: String) {
        self.changed = true;
        let mut same = self.members.iter_mut().filter(|(k, _)| k == key).peekable();
        if same.peek().is_none() {
            self.members.push((key.to_owned(), value));
            return;
        }
        same.for_each(|(_, old)| old.clone_from(&value));
    }

    fn text(&self) -> String {
        let members = self.members.iter();
        let members: Vec<_> = members
            .map(|(key, value)| format!("  {}: {value}", json!(key)))
            .collect();
        match members.is_empty() {
            true => "{}".to_owned(),
            false => format!("{{\n{}\n}}", members.join(",\n")),
        }
    }

    /// The whole file; `original` where nothing changed.
    fn written(&self, original: &[u8]) -> Vec<u8> {
        match self.changed {
            true => format!("{}\n", self.text()).into_bytes(),
            false => original.to_vec(),
        }
    }
}

/// The parts of valid JSON between separators that are in no string and in no inner object or list.
fn split(json: &str, separator: char) -> Vec<&str> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0u32);
    let (mut in_string, mut escaped) = (false, false);
    for (at, c) in json.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if in_string => escaped = true,
            '"' => in_string = !in_string,
            _ if in_string => {}
            '{' | '[' => depth += 1,
            '}' | ']' => depth = depth.saturating_sub(1),
            _ if c == separator && depth == 0 => {
                parts.push(&json[start..at]);
                start = at + c.len_utf8();
            }
            _ => {}
        }
    }
    parts.push(&json[start..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapted(text: &str, edit: &Edit) -> String {
        let out = adapt(Path::new("a.smq"), text.as_bytes(), edit);
        String::from_utf8(out.unwrap()).unwrap()
    }

    fn quantized(value: Value) -> Edit {
        Edit {
            quantization: vec![(QUANTIZATION, value)],
            ..Edit::default()
        }
    }

    #[test]
    fn other_keys_stay_as_they_are() {
        let text = "{\n  \"b\": 1.0800000429153442,\n  \"a\": 1e-05\n}\n";
        assert_eq!(adapted(text, &Edit::default()), text);
        assert_eq!(
            adapted(text, &quantized(json!({"x": [1]}))),
            "{\n  \"b\": 1.0800000429153442,\n  \"a\": 1e-05,\n  \"quantization_config\": {\n    \
             \"x\": [\n      1\n    ]\n  }\n}\n"
        );
        let empty = adapted(" {} ", &quantized(json!(1)));
        assert_eq!(empty, "{\n  \"quantization_config\": 1\n}\n");
    }

    /// Python's JSON has infinities, and a config.json may hold one.
    #[test]
    fn an_infinity_stays() {
        let text = "{\"time_step_limit\": [0.0, Infinity]}\n";
        assert_eq!(adapted(text, &Edit::default()), text);
        let packed = adapted(text, &quantized(json!(1)));
        assert!(
            packed.starts_with("{\n  \"time_step_limit\": [0.0, Infinity],\n"),
            "{packed}"
        );
    }

    #[test]
    fn an_older_quantization_goes() {
        let text = r#"{"a": 1, "quantization_config": {"bits": 8}}"#;
        let json: Value = serde_json::from_str(&adapted(text, &Edit::default())).unwrap();
        assert_eq!(json, json!({"a": 1}));
        let json: Value = serde_json::from_str(&adapted(text, &quantized(json!(2)))).unwrap();
        assert_eq!(json, json!({"a": 1, "quantization_config": 2}));
    }

    #[test]
    fn names_of_code_go_wherever_they_are() {
        let text = r#"{"auto_map": {"AutoConfig": "c.C"}, "x": 1.0e-05,
            "custom_pipelines": {}, "transformers_weights": "a.safetensors",
            "text_config": {"b": 2, "auto_map": {"AutoModel": "m.M"}},
            "label2id": {"auto_map": 1}}"#;
        assert_eq!(
            adapted(text, &Edit::default()),
            "{\n  \"x\": 1.0e-05,\n  \"text_config\": {\n    \"b\": 2\n  },\n  \"label2id\": \
             {\"auto_map\": 1}\n}\n"
        );
        let tokenizer = br#"{"auto_map": {"AutoTokenizer": ["t.T", null]}}"#;
        assert_eq!(without_code(tokenizer).unwrap(), b"{}\n");
        for other in [&b"{\"a\":  1}"[..], b"[1]", b"no JSON"] {
            assert_eq!(without_code(other), None);
        }
    }

    #[test]
    fn the_dtype_is_what_is_written() {
        let edit = Edit {
            dtype: Some(Dtype::F32),
            untie: true,
            ..Edit::default()
        };
        let json = |text: &str| serde_json::from_str::<Value>(&adapted(text, &edit)).unwrap();
        assert_eq!(
            json(r#"{"torch_dtype": "bfloat16", "tie_word_embeddings": true}"#),
            json!({"torch_dtype": "float32", "tie_word_embeddings": false})
        );
        assert_eq!(
            json(r#"{"dtype": null, "torch_dtype": "bfloat16"}"#),
            json!({"dtype": "float32", "torch_dtype": "float32", "tie_word_embeddings": false})
        );
        assert_eq!(
            json("{}"),
            json!({"torch_dtype": "float32", "tie_word_embeddings": false})
        );
        let said = |text: &str| dtype_of(text.as_bytes());
        assert_eq!(said(r#"{"torch_dtype": "float16"}"#), Some(Dtype::F16));
        // Where both are given, transformers keeps `dtype`.
        assert_eq!(
            said(r#"{"torch_dtype": "float16", "dtype": "bfloat16"}"#),
            Some(Dtype::Bf16)
        );
        assert_eq!(said(r#"{"torch_dtype": "int8"}"#), None);
        assert_eq!(said("{}"), None);
    }

    #[test]
    fn a_config_that_is_no_object_is_refused() {
        let error = adapt(Path::new("a.smq"), b"[1]", &Edit::default()).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("a.smq: embedded config.json: holds a JSON array"),
            "{error}"
        );
    }
}
