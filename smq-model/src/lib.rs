//! Reads a model, alike from a Hugging Face checkpoint and from a .smq file: tensors by name, its
//! configuration, tokenizer, chat template and generation settings.
//!
//! Whatever converts, exports or runs a model reads it here and nowhere else, so that what a
//! directory says is what the .smq made of it says.
//!
//! ```no_run
//! use smq_model::{ModelConfig, Source, Tokenizer};
//!
//! # fn main() -> smq_model::Result<()> {
//! let source = Source::open("model.smq".as_ref())?;
//! let config = ModelConfig::of(&source)?;
//! let tokenizer = Tokenizer::load(&source)?;
//! println!("{} layers, {} ids", config.layers, tokenizer.encode("Once upon", true)?.len());
//! # Ok(())
//! # }
//! ```

mod chat;
mod checkpoint;
mod config;
mod error;
mod jinja;
pub mod names;
mod rope;
mod source;
mod tokenizer;

pub use chat::{ChatTemplate, Message};
pub use checkpoint::{
    Checkpoint, EMBEDDED_FILES, MAX_EMBEDDED_BYTES, SHARD_INDEX, Shard, StoredTensor, natural,
};
pub use config::{Architecture, ModelConfig};
pub use error::{Error, Result};
pub use rope::{RopeConfig, RopeScaling};
pub use source::{Source, dtype};
pub use tokenizer::{TextStream, Tokenizer};
