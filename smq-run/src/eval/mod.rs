//! Quality measured on texts.

pub mod ppl;
