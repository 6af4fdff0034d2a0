//! Texts to measure on: plain ones, and JSON Lines as `smq-convert --calibrate` takes them.

use std::path::Path;

use anyhow::{Context, bail};
use serde::Deserialize;
use smq_engine::Error;
use smq_model::{Message, Tokenizer};

use super::ppl::{MAX_TEXT_BYTES, PplOptions};

/// A line of JSON Lines.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Text {
        text: String,
    },
    Chat {
        messages: Vec<Message>,
    },
    /// A question and its answer, as gsm8k is published.
    Question {
        question: String,
        answer: String,
    },
}

/// The tokens of a file that are cut into windows. A plain text is tokenized as one string. Of a
/// `.jsonl` each line is tokenized by itself, and its tokens follow those of the line before.
///
/// # Errors
/// A file that cannot be read or tokenized, has a line of no known form, or is shorter than one
/// window; it is named.
pub(crate) fn file_tokens(
    path: &Path,
    tokenizer: &Tokenizer,
    options: &PplOptions,
    positions: usize,
) -> anyhow::Result<Vec<u32>> {
    let name = path.display();
    let text = smq_format::read_text(path, MAX_TEXT_BYTES)?;
    if path.extension().is_none_or(|e| e != "jsonl") {
        let ids = options.tokens(tokenizer, &text, positions);
        return ids.with_context(|| name.to_string());
    }
    let most = options.max_tokens.unwrap_or(usize::MAX);
    let mut ids = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        if line.trim().is_empty() {
            continue;
        }
        let tokens = line_tokens(line, tokenizer);
        ids.extend(tokens.with_context(|| format!("{name}: line {number}"))?);
        if ids.len() >= most {
            break;
        }
    }
    ids.truncate(most);
    let window = options.window;
    if !(2..=positions).contains(&window) {
        return Err(Error::Input(format!(
            "window is {window} tokens, expected 2 to the model's context of {positions}"
        ))
        .into());
    }
    if ids.len() < window {
        bail!(
            "{name}: the text has {} tokens, fewer than one window of {window}",
            ids.len()
        );
    }
    Ok(ids)
}

fn line_tokens(line: &str, tokenizer: &Tokenizer) -> anyhow::Result<Vec<u32>> {
    let parsed = serde_json::from_str(line).ok().context(
        "is not a JSON object with a text, with chat messages that each have a role and a content, \
         or with a question and an answer",
    )?;
    let text = match parsed {
        Line::Text { text } => text,
        Line::Question { question, answer } => format!("Question: {question}\nAnswer: {answer}\n"),
        Line::Chat { messages } => {
            let chat = tokenizer.chat();
            let chat =
                chat.context("has chat messages, and the model has no chat template; give texts")?;
            chat.render(&messages, false)?
        }
    };
    Ok(tokenizer.encode(&text, false)?)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use smq_model::Source;

    use super::*;

    #[test]
    fn lines_are_tokenized_one_by_one() {
        let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
        let tokenizer =
            Tokenizer::load(&Source::open(&fixtures.join("phi3-tiny")).unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lines.jsonl");
        let tokens = |window, max_tokens| {
            let options = PplOptions { window, max_tokens };
            file_tokens(&path, &tokenizer, &options, 4096)
        };
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        write(
            "{\"text\": \"Once upon a time\"}\n\n{\"question\": \"Who?\", \"answer\": \"Ann\"}\n",
        );
        let of = |text: &str| tokenizer.encode(text, false).unwrap();
        let whole = [of("Once upon a time"), of("Question: Who?\nAnswer: Ann\n")].concat();
        assert_eq!(tokens(4, None).unwrap(), whole);
        assert_eq!(tokens(4, Some(5)).unwrap(), whole[..5]);
        let error = |window| format!("{:#}", tokens(window, None).unwrap_err());
        assert!(
            error(900).contains("lines.jsonl: the text has"),
            "{}",
            error(900)
        );
        assert!(error(1).contains("window is 1 tokens"), "{}", error(1));
        write("{\"text\": \"a\"}\n{\"txt\": \"a\"}\n");
        assert!(error(4).contains("lines.jsonl: line 2"), "{}", error(4));
        // The same text, plain.
        let plain = dir.path().join("plain.txt");
        std::fs::write(&plain, "Once upon a time").unwrap();
        let options = PplOptions {
            window: 4,
            max_tokens: None,
        };
        let ids = file_tokens(&plain, &tokenizer, &options, 4096).unwrap();
        assert_eq!(ids, of("Once upon a time"));
    }
}
