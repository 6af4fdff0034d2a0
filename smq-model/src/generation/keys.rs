//! Typed values of a JSON object of settings. Null is as good as absent, as transformers has it.

use serde_json::{Map, Value};

use super::{FILE, MODEL_FILE};
use crate::error::{Error, Result};
use crate::source::Source;

pub(super) struct Keys {
    file: &'static str,
    object: Map<String, Value>,
}

/// What is added to the score of the last token of a sequence, where the others stand before it.
type Bias = (Vec<u32>, f32);

impl Keys {
    /// Of the file that decides; `None` where the model has none.
    pub(super) fn of(source: &Source) -> Result<Option<Self>> {
        for file in [FILE, MODEL_FILE] {
            if let Some(json) = source.file(file) {
                return Self::parse(file, json).map(Some);
            }
        }
        Ok(None)
    }

    pub(super) fn parse(file: &'static str, json: &[u8]) -> Result<Self> {
        let bad = |message| Error::Generation { file, message };
        match serde_json::from_slice(json) {
            Ok(Value::Object(object)) => Ok(Self { file, object }),
            Ok(other) => Err(bad(format!("is {}, expected a JSON object", shown(&other)))),
            Err(e) => Err(bad(format!("not valid JSON: {e}"))),
        }
    }

    pub(super) fn file(&self) -> &'static str {
        self.file
    }

    pub(super) fn value(&self, key: &str) -> Option<&Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn bad(&self, key: &str, expected: &str) -> Error {
        let value = shown(self.value(key).unwrap_or(&Value::Null));
        Error::Generation {
            file: self.file,
            message: format!("{key} is {value}, expected {expected}"),
        }
    }

    /// The value as `read` understands it, which returns `None` for what is not `expected`.
    fn get<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        read(value).map(Some).ok_or_else(|| self.bad(key, expected))
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.get(key, "true or false", Value::as_bool)
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        self.get(key, "a number", Value::as_f64)
    }

    pub(super) fn integer(&self, key: &str) -> Result<Option<i64>> {
        self.get(key, "a whole number", Value::as_i64)
    }

    pub(super) fn count(&self, key: &str, least: usize) -> Result<Option<usize>> {
        let expected = format!("a whole number of {least} or more");
        let read = |value: &Value| usize::try_from(value.as_u64()?).ok();
        self.get(key, &expected, |value| read(value).filter(|n| *n >= least))
    }

    pub(super) fn id(&self, key: &str) -> Result<Option<u32>> {
        self.get(key, "a token id", id)
    }

    pub(super) fn ids(&self, key: &str) -> Result<Option<Vec<u32>>> {
        self.get(key, "a list of token ids", ids)
    }

    pub(super) fn one_or_more_ids(&self, key: &str) -> Result<Option<Vec<u32>>> {
        let read = |value: &Value| id(value).map(|id| vec![id]).or_else(|| ids(value));
        self.get(key, "a token id or a list of them", read)
    }

    pub(super) fn sequences(&self, key: &str) -> Result<Option<Vec<Vec<u32>>>> {
        let read = |value: &Value| {
            let list = value.as_array().filter(|list| !list.is_empty())?;
            list.iter().map(sequence).collect()
        };
        self.get(
            key,
            "a list of lists of token ids, none of them empty",
            read,
        )
    }

    pub(super) fn biases(&self, key: &str) -> Result<Option<Vec<Bias>>> {
        let pair = |value: &Value| match value.as_array()?.as_slice() {
            [ids, bias] => Some((sequence(ids)?, bias.as_f64()? as f32)),
            _ => None,
        };
        let read = |value: &Value| value.as_array()?.iter().map(pair).collect();
        let expected = "a list of pairs, each a list of token ids and a number";
        self.get(key, expected, read)
    }

    pub(super) fn decay(&self, key: &str) -> Result<Option<(usize, f64)>> {
        let read = |value: &Value| match value.as_array()?.as_slice() {
            [start, factor] => Some((usize::try_from(start.as_u64()?).ok()?, factor.as_f64()?)),
            _ => None,
        };
        self.get(key, "a pair of a number of tokens and a factor", read)
    }

    pub(super) fn strings(&self, key: &str) -> Result<Option<Vec<String>>> {
        let one = |value: &Value| Some(value.as_str().filter(|s| !s.is_empty())?.to_owned());
        let read = |value: &Value| match value.as_array() {
            Some(list) => list.iter().map(one).collect(),
            None => one(value).map(|one| vec![one]),
        };
        self.get(
            key,
            "a string or a list of strings, none of them empty",
            read,
        )
    }
}

/// A value as JSON, a long one cut short: a list of tokens may have thousands.
pub(super) fn shown(value: &Value) -> String {
    /// Longest text that is shown whole, characters.
    const SHOWN: usize = 60;
    let mut text = value.to_string();
    if let Some((end, _)) = text.char_indices().nth(SHOWN) {
        text.truncate(end);
        text.push_str("...");
    }
    text
}

fn id(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok()
}

fn ids(value: &Value) -> Option<Vec<u32>> {
    value.as_array()?.iter().map(id).collect()
}

fn sequence(value: &Value) -> Option<Vec<u32>> {
    ids(value).filter(|ids| !ids.is_empty())
}
