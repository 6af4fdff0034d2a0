//! Quality measured on texts and tasks.

pub mod encode;
pub mod metrics;
pub mod ppl;
pub mod task;
