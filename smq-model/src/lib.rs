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

pub mod architecture;
mod catch;
mod chat;
mod checkpoint;
mod config;
mod error;
mod generation;
mod hub;
mod jinja;
mod json;
mod locate;
mod names;
mod rope;
mod source;
mod spelling;
mod stop_strings;
mod tokenizer;

pub use architecture::Architecture;
pub use chat::{ChatTemplate, Conversation, Message};
pub use checkpoint::{
    Checkpoint, SHARD_INDEX, Shard, StoredTensor, TEMPLATE_DIR, is_model_file, is_side_file,
    natural, side_files,
};
pub use config::{ConfigFile, MAX_DIM_ELEMS, MAX_LAYERS, ModelConfig, Tables};
pub use error::{Error, Result};
pub use generation::{GenerationSettings, SamplingSettings};
pub use json::parse_object;
pub use locate::open_smq;
pub use names::{LayerNames, LayerNorms, NamedMatrix, NamedVector, Role, TensorSpec};
pub use rope::{RopeConfig, RopeScaling};
pub use source::{Source, dtype};
pub use spelling::Spelling;
pub use stop_strings::StopStrings;
pub use tokenizer::{TextStream, Tokenizer};
