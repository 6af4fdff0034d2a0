//! The steps of a decoder.

use tokenizers::Decoder;
use tokenizers::decoders::DecoderWrapper;

use super::bytes::{Utf8, byte_token, level_bytes};
use super::replace::Replacer;

/// One step. Pieces are whole tokens until a step makes one text of them, and parts of that text
/// from there on.
#[derive(Clone)]
pub(super) enum Step {
    /// Decodes each piece by itself.
    Each(DecoderWrapper),
    /// Takes up to `start` characters from a token's front and `stop` from its end.
    Strip {
        content: char,
        start: usize,
        stop: usize,
    },
    /// Decodes the first token in another way than those behind it.
    Placed {
        decoder: DecoderWrapper,
        first: bool,
    },
    /// Leaves out what equals the token before it.
    Distinct {
        decoder: DecoderWrapper,
        last: Option<String>,
    },
    /// Decodes the last token in another way than those before it, so that one is kept.
    Ended {
        suffix: String,
        kept: Option<String>,
    },
    /// `<0x41>`: what a run of such bytes is, is known at its end.
    Fallback(Vec<u8>),
    /// Characters that stand for bytes; makes one text.
    Level(Utf8),
    /// Spaces between tokens; makes one text.
    Spaced {
        first: bool,
    },
    /// Joins all pieces into one text.
    Fuse,
    /// Takes up to `left` characters from the text's front.
    StripFront {
        content: char,
        left: usize,
    },
    Replace(Replacer),
    /// What can be said of a whole text only.
    Whole {
        decoder: DecoderWrapper,
        text: String,
    },
}

impl Step {
    pub(super) fn spaced() -> Self {
        Self::Spaced { first: true }
    }

    pub(super) fn replacing(from: &str, to: &str) -> Self {
        Self::Replace(Replacer::new(from, to))
    }

    /// Of a decoder; `one_text` if what it gets are parts of one text.
    pub(super) fn of(decoder: &DecoderWrapper, one_text: bool) -> Self {
        let whole = || Self::Whole {
            decoder: decoder.clone(),
            text: String::new(),
        };
        match decoder {
            DecoderWrapper::Fuse(_) => Self::Fuse,
            // To one token the same happens everywhere.
            DecoderWrapper::Metaspace(_) if one_text => Self::Each(decoder.clone()),
            DecoderWrapper::Metaspace(_) => Self::placed(decoder),
            DecoderWrapper::WordPiece(pieces) if one_text && !pieces.cleanup => Self::Fuse,
            DecoderWrapper::WordPiece(_) if !one_text => Self::placed(decoder),
            DecoderWrapper::BPE(bpe) if one_text && !bpe.suffix.is_empty() => {
                Self::replacing(&bpe.suffix, "")
            }
            DecoderWrapper::BPE(bpe) if !one_text => Self::Ended {
                suffix: bpe.suffix.clone(),
                kept: None,
            },
            DecoderWrapper::Replace(replace) if one_text => match pattern(replace) {
                Some(pattern) => Self::replacing(&pattern, &replace.content),
                None => whole(),
            },
            DecoderWrapper::Replace(_) => Self::Each(decoder.clone()),
            DecoderWrapper::Strip(strip) if one_text && strip.stop == 0 => Self::StripFront {
                content: strip.content,
                left: strip.start,
            },
            DecoderWrapper::Strip(strip) if !one_text => Self::Strip {
                content: strip.content,
                start: strip.start,
                stop: strip.stop,
            },
            DecoderWrapper::ByteFallback(_) if !one_text => Self::Fallback(Vec::new()),
            DecoderWrapper::ByteLevel(_) if !one_text => Self::Level(Utf8::default()),
            DecoderWrapper::CTC(_) if !one_text => Self::Distinct {
                decoder: decoder.clone(),
                last: None,
            },
            DecoderWrapper::BPE(_)
            | DecoderWrapper::WordPiece(_)
            | DecoderWrapper::Strip(_)
            | DecoderWrapper::ByteFallback(_)
            | DecoderWrapper::ByteLevel(_)
            | DecoderWrapper::CTC(_)
            | DecoderWrapper::Sequence(_) => whole(),
        }
    }

    fn placed(decoder: &DecoderWrapper) -> Self {
        Self::Placed {
            decoder: decoder.clone(),
            first: true,
        }
    }

    /// What a piece settles.
    pub(super) fn push(&mut self, piece: String) -> tokenizers::Result<Vec<String>> {
        Ok(match self {
            Self::Each(decoder) => decoder.decode_chain(vec![piece])?,
            Self::Strip {
                content,
                start,
                stop,
            } => vec![strip(&piece, *content, *start, *stop)],
            Self::Placed { decoder, first } => match std::mem::take(first) {
                true => decoder.decode_chain(vec![piece])?,
                false => decoder
                    .decode_chain(vec![String::new(), piece])?
                    .split_off(1),
            },
            Self::Distinct { decoder, last } => match last.as_ref() == Some(&piece) {
                true => Vec::new(),
                false => {
                    *last = Some(piece.clone());
                    decoder.decode_chain(vec![piece])?
                }
            },
            Self::Ended { suffix, kept } => {
                let settled = kept.replace(piece);
                settled
                    .map(|token| token.replace(&*suffix, " "))
                    .into_iter()
                    .collect()
            }
            Self::Fallback(run) => match byte_token(&piece) {
                Some(byte) => {
                    run.push(byte);
                    Vec::new()
                }
                None => {
                    let mut pieces = bytes_of_run(run);
                    pieces.push(piece);
                    pieces
                }
            },
            Self::Level(utf8) => vec![utf8.push(&level_bytes(&piece))],
            Self::Spaced { first } => match std::mem::take(first) {
                true => vec![piece],
                false => vec![" ".into(), piece],
            },
            Self::Fuse => vec![piece],
            Self::StripFront { content, left } => {
                let mut rest = piece.as_str();
                while let Some(after) = rest.strip_prefix(*content).filter(|_| *left > 0) {
                    *left -= 1;
                    rest = after;
                }
                if !rest.is_empty() {
                    *left = 0;
                }
                vec![rest.to_owned()]
            }
            Self::Replace(replacer) => vec![replacer.push(&piece)],
            Self::Whole { text, .. } => {
                text.push_str(&piece);
                Vec::new()
            }
        })
    }

    /// What was kept, now that no piece follows.
    pub(super) fn finish(&mut self) -> tokenizers::Result<Vec<String>> {
        Ok(match self {
            Self::Ended { suffix, kept } => {
                let last = kept.take();
                last.map(|token| token.replace(&*suffix, ""))
                    .into_iter()
                    .collect()
            }
            Self::Fallback(run) => bytes_of_run(run),
            Self::Level(utf8) => vec![utf8.finish()],
            Self::Replace(replacer) => vec![replacer.finish()],
            Self::Whole {
                decoder: DecoderWrapper::Strip(s),
                text,
            } => vec![strip(text, s.content, s.start, s.stop)],
            Self::Whole { decoder, text } => decoder.decode_chain(vec![std::mem::take(text)])?,
            Self::Each(_)
            | Self::Strip { .. }
            | Self::Placed { .. }
            | Self::Distinct { .. }
            | Self::Spaced { .. }
            | Self::Fuse
            | Self::StripFront { .. } => Vec::new(),
        })
    }
}

/// The text that a decoder replaces; `None` for a regular expression, and for the empty text,
/// which is everywhere.
fn pattern(replace: &tokenizers::normalizers::Replace) -> Option<String> {
    let json = serde_json::to_value(replace).ok()?;
    let text = json["pattern"]["String"].as_str()?;
    (!text.is_empty()).then(|| text.to_owned())
}

fn strip(text: &str, content: char, start: usize, stop: usize) -> String {
    let front = text
        .chars()
        .take(start)
        .take_while(|c| *c == content)
        .count();
    let end = text
        .chars()
        .rev()
        .take(stop)
        .take_while(|c| *c == content)
        .count();
    let kept = text.chars().count().saturating_sub(front + end);
    text.chars().skip(front).take(kept).collect()
}

/// A run of bytes as text: the characters that they are, or a replacement for each of them.
fn bytes_of_run(run: &mut Vec<u8>) -> Vec<String> {
    let bytes = std::mem::take(run);
    let length = bytes.len();
    match String::from_utf8(bytes) {
        Ok(text) if length > 0 => vec![text],
        Ok(_) => Vec::new(),
        Err(_) => vec!["\u{FFFD}".into(); length],
    }
}
