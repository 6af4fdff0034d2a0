//! Runs decoder-only language models: linear products, layers, sampling, the CPU reference and the
//! CUDA engine. It has no command line and knows no study.
//!
//! [`load()`] makes an [`Engine`] of an open [`Source`](smq_model::Source), and
//! [`generate`](generate::generate) drives it, whatever its device:
//!
//! ```no_run
//! use smq_engine::generate::{GenerateOptions, generate};
//! use smq_engine::{Device, load};
//! use smq_model::{GenerationSettings, Source, Tokenizer};
//!
//! # fn main() -> smq_engine::Result<()> {
//! let source = Source::open("model.smq".as_ref())?;
//! let tokenizer = Tokenizer::load(&source)?;
//! let mut engine = load(&source, Device::Auto, None)?;
//! let options = GenerateOptions {
//!     max_new_tokens: 16,
//!     settings: GenerationSettings::of(&source)?,
//!     tokenizer: Some(&tokenizer),
//!     seed: 42,
//! };
//! let prompt = tokenizer.encode("Once upon a time", true)?;
//! let generation = generate(&mut *engine, &prompt, &options, |_| Ok(()))?;
//! println!("{}", tokenizer.decode(&generation.ids)?);
//! # Ok(())
//! # }
//! ```
//!
//! [`serve`] runs many sequences at once, each with the tokens that it has alone.

mod cpu;
pub mod cuda;
pub mod divergence;
mod engine;
mod error;
pub mod generate;
mod kv;
pub mod linear;
mod load;
pub mod model;
mod report;
pub mod sample;
pub mod serve;
mod summary;

pub use cpu::CpuEngine;
pub use engine::{Continuations, Engine, Step, TokenScore, log_sum_exp, sampled};
pub use error::{Error, Result};
pub use kv::{KvCacheFormat, KvCacheReport, KvCode};
pub use load::{Device, LoadOptions, Opening, load, load_with};
pub use report::{GpuInfo, LoadReport};
pub use summary::{Summary, percentile};
