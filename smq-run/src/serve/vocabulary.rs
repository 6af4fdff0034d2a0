//! How tokens are shown one by one: in log-probabilities, and to grammars.

use smq_model::{Spelling, Tokenizer};

/// The tokens of a model.
pub(super) struct Vocabulary {
    tokens: Vec<Token>,
}

struct Token {
    bytes: Vec<u8>,
    is_special: bool,
}

impl Vocabulary {
    /// The bytes of a tokenizer's first `count` tokens.
    pub(super) fn of(tokenizer: &Tokenizer, count: usize) -> smq_model::Result<Self> {
        let spelling = Spelling::new(tokenizer)?;
        let token = |id| -> smq_model::Result<Token> {
            Ok(Token {
                bytes: spelling.of(id)?,
                is_special: spelling.is_special(id),
            })
        };
        let tokens = (0..count as u32).map(token).collect::<Result<_, _>>()?;
        Ok(Self { tokens })
    }

    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    pub(super) fn is_special(&self, id: u32) -> bool {
        self.tokens
            .get(id as usize)
            .is_some_and(|token| token.is_special)
    }

    /// The bytes that a token stands for.
    pub(super) fn bytes(&self, id: u32) -> &[u8] {
        self.tokens
            .get(id as usize)
            .map_or(&[], |token| &token.bytes)
    }

    /// A token as a text. What is no text of its own, the part of a character, has its bytes in
    /// hexadecimal, as OpenAI writes it.
    pub(super) fn text(&self, id: u32) -> String {
        let bytes = self.bytes(id);
        match std::str::from_utf8(bytes) {
            Ok(text) => text.to_owned(),
            Err(_) => {
                let digits = bytes.iter().map(|byte| format!("\\x{byte:02x}"));
                format!("bytes:{}", digits.collect::<String>())
            }
        }
    }
}
