//! Turns a safetensors checkpoint into a .smq file, and reports on .smq files.
//!
//! ```text
//!   source -> plan -> quantize -> smq_format::SmqWriter
//! ```
//!
//! [`source`] maps a Hugging Face checkpoint, [`mod@plan`] decides what becomes of each tensor and how large
//! the file will be, [`auto`] chooses storage from measured errors, [`mod@quantize`] does the arithmetic of `spec/method.md`, and [`mod@convert`] runs them.
//! [`import`] reads checkpoints that are int4 already. [`inspect`] is behind `smq-inspect`; [`mod@synth`] makes full-size checkpoints without trained weights.

pub mod auto;
pub mod choice;
pub mod cli;
pub mod convert;
mod directory;
pub mod error;
pub mod export;
pub mod import;
pub mod inspect;
mod known;
pub mod plan;
pub mod quantize;
pub mod source;
mod source_hash;
pub mod synth;
mod target;
mod unread;

pub use auto::{Auto, AutoOptions, Goal, sensitivity::Sensitivity};
pub use choice::Choice;
pub use convert::{ConvertOptions, Summary, convert, convert_auto, dry_run, dry_run_auto};
pub use directory::{DEFAULT_SHARD_BYTES, DirectoryError};
pub use error::ConvertError;
pub use plan::Plan;
pub use quantize::{Method, QuantizeOptions, ScaleChoice, ScaleRule};
pub use source::Checkpoint;
pub use target::{Coverage, Target, TargetError};
pub use unread::Reader;
