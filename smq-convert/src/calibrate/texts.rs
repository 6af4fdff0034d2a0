//! Calibration texts: files of plain text or of JSON Lines, cut into windows of tokens.

use std::path::Path;

use serde::Deserialize;
use smq_model::{Message, Tokenizer};

use super::CalibrateOptions;
use crate::error::ConvertError;

/// Characters of a text that are tokenized first, for each token that is wanted; more follow where
/// they do not do.
const CHARS_PER_TOKEN: usize = 8;

/// Windows of tokens, and what they were taken from.
#[derive(Debug)]
pub(crate) struct CalibrationText {
    /// Each as long as the others.
    pub(super) windows: Vec<Vec<u32>>,
    /// Name and BLAKE3 of each file.
    pub(super) sources: Vec<(String, [u8; 32])>,
}

/// A line of JSON Lines.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Text { text: String },
    Chat { messages: Vec<Message> },
}

impl CalibrationText {
    /// The first tokens of each file, in windows of equal length; files share the windows evenly,
    /// and the first ones take one more where that does not come out even.
    ///
    /// # Errors
    /// A file that cannot be read or tokenized, or that is too short for its windows.
    pub(super) fn read(
        options: &CalibrateOptions,
        tokenizer: &Tokenizer,
    ) -> Result<Self, ConvertError> {
        let (paths, window) = (&options.texts, options.window);
        let count = options.tokens / window;
        let mut out = Self {
            windows: Vec::new(),
            sources: Vec::new(),
        };
        for (i, path) in paths.iter().enumerate() {
            let own = count / paths.len() + usize::from(i < count % paths.len());
            let map = smq_format::map_file(path)?;
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let hash = *blake3::hash(&map).as_bytes();
            out.sources.push((name.into_owned(), hash));
            let ids = leading_ids(path, &map, tokenizer, own * window)?;
            out.windows
                .extend(ids.chunks_exact(window).map(<[u32]>::to_vec));
        }
        Ok(out)
    }

    /// Tokens of each window.
    pub(super) fn window(&self) -> usize {
        self.windows.first().map_or(0, Vec::len)
    }

    /// Tokens in all windows.
    pub(super) fn tokens(&self) -> usize {
        self.windows.iter().map(Vec::len).sum()
    }
}

/// The first `wanted` tokens of a file.
fn leading_ids(
    path: &Path,
    bytes: &[u8],
    tokenizer: &Tokenizer,
    wanted: usize,
) -> Result<Vec<u32>, ConvertError> {
    let problem = |problem: String| ConvertError::Calibration {
        path: path.to_path_buf(),
        problem,
    };
    let text = std::str::from_utf8(bytes).map_err(|e| problem(format!("is not UTF-8: {e}")))?;
    let is_lines = path.extension().is_some_and(|e| e == "jsonl");
    let mut ids = match is_lines {
        true => line_ids(path, text, tokenizer, wanted)?,
        false => plain_ids(text, tokenizer, wanted)?,
    };
    if ids.len() < wanted {
        return Err(problem(format!(
            "has {} tokens, and {wanted} are wanted of it; give a longer text, or fewer \
             --calibrate-tokens",
            ids.len()
        )));
    }
    ids.truncate(wanted);
    Ok(ids)
}

/// Of a text as one string, no more than needed.
fn plain_ids(text: &str, tokenizer: &Tokenizer, wanted: usize) -> Result<Vec<u32>, ConvertError> {
    let mut chars = wanted * CHARS_PER_TOKEN;
    loop {
        let end = text.char_indices().nth(chars).map(|(at, _)| at);
        // Up to a line's end, so that no word is cut.
        let end = end.and_then(|at| text[at..].find('\n').map(|line| at + line));
        let ids = tokenizer.encode(&text[..end.unwrap_or(text.len())], false)?;
        if ids.len() >= wanted || end.is_none() {
            return Ok(ids);
        }
        chars *= 2;
    }
}

/// The tokens of JSON Lines, one line after the other.
fn line_ids(
    path: &Path,
    text: &str,
    tokenizer: &Tokenizer,
    wanted: usize,
) -> Result<Vec<u32>, ConvertError> {
    let mut ids = Vec::new();
    let lines = text
        .lines()
        .zip(1..)
        .filter(|(line, _)| !line.trim().is_empty());
    for (line, number) in lines {
        let problem = |problem: String| ConvertError::Calibration {
            path: path.to_path_buf(),
            problem: format!("line {number} {problem}"),
        };
        let line = serde_json::from_str(line).map_err(|_| {
            problem(
                "is not a JSON object with a text, or with chat messages that each have a role \
                     and a content"
                    .to_owned(),
            )
        })?;
        ids.extend(match line {
            Line::Text { text } => tokenizer.encode(&text, false)?,
            Line::Chat { messages } => {
                let Some(chat) = tokenizer.chat() else {
                    return Err(problem(
                        "has chat messages, and the model has no chat template; give texts"
                            .to_owned(),
                    ));
                };
                let rendered = chat.render(&messages, false);
                tokenizer.encode(
                    &rendered.map_err(|e| problem(format!("fails: {e}")))?,
                    false,
                )?
            }
        });
        if ids.len() >= wanted {
            break;
        }
    }
    Ok(ids)
}
