//! The experiment of `spec/experiment.toml`: measured by [`runner`], told by [`report`].
//!
//! ```text
//!   contract -> plan -> convert -> a process a repeat (worker) -> raw/matrix.jsonl
//!   contract -> online -> convert -> a server a repeat -> raw/online.jsonl
//!   raw/matrix.jsonl, raw/online.jsonl -> report.md, summary/*.csv, plots/*.svg
//! ```

pub(crate) mod contract;
mod conversion;
mod energy;
mod gpu_state;
mod identity;
pub(crate) mod log;
pub(crate) mod online;
pub(crate) mod plan;
mod record;
pub(crate) mod report;
pub(crate) mod runner;
mod scale_errors;
mod statistics;
mod weights;
pub(crate) mod worker;
