//! Text to tokens as lm-evaluation-harness does it (`HFLM.tok_encode` and
//! `TemplateLM._encode_pair`, lm-eval 0.4.13).

use super::python::is_python_space;
use smq_engine::{Error, Result};
use smq_model::Tokenizer;

/// A context and a continuation, as tokens of one text.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Pair {
    /// Tokens before the continuation; there is at least one.
    pub context: Vec<u32>,
    /// Tokens whose likelihood is asked for; there is at least one.
    pub continuation: Vec<u32>,
}

/// Tokens of a prompt: with what the tokenizer puts around a text, unless the text starts with BOS
/// already.
///
/// # Errors
/// [`Error::Tokenizer`](smq_model::Error::Tokenizer).
pub(crate) fn prompt(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let has_prefix = tokenizer
        .prefix_token()
        .is_some_and(|prefix| text.starts_with(prefix));
    Ok(tokenizer.encode(text, !has_prefix)?)
}

/// Splits the tokens of `context` and `continuation`, taken as one text, where the context alone
/// ends.
///
/// Spaces that end the context go to the continuation, so that words keep their tokens. An empty
/// context becomes the BOS token, or EOS where the tokenizer has no BOS.
///
/// # Errors
/// [`Error::Tokenizer`](smq_model::Error::Tokenizer); [`Error::Input`] if the continuation adds no
/// token to the context.
pub(crate) fn pair(tokenizer: &Tokenizer, context: &str, continuation: &str) -> Result<Pair> {
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
    // The context's tokens need not begin the whole's: the harness goes by their number, so must
    // we.
    match whole.get(context.len()..) {
        Some(tail) if !tail.is_empty() && !context.is_empty() => Ok(Pair {
            continuation: tail.to_vec(),
            context,
        }),
        _ => Err(empty()),
    }
}

impl Pair {
    /// Leaves out leading tokens of a context too long for a model of `positions`: the last token
    /// is never fed.
    ///
    /// # Errors
    /// [`Error::Input`] if the continuation alone is too long.
    pub(crate) fn truncate_left(&mut self, positions: usize) -> Result<()> {
        let (context, continuation) = (self.context.len(), self.continuation.len());
        if continuation > positions {
            return Err(Error::Input(format!(
                "a continuation has {continuation} tokens, the model's longest context is \
                 {positions}"
            )));
        }
        let excess = (context + continuation).saturating_sub(positions + 1);
        self.context.drain(..excess);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use smq_model::Source;

    use super::*;

    /// Context and continuation share a word, a space or nothing.
    #[test]
    fn pairs_are_split_where_the_context_ends() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/phi3-tiny");
        let source = Source::open(path.as_ref()).unwrap();
        let tokenizer = Tokenizer::load(&source).unwrap();
        let encode = |text: &str| tokenizer.encode(text, true).unwrap();
        let split = pair(&tokenizer, "Once upon a", " time").unwrap();
        assert_eq!(split.context, encode("Once upon a"));
        assert_eq!(
            [split.context, split.continuation].concat(),
            encode("Once upon a time")
        );
        // The space at the context's end goes to the word after it.
        let split = pair(&tokenizer, "Once upon a ", "time").unwrap();
        assert_eq!(split.context, encode("Once upon a"));
        assert_eq!(
            [split.context, split.continuation].concat(),
            encode("Once upon a time")
        );
        let bos = tokenizer.token_id("<s>").unwrap();
        let mut alone = pair(&tokenizer, "", " time").unwrap();
        assert_eq!(alone.context, [bos]);
        assert_eq!(
            alone.continuation,
            tokenizer.encode(" time", false).unwrap()
        );
        assert!(pair(&tokenizer, "Once", "").is_err());
        // What is too long loses its start; the last token needs no place.
        alone.context = (10..20).collect();
        alone.continuation = vec![1, 2, 3];
        alone.truncate_left(6).unwrap();
        assert_eq!(
            (alone.context.as_slice(), alone.continuation.len()),
            (&[16, 17, 18, 19][..], 3)
        );
        assert!(alone.truncate_left(2).is_err());
    }
}
