//! Text to tokens as lm-evaluation-harness does it (`HFLM.tok_encode` and `TemplateLM._encode_pair`, lm-eval 0.4.13).

use super::python::is_python_space;
use smq_engine::{Error, Result};
use smq_model::Tokenizer;

/// A context and a continuation, as tokens of one text.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// Never empty.
    pub context: Vec<u32>,
    /// Never empty.
    pub continuation: Vec<u32>,
}

/// Tokens of a prompt: with what the tokenizer puts around a text, unless the text starts with BOS already.
///
/// # Errors
/// [`Error::Tokenizer`].
pub fn prompt(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let has_prefix = tokenizer
        .prefix_token()
        .is_some_and(|prefix| text.starts_with(prefix));
    Ok(tokenizer.encode(text, !has_prefix)?)
}

/// Splits the tokens of `context` and `continuation`, taken as one text, where the context alone ends.
///
/// Spaces that end the context go to the continuation, so that words keep their tokens. An empty context becomes the
/// BOS token, or EOS where the tokenizer has no BOS.
///
/// # Errors
/// [`Error::Tokenizer`]; [`Error::Input`] if the continuation adds no token to the context.
pub fn pair(tokenizer: &Tokenizer, context: &str, continuation: &str) -> Result<Pair> {
    let empty = || {
        Error::Input(format!(
            "the continuation {continuation:?} adds no token to its context"
        ))
    };
    if context.is_empty() {
        let continuation = tokenizer.encode(continuation, false)?;
        let prefix = tokenizer
            .prefix_token()
            .and_then(|token| tokenizer.token_id(token));
        let (context, continuation) = match (prefix, continuation.split_first()) {
            (_, None) => return Err(empty()),
            (Some(prefix), Some((&first, _))) if first != prefix => (vec![prefix], continuation),
            (_, Some((&first, rest))) => (vec![first], rest.to_vec()),
        };
        return match continuation.is_empty() {
            true => Err(empty()),
            false => Ok(Pair {
                context,
                continuation,
            }),
        };
    }
    let trimmed = context.trim_end_matches(is_python_space);
    let whole = prompt(tokenizer, &[context, continuation].concat())?;
    let context = prompt(tokenizer, trimmed)?;
    // The context's tokens need not begin the whole's: the harness goes by their number, so must we.
    match whole.get(context.len()..) {
        Some(tail) if !tail.is_empty() && !context.is_empty() => Ok(Pair {
            continuation: tail.to_vec(),
            context,
        }),
        _ => Err(empty()),
    }
}

impl Pair {
    /// Leaves out leading tokens of a context too long for a model of `positions`: the last token is never fed.
    ///
    /// # Errors
    /// [`Error::Input`] if the continuation alone is too long.
    pub fn truncate_left(&mut self, positions: usize) -> Result<()> {
        let (context, continuation) = (self.context.len(), self.continuation.len());
        if continuation > positions {
            return Err(Error::Input(format!(
                "a continuation has {continuation} tokens, the model's longest context is {positions}"
            )));
        }
        let excess = (context + continuation).saturating_sub(positions + 1);
        self.context.drain(..excess);
        Ok(())
    }
}
