//! Typed look-ups in config.json.

use serde_json::{Map, Value};

/// A value, or what is wrong with it: the key, what it is and what was expected.
pub(super) type Read<T> = Result<T, String>;

/// An object of config.json: the file's own, or one inside of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Keys<'a> {
    json: &'a Map<String, Value>,
    /// The key that holds it; empty for the file itself.
    inside: &'static str,
}

impl<'a> Keys<'a> {
    pub(super) fn new(json: &'a Map<String, Value>, inside: &'static str) -> Self {
        Self { json, inside }
    }

    /// The key's value; `Some(Null)` where it is null.
    pub(super) fn get(self, key: &str) -> Option<&'a Value> {
        self.json.get(key)
    }

    /// As [`Keys::get`], without null.
    pub(super) fn given(self, key: &str) -> Option<&'a Value> {
        self.get(key).filter(|value| !value.is_null())
    }

    /// Every key with its value.
    pub(super) fn iter(self) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.json.iter()
    }

    /// The key's name with that of the object it is in.
    pub(super) fn name(self, key: &str) -> String {
        match self.inside {
            "" => key.to_owned(),
            inside => format!("{inside}.{key}"),
        }
    }

    /// A count of 1 to `limit`; `None` where the key is absent. Null is no count.
    pub(super) fn size(self, key: &str, limit: usize) -> Read<Option<usize>> {
        let count = |value: &Value| {
            let count = value.as_u64().and_then(|n| usize::try_from(n).ok());
            count.filter(|n| (1..=limit).contains(n))
        };
        self.typed(key, count, || format!("an integer from 1 to {limit}"))
    }

    /// As [`Keys::size`], but from 0 on.
    pub(super) fn index(self, key: &str, limit: usize) -> Read<Option<usize>> {
        let index = |value: &Value| {
            let index = value.as_u64().and_then(|n| usize::try_from(n).ok());
            index.filter(|n| *n <= limit)
        };
        self.typed(key, index, || format!("an integer from 0 to {limit}"))
    }

    /// As [`Keys::size`], and `None` for null too.
    pub(super) fn size_or_null(self, key: &str, limit: usize) -> Read<Option<usize>> {
        match self.given(key) {
            None => Ok(None),
            Some(_) => self.size(key, limit),
        }
    }

    /// True or false; `None` where the key is absent.
    pub(super) fn flag(self, key: &str) -> Read<Option<bool>> {
        self.typed(key, Value::as_bool, || "true or false".to_owned())
    }

    /// A number; `None` where the key is absent.
    pub(super) fn number(self, key: &str) -> Read<Option<f64>> {
        self.typed(key, Value::as_f64, || "a number".to_owned())
    }

    /// As [`Keys::number`], and `None` for null too.
    pub(super) fn number_or_null(self, key: &str) -> Read<Option<f64>> {
        match self.given(key) {
            None => Ok(None),
            Some(_) => self.number(key),
        }
    }

    /// A text; `None` where the key is absent.
    pub(super) fn text(self, key: &str) -> Read<Option<&'a str>> {
        self.typed(key, Value::as_str, || "a text".to_owned())
    }

    /// Checks the key of a token's id, or of several where `list` allows that; null is none.
    pub(super) fn token_ids(self, key: &str, list: bool) -> Read<()> {
        let is_id = |value: &Value| value.is_i64() || value.is_u64();
        let check = |value: &Value| {
            let ids = value.as_array().filter(|_| list);
            (value.is_null() || is_id(value) || ids.is_some_and(|ids| ids.iter().all(is_id)))
                .then_some(())
        };
        let expected = || match list {
            true => "a token id, a list of them, or null".to_owned(),
            false => "a token id or null".to_owned(),
        };
        self.typed(key, check, expected).map(drop)
    }

    fn typed<T>(
        self,
        key: &str,
        parse: impl Fn(&'a Value) -> Option<T>,
        expected: impl Fn() -> String,
    ) -> Read<Option<T>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match parse(value) {
            Some(parsed) => Ok(Some(parsed)),
            None => Err(format!(
                "{} is {value}, expected {}",
                self.name(key),
                expected()
            )),
        }
    }
}
