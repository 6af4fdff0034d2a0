//! The bytes that tokens stand for within a text.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// What every token is decoded after, so that none is at the start of a text, where decoders strip.
const BEFORE: &str = "abcdef";

/// The bytes of a tokenizer's tokens, special tokens included. A token may be a part of a
/// character, and so no text of its own.
pub struct Spelling<'t> {
    tokenizer: &'t tokenizers::Tokenizer,
    bytes: Bytes,
    /// Tokens that [`BEFORE`] has.
    before: Vec<String>,
}

/// How a token of the vocabulary spells bytes.
#[derive(Debug, Clone, PartialEq)]
enum Bytes {
    /// A character of the token is a byte, as in GPT-2.
    Characters(HashMap<char, u8>),
    /// `<0x0A>` is a byte, as in Llama 2; other tokens are text.
    Fallback,
    /// Every token is the text that it spells.
    None,
}

impl<'t> Spelling<'t> {
    /// Of a model's tokenizer.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the tokenizer cannot encode or write its decoder down.
    pub fn new(tokenizer: &'t Tokenizer) -> Result<Self> {
        Self::with(tokenizer.inner())
    }

    pub(crate) fn with(tokenizer: &'t tokenizers::Tokenizer) -> Result<Self> {
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
        Ok(Self {
            tokenizer,
            bytes,
            before: before.get_tokens().to_vec(),
        })
    }

    /// Whether the tokenizer has a token of this id that stands for no text, such as the end of a
    /// turn.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        let token = self.tokenizer.id_to_token(id);
        let added = self.tokenizer.get_added_vocabulary();
        token.is_some_and(|token| added.is_special_token(&token))
    }

    /// The bytes of a token; none for an id that is not one.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the decoder refuses it.
    pub fn of(&self, id: u32) -> Result<Vec<u8>> {
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
