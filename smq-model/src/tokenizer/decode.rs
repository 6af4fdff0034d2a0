//! Ids to text, piece by piece.
//!
//! The `tokenizers` library decodes whole lists of tokens. Decoding a list again with each token
//! would take time in the square of its length, and its text may change backwards: bytes that made
//! a character become replacements once a stray byte follows them. Here a decoder is a chain of
//! steps, each of which keeps what a later token may still change and passes on the rest, so that
//! the parts of a text are exactly its whole.

mod bytes;
mod replace;
mod steps;

use tokenizers::Model;
use tokenizers::decoders::DecoderWrapper;

use crate::error::{Error, Result};
use steps::Step;

/// What transformers removes from the text of a tokenizer that is not a BPE, if
/// `clean_up_tokenization_spaces` is set.
const CLEAN_UP: [(&str, &str); 10] = [
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
];

/// A tokenizer's decoder as steps, none of which has seen a token yet.
#[derive(Clone)]
pub(super) struct Decoding(Vec<Step>);

impl Decoding {
    /// Of the tokenizer's own decoder; `clean` removes spaces before punctuation in the end.
    pub(super) fn of(tokenizer: &tokenizers::Tokenizer, clean: bool) -> Self {
        let mut chain = Vec::new();
        flatten(tokenizer.get_decoder(), &mut chain);
        let mut steps = match tokenizer.get_decoder() {
            None => vec![Step::spaced()],
            Some(_) => Vec::new(),
        };
        let mut one_text = steps.len() == 1;
        for decoder in chain {
            steps.push(Step::of(decoder, one_text));
            one_text |= matches!(
                decoder,
                DecoderWrapper::Fuse(_) | DecoderWrapper::ByteLevel(_)
            );
        }
        let clean_up = CLEAN_UP.iter().filter(|_| clean);
        steps.extend(clean_up.map(|(from, to)| Step::replacing(from, to)));
        Self(steps)
    }

    /// The text that an id completes; none for a special token and for one that does not exist.
    pub(super) fn push(&mut self, tokenizer: &tokenizers::Tokenizer, id: u32) -> Result<String> {
        let added = tokenizer.get_added_vocabulary();
        let token = added.simple_id_to_token(id);
        let token = token.or_else(|| tokenizer.get_model().id_to_token(id));
        let mut text = String::new();
        if let Some(token) = token.filter(|token| !added.is_special_token(token)) {
            feed(&mut self.0, token, &mut text).map_err(failure)?;
        }
        Ok(text)
    }

    /// The text that was kept back.
    pub(super) fn finish(mut self) -> Result<String> {
        let mut text = String::new();
        let mut steps = self.0.as_mut_slice();
        while let Some((step, rest)) = steps.split_first_mut() {
            for piece in step.finish().map_err(failure)? {
                feed(rest, piece, &mut text).map_err(failure)?;
            }
            steps = rest;
        }
        Ok(text)
    }
}

fn failure(error: tokenizers::Error) -> Error {
    Error::Tokenizer(error.to_string())
}

fn flatten<'d>(decoder: Option<&'d DecoderWrapper>, chain: &mut Vec<&'d DecoderWrapper>) {
    match decoder {
        None => {}
        Some(DecoderWrapper::Sequence(sequence)) => {
            for decoder in sequence.get_decoders() {
                flatten(Some(decoder), chain);
            }
        }
        Some(decoder) => chain.push(decoder),
    }
}

/// Takes a piece through the steps to the text.
fn feed(steps: &mut [Step], piece: String, text: &mut String) -> tokenizers::Result<()> {
    let Some((step, rest)) = steps.split_first_mut() else {
        text.push_str(&piece);
        return Ok(());
    };
    for piece in step.push(piece)? {
        feed(rest, piece, text)?;
    }
    Ok(())
}
