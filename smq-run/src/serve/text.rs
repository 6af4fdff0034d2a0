//! A sequence's text as its tokens come: decoded piece by piece, ended by stop strings.

use smq_model::{TextStream, Tokenizer};

use super::error::{ApiError, ApiResult};

/// Finds stop strings in a text that comes in pieces. What may be the beginning of one is held
/// back.
#[derive(Debug)]
struct StopFilter {
    strings: Vec<String>,
    held: String,
}

impl StopFilter {
    /// What may be shown of the text with `piece`, and whether a stop string has come, which is
    /// left out with all that follows.
    fn push(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        let found = self.strings.iter().filter_map(|s| self.held.find(s));
        if let Some(at) = found.min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let begins = |at: &usize| {
            self.strings
                .iter()
                .any(|s| s.starts_with(&self.held[*at..]))
        };
        let longest = self.strings.iter().map(String::len).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest);
        let starts = self.held.char_indices().map(|(at, _)| at);
        let keep = starts.filter(|at| *at >= from).find(begins);
        let rest = self.held.split_off(keep.unwrap_or(self.held.len()));
        (std::mem::replace(&mut self.held, rest), false)
    }

    fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// The text of one sequence.
pub(super) struct SequenceText {
    tokenizer: &'static Tokenizer,
    stream: Option<TextStream<'static>>,
    /// Special tokens that are shown, which others are not, and how.
    shown: &'static [(u32, &'static str)],
    stop: StopFilter,
}

impl SequenceText {
    pub(super) fn new(
        tokenizer: &'static Tokenizer,
        stop: &[String],
        shown: &'static [(u32, &'static str)],
    ) -> Self {
        Self {
            tokenizer,
            stream: Some(tokenizer.stream()),
            shown,
            stop: StopFilter {
                strings: stop.iter().filter(|s| !s.is_empty()).cloned().collect(),
                held: String::new(),
            },
        }
    }

    /// The text that a token completes, and whether a stop string has ended it.
    pub(super) fn push(&mut self, token: u32) -> ApiResult<(String, bool)> {
        let Some(stream) = &mut self.stream else {
            return Ok((String::new(), true));
        };
        let piece = match self.shown.iter().find(|(id, _)| *id == token) {
            None => stream.push(token).map_err(undecodable)?,
            Some((_, shown)) => {
                // Nothing that comes later changes what was before.
                let before = std::mem::replace(stream, self.tokenizer.stream());
                let (rest, _) = before.finish().map_err(undecodable)?;
                rest + shown
            }
        };
        let (text, ended) = self.stop.push(&piece);
        if ended {
            self.stream = None;
        }
        Ok((text, ended))
    }

    /// What was held back, and whether there is a stop string in it.
    pub(super) fn finish(&mut self) -> ApiResult<(String, bool)> {
        let Some(stream) = self.stream.take() else {
            return Ok((String::new(), false));
        };
        let (rest, _) = stream.finish().map_err(undecodable)?;
        let (mut text, ended) = self.stop.push(&rest);
        if !ended {
            text += &self.stop.finish();
        }
        Ok((text, ended))
    }
}

fn undecodable(error: smq_model::Error) -> ApiError {
    ApiError::internal(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::StopFilter;

    fn shown(strings: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let mut filter = StopFilter {
            strings: strings.iter().map(|s| (*s).to_owned()).collect(),
            held: String::new(),
        };
        let mut shown = Vec::new();
        for piece in pieces {
            let (text, ended) = filter.push(piece);
            shown.push(text);
            if ended {
                return (shown, true);
            }
        }
        shown.push(filter.finish());
        (shown, false)
    }

    #[test]
    fn a_stop_string_ends_the_text_before_it() {
        let (texts, ended) = shown(
            &["END", "\n\n"],
            &["one E", "N", "Q two\n", "x", "\n\nmore"],
        );
        assert_eq!(texts, ["one ", "", "ENQ two", "\nx", ""]);
        assert!(ended);
        // The first of two in one piece, whichever is asked for first.
        assert_eq!(shown(&["c", "b"], &["abc"]), (vec!["a".to_owned()], true));
    }

    #[test]
    fn what_only_begins_one_is_shown_in_the_end() {
        let (texts, ended) = shown(&["ab", "é!"], &["xa", "a", "é"]);
        assert_eq!(texts, ["x", "a", "a", "é"]);
        assert!(!ended);
        assert_eq!(shown(&[], &["a", "b"]).0, ["a", "b", ""]);
    }

    /// However a text is cut into pieces, the same of it is shown.
    #[test]
    fn pieces_do_not_matter() {
        let text = "aabaabaaab-aab";
        for cut in 0..text.len() {
            for second in cut..text.len() {
                let pieces = [&text[..cut], &text[cut..second], &text[second..]];
                let (texts, ended) = shown(&["aaab", "aba-"], &pieces);
                assert_eq!((texts.concat().as_str(), ended), ("aabaab", true));
            }
        }
    }
}
