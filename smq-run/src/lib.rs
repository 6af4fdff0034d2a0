//! Runs decoder-only language models from .smq files and Hugging Face checkpoints.
//!
//! [`Source`] maps a model, [`engine::load`] makes an [`Engine`] of it, and [`generate`](generate::generate),
//! [`bench`](bench::bench) and [`eval`] drive that engine, whatever its device:
//!
//! ```no_run
//! use smq_run::{Device, Source, Tokenizer, engine, eval::ppl};
//!
//! # fn main() -> smq_run::Result<()> {
//! let source = Source::open("model.smq".as_ref())?;
//! let tokenizer = Tokenizer::load(&source)?;
//! let mut engine = engine::load(&source, Device::Auto, None)?;
//! let text = "Once upon a time ...";
//! let report = ppl::perplexity(&mut *engine, &tokenizer, text, &ppl::PplOptions::default(), |_, _| ())?;
//! println!("{:.3}", report.perplexity);
//! # Ok(())
//! # }
//! ```

pub mod bench;
pub mod chat;
pub mod cli;
pub mod config;
pub mod cuda;
pub mod demo;
pub mod engine;
pub mod error;
pub mod eval;
pub mod generate;
pub mod linear;
pub mod measure;
pub mod model;
pub mod sample;
mod source;
pub mod study;
mod tokenizer;

pub use engine::{CpuEngine, Device, Engine};
pub use error::{Error, Result};
pub use source::Source;
pub use tokenizer::{TextStream, Tokenizer};
