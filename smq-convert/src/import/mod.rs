//! Checkpoints that are int4 already: their integers are kept and their scales re-encoded.
//!
//! ```text
//!   config.json -> what is declared -> tensors that belong together -> one SourceTensor each
//! ```
//!
//! Two forms are read: compressed-tensors' `pack-quantized`, as [`crate::export`] writes it, and GPTQ, both with
//! symmetric 4-bit integers in groups of consecutive columns. Everything else is refused with the reason.

mod assemble;
mod config;
mod packed;

use std::path::Path;

pub(crate) use assemble::assemble;
pub use packed::PackedView;
pub(crate) use packed::{Layout, Packed};

use crate::error::ConvertError;

/// What a user can always do instead.
const REMEDY: &str = "convert the checkpoint that it was quantized from";

/// Which form the int4 tensors of a checkpoint have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// compressed-tensors `pack-quantized`.
    PackQuantized,
    /// GPTQ, whose checkpoints store the zero point 8 as it is (version 2) or less one (version 1).
    Gptq {
        /// 7 or 8.
        stored_zero: u8,
    },
}

/// The int4 tensors of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Import {
    /// Their form.
    pub form: Form,
    /// Consecutive elements of a row that share a scale, in all of them.
    pub group: usize,
    /// How many there are.
    pub tensors: usize,
}

impl Form {
    /// For the provenance.
    pub fn name(self) -> &'static str {
        match self {
            Form::PackQuantized => "pack-quantized",
            Form::Gptq { .. } => "gptq",
        }
    }
}

impl std::fmt::Display for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Form::PackQuantized => f.write_str("compressed-tensors pack-quantized"),
            Form::Gptq { stored_zero } => write!(f, "gptq, zero point 8 stored as {stored_zero}"),
        }
    }
}

/// `found; supported; remedy`.
fn refused(
    path: &Path,
    found: impl Into<String>,
    supported: impl Into<String>,
    remedy: &'static str,
) -> ConvertError {
    ConvertError::Import {
        path: path.to_path_buf(),
        found: found.into(),
        supported: supported.into(),
        remedy,
    }
}
