//! The experiment of `spec/experiment.toml`: measured by [`runner`], told by [`report`].
//!
//! ```text
//!   contract -> plan -> convert -> a process a repeat (worker) -> raw/matrix.jsonl -> report.md, summary/*.csv, plots/*.svg
//! ```

pub mod contract;
pub mod conversion;
pub mod energy;
pub mod gpu_state;
pub mod identity;
pub mod log;
pub mod plan;
pub mod record;
pub mod report;
pub mod runner;
pub mod scale_errors;
pub mod statistics;
pub mod worker;

pub use contract::{Contract, ContractError};
