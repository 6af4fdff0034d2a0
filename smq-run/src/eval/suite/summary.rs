//! From every cell's items to what each variant costs against C0.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::neighbours::{self, Neighbours};
use super::store::{FileFacts, Parameters, Store};
use super::variants::{Variant, VariantName};
use crate::eval::kl::KlReport;
use crate::eval::metrics::Score;
use crate::eval::paired::{Delta, McNemar, delta, mcnemar};
use crate::eval::task::{Item, Metric, Task, scores, values};

/// The study accepts a config whose accuracies fall by no more than this on average, of C0's.
const ACCEPTED_RELATIVE_DROP: f64 = 0.03;

/// The suite's result, `suite.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Summary {
    /// What decided the results, beside the variants.
    pub parameters: Parameters,
    /// The drop that the study accepts, [`ACCEPTED_RELATIVE_DROP`].
    pub accepted_relative_drop: f64,
    /// What each variant came to; C0 is the first.
    pub variants: Vec<VariantSummary>,
    /// Comparisons of neighbouring widths, for a registered plan.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub neighbours: Vec<Neighbours>,
}

/// What a variant came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct VariantSummary {
    /// Name of the variant, and what it is.
    #[serde(flatten)]
    pub variant: VariantName,
    /// Size and weight error.
    #[serde(flatten)]
    pub file: FileFacts,
    /// What each task came to, by task and metric.
    pub tasks: BTreeMap<Task, BTreeMap<Metric, Compared>>,
    /// Mean over published tasks of `(C0 - this) / C0`, each task's first metric; tasks in which C0
    /// has nothing right are left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean_relative_drop: Option<f64>,
    /// Whether that is within [`ACCEPTED_RELATIVE_DROP`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accepted: Option<bool>,
    /// Distance of its predictions from C0's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl: Option<KlReport>,
}

/// A figure and what became of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Compared {
    /// The figure and its standard error.
    #[serde(flatten)]
    pub score: Score,
    /// Items that it is over.
    pub items: usize,
    /// This less C0, item by item; of a perplexity, of the log-likelihoods in nats. Absent for C0,
    /// as what follows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delta: Option<Delta>,
    /// McNemar's test of an accuracy against C0's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mcnemar: Option<McNemar>,
}

/// Summarizes the variants whose cells are all there.
pub(super) fn summarize(
    store: &Store,
    parameters: &Parameters,
    variants: &[Variant],
) -> anyhow::Result<Summary> {
    let mut base = BTreeMap::new();
    let mut summaries = Vec::with_capacity(variants.len());
    for variant in variants {
        let mut tasks = BTreeMap::new();
        for task in parameters.tasks.keys() {
            if let Some(items) = store.items(&variant.name, *task)? {
                tasks.insert(*task, items);
            }
        }
        let Some(file) = store
            .facts(&variant.name)?
            .filter(|_| tasks.len() == parameters.tasks.len())
        else {
            continue;
        };
        let is_base = variant.quantized.is_none();
        if is_base {
            base = tasks.clone();
        }
        let mut compared = BTreeMap::new();
        for (task, items) in &tasks {
            let base = base.get(task).filter(|_| !is_base).map(Vec::as_slice);
            compared.insert(*task, compare(*task, items, base)?);
        }
        let drop = mean_relative_drop(&compared);
        summaries.push(VariantSummary {
            variant: variant.named(),
            file,
            tasks: compared,
            mean_relative_drop: drop,
            accepted: drop.map(|d| d <= ACCEPTED_RELATIVE_DROP),
            kl: store.kl(&variant.name)?,
        });
    }
    let done: Vec<&str> = summaries.iter().map(|v| v.variant.name.as_str()).collect();
    let neighbours = neighbours::all(store, parameters, variants, &done)?;
    Ok(Summary {
        parameters: parameters.clone(),
        accepted_relative_drop: ACCEPTED_RELATIVE_DROP,
        variants: summaries,
        neighbours,
    })
}

fn compare(
    task: Task,
    items: &[Item],
    base: Option<&[Item]>,
) -> anyhow::Result<BTreeMap<Metric, Compared>> {
    let mut out = BTreeMap::new();
    for (metric, score) in scores(task, items)? {
        let these = values(items, metric)?;
        let base = base.map(|base| values(base, metric)).transpose()?;
        let paired = base.as_ref();
        let compared = Compared {
            score,
            items: items.len(),
            delta: paired.map(|base| delta(base, &these)).transpose()?,
            mcnemar: paired
                .filter(|_| metric.is_accuracy())
                .map(|base| mcnemar(base, &these))
                .transpose()?,
        };
        out.insert(metric, compared);
    }
    Ok(out)
}

fn mean_relative_drop(tasks: &BTreeMap<Task, BTreeMap<Metric, Compared>>) -> Option<f64> {
    let drop = |(task, figures): (&Task, &BTreeMap<Metric, Compared>)| {
        let compared = figures.get(task.metrics().first()?)?;
        let lost = -compared.delta?.mean;
        let base = compared.score.value + lost;
        (base > 0.0).then(|| lost / base)
    };
    let published = tasks.iter().filter(|(task, _)| task.is_published());
    let drops: Vec<f64> = published.filter_map(drop).collect();
    (!drops.is_empty()).then(|| drops.iter().sum::<f64>() / drops.len() as f64)
}
