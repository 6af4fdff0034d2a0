//! Quality measured on texts and tasks.

pub mod encode;
pub mod kl;
pub mod metrics;
pub mod paired;
pub mod ppl;
mod python;
pub mod sensitivity;
pub mod suite;
pub mod task;
