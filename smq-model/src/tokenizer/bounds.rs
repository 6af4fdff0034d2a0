//! What a tokenizer.json may ask for: the library builds it without looking, and some of it would
//! stop the program or take its memory when the first text comes.

use serde::Deserialize;
use serde_json::Value;

/// Longest text that a part of the pipeline may insert, match or split at, in bytes.
const MAX_TEXT_BYTES: usize = 4096;
/// How many times longer the normalizers together may make a text.
const MAX_GROWTH: usize = 4096;
/// Fields whose texts are tables of their own.
const TABLES: [&str; 1] = ["precompiled_charsmap"];

/// The parts of a tokenizer.json that are a pipeline, and the texts of its model that are repeated.
#[derive(Deserialize)]
pub(super) struct Pipeline {
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
    decoder: Option<Value>,
    #[serde(default)]
    model: Model,
}

#[derive(Default, Deserialize)]
struct Model {
    continuing_subword_prefix: Option<Value>,
    end_of_word_suffix: Option<Value>,
    unk_token: Option<Value>,
}

impl Pipeline {
    /// # Errors
    /// What is asked for and cannot be done.
    pub(super) fn check(&self) -> Result<(), String> {
        let parts = [
            ("normalizer", &self.normalizer),
            ("pre_tokenizer", &self.pre_tokenizer),
            ("post_processor", &self.post_processor),
            ("decoder", &self.decoder),
            (
                "continuing_subword_prefix",
                &self.model.continuing_subword_prefix,
            ),
            ("end_of_word_suffix", &self.model.end_of_word_suffix),
            ("unk_token", &self.model.unk_token),
        ];
        for (name, value) in parts {
            value.as_ref().map_or(Ok(()), |value| check(name, value))?;
        }
        let mut growth = 1usize;
        if let Some(normalizer) = &self.normalizer {
            multiply(normalizer, &mut growth);
        }
        match growth > MAX_GROWTH {
            true => Err(format!(
                "its normalizers may make a text {growth} times as long, over the limit of \
                 {MAX_GROWTH}"
            )),
            false => Ok(()),
        }
    }
}

fn check(name: &str, value: &Value) -> Result<(), String> {
    match value {
        Value::String(text) if text.len() > MAX_TEXT_BYTES && !TABLES.contains(&name) => {
            Err(format!(
                "{name} is a text of {} bytes, over the limit of {MAX_TEXT_BYTES}",
                text.len()
            ))
        }
        Value::Array(items) => items.iter().try_for_each(|item| check(name, item)),
        Value::Object(object) => {
            let kind = object.get("type").and_then(Value::as_str);
            if kind == Some("FixedLength")
                && object.get("length").and_then(Value::as_u64) == Some(0)
            {
                return Err(format!("{name} cuts texts into pieces of length 0"));
            }
            if let (Some("Split" | "Replace"), Some(pattern)) = (kind, object.get("pattern"))
                && pattern_text(pattern) == Some("")
            {
                return Err(format!(
                    "{name} has a {} of an empty pattern",
                    kind.unwrap_or("")
                ));
            }
            object
                .iter()
                .try_for_each(|(name, value)| check(name, value))
        }
        Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
    }
}

/// The text of a `{"String": text}` or `{"Regex": text}`.
fn pattern_text(pattern: &Value) -> Option<&str> {
    let pattern = pattern.get("String").or_else(|| pattern.get("Regex"))?;
    pattern.as_str()
}

/// Multiplies `growth` by how much longer each replacement in a normalizer makes a text at most.
fn multiply(normalizer: &Value, growth: &mut usize) {
    if let Some(content) = normalizer.get("content").and_then(Value::as_str)
        && let Some(pattern) = normalizer.get("pattern")
    {
        // A pattern that is no plain text may match nothing at all, before every character.
        let (matched, more) = match pattern.get("String").and_then(Value::as_str) {
            Some(text) => (text.len().max(1), 0),
            None => (1, 1),
        };
        *growth = growth.saturating_mul((content.len().div_ceil(matched) + more).max(1));
    }
    for inner in normalizer
        .get("normalizers")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        multiply(inner, growth);
    }
}
