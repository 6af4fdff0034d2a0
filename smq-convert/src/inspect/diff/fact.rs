//! The two sides of a difference, which JSON has as numbers where they are numbers.

use std::fmt;

use serde::Serialize;
use serde_json::Number;

use super::super::number::{count, scientific, times};
use super::super::overview::short;

/// What one file says.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Fact {
    /// A word or a name.
    Text(String),
    /// A number without a unit.
    Number(Number),
    /// A length in bytes.
    Bytes(u64),
    /// Rows and columns of a tensor.
    Shape(Vec<usize>),
    /// The levels of a code book.
    Levels([i8; 16]),
    /// A part of the file.
    Contents {
        /// Length of the part.
        length_bytes: u64,
        /// BLAKE3 of the part, in hex.
        blake3: String,
    },
    /// The error of a calibrated tensor's outputs.
    OutputError {
        /// The error by rounding to nearest.
        rounded: f64,
        /// The error of what is stored.
        stored: f64,
    },
    /// What a receipt says.
    Receipt {
        /// Mean KL divergence from the unquantized model.
        mean_kl_nats: f64,
        /// Standard error of that mean.
        kl_stderr_nats: f64,
        /// Perplexity of the quantized model.
        perplexity: f64,
    },
}

impl From<&str> for Fact {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Fact {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

/// As a table has it: of a hash the start, which says enough.
impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Number(n) => write!(f, "{n}"),
            Self::Bytes(n) => write!(f, "{} bytes", count(*n)),
            Self::Shape(dims) => f.write_str(&times(dims)),
            Self::Levels(levels) => f.write_str(&levels.map(|level| level.to_string()).join(" ")),
            Self::Contents {
                length_bytes,
                blake3,
            } => write!(f, "{} bytes, {}", count(*length_bytes), short(blake3)),
            Self::OutputError { rounded, stored } => {
                write!(f, "{} -> {}", scientific(*rounded), scientific(*stored))
            }
            Self::Receipt {
                mean_kl_nats,
                kl_stderr_nats,
                perplexity,
            } => write!(
                f,
                "{mean_kl_nats:.6} +- {kl_stderr_nats:.6} nats, perplexity {perplexity:.4}"
            ),
        }
    }
}
