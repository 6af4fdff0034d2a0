//! Which keys a file sets to more than their neutral values, to be told to whoever runs the model.

use serde_json::Value;

use super::keys::{Keys, shown};

/// A key that a file sets.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Given {
    pub(super) key: &'static str,
    pub(super) value: String,
    pub(super) is_for_sampling: bool,
}

/// Keys, and for each the number that changes nothing. An empty list and `false` change nothing
/// either.
const ALWAYS: [(&str, f64); 18] = [
    ("max_length", f64::NAN),
    ("max_new_tokens", f64::NAN),
    ("stop_strings", f64::NAN),
    ("sequence_bias", f64::NAN),
    ("encoder_repetition_penalty", 1.0),
    ("repetition_penalty", 1.0),
    ("no_repeat_ngram_size", 0.0),
    ("encoder_no_repeat_ngram_size", 0.0),
    ("bad_words_ids", f64::NAN),
    ("min_length", 0.0),
    ("min_new_tokens", 0.0),
    ("forced_bos_token_id", f64::NAN),
    ("forced_eos_token_id", f64::NAN),
    ("remove_invalid_values", f64::NAN),
    ("exponential_decay_length_penalty", f64::NAN),
    ("suppress_tokens", f64::NAN),
    ("begin_suppress_tokens", f64::NAN),
    ("renormalize_logits", f64::NAN),
];
const SAMPLING: [(&str, f64); 9] = [
    ("do_sample", f64::NAN),
    ("temperature", 1.0),
    ("top_h", f64::NAN),
    ("top_k", 0.0),
    ("top_p", 1.0),
    ("min_p", 0.0),
    ("typical_p", 1.0),
    ("epsilon_cutoff", 0.0),
    ("eta_cutoff", 0.0),
];

pub(super) fn given(keys: &Keys) -> Vec<Given> {
    let all = [(&ALWAYS[..], false), (&SAMPLING[..], true)];
    let mut list = Vec::new();
    for (table, is_for_sampling) in all {
        for (key, neutral) in table {
            let Some(value) = keys.value(key).filter(|v| !is_neutral(v, *neutral)) else {
                continue;
            };
            list.push(Given {
                key,
                value: shown(value),
                is_for_sampling,
            });
        }
    }
    list
}

fn is_neutral(value: &Value, neutral: f64) -> bool {
    match value {
        Value::Array(list) => list.is_empty(),
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(neutral),
        Value::Null | Value::String(_) | Value::Object(_) => false,
    }
}
