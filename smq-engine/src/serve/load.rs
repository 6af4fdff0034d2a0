//! Which engine runs many sequences, and how much it takes at once.

use smq_model::Source;

use super::batch::BatchEngine;
use super::cpu::CpuBatch;
use crate::error::{Error, Result};
use crate::load::Device;

/// How much a batch engine takes at once.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchOptions {
    /// Tokens of a page.
    pub page_tokens: usize,
    /// Tokens whose keys and values there is room for, rounded down to whole pages.
    pub kv_tokens: usize,
    /// Sequences of a step.
    pub max_rows: usize,
    /// Tokens of a step.
    pub step_tokens: usize,
    /// The longest context, where it is to be less than the model's.
    pub max_tokens: Option<usize>,
}

impl Default for BatchOptions {
    fn default() -> Self {
        Self {
            page_tokens: 32,
            kv_tokens: 16_384,
            max_rows: 64,
            step_tokens: 512,
            max_tokens: None,
        }
    }
}

/// Loads a model onto a device for many sequences at once. So far only the CPU engine runs them, and
/// [`Device::Auto`] is that one.
///
/// # Errors
/// As [`CpuBatch::load`]; [`Error::Input`] for [`Device::Cuda`].
pub fn load_batch<'s>(
    source: &'s Source,
    device: Device,
    options: &BatchOptions,
) -> Result<Box<dyn BatchEngine + 's>> {
    match device {
        Device::Auto | Device::Cpu => Ok(Box::new(CpuBatch::load(source, options)?)),
        Device::Cuda => Err(Error::Input(
            "the CUDA engine runs one sequence at a time; use --device cpu for many".into(),
        )),
    }
}
