//! Checkpoints that are int4 already: their integers are kept and their scales re-encoded.
//!
//! ```text
//!   config.json -> what is declared -> tensors that belong together -> one SourceTensor each
//! ```
//!
//! Three forms are read: compressed-tensors' `pack-quantized`, as [`crate::export()`] writes it,
//! GPTQ, and AutoRound's of GPTQ's tensors, all with symmetric 4-bit integers in groups of
//! consecutive columns. Everything else is refused with the reason.

mod assemble;
mod config;

use std::path::Path;

pub(crate) use assemble::assemble;

use crate::error::ConvertError;

/// What a user can always do instead.
const REMEDY: &str = "convert the checkpoint that it was quantized from";

/// Which form the int4 tensors of a checkpoint have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As compressed-tensors packs them (`pack-quantized`).
    PackQuantized,
    /// GPTQ, whose checkpoints store the zero point 8 as it is (version 2) or less one (version 1).
    Gptq {
        /// The zero point as it is stored: 8, or 7 in the first version of the format.
        stored_zero: u8,
    },
    /// AutoRound, whose checkpoints have GPTQ's tensors.
    AutoRound {
        /// The zero point as it is stored: 8, or 7 in the first version of the format.
        stored_zero: u8,
    },
}

/// Which elements of a row share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grouping {
    /// Runs of so many.
    Runs(usize),
    /// A whole row shares one scale.
    Row,
}

impl Grouping {
    /// Elements a group of a row of `columns`.
    #[must_use]
    pub fn elems(self, columns: usize) -> usize {
        match self {
            Grouping::Runs(elems) => elems,
            Grouping::Row => columns,
        }
    }
}

impl std::fmt::Display for Grouping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Grouping::Runs(elems) => write!(f, "groups of {elems}"),
            Grouping::Row => f.write_str("one group a row"),
        }
    }
}

/// The int4 tensors of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Import {
    /// The form that all of them are stored in.
    pub form: Form,
    /// Which elements of a row share a scale, in all of them.
    pub grouping: Grouping,
    /// How many there are.
    pub tensors: usize,
}

impl Form {
    /// The name that the provenance records.
    pub fn name(self) -> &'static str {
        match self {
            Form::PackQuantized => "pack-quantized",
            Form::Gptq { .. } => "gptq",
            Form::AutoRound { .. } => "auto-round",
        }
    }

    /// As which number the zero point 8 is stored, where it is.
    pub(crate) fn stored_zero(self) -> Option<u8> {
        match self {
            Form::PackQuantized => None,
            Form::Gptq { stored_zero } | Form::AutoRound { stored_zero } => Some(stored_zero),
        }
    }
}

impl std::fmt::Display for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Form::PackQuantized => f.write_str("compressed-tensors pack-quantized"),
            Form::Gptq { stored_zero } => write!(f, "gptq, zero point 8 stored as {stored_zero}"),
            Form::AutoRound { stored_zero } => {
                write!(f, "auto-round, zero point 8 stored as {stored_zero}")
            }
        }
    }
}

/// An error that says what was found, what is supported, and what to do.
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
