//! Load on an OpenAI-compatible server, and what its clients see: `smq-run load`.
//!
//! The figures have the names and the definitions of `vllm bench serve`. A *level* is one number of
//! clients; each sends its requests one after another, or at times drawn for a rate, and each level
//! has prompts of its own, so that no level finds the one before it in the server's prefix cache.

mod client;
mod figures;
mod level;
mod prompts;
mod sse;
mod table;

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

pub(crate) use client::{Address, Client};
pub(crate) use figures::{Goodput, Level, Objective};
pub(crate) use prompts::Prompts;
pub(crate) use table::table;

/// What is asked of the server.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct LoadOptions {
    /// Most requests at a time, a level each.
    pub concurrency: Vec<usize>,
    /// Requests sent a second, at exponentially distributed intervals; without it each client sends
    /// its next request when the one before is answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// Tokens of a random prompt.
    pub prompt_len: usize,
    /// Tokens to generate.
    pub output_len: usize,
    /// Requests of a level.
    pub num_prompts: usize,
    /// Requests before those of a level, which are not counted.
    pub warmup: usize,
    /// A file of prompts in place of random ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<PathBuf>,
    /// Random token ids are below this.
    pub vocab: u32,
    /// Of prompts and of intervals.
    pub seed: u64,
    /// Whether `ignore_eos` is sent, so that every answer has `output_len` tokens.
    pub ignore_eos: bool,
    /// What a request has to keep to, to count as good.
    #[serde(skip_serializing_if = "Goodput::is_empty")]
    pub goodput: Goodput,
    /// The longest that a request may take, in seconds.
    #[serde(rename = "timeout_seconds", serialize_with = "seconds")]
    pub timeout: Duration,
}

/// A sweep's results.
#[derive(Debug, Serialize)]
pub(crate) struct LoadReport {
    pub url: String,
    pub model: String,
    pub options: LoadOptions,
    pub levels: Vec<Level>,
}

fn seconds<S: serde::Serializer>(value: &Duration, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_f64(value.as_secs_f64())
}

/// Runs every level; `on_level` is told its number of clients, and `on_request` each request that
/// ended.
///
/// # Errors
/// If the server cannot be asked for its models, or the data cannot be read. Requests that fail are
/// counted in the report.
pub(crate) fn load(
    client: &Client,
    options: LoadOptions,
    mut on_level: impl FnMut(usize),
    on_request: impl Fn() + Sync,
) -> anyhow::Result<LoadReport> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let prompts = Prompts::open(&options)?;
    let model = runtime.block_on(client.model())?;
    let mut levels = Vec::new();
    for (index, clients) in options.concurrency.iter().enumerate() {
        on_level(*clients);
        let asks = prompts.of_level(index, &options);
        let run = level::run(client, &model, *clients, index, asks, &options, &on_request);
        let (outcomes, duration) = runtime.block_on(run);
        levels.push(Level::of(*clients, &outcomes, duration, &options.goodput));
    }
    Ok(LoadReport {
        url: client.url(),
        model,
        options,
        levels,
    })
}

#[cfg(test)]
mod tests;
