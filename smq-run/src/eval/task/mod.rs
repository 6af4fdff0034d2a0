//! The tasks, each as lm-evaluation-harness 0.4 defines it: prompts, metrics and answer extraction.
//!
//! ```text
//!   JSONL line -> Request (prompt and what is scored) -> engine -> Item (what came out)
//!              -> Score (mean and standard error)
//! ```
//!
//! Definitions:
//! `lm_eval/tasks/{lambada/lambada_openai, hellaswag/hellaswag, arc/arc_easy, gsm8k/gsm8k}.yaml`,
//! read at lm-eval 0.4.13; the data itself is the user's. [`recall`] alone is ours, and made.

mod arc;
mod gsm8k;
mod hellaswag;
mod lambada;
pub(crate) mod recall;
mod run;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use smq_format::map_file;

use super::metrics::{Score, mean, perplexity};
pub(crate) use gsm8k::MAX_NEW_TOKENS;
pub(crate) use run::{Encoded, Prompts, batches, encode_all, evaluate};
use smq_engine::{Error, Result};

/// A task that a model is evaluated on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Task {
    /// The last word of a passage.
    Lambada,
    /// The most likely of four endings.
    Hellaswag,
    /// Multiple-choice science questions (ARC-Challenge or ARC-Easy, as the file is).
    Arc,
    /// Grade-school arithmetic, answered freely.
    Gsm8k,
    /// The last word of passages that are made, a distance after what tells it.
    Recall,
}

impl Task {
    /// Every task, in the order of the tables.
    pub(crate) const ALL: [Self; 5] = [
        Self::Lambada,
        Self::Hellaswag,
        Self::Arc,
        Self::Gsm8k,
        Self::Recall,
    ];

    /// The name on the command line.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Lambada => "lambada",
            Self::Hellaswag => "hellaswag",
            Self::Arc => "arc",
            Self::Gsm8k => "gsm8k",
            Self::Recall => "recall",
        }
    }

    /// Whether its items come from a published file. Others are made, run only where they are asked
    /// for, and do not count in the study's mean drop.
    #[must_use]
    pub(crate) fn is_published(self) -> bool {
        match self {
            Self::Lambada | Self::Hellaswag | Self::Arc | Self::Gsm8k => true,
            Self::Recall => false,
        }
    }

    /// The metrics of each item, the one to compare models by first.
    #[must_use]
    pub(crate) fn metrics(self) -> &'static [Metric] {
        match self {
            Self::Lambada | Self::Recall => &[Metric::Acc, Metric::Perplexity],
            Self::Hellaswag | Self::Arc => &[Metric::AccNorm, Metric::Acc],
            Self::Gsm8k => &[Metric::FlexibleExtract, Metric::StrictMatch],
        }
    }

    /// The rules, in a line.
    #[must_use]
    pub(crate) fn protocol_in_short(self) -> &'static str {
        match self {
            Self::Lambada => "lambada_openai of lm-evaluation-harness 0.4, zero-shot",
            Self::Hellaswag => "hellaswag of lm-evaluation-harness 0.4, zero-shot",
            Self::Arc => "arc_challenge (arc_easy) of lm-evaluation-harness 0.4, zero-shot",
            Self::Gsm8k => "gsm8k of lm-evaluation-harness 0.4, zero-shot and greedy",
            Self::Recall => "passages made here, and the word that only the passage tells scored",
        }
    }

    /// The rules, in words.
    #[must_use]
    pub(crate) fn protocol(self) -> &'static str {
        match self {
            Self::Lambada => {
                "lambada_openai of lm-evaluation-harness 0.4: zero-shot; the text's last word \
                 after its last space is scored with that space; acc: every token of it is the \
                 most likely one; perplexity: exp of the mean negative log-likelihood of a word"
            }
            Self::Hellaswag => {
                "hellaswag of lm-evaluation-harness 0.4: zero-shot; acc: the ending of highest \
                 log-likelihood; acc_norm: of highest log-likelihood over its length in characters"
            }
            Self::Arc => {
                "arc_challenge (arc_easy) of lm-evaluation-harness 0.4: zero-shot, `Question: ... \
                 Answer:`; acc: the choice of highest log-likelihood; acc_norm: of highest \
                 log-likelihood over its length in characters"
            }
            Self::Gsm8k => {
                "gsm8k of lm-evaluation-harness 0.4: zero-shot, the chat template where the model \
                 has one; greedy, to a stop string or the most new tokens; exact match of the \
                 number after `####` (strict) or of the last number (flexible)"
            }
            Self::Recall => {
                "made: four sentences say which thing is where, filler of so many tokens follows, \
                 then the beginning of a sentence whose last word one of the four tells; the word \
                 is scored with the space before it; acc: every token of it is the most likely \
                 one; perplexity: exp of the mean negative log-likelihood of a word"
            }
        }
    }

    fn parse(self, line: &str) -> std::result::Result<Request, String> {
        match self {
            Self::Lambada => lambada::parse(line),
            Self::Hellaswag => hellaswag::parse(line),
            Self::Arc => arc::parse(line),
            Self::Gsm8k => gsm8k::parse(line),
            Self::Recall => Err("its items are made, not read".to_owned()),
        }
    }

    /// Reads the first `limit` items of a JSONL file.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Model`] naming the line that is not an item of this task, or a file
    /// without any.
    pub(crate) fn read(self, path: &Path, limit: Option<usize>) -> Result<Vec<Request>> {
        let map = map_file(path)?;
        let text = std::str::from_utf8(&map)
            .map_err(|e| smq_model::Error::model(path, format!("is not UTF-8: {e}")))?;
        let mut requests = Vec::new();
        for (number, line) in text.lines().enumerate() {
            if requests.len() >= limit.unwrap_or(usize::MAX) {
                break;
            }
            if line.trim().is_empty() {
                continue;
            }
            let request = self.parse(line).map_err(|message| {
                let (line, task) = (number + 1, self.name());
                smq_model::Error::model(
                    path,
                    format!("line {line} is no item of {task}: {message}"),
                )
            })?;
            requests.push(request);
        }
        if requests.is_empty() {
            return Err(smq_model::Error::model(path, "holds no item").into());
        }
        Ok(requests)
    }
}

impl std::str::FromStr for Task {
    type Err = String;

    fn from_str(s: &str) -> std::result::Result<Self, String> {
        let found = Self::ALL.into_iter().find(|t| t.name() == s);
        found.ok_or_else(|| "expected lambada, hellaswag, arc, gsm8k or recall".to_owned())
    }
}

/// What an item asks of a model.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Request {
    /// How likely is this continuation, and is it the greedy one?
    Continuation {
        /// What stands before it.
        context: String,
        /// The continuation, with the space before it.
        continuation: String,
        /// Tokens since what tells it, where that is known.
        distance: Option<usize>,
    },
    /// Which continuation is the most likely?
    Choice {
        /// What stands before them.
        context: String,
        /// Without the space that joins them to the context.
        choices: Vec<String>,
        /// The right one's index.
        gold: usize,
    },
    /// What does the model answer?
    Answer {
        /// The question as put to the model, before any chat template.
        prompt: String,
        /// The worked answer, its number after `####`.
        reference: String,
    },
}

/// A figure of an item, averaged over a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Metric {
    /// Whether the answer is right, 0 or 1.
    Acc,
    /// 0 or 1, by log-likelihood over length.
    AccNorm,
    /// The item's figure is a log-likelihood, nats.
    Perplexity,
    /// Whether the number in the form that is asked for is right, 0 or 1.
    StrictMatch,
    /// Whether the last number of the answer is right, 0 or 1.
    FlexibleExtract,
}

impl Metric {
    /// The name that files and tables have for it.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Acc => "acc",
            Self::AccNorm => "acc_norm",
            Self::Perplexity => "perplexity",
            Self::StrictMatch => "strict_match",
            Self::FlexibleExtract => "flexible_extract",
        }
    }

    /// Whether it counts right answers.
    #[must_use]
    pub(crate) fn is_accuracy(self) -> bool {
        self != Self::Perplexity
    }
}

/// What a model made of an item; one line of the JSONL output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Item {
    /// The item's place among those read, from 0.
    pub index: usize,
    /// Tokens of filler before the question, of a task that is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distance: Option<usize>,
    /// Log-likelihood of each continuation, nats.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log_likelihoods: Vec<f64>,
    /// The generated text, cut at the first stop string.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response: Option<String>,
    /// The number found in it, by metric.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extracted: BTreeMap<Metric, String>,
    /// Figures of the item, by metric.
    pub metrics: BTreeMap<Metric, f64>,
}

/// The figures of a task, each with its standard error, as the harness reports them.
///
/// # Errors
/// [`Error::Input`] if an item lacks a metric of the task: it belongs to another one.
pub(crate) fn scores(task: Task, items: &[Item]) -> Result<BTreeMap<Metric, Score>> {
    let score = |metric: &Metric| {
        let values = values(items, *metric)?;
        Ok((
            *metric,
            if metric.is_accuracy() {
                mean(&values)
            } else {
                perplexity(&values)
            },
        ))
    };
    task.metrics().iter().map(score).collect()
}

/// One figure of every item.
///
/// # Errors
/// [`Error::Input`] if an item lacks it.
pub(crate) fn values(items: &[Item], metric: Metric) -> Result<Vec<f64>> {
    let value = |item: &Item| {
        item.metrics.get(&metric).copied().ok_or_else(|| {
            let (index, name) = (item.index, metric.name());
            Error::Input(format!("item {index} has no {name}: it is of another task"))
        })
    };
    items.iter().map(value).collect()
}

/// Where the right answer lies in a list: by the label it carries.
fn position(
    labels: impl IntoIterator<Item = String>,
    key: &str,
) -> std::result::Result<usize, String> {
    let found = labels.into_iter().position(|label| label == key);
    found.ok_or_else(|| format!("the answer {key} is none of the choices"))
}

/// Refuses an item whose right answer is none of its choices.
fn choice(
    context: String,
    choices: Vec<String>,
    gold: usize,
) -> std::result::Result<Request, String> {
    if gold >= choices.len() {
        return Err(format!(
            "the answer is choice {gold}, there are {}",
            choices.len()
        ));
    }
    Ok(Request::Choice {
        context,
        choices,
        gold,
    })
}
