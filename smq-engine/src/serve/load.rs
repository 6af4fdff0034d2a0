//! Which engine runs many sequences, and how much it takes at once.

use std::sync::Arc;

use smq_model::Source;

use super::batch::BatchEngine;
use super::cpu::CpuBatch;
use crate::cuda::{CudaBatch, CudaGuessing, Gpu};
use crate::error::Result;
use crate::kv::KvCacheFormat;
use crate::load::Opening;

/// Tokens that the CPU engine has room for, where nothing else is asked for.
pub const CPU_KV_TOKENS: usize = 16_384;

/// How much a batch engine takes at once.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchOptions {
    /// Tokens of a page. A GPU's kernels have their own number.
    pub page_tokens: usize,
    /// Tokens whose keys and values there is room for, rounded down to whole pages; by default
    /// [`CPU_KV_TOKENS`], or what a GPU has memory for.
    pub kv_tokens: Option<usize>,
    /// How keys and values are held; by default as the device computes them.
    pub kv_cache: Option<KvCacheFormat>,
    /// Sequences of a step, at most.
    pub max_rows: usize,
    /// Tokens of a step. A GPU's kernels have their own number.
    pub step_tokens: usize,
    /// The longest context, where it is to be less than the model's.
    pub max_tokens: Option<usize>,
    /// Whether a step may take a faster arithmetic where that makes a sequence's tokens depend on
    /// what else is in it: on a GPU a sequence alone takes the kernel of one sequence.
    pub fast_nondeterministic: bool,
}

impl Default for BatchOptions {
    fn default() -> Self {
        Self {
            page_tokens: 32,
            kv_tokens: None,
            kv_cache: None,
            max_rows: 64,
            step_tokens: 512,
            max_tokens: None,
            fast_nondeterministic: false,
        }
    }
}

/// Loads a model onto a device for one sequence at a time whose tokens are guessed. On a GPU they
/// are bit for bit those of [`load`](crate::load::load)'s engine where the model has steps with
/// guesses, and otherwise, and on a CPU, those of [`load_batch`].
///
/// # Errors
/// As [`load_batch`].
pub fn load_guessing<'s>(
    source: &'s Source,
    device: impl Into<Opening>,
    options: &BatchOptions,
) -> Result<Box<dyn BatchEngine + 's>> {
    let gpu = device.into().finish()?;
    if let Some(gpu) = &gpu
        && let Some(engine) = CudaGuessing::load_on(gpu, source, options)?
    {
        return Ok(Box::new(engine));
    }
    load_on(gpu, source, options)
}

/// Loads a model onto a device for many sequences at once.
///
/// # Errors
/// If the device is not there, the model does not fit together, or there is no memory for the pages.
pub fn load_batch<'s>(
    source: &'s Source,
    device: impl Into<Opening>,
    options: &BatchOptions,
) -> Result<Box<dyn BatchEngine + 's>> {
    load_on(device.into().finish()?, source, options)
}

/// On the CPU where there is no GPU.
fn load_on<'s>(
    gpu: Option<Arc<Gpu>>,
    source: &'s Source,
    options: &BatchOptions,
) -> Result<Box<dyn BatchEngine + 's>> {
    match gpu {
        Some(gpu) => Ok(Box::new(CudaBatch::load_on(gpu, source, options)?)),
        None => Ok(Box::new(CpuBatch::load(source, options)?)),
    }
}
