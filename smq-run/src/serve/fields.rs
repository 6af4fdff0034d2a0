//! The fields of a request, taken one by one; what nobody takes is refused.
//!
//! A field that is null counts as absent, as OpenAI has it.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::error::{ApiError, ApiResult};

/// Most items of a list of texts; OpenAI takes 4 stop strings.
const MAX_TEXTS: usize = 64;

/// A JSON object of a request.
#[derive(Debug)]
pub(super) struct Fields {
    map: Map<String, Value>,
    /// What errors put before a name: the object's own and a dot.
    within: String,
}

impl Fields {
    /// The fields of a body, which is a JSON object.
    pub(super) fn parse(body: &[u8]) -> ApiResult<Self> {
        let value: Value = serde_json::from_slice(body)
            .map_err(|e| ApiError::request(format!("the body is not valid JSON: {e}")))?;
        match value {
            Value::Object(map) => Ok(Self::of(map, String::new())),
            other => {
                let kind = kind(&other);
                Err(ApiError::request(format!(
                    "the body is {kind}, expected a JSON object"
                )))
            }
        }
    }

    fn of(mut map: Map<String, Value>, within: String) -> Self {
        map.retain(|_, value| !value.is_null());
        Self { map, within }
    }

    /// The name that errors give a field.
    pub(super) fn name(&self, name: &str) -> String {
        format!("{}{name}", self.within)
    }

    /// The field as it is.
    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        self.map.shift_remove(name)
    }

    fn wrong(&self, name: &str, expected: &str, found: &Value) -> ApiError {
        let found = match found {
            Value::Bool(_) | Value::Number(_) => found.to_string(),
            Value::Null | Value::String(_) | Value::Array(_) | Value::Object(_) => {
                kind(found).to_owned()
            }
        };
        let name = self.name(name);
        let message = format!("{name} is {found}, expected {expected}");
        ApiError::field(name, message)
    }

    pub(super) fn number(
        &mut self,
        name: &str,
        range: RangeInclusive<f64>,
    ) -> ApiResult<Option<f64>> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        match value.as_f64().filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => {
                let (least, most) = (range.start(), range.end());
                Err(self.wrong(name, &format!("a number of {least} to {most}"), &value))
            }
        }
    }

    pub(super) fn integer(
        &mut self,
        name: &str,
        range: RangeInclusive<i64>,
    ) -> ApiResult<Option<i64>> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        match value.as_i64().filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => {
                let (least, most) = (range.start(), range.end());
                Err(self.wrong(name, &format!("an integer of {least} to {most}"), &value))
            }
        }
    }

    /// An integer that counts something.
    pub(super) fn count(
        &mut self,
        name: &str,
        range: RangeInclusive<u32>,
    ) -> ApiResult<Option<usize>> {
        let range = i64::from(*range.start())..=i64::from(*range.end());
        let value = self.integer(name, range)?;
        Ok(value.and_then(|value| value.try_into().ok()))
    }

    pub(super) fn flag(&mut self, name: &str) -> ApiResult<Option<bool>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(self.wrong(name, "true or false", &other)),
        }
    }

    pub(super) fn text(&mut self, name: &str) -> ApiResult<Option<String>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(name, "a string", &other)),
        }
    }

    /// A text or a list of some.
    pub(super) fn texts(&mut self, name: &str) -> ApiResult<Option<Vec<String>>> {
        let expected = format!("a string or a list of at most {MAX_TEXTS} strings");
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(vec![text])),
            Some(Value::Array(items)) if items.len() <= MAX_TEXTS => {
                let text = |item: &Value| match item {
                    Value::String(text) => Ok(text.clone()),
                    other => Err(self.wrong(name, &expected, other)),
                };
                items.iter().map(text).collect::<ApiResult<_>>().map(Some)
            }
            Some(other) => Err(self.wrong(name, &expected, &other)),
        }
    }

    pub(super) fn list(&mut self, name: &str) -> ApiResult<Option<Vec<Value>>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(other) => Err(self.wrong(name, "a list", &other)),
        }
    }

    pub(super) fn object(&mut self, name: &str) -> ApiResult<Option<Self>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self::of(map, format!("{}.", self.name(name))))),
            Some(other) => Err(self.wrong(name, "an object", &other)),
        }
    }

    /// What is left of an object whose fields have names of the client's choice.
    pub(super) fn rest(&mut self) -> Map<String, Value> {
        std::mem::take(&mut self.map)
    }

    /// Takes fields that say nothing about the answer.
    pub(super) fn ignore(&mut self, names: &[&str]) {
        for name in names {
            self.take(name);
        }
    }

    /// Takes a field that changes nothing as long as it has one of these values.
    pub(super) fn only(&mut self, name: &str, neutral: &[Value], why: &str) -> ApiResult<()> {
        match self.take(name) {
            Some(value) if !neutral.contains(&value) => {
                let name = self.name(name);
                let shown = value.to_string();
                let shown: String = shown.chars().take(60).collect();
                let message = format!("{name} {shown} is not served: {why}");
                Err(ApiError::unsupported(name, message))
            }
            _ => Ok(()),
        }
    }

    /// Refuses what was not taken.
    pub(super) fn finish(self) -> ApiResult<()> {
        match self.map.keys().next() {
            None => Ok(()),
            Some(key) => {
                let name: String = self.name(key).chars().take(100).collect();
                let message = format!("{name} is not a field that this server knows; leave it out");
                Err(ApiError::unsupported(name, message))
            }
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(json: &str) -> Fields {
        Fields::parse(json.as_bytes()).unwrap()
    }

    fn message(error: ApiError) -> String {
        error.body()["error"]["message"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    #[test]
    fn fields_are_taken_within_their_range() {
        let mut f = fields(r#"{"a": 1.5, "b": 7, "c": null, "d": {"e": "x"}, "s": ["p", "q"]}"#);
        assert_eq!(f.number("a", 0.0..=2.0).unwrap(), Some(1.5));
        assert_eq!(f.count("b", 0..=7).unwrap(), Some(7));
        assert_eq!(f.flag("c").unwrap(), None);
        assert_eq!(f.texts("s").unwrap().unwrap(), ["p", "q"]);
        let mut d = f.object("d").unwrap().unwrap();
        assert_eq!(
            message(d.flag("e").unwrap_err()),
            "d.e is a string, expected true or false"
        );
        f.finish().unwrap();
    }

    #[test]
    fn what_is_out_of_range_or_not_known_is_refused() {
        let mut f = fields(r#"{"a": -0.1, "b": 8, "z": {}}"#);
        assert_eq!(
            message(f.number("a", 0.0..=2.0).unwrap_err()),
            "a is -0.1, expected a number of 0 to 2"
        );
        assert_eq!(
            message(f.count("b", 0..=7).unwrap_err()),
            "b is 8, expected an integer of 0 to 7"
        );
        let error = f.finish().unwrap_err();
        assert_eq!(error.body()["error"]["param"], "z");
        assert_eq!(error.body()["error"]["code"], "unsupported_parameter");
        for body in ["", "{", "[1]", "{\"a\": 1e999}", "\u{feff}{}"] {
            let error = Fields::parse(body.as_bytes()).unwrap_err();
            assert_eq!(error.status(), 400, "{body:?}");
        }
        assert!(Fields::parse(b"{\"a\": \"\xff\"}").is_err());
        let deep = "[".repeat(4000);
        assert!(Fields::parse(deep.as_bytes()).is_err());
    }
}
