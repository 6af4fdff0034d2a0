//! The prompts that are sent: random token ids of a seed, or those of a file.

use std::path::Path;

use anyhow::{Context, bail};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use serde::Serialize;
use serde_json::Value;

use super::LoadOptions;

/// Longest file of prompts.
const MAX_DATA_BYTES: u64 = 1 << 30;

/// A prompt as OpenAI's API takes it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub(super) enum Prompt {
    Ids(Vec<u32>),
    Text(String),
}

/// What one request asks for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ask {
    pub(super) prompt: Prompt,
    pub(super) output_tokens: usize,
}

/// Where prompts come from.
pub(crate) enum Prompts {
    Random,
    File(Vec<(String, Option<usize>)>),
}

impl Prompts {
    /// Reads the file that the options name.
    pub(super) fn open(options: &LoadOptions) -> anyhow::Result<Self> {
        match &options.data {
            None => Ok(Self::Random),
            Some(path) => Ok(Self::File(read(path)?)),
        }
    }

    /// The requests of one level. A file's prompts go on from where the level before ended, and
    /// from its beginning once they are used up.
    pub(super) fn of_level(&self, level: usize, options: &LoadOptions) -> Vec<Ask> {
        let count = options.num_prompts + options.warmup;
        match self {
            Self::Random => {
                let seed = options.seed.wrapping_add(level as u64);
                let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
                let mut ids = || -> Vec<u32> {
                    let id = |_| random.random_range(0..options.vocab);
                    (0..options.prompt_len).map(id).collect()
                };
                let ask = |_| Ask {
                    prompt: Prompt::Ids(ids()),
                    output_tokens: options.output_len,
                };
                (0..count).map(ask).collect()
            }
            Self::File(texts) => {
                let start = level * count;
                let text = |i: usize| &texts[(start + i) % texts.len()];
                let ask = |i| Ask {
                    prompt: Prompt::Text(text(i).0.clone()),
                    output_tokens: text(i).1.unwrap_or(options.output_len),
                };
                (0..count).map(ask).collect()
            }
        }
    }
}

/// A JSON object a line, or one JSON array of them, as ShareGPT is published.
fn read(path: &Path) -> anyhow::Result<Vec<(String, Option<usize>)>> {
    let text = smq_format::read_text(path, MAX_DATA_BYTES)?;
    let shown = path.display();
    let mut entries = Vec::new();
    if text.trim_start().starts_with('[') {
        let list: Vec<Value> =
            serde_json::from_str(&text).with_context(|| format!("{shown}: is not a JSON array"))?;
        entries.extend(
            list.into_iter()
                .enumerate()
                .map(|(i, v)| (i + 1, "entry", v)),
        );
    } else {
        for (index, line) in text
            .lines()
            .enumerate()
            .filter(|(_, l)| !l.trim().is_empty())
        {
            let value = serde_json::from_str(line)
                .with_context(|| format!("{shown}: line {} is not JSON", index + 1))?;
            entries.push((index + 1, "line", value));
        }
    }
    let mut prompts = Vec::new();
    for (number, kind, entry) in entries {
        match prompt(&entry) {
            Some("") => {}
            Some(text) => {
                let tokens = entry["output_len"].as_u64().filter(|n| *n > 0);
                prompts.push((text.to_owned(), tokens.map(|n| n as usize)));
            }
            None => bail!(
                "{shown}: {kind} {number} has no prompt; expected a text in `prompt`, or turns in \
                 `conversations` or `messages`"
            ),
        }
    }
    if prompts.is_empty() {
        bail!("{shown}: has no prompts");
    }
    Ok(prompts)
}

/// The first turn of a conversation, or the prompt itself.
fn prompt(entry: &Value) -> Option<&str> {
    let first = |list: &str, key: &str| entry[list][0][key].as_str();
    entry["prompt"]
        .as_str()
        .or_else(|| first("conversations", "value"))
        .or_else(|| first("messages", "content"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::tests::options;

    #[test]
    fn random_prompts_are_a_seeds_and_a_levels() {
        let options = options();
        let of = |level| Prompts::Random.of_level(level, &options);
        assert_eq!(of(0), of(0));
        assert_ne!(of(0), of(1));
        assert_eq!(of(0).len(), options.num_prompts + options.warmup);
        for ask in of(1) {
            let Prompt::Ids(ids) = ask.prompt else {
                panic!("a text")
            };
            assert_eq!(ids.len(), options.prompt_len);
            assert!(ids.iter().all(|id| *id < options.vocab));
        }
    }

    #[test]
    fn files_of_several_kinds_are_read() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("data.jsonl");
        let lines = [
            r#"{"conversations": [{"from": "human", "value": "one"}, {"from": "gpt"}]}"#,
            "",
            r#"{"messages": [{"role": "user", "content": "two"}]}"#,
            r#"{"prompt": "three", "output_len": 7}"#,
        ];
        std::fs::write(&path, lines.join("\n")).unwrap();
        let text = |t: &str, n| (t.to_owned(), n);
        let expected = [text("one", None), text("two", None), text("three", Some(7))];
        assert_eq!(read(&path).unwrap(), expected);
        let array = format!("[{},{}]", lines[0], lines[3]);
        std::fs::write(&path, array).unwrap();
        assert_eq!(
            read(&path).unwrap(),
            [text("one", None), text("three", Some(7))]
        );
        std::fs::write(&path, "{\"text\": 1}").unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("line 1 has no prompt"), "{error}");
    }
}
