//! Neighbouring widths, compared with each other on the same items and windows.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::store::{Parameters, Store};
use super::variants::Variant;
use crate::eval::paired::{Delta, McNemar, delta, mcnemar};
use crate::eval::task::{Metric, Task, values};

/// Two variants whose scales follow each other in a plan, and that differ in nothing else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Neighbours {
    /// The one whose scales come first in the plan.
    pub first: String,
    /// The one whose scales come right after.
    pub second: String,
    /// How they differ, by task and metric.
    pub tasks: BTreeMap<Task, BTreeMap<Metric, Difference>>,
    /// Of the divergence from C0, nats, window by window.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl: Option<Delta>,
}

/// The first less the second.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Difference {
    /// Item by item; of a perplexity, of the log-likelihoods in nats.
    #[serde(flatten)]
    pub delta: Delta,
    /// McNemar's test of an accuracy; `base` is the second variant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mcnemar: Option<McNemar>,
}

/// All pairs of which both are `done`.
pub(super) fn all(
    store: &Store,
    parameters: &Parameters,
    variants: &[Variant],
    done: &[&str],
) -> anyhow::Result<Vec<Neighbours>> {
    let mut out = Vec::new();
    let is_done = |v: &&Variant| done.contains(&v.name.as_str());
    for first in variants.iter().filter(is_done) {
        let Some(ladder) = &first.ladder else {
            continue;
        };
        let follows = |v: &&Variant| {
            let other = v.ladder.as_ref();
            other.is_some_and(|o| o.key == ladder.key && o.step == ladder.step + 1)
        };
        let Some(second) = variants.iter().filter(is_done).find(follows) else {
            continue;
        };
        out.push(compare(store, parameters, &first.name, &second.name)?);
    }
    Ok(out)
}

fn compare(
    store: &Store,
    parameters: &Parameters,
    first: &str,
    second: &str,
) -> anyhow::Result<Neighbours> {
    let mut tasks = BTreeMap::new();
    for &task in parameters.tasks.keys() {
        let (Some(these), Some(base)) = (store.items(first, task)?, store.items(second, task)?)
        else {
            continue;
        };
        let mut metrics = BTreeMap::new();
        for &metric in task.metrics() {
            let (these, base) = (values(&these, metric)?, values(&base, metric)?);
            let test = || mcnemar(&base, &these);
            let difference = Difference {
                delta: delta(&base, &these)?,
                mcnemar: metric.is_accuracy().then(test).transpose()?,
            };
            metrics.insert(metric, difference);
        }
        tasks.insert(task, metrics);
    }
    let kl = match (store.kl(first)?, store.kl(second)?) {
        (Some(these), Some(base)) => Some(delta(&base.window_kl, &these.window_kl)?),
        _ => None,
    };
    Ok(Neighbours {
        first: first.to_owned(),
        second: second.to_owned(),
        tasks,
        kl,
    })
}
