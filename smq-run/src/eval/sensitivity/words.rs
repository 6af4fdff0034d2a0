//! A task's words, scored beside the text.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use smq_engine::Engine;
use smq_model::Tokenizer;

use crate::eval::metrics::average;
use crate::eval::paired::{Delta, delta};
use crate::eval::suite::file_name;
use crate::eval::task::recall::RecallOptions;
use crate::eval::task::{
    Encoded, Item, Metric, Prompts, Task, batches, encode_all, evaluate, values,
};

/// A task whose words are scored beside the text.
#[derive(Debug, Clone)]
pub(crate) enum Words {
    /// The last words of LAMBADA's first items.
    Lambada {
        /// The items as published, in JSON Lines.
        data: PathBuf,
        /// How many, where not all.
        limit: Option<usize>,
    },
    /// Words of passages that are made for it.
    Recall(RecallOptions),
}

/// A task, and what C0 makes of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct MeasuredTask {
    /// Which of the tasks it is.
    pub name: Task,
    /// Its file's name, or how its items were made.
    pub data: String,
    /// Items, of each a word.
    pub items: usize,
    /// C0's mean log-likelihood of a word, nats.
    pub log_likelihood: f64,
    /// C0's share of words whose every token is the most likely one.
    pub acc: f64,
}

/// What became of a task's words, this less C0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct WordEffect {
    /// Change of the log-likelihood, nats a word.
    pub log_likelihood: Delta,
    /// Change of the accuracy.
    pub acc: Delta,
}

/// A task in tokens, and C0's items of it.
pub(super) struct BaseTask {
    tokenizer: Tokenizer,
    requests: Vec<Encoded>,
    items: Vec<Item>,
    pub(super) measured: MeasuredTask,
}

impl BaseTask {
    pub(super) fn new(
        words: &Words,
        tokenizer: Tokenizer,
        base: &mut dyn Engine,
    ) -> anyhow::Result<Self> {
        let positions = base.config().max_positions;
        let (name, data, requests) = match words {
            Words::Lambada { data, limit } => {
                let requests = Task::Lambada.read(data, *limit)?;
                (Task::Lambada, file_name(data), requests)
            }
            Words::Recall(options) => {
                let requests = options.requests(&tokenizer, positions)?;
                (Task::Recall, options.describe(), requests)
            }
        };
        let requests = encode_all(&tokenizer, Prompts::default(), positions, &requests)?;
        let items = scored(base, &tokenizer, &requests)?;
        let mean = |metric| anyhow::Ok(average(&values(&items, metric)?));
        let measured = MeasuredTask {
            name,
            data,
            items: items.len(),
            log_likelihood: mean(Metric::Perplexity)?,
            acc: mean(Metric::Acc)?,
        };
        Ok(Self {
            tokenizer,
            requests,
            items,
            measured,
        })
    }

    pub(super) fn effect(&self, engine: &mut dyn Engine) -> anyhow::Result<WordEffect> {
        let items = scored(engine, &self.tokenizer, &self.requests)?;
        let change = |metric| {
            let (base, these) = (values(&self.items, metric)?, values(&items, metric)?);
            anyhow::Ok(delta(&base, &these)?)
        };
        Ok(WordEffect {
            log_likelihood: change(Metric::Perplexity)?,
            acc: change(Metric::Acc)?,
        })
    }
}

fn scored(
    engine: &mut dyn Engine,
    tokenizer: &Tokenizer,
    requests: &[Encoded],
) -> anyhow::Result<Vec<Item>> {
    let mut items = Vec::with_capacity(requests.len());
    for batch in batches(requests, engine.pass_tokens()) {
        // Words are not generated, so nothing ends them.
        items.extend(evaluate(engine, tokenizer, &[], Prompts::default(), batch)?);
    }
    Ok(items)
}
