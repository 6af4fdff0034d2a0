//! A token as a file declares it.

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use crate::error::{Error, Result};

/// A text, or a text with flags.
#[derive(Debug, Clone)]
pub(super) enum Token {
    Text(String),
    Flags(Flags),
}

/// A token's flags. Whether it is matched in normalized text depends on whether it is special,
/// unless the file says it.
#[derive(Debug, Clone)]
pub(super) struct Flags {
    token: AddedToken,
    normalized: Option<bool>,
}

impl Flags {
    pub(super) fn content(&self) -> &str {
        &self.token.content
    }

    /// A plain token, matched in normalized text unless it is special.
    pub(super) fn plain(content: &str, special: bool) -> Self {
        Self {
            token: AddedToken::from(content, special),
            normalized: Some(!special),
        }
    }

    /// The token; a special one if it is one, or if `special`.
    pub(super) fn added(&self, special: bool) -> AddedToken {
        let special = special || self.token.special;
        let token = self.token.clone().special(special);
        token.normalized(self.normalized.unwrap_or(!special))
    }
}

/// Equal as Python's values are: a text is not a token of that text.
impl PartialEq for Token {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Text(a), Self::Text(b)) => a == b,
            (Self::Flags(a), Self::Flags(b)) => a.added(false) == b.added(false),
            (Self::Text(_), Self::Flags(_)) | (Self::Flags(_), Self::Text(_)) => false,
        }
    }
}

impl Token {
    pub(super) fn content(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Flags(flags) => flags.content(),
        }
    }

    /// Of a text or an object; `special` makes a special token of an object that does not say so.
    pub(super) fn of(value: &Value, special: bool) -> Option<Self> {
        match value {
            Value::String(text) => Some(Self::Text(text.clone())),
            Value::Object(map) => Flags::of(map, special).map(Self::Flags),
            _ => None,
        }
    }
}

impl Flags {
    pub(super) fn of(map: &Map<String, Value>, special: bool) -> Option<Self> {
        let flag = |key: &str| map.get(key).and_then(Value::as_bool);
        let set = |key: &str| flag(key) == Some(true);
        let content = map.get("content")?.as_str()?.to_owned();
        let token = AddedToken::from(content, special || set("special"));
        Some(Self {
            token: token
                .single_word(set("single_word"))
                .lstrip(set("lstrip"))
                .rstrip(set("rstrip")),
            normalized: flag("normalized"),
        })
    }
}

/// A token that may be null.
pub(super) fn one(file: &str, key: &str, value: &Value, special: bool) -> Result<Option<Token>> {
    match value {
        Value::Null => Ok(None),
        value => match Token::of(value, special) {
            Some(token) => Ok(Some(token)),
            None => Err(wrong(file, key, &value.to_string())),
        },
    }
}

/// A list of tokens that may be null.
pub(super) fn many(file: &str, key: &str, value: &Value, special: bool) -> Result<Vec<Token>> {
    let list = match value {
        Value::Null => return Ok(Vec::new()),
        Value::Array(list) => list,
        other => return Err(wrong(file, key, &other.to_string())),
    };
    let wrong = |value: &Value| wrong(file, key, &value.to_string());
    let one = |value: &Value| Token::of(value, special).ok_or_else(|| wrong(value));
    list.iter().map(one).collect()
}

pub(super) fn wrong(file: &str, key: &str, found: &str) -> Error {
    Error::Tokenizer(format!(
        "{file}: {key} holds {found}, expected a token: a text, or an object with its content"
    ))
}
