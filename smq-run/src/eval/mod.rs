//! Quality measured on texts and tasks.

mod encode;
pub(crate) mod kl;
pub(crate) mod metrics;
pub(crate) mod paired;
pub(crate) mod ppl;
mod python;
pub(crate) mod sensitivity;
pub(crate) mod suite;
pub(crate) mod task;
pub(crate) mod texts;
