//! The raw record: one JSON line a cell, each with the environment it was measured in. A field that
//! is absent was not measured; nothing is filled in.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use smq_format::statistics::{ErrorSummary, TensorStatistics};

use super::contract::Config;
use super::gpu_state::GpuState;
use crate::measure::{Machine, Memory};
use smq_engine::GpuInfo;
use smq_engine::LoadReport;
use smq_engine::Summary;

/// One line of `raw/matrix.jsonl` or `raw/online.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Line {
    /// What figures are traced by: `C4/p128/o64/r1`, `C4/energy`, `C4/file`, `errors/search/e5m3`,
    /// `errors/exact`, `C4/online/c8/r1`.
    pub id: String,
    /// What was measured, or why it was not.
    #[serde(flatten)]
    pub body: Body,
    /// What it was measured with.
    pub environment: Environment,
}

/// What a line holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "snake_case")]
pub(crate) enum Body {
    /// The file of a config.
    File(Box<FileRecord>),
    /// A workload timed once.
    Cell(Box<CellRecord>),
    /// An energy run of a config.
    Energy(Box<EnergyRecord>),
    /// Weights' errors of one rule and width.
    ScaleErrors(Box<ScaleErrorsRecord>),
    /// A number of clients of a server, once.
    Online(Box<OnlineRecord>),
    /// Something that was not measured, and why.
    Absent {
        /// The reason in one sentence.
        reason: String,
    },
}

/// Everything around a measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Environment {
    /// Version of this program.
    pub version: String,
    /// The commit it was built from; `unknown` where the build had no git.
    pub commit: String,
    /// BLAKE3 of the contract.
    pub contract_blake3: String,
    /// BLAKE3 of the online half's file, in its lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub online_blake3: Option<String>,
    /// Which checkpoint was measured.
    pub model: ModelIdentity,
    /// The command that measured this, and whoever repeats it runs.
    pub command: Vec<String>,
    /// When the line was written, UTC.
    pub time: String,
    /// CPU and operating system.
    pub machine: Machine,
    /// GPU, driver, CUDA and NVRTC; absent where the CPU did it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuInfo>,
    /// BLAKE3 of each embedded kernel file.
    pub kernels_blake3: BTreeMap<String, String>,
}

/// Which checkpoint it is, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ModelIdentity {
    /// The path as it was given.
    pub path: String,
    /// A hash of config.json and of the ends of each shard, in hex.
    pub id: String,
}

/// What is known of the file that configs run from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct FileRecord {
    /// The configs that run from it.
    pub configs: Vec<Config>,
    /// Length of the file, or of all shards of a checkpoint.
    pub file_bytes: u64,
    /// All scale blobs; absent where weights have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_bytes: Option<u64>,
    /// BLAKE3 of the .smq file's index, which holds that of every blob; absent for a checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index_blake3: Option<String>,
    /// BLAKE3 of each whole shard that it was made from.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sources_blake3: BTreeMap<String, String>,
    /// The conversion's time, fsync left out; absent where the file was there already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub convert_seconds: Option<f64>,
    /// Errors of each quantized tensor, from the file's statistics.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tensors: Vec<TensorErrors>,
}

/// A workload timed once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct CellRecord {
    /// Id of the config.
    pub config: String,
    /// Whether it is one of the long contexts.
    pub long_context: bool,
    /// Number of the process, from 1.
    pub repeat: usize,
    /// Which file was measured, as in [`FileRecord::index_blake3`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index_blake3: Option<String>,
    /// What the process says of the workload.
    #[serde(flatten)]
    pub timed: Timed,
}

/// What a process says about a workload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Timed {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated after it.
    pub output_tokens: usize,
    /// What it ran on: `cpu` or `cuda`.
    pub device: String,
    /// Weight bytes read for each decoded token.
    pub weight_bytes_per_token: usize,
    /// Prompt submitted to first token on the host.
    pub ttft_ms: f64,
    /// The same when this process saw that prompt length for the first time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttft_first_use_ms: Option<f64>,
    /// `(last - first) / (n - 1)`, and percentiles over tokens; LongRoPE's switch left out. Absent
    /// for one token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tpot_ms: Option<Summary>,
    /// Each token after the first.
    pub token_ms: Vec<f64>,
    /// The token at which LongRoPE's factors switched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_switch_ms: Option<f64>,
    /// Output tokens over the whole time.
    pub output_tokens_per_s: f64,
    /// Prompt and output tokens over the whole time.
    pub total_tokens_per_s: f64,
    /// Opening the file and loading the model, in this process.
    pub load_ms: f64,
    /// What copying the weights to the GPU took of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<LoadReport>,
    /// The process's memory after the workload.
    #[serde(flatten)]
    pub memory: Memory,
    /// The GPU's memory in use after the workload, by everything: the largest so far, since nothing
    /// is freed before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_memory_bytes: Option<u64>,
    /// Device memory in use before the process opened the GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_memory_before_bytes: Option<u64>,
    /// The GPU right before the workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_before: Option<GpuState>,
    /// The GPU right after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_after: Option<GpuState>,
    /// What a reader should know of the cell: `throttled`, `hot`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<String>,
    /// Why there is nothing from NVML.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nvml_absent: Option<String>,
}

/// An energy run of a config.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct EnergyRecord {
    /// Id of the config.
    pub config: String,
    /// Which file was measured, as in [`FileRecord::index_blake3`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index_blake3: Option<String>,
    /// What the process says of energy.
    #[serde(flatten)]
    pub measured: Energy,
}

/// What a process says about energy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Energy {
    /// Tokens of each prompt.
    pub prompt_tokens: usize,
    /// Tokens generated after each.
    pub output_tokens: usize,
    /// Milliseconds between power samples.
    pub sample_ms: u64,
    /// The GPU's mean power before it was opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_watts: Option<f64>,
    /// Whole generations, prompt and output.
    pub generations: Window,
    /// Prompts up to their first token.
    pub prompts: Window,
    /// Joules a token by each of the two methods.
    pub joules_per_token: BTreeMap<String, JoulesPerToken>,
    /// The GPU before and after.
    pub gpu_before: GpuState,
    /// The GPU right after.
    pub gpu_after: GpuState,
    /// What a reader should know of the run: `throttled`, `hot`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<String>,
}

/// Joules an output token, by one method.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct JoulesPerToken {
    /// Everything over output tokens.
    pub with_prefill: f64,
    /// Less the prompts' energy, over output tokens after the first.
    pub without_prefill: f64,
}

/// Work repeated back to back under the meter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Window {
    /// How often the work was repeated.
    pub runs: usize,
    /// How long in all.
    pub seconds: f64,
    /// Seconds from the start and watts.
    pub samples: Vec<(f64, f64)>,
    /// Integral of the samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trapezoid_joules: Option<f64>,
    /// What the energy counter moved by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counter_joules: Option<f64>,
}

impl Window {
    /// Joules by the method that results call so: `counter` or `trapezoid`.
    #[must_use]
    pub(crate) fn joules(&self, method: &str) -> Option<f64> {
        match method {
            "counter" => self.counter_joules,
            "trapezoid" => self.trapezoid_joules,
            _ => None,
        }
    }
}

/// Weights' errors of one rule and width.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ScaleErrorsRecord {
    /// Scale rule; `exact` for f32 scales, which the others are compared with.
    pub rule: String,
    /// Mantissa bits of E5Mx; absent for f32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mantissa_bits: Option<u32>,
    /// Consecutive elements of a row that share a scale.
    pub group: usize,
    /// Which tensors were sampled: `mlp`, `all` or a pattern.
    pub target: String,
    /// Rows of each, at most.
    pub rows_per_tensor: usize,
    /// Errors of each tensor's sampled rows.
    pub tensors: Vec<TensorErrors>,
}

/// So many clients of a server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct OnlineRecord {
    /// Id of the config.
    pub config: String,
    /// Number of the server, from 1.
    pub repeat: usize,
    /// Which file was served, as in [`FileRecord::index_blake3`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index_blake3: Option<String>,
    /// The server's command; the line's is the one that put the load on it.
    pub server: Vec<String>,
    /// What the server ran on: `cpu` or `cuda`.
    pub device: String,
    /// Tokens of each prompt.
    pub prompt_tokens: usize,
    /// Tokens generated after it.
    pub output_tokens: usize,
    /// Requests that were sent in all.
    pub num_prompts: usize,
    /// What the clients saw, with the names that `vllm bench serve` gives it: `max_concurrency`,
    /// `output_throughput`, `median_ttft_ms` and so on.
    pub figures: serde_json::Map<String, serde_json::Value>,
    /// The GPU right before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_before: Option<GpuState>,
    /// The GPU right after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_after: Option<GpuState>,
    /// What a reader should know of the level: `throttled`, `hot`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<String>,
}

impl OnlineRecord {
    /// A figure by its name.
    #[must_use]
    pub(crate) fn figure(&self, name: &str) -> Option<f64> {
        self.figures.get(name)?.as_f64()
    }
}

/// What quantization did to a tensor, or to a sample of its rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TensorErrors {
    /// Name of the tensor.
    pub name: String,
    /// Groups that were measured.
    pub groups: u64,
    /// Scales under E5Mx's window.
    pub under_window: u64,
    /// Errors of what is stored.
    pub stored: Errors,
    /// With exact f32 scales of the same rule; left out where another line has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exact: Option<Errors>,
}

/// Error figures (`spec/method.md`, "Statistics").
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Errors {
    /// Mean over groups of the relative MSE.
    pub mean_rel_mse: f64,
    /// `sum (w - w')^2`.
    pub squared_error: f64,
    /// `sum w^2`, which the squared error is relative to.
    pub squared_weight: f64,
}

impl From<&ErrorSummary> for Errors {
    fn from(e: &ErrorSummary) -> Self {
        Self {
            mean_rel_mse: e.mean_rel_mse,
            squared_error: e.squared_error,
            squared_weight: e.squared_weight,
        }
    }
}

impl From<&TensorStatistics> for TensorErrors {
    fn from(t: &TensorStatistics) -> Self {
        Self {
            name: t.name.clone(),
            groups: t.groups,
            under_window: t.under_window,
            stored: (&t.stored).into(),
            exact: Some((&t.exact).into()),
        }
    }
}
