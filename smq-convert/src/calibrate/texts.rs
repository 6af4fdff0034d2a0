//! Calibration texts: files of plain text or of JSON Lines, cut into windows of tokens.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use smq_model::Tokenizer;

use crate::error::ConvertError;

/// Characters of a text that are tokenized first, for each token that is wanted; more follow where they do not do.
const CHARS_PER_TOKEN: usize = 8;

/// Windows of tokens, and what they were taken from.
#[derive(Debug)]
pub struct CalibrationText {
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
    Chat { messages: Vec<Turn> },
}

#[derive(Deserialize)]
struct Turn {
    role: String,
    content: String,
}

impl CalibrationText {
    /// The first tokens of each file, in windows of `window`, `tokens` in all; files share the windows evenly, and the
    /// first ones take one more where that does not come out even.
    ///
    /// # Errors
    /// A file that cannot be read or tokenized, or that is too short for its windows.
    pub fn read(
        paths: &[PathBuf],
        tokenizer: &Tokenizer,
        tokens: usize,
        window: usize,
    ) -> Result<Self, ConvertError> {
        let count = (tokens / window).max(paths.len());
        let mut out = Self {
            windows: Vec::new(),
            sources: Vec::new(),
        };
        for (i, path) in paths.iter().enumerate() {
            let own = count / paths.len() + usize::from(i < count % paths.len());
            let map = smq_format::map_file(path)?;
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            out.sources
                .push((name.into_owned(), *blake3::hash(&map).as_bytes()));
            let ids = leading_ids(path, &map, tokenizer, own * window)?;
            out.windows
                .extend(ids.chunks_exact(window).take(own).map(<[u32]>::to_vec));
        }
        Ok(out)
    }

    /// Tokens in all windows.
    pub fn tokens(&self) -> usize {
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
    let mut ids = Vec::new();
    if path.extension().is_some_and(|e| e == "jsonl") {
        for (number, line) in text
            .lines()
            .enumerate()
            .filter(|(_, l)| !l.trim().is_empty())
        {
            let line = serde_json::from_str(line).map_err(|e| {
                problem(format!(
                    "line {} is not an object with a text or with chat messages: {e}",
                    number + 1
                ))
            })?;
            ids.extend(match line {
                Line::Text { text } => tokenizer.encode(&text, false)?,
                Line::Chat { messages } => {
                    let text = turns(messages);
                    tokenizer.encode(&text, false)?
                }
            });
            if ids.len() >= wanted {
                break;
            }
        }
    } else {
        let mut chars = wanted * CHARS_PER_TOKEN;
        loop {
            let end = text.char_indices().nth(chars).map(|(at, _)| at);
            // Up to a line's end, so that no word is cut.
            let end = end.and_then(|at| text[at..].find('\n').map(|line| at + line));
            ids = tokenizer.encode(&text[..end.unwrap_or(text.len())], false)?;
            if ids.len() >= wanted || end.is_none() {
                break;
            }
            chars *= 2;
        }
    }
    if ids.len() < wanted {
        return Err(problem(format!(
            "has {} tokens, and {wanted} are wanted of it; give a longer text, or fewer --calibrate-tokens",
            ids.len()
        )));
    }
    ids.truncate(wanted);
    Ok(ids)
}

fn turns(messages: Vec<Turn>) -> String {
    messages.into_iter().map(|t| t.role + &t.content).collect()
}
