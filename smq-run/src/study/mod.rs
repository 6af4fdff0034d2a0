//! The experiment of `spec/experiment.toml`: measured by [`runner`], told by [`report`].
//!
//! ```text
//!   contract -> plan -> convert -> a process a repeat (worker) -> raw/matrix.jsonl
//!   raw/matrix.jsonl -> report.md, summary/*.csv, plots/*.svg
//! ```

pub(crate) mod contract;
mod conversion;
mod energy;
mod gpu_state;
mod identity;
pub(crate) mod log;
pub(crate) mod plan;
mod record;
pub(crate) mod report;
pub(crate) mod runner;
mod scale_errors;
mod statistics;
pub(crate) mod worker;
