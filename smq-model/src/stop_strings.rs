//! Strings that end a text, found as transformers finds them: in the bytes of the tokens as the
//! vocabulary writes them, special tokens and the end of the prompt included.

use crate::error::Result;
use crate::spelling::Spelling;
use crate::tokenizer::Tokenizer;

/// Watches a text, token by token, for strings that end it.
pub struct StopStrings<'t> {
    spelling: Spelling<'t>,
    strings: Vec<Vec<u8>>,
    /// Bytes of the longest string: tokens that are looked back at.
    longest: usize,
    tail: Vec<u32>,
}

impl<'t> StopStrings<'t> {
    /// A watch for `strings` after `prompt`; an empty one ends nothing.
    ///
    /// # Errors
    /// [`Error::Tokenizer`](crate::Error::Tokenizer) if the tokenizer cannot encode or write its
    /// decoder down.
    pub fn new(tokenizer: &'t Tokenizer, strings: &[String], prompt: &[u32]) -> Result<Self> {
        Self::with(tokenizer.inner(), strings, prompt)
    }

    fn with(
        tokenizer: &'t tokenizers::Tokenizer,
        strings: &[String],
        prompt: &[u32],
    ) -> Result<Self> {
        let longest = strings.iter().map(String::len).max().unwrap_or(0);
        Ok(Self {
            spelling: Spelling::with(tokenizer)?,
            strings: strings
                .iter()
                .filter(|s| !s.is_empty())
                .map(|s| s.clone().into_bytes())
                .collect(),
            longest,
            tail: prompt[prompt.len().saturating_sub(longest)..].to_vec(),
        })
    }

    /// Whether a string ends within `id`, the token that now follows.
    ///
    /// # Errors
    /// [`Error::Tokenizer`](crate::Error::Tokenizer) if the decoder refuses a token.
    pub fn push(&mut self, id: u32) -> Result<bool> {
        self.tail.push(id);
        let start = self.tail.len().saturating_sub(self.longest);
        self.tail.drain(..start);
        let mut text = Vec::new();
        let mut last = 0;
        for id in &self.tail {
            last = text.len();
            text.extend(self.spelling.of(*id)?);
        }
        let ends = |string: &Vec<u8>| {
            let mut windows = text.windows(string.len()).enumerate();
            windows.any(|(at, window)| at + string.len() > last && window == string)
        };
        Ok(self.strings.iter().any(ends))
    }
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
