//! Strings that end a text, found as transformers finds them: in the bytes of the tokens as the
//! vocabulary writes them, special tokens and the end of the prompt included.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// What every token is decoded after, so that none is at the start of a text, where decoders strip.
const BEFORE: &str = "abcdef";

/// Watches a text, token by token, for strings that end it.
pub struct StopStrings<'t> {
    tokenizer: &'t tokenizers::Tokenizer,
    strings: Vec<Vec<u8>>,
    /// Bytes of the longest string: tokens that are looked back at.
    longest: usize,
    bytes: Bytes,
    /// Tokens that [`BEFORE`] has.
    before: Vec<String>,
    tail: Vec<u32>,
}

/// How a token of the vocabulary spells bytes.
#[derive(Debug, Clone, PartialEq)]
enum Bytes {
    /// A character of the token is a byte, as in GPT-2.
    Characters(HashMap<char, u8>),
    /// `<0x0A>` is a byte, as in Llama 2; other tokens are text.
    Fallback,
    /// Tokens are text.
    None,
}

impl<'t> StopStrings<'t> {
    /// A watch for `strings` after `prompt`; an empty one ends nothing.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the tokenizer cannot encode or write its decoder down.
    pub fn new(tokenizer: &'t Tokenizer, strings: &[String], prompt: &[u32]) -> Result<Self> {
        Self::with(tokenizer.inner(), strings, prompt)
    }

    fn with(
        tokenizer: &'t tokenizers::Tokenizer,
        strings: &[String],
        prompt: &[u32],
    ) -> Result<Self> {
        let failed = |e: tokenizers::Error| Error::Tokenizer(e.to_string());
        let before = tokenizer.encode(BEFORE, false).map_err(failed)?;
        let decoder = serde_json::to_value(tokenizer.get_decoder())
            .map_err(|e| Error::Tokenizer(format!("the decoder cannot be read: {e}")))?;
        let bytes = match &decoder {
            alone if alone["type"] == "ByteLevel" => Bytes::Characters(characters()),
            // A decoder of several steps may have both, of which the explicit one counts.
            steps if has_type(steps, "ByteFallback") => Bytes::Fallback,
            steps if has_type(steps, "ByteLevel") => Bytes::Characters(characters()),
            _ => Bytes::None,
        };
        let longest = strings.iter().map(String::len).max().unwrap_or(0);
        Ok(Self {
            tokenizer,
            strings: strings
                .iter()
                .filter(|s| !s.is_empty())
                .map(|s| s.clone().into_bytes())
                .collect(),
            longest,
            bytes,
            before: before.get_tokens().to_vec(),
            tail: prompt[prompt.len().saturating_sub(longest)..].to_vec(),
        })
    }

    /// Whether a string ends within `id`, the token that now follows.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the decoder refuses a token.
    pub fn push(&mut self, id: u32) -> Result<bool> {
        self.tail.push(id);
        let start = self.tail.len().saturating_sub(self.longest);
        self.tail.drain(..start);
        let mut text = Vec::new();
        let mut last = 0;
        for id in &self.tail {
            last = text.len();
            text.extend(self.spelling(*id)?);
        }
        let ends = |string: &Vec<u8>| {
            let mut windows = text.windows(string.len()).enumerate();
            windows.any(|(at, window)| at + string.len() > last && window == string)
        };
        Ok(self.strings.iter().any(ends))
    }

    fn spelling(&self, id: u32) -> Result<Vec<u8>> {
        let Some(token) = self.tokenizer.id_to_token(id) else {
            return Ok(Vec::new());
        };
        match &self.bytes {
            Bytes::Characters(bytes) => {
                let known: Option<Vec<u8>> =
                    token.chars().map(|c| bytes.get(&c).copied()).collect();
                if let Some(known) = known {
                    return Ok(known);
                }
            }
            Bytes::Fallback => {
                let digits = token.strip_prefix("<0x").and_then(|t| t.strip_suffix('>'));
                let digits = digits.filter(|d| d.len() == 2 && !d.starts_with('+'));
                if let Some(byte) = digits.and_then(|d| u8::from_str_radix(d, 16).ok()) {
                    return Ok(vec![byte]);
                }
            }
            Bytes::None => {}
        }
        let mut tokens = self.before.clone();
        tokens.push(token);
        let text = match self.tokenizer.get_decoder() {
            Some(decoder) => tokenizers::Decoder::decode(decoder, tokens)
                .map_err(|e| Error::Tokenizer(e.to_string()))?,
            None => tokens.join(" "),
        };
        let after = text.find(BEFORE).map_or(0, |at| at + BEFORE.len());
        Ok(text.as_bytes()[after..].to_vec())
    }
}

/// Whether a decoder, or one of its steps, is of this type.
fn has_type(decoder: &serde_json::Value, name: &str) -> bool {
    match decoder {
        serde_json::Value::Object(object) => {
            decoder["type"] == name || object.values().any(|value| has_type(value, name))
        }
        serde_json::Value::Array(list) => list.iter().any(|value| has_type(value, name)),
        _ => false,
    }
}

/// GPT-2's alphabet: printable Latin-1 characters are themselves, the other bytes follow 255.
fn characters() -> HashMap<char, u8> {
    let mut others = 256..;
    let mut characters = HashMap::new();
    for byte in 0..=u8::MAX {
        let is_itself = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        let code = if is_itself {
            Some(u32::from(byte))
        } else {
            others.next()
        };
        characters.extend(code.and_then(char::from_u32).map(|c| (c, byte)));
    }
    characters
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;
    use std::str::FromStr;

    use super::*;

    #[derive(serde::Deserialize)]
    struct Case {
        name: String,
        /// `None` for the fixture's.
        tokenizer: Option<serde_json::Value>,
        prompt: Vec<u32>,
        new: Vec<u32>,
        /// Stop strings, and the number of new tokens after which each ends the text.
        ends: BTreeMap<String, Option<usize>>,
    }

    /// Recorded from transformers 5.24.0 by tests/peers/gen_record.py.
    #[test]
    fn texts_end_where_hugging_face_ends_them() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
        let json = std::fs::read(fixtures.join("hf/gen-stop-strings.json")).unwrap();
        let cases: Vec<Case> = serde_json::from_slice(&json).unwrap();
        assert_eq!(cases.len(), 3);
        for case in cases {
            let tokenizer = match &case.tokenizer {
                Some(json) => tokenizers::Tokenizer::from_str(&json.to_string()),
                None => tokenizers::Tokenizer::from_file(fixtures.join("phi3-tiny/tokenizer.json")),
            };
            let tokenizer = tokenizer.unwrap();
            // Alone, and beside a longer one that never comes.
            for (string, expected) in &case.ends {
                for strings in [
                    vec![string.clone()],
                    vec!["never".repeat(9), string.clone()],
                ] {
                    let mut watch = StopStrings::with(&tokenizer, &strings, &case.prompt).unwrap();
                    let mut new = case.new.iter();
                    let end = new.position(|id| watch.push(*id).unwrap()).map(|at| at + 1);
                    assert_eq!(end, *expected, "{}: {string:?}", case.name);
                }
            }
        }
    }

    #[test]
    fn an_empty_string_ends_nothing() {
        let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../tests/fixtures/phi3-tiny/tokenizer.json");
        let tokenizer = tokenizers::Tokenizer::from_file(tokenizer).unwrap();
        let mut watch = StopStrings::with(&tokenizer, &[String::new()], &[1]).unwrap();
        assert!(!watch.push(20).unwrap());
    }
}
