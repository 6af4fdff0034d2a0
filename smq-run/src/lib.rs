//! What the `smq-run` program does: it generates text from a .smq file or a Hugging Face
//! checkpoint, times it, measures its quality, checks every CUDA kernel against plain sums, and
//! runs the experiment of `spec/experiment.toml`.
//!
//! The program is [`Cli`], parsed and given to [`run`]. For other programs there is the measure
//! that all of this rests on, [`perplexity`]; whatever else a model can be asked is `smq-engine`'s.
//!
//! ```no_run
//! use smq_engine::Device;
//! use smq_model::{Source, Tokenizer};
//! use smq_run::{PplOptions, perplexity};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let source = Source::open("model.smq".as_ref())?;
//! let tokenizer = Tokenizer::load(&source)?;
//! let mut engine = smq_engine::load(&source, Device::Auto, None)?;
//! let text = std::fs::read_to_string("text.txt")?;
//! let options = PplOptions { window: 512, max_tokens: None };
//! let report = perplexity(&mut *engine, &tokenizer, &text, &options, |done, all, _| {
//!     eprintln!("{done} of {all} windows");
//! })?;
//! println!("{:.4} over {} tokens", report.perplexity, report.tokens_scored);
//! # Ok(())
//! # }
//! ```

mod bench;
mod cli;
mod convert;
mod demo;
mod eval;
mod kernels;
mod load;
mod measure;
mod output;
mod serve;
mod study;

pub use cli::{Cli, run};
pub use eval::ppl::{PplOptions, PplReport, perplexity};
pub use output::is_broken_pipe;
