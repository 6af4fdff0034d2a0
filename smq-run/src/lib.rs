//! The commands of `smq-run`, and what they measure: speed ([`mod@bench`]), quality ([`eval`]), the study's
//! experiment ([`study`]), every kernel against plain sums ([`kernels`]), and the demo.

pub mod bench;
pub mod cli;
mod convert;
pub mod demo;
pub mod eval;
pub mod kernels;
pub mod measure;
mod output;
pub mod study;
