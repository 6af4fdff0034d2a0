//! Load on an OpenAI-compatible server, and what its clients see: `smq-run load`.
//!
//! The figures have the names and the definitions of `vllm bench serve`. A *level* is one number of
//! clients; each sends its requests one after another, or at times drawn for a rate, and each level
//! has prompts of its own, so that no level finds the one before it in the server's prefix cache.

mod client;
mod figures;
mod guessed;
mod level;
mod prompts;
mod sse;
mod table;

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::serve::Version;
pub(crate) use client::{Address, Client};
pub(crate) use figures::{Goodput, Level, Objective};
pub(crate) use prompts::Prompts;
pub(crate) use table::table;

/// How often a server that starts is asked whether it is up.
const UP_INTERVAL: Duration = Duration::from_millis(20);

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
    /// Tokens to generate for each prompt.
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
    /// Seed of the prompts and of the intervals.
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

impl LoadOptions {
    /// The command that puts the same load on the server at `url`.
    #[must_use]
    pub(crate) fn command(&self, url: &str) -> Vec<String> {
        let mut command = vec!["smq-run".to_owned(), "load".to_owned()];
        let mut add = |name: &str, value: String| command.extend([format!("--{name}"), value]);
        add("url", url.to_owned());
        let levels: Vec<_> = self.concurrency.iter().map(usize::to_string).collect();
        add("concurrency", levels.join(","));
        if let Some(rate) = self.rate {
            add("rate", rate.to_string());
        }
        match &self.data {
            Some(path) => add("data", path.display().to_string()),
            None => {
                add("prompt-len", self.prompt_len.to_string());
                add("vocab", self.vocab.to_string());
            }
        }
        add("output-len", self.output_len.to_string());
        add("num-prompts", self.num_prompts.to_string());
        add("warmup", self.warmup.to_string());
        add("seed", self.seed.to_string());
        add("timeout", self.timeout.as_secs().to_string());
        if !self.ignore_eos {
            command.push("--obey-eos".to_owned());
        }
        command
    }
}

/// What the clients saw, for each number of them.
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
        let ran = runtime.block_on(run);
        levels.push(Level::of(*clients, &ran, &options.goodput));
    }
    Ok(LoadReport {
        url: client.url(),
        model,
        options,
        levels,
    })
}

/// Waits until a server of this program is up, and returns what it says of itself.
///
/// # Errors
/// If it is not up within `limit`.
pub(crate) fn wait_until_up(client: &Client, limit: Duration) -> anyhow::Result<Version> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let up = async {
            while client.get("/health").await.is_err() {
                tokio::time::sleep(UP_INTERVAL).await;
            }
        };
        let is_up = tokio::time::timeout(limit, up).await;
        if is_up.is_err() {
            // Why, in its own words.
            client.get("/health").await?;
        }
        let version = client.get("/version").await?;
        Ok(serde_json::from_slice(&version)?)
    })
}

#[cfg(test)]
mod tests;
