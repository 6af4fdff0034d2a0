//! Quality measured on texts and tasks.

mod encode;
pub(crate) mod kl;
pub(crate) mod metrics;
mod paired;
pub(crate) mod ppl;
mod python;
pub(crate) mod sensitivity;
pub(crate) mod suite;
pub(crate) mod task;
