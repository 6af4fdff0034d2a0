//! Turns a safetensors checkpoint into a .smq file and back, and reports on .smq files.
//!
//! ```text
//!   known -> unread -> tensor -> import -> source         a checkpoint, int4 or not
//!   source, quantize -> apply, target -> choice -> plan   what becomes of each tensor
//!   choice -> calibrate -> auto -> convert => SmqWriter   a .smq file
//!   SmqFile, directory -> export; directory -> synth      a Hugging Face directory
//!   SmqFile, apply -> inspect                             text, JSON, CSV and HTML
//! ```
//!
//! An arrow leads from a module to one that is built on it, and no two are built on each other.
//! [`Checkpoint`] maps what Hugging Face has of a model, put together from its parts where it is
//! int4 already. A [`Target`] says which tensors are quantized, and a [`Method`] to what; the
//! arithmetic is that of `spec/method.md`. [`convert()`] runs them into a file, [`dry_run`] says
//! how large that would be, [`convert_auto`] chooses storage from measured errors, and
//! [`convert_calibrated`] scales and integers by what the model does on a text. [`export()`] is the
//! way back, [`synth()`] makes full-size checkpoints without trained weights, [`inspect`] is behind
//! `smq-inspect`, and [`cli`] and [`number`] are what the command lines share.
//!
//! ```no_run
//! use smq_convert::{Checkpoint, ConvertOptions, Method, QuantizeOptions, Target, convert};
//! use smq_convert::{ScaleChoice, ScaleRule};
//!
//! # fn main() -> Result<(), smq_convert::ConvertError> {
//! let checkpoint = Checkpoint::open("phi35".as_ref())?;
//! let options = ConvertOptions {
//!     target: Target::Mlp,
//!     quantize: Method::Int4(QuantizeOptions {
//!         group: 128,
//!         scales: ScaleChoice::e5(5),
//!         rule: ScaleRule::Reference,
//!     }),
//!     overwrite: false,
//!     jobs: 0,
//! };
//! let go_on = |_done_bytes: u64| true;
//! let summary = convert(&checkpoint, "phi35-e5m5.smq".as_ref(), &options, &go_on)?;
//! println!("{} bytes of {}", summary.written.file_bytes, summary.source_bytes);
//! # Ok(())
//! # }
//! ```

mod apply;
mod auto;
mod calibrate;
mod choice;
pub mod cli;
mod convert;
mod directory;
mod error;
mod export;
mod import;
pub mod inspect;
mod known;
pub mod number;
mod plan;
mod products;
mod quantize;
mod receipt;
mod source;
mod source_hash;
mod synth;
mod target;
mod tensor;
mod unread;
mod work;

pub use apply::{ScaleChange, exact_scales, scale_change};
pub use auto::{Auto, AutoOptions, ChooseBy, ChosenTensor, Goal, Sensitivity, choose};
pub use calibrate::{CalibrateOptions, CalibrationMethod, CalibrationProgress};
pub use choice::Choice;
pub use convert::{
    CalibrationSummary, Conversion, ConvertOptions, Summary, convert, convert_auto,
    convert_auto_calibrated, convert_calibrated, convert_measured, dry_run, dry_run_auto,
    dry_run_auto_calibrated, dry_run_calibrated, saved_layers,
};
pub use directory::{DEFAULT_SHARD_BYTES, DirectoryError};
pub use error::ConvertError;
pub use export::{
    ExportFormat, ExportOptions, ExportProgress, ExportSummary, Half, Rounding, export,
};
pub use import::{Form, Grouping, Import};
pub use plan::{Plan, Planned};
pub use products::{kind, product};
pub use quantize::{
    LevelChoice, Levels, Method, QuantizeError, QuantizeOptions, Quantized, ScaleChoice, ScaleRule,
    quantize,
};
pub use receipt::{MeasureOptions, MeasureProgress, Measuring};
pub use source::Checkpoint;
pub use synth::{SynthError, SynthOptions, SynthSummary, synth};
pub use target::{Target, TargetError};
pub use tensor::SourceTensor;
pub use work::{MAX_THREADS_PER_CORE, Progress, threads};
