//! Reading and checking a Hugging Face `config.json`.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::architecture::{Architecture, MAX_DIM_ELEMS};
use super::error::SynthError;

/// Largest number of layers accepted.
pub const MAX_LAYERS: u64 = 4096;

/// The sizes that fix the tensors, checked against each other.
#[derive(Debug)]
pub(super) struct ModelConfig {
    pub(super) path: PathBuf,
    pub(super) architecture: Architecture,
    pub(super) json: Map<String, Value>,
    /// The config file to write: the one read, unless its number of layers or dtype is not what is generated.
    pub(super) text: Vec<u8>,
    pub(super) hidden: u64,
    pub(super) intermediate: u64,
    pub(super) vocab: u64,
    pub(super) layers: u64,
    /// Rows of q_proj: heads x head size.
    pub(super) q_rows: u64,
    /// Rows of k_proj, and of v_proj: key-value heads x head size.
    pub(super) kv_rows: u64,
    pub(super) tied_head: bool,
    pub(super) attention_bias: bool,
    pub(super) mlp_bias: bool,
}

impl ModelConfig {
    /// Reads and checks the config at `path`; `layers` replaces its number of layers.
    pub(super) fn read(path: &Path, layers: Option<u64>) -> Result<Self, SynthError> {
        let text = std::fs::read(path).map_err(SynthError::io("read", path))?;
        let original = smq_model::parse_object(&path.display().to_string(), &text)?;
        let mut json = original.clone();
        if let Some(layers) = layers {
            json.insert("num_hidden_layers".to_owned(), layers.into());
        }
        for key in ["torch_dtype", "dtype"] {
            if let Some(dtype) = json.get_mut(key) {
                *dtype = "bfloat16".into();
            }
        }
        let text = match json == original {
            true => text,
            false => pretty(&json),
        };
        Self::new(path, json, text)
    }

    fn new(path: &Path, json: Map<String, Value>, text: Vec<u8>) -> Result<Self, SynthError> {
        let architecture = find_architecture(path, &json)?;
        let keys = Keys {
            path,
            json: &json,
            architecture,
        };
        let hidden = keys.size("hidden_size", MAX_DIM_ELEMS)?;
        let heads = keys.size("num_attention_heads", MAX_DIM_ELEMS)?;
        let kv_heads = keys
            .optional_size("num_key_value_heads", MAX_DIM_ELEMS)?
            .unwrap_or(heads);
        let head_elems = match keys.optional_size("head_dim", MAX_DIM_ELEMS)? {
            Some(head_elems) => head_elems,
            None => {
                keys.divisible("hidden_size", hidden, "num_attention_heads", heads)?;
                hidden / heads
            }
        };
        keys.divisible(
            "num_attention_heads",
            heads,
            "num_key_value_heads",
            kv_heads,
        )?;
        // Both products are at most 2^40, so they cannot overflow; `tensors` checks the dimensions.
        let llama = architecture == Architecture::Llama;
        Ok(Self {
            path: path.to_owned(),
            architecture,
            hidden,
            intermediate: keys.size("intermediate_size", MAX_DIM_ELEMS)?,
            vocab: keys.size("vocab_size", MAX_DIM_ELEMS)?,
            layers: keys.size("num_hidden_layers", MAX_LAYERS)?,
            q_rows: heads * head_elems,
            kv_rows: kv_heads * head_elems,
            tied_head: keys.flag("tie_word_embeddings")?,
            // Phi-3's modules have no biases, whatever its config says.
            attention_bias: llama && keys.flag("attention_bias")?,
            mlp_bias: llama && keys.flag("mlp_bias")?,
            json,
            text,
        })
    }
}

/// JSON as the other files of a checkpoint are written: indented by two, with a final newline.
pub(crate) fn pretty(json: &impl serde::Serialize) -> Vec<u8> {
    let value = json!(json);
    format!("{value:#}\n").into_bytes()
}

fn find_architecture(path: &Path, json: &Map<String, Value>) -> Result<Architecture, SynthError> {
    let names = json.get("architectures");
    let named = |wanted: &Architecture| {
        let list = names.and_then(Value::as_array);
        list.is_some_and(|list| list.iter().any(|name| name == wanted.name()))
    };
    let found = Architecture::ALL.into_iter().find(named);
    found.ok_or_else(|| SynthError::UnknownArchitecture {
        path: path.to_owned(),
        found: names.map_or_else(|| "missing".to_owned(), Value::to_string),
    })
}

/// Typed look-ups in the config.
struct Keys<'a> {
    path: &'a Path,
    json: &'a Map<String, Value>,
    architecture: Architecture,
}

impl Keys<'_> {
    fn size(&self, key: &'static str, limit: u64) -> Result<u64, SynthError> {
        self.optional_size(key, limit)?
            .ok_or_else(|| SynthError::MissingKey {
                path: self.path.to_owned(),
                key,
                architecture: self.architecture.name(),
            })
    }

    /// A key that is absent or null is `None`.
    fn optional_size(&self, key: &'static str, limit: u64) -> Result<Option<u64>, SynthError> {
        match self.json.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_u64() {
                Some(size) if (1..=limit).contains(&size) => Ok(Some(size)),
                _ => Err(self.bad(key, value, format!("an integer from 1 to {limit}"))),
            },
        }
    }

    /// A key that is absent or null is false, as in transformers' `Phi3Config` and `LlamaConfig`.
    fn flag(&self, key: &'static str) -> Result<bool, SynthError> {
        match self.json.get(key) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(value) => Err(self.bad(key, value, "true or false".to_owned())),
        }
    }

    fn divisible(
        &self,
        key: &str,
        value: u64,
        divisor_key: &str,
        divisor: u64,
    ) -> Result<(), SynthError> {
        if value.is_multiple_of(divisor) {
            return Ok(());
        }
        Err(SynthError::NotDivisible {
            path: self.path.to_owned(),
            dividend: format!("{key} {value}"),
            divisor: format!("{divisor_key} {divisor}"),
        })
    }

    fn bad(&self, key: &'static str, found: &Value, expected: String) -> SynthError {
        SynthError::BadValue {
            path: self.path.to_owned(),
            key,
            found: found.to_string(),
            expected,
        }
    }
}
