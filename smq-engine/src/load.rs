//! Which engine runs a model.

use std::str::FromStr;

use smq_model::Source;

use crate::cpu::CpuEngine;
use crate::cuda::{CudaEngine, Gpu};
use crate::engine::Engine;
use crate::error::Result;
use crate::kv::KvCacheFormat;

/// Which engine to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The fastest one there is.
    Auto,
    /// The CPU reference.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}

impl Device {
    /// What it comes to on this machine: a GPU, where it is left open and there is one that can run
    /// the kernels, or the CPU.
    #[must_use]
    pub fn resolved(self) -> Self {
        match self {
            Self::Auto if Gpu::open(0).is_ok() => Self::Cuda,
            Self::Auto | Self::Cpu => Self::Cpu,
            Self::Cuda => Self::Cuda,
        }
    }

    /// As given on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(s: &str) -> std::result::Result<Self, String> {
        match s {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda),
            _ => Err("expected auto, cpu or cuda".into()),
        }
    }
}

/// What an engine of one sequence is loaded for.
#[derive(Debug, Clone, Copy, Default)]
pub struct LoadOptions {
    /// Positions of the longest sequence; by default those of the model's longest context.
    pub max_tokens: Option<usize>,
    /// How keys and values are held; by default as the device computes them.
    pub kv_cache: Option<KvCacheFormat>,
}

/// Loads a model onto a device, for sequences of at most `max_tokens` positions (by default the
/// model's longest context).
///
/// # Errors
/// If the device is not there or the model does not fit together.
pub fn load(
    source: &Source,
    device: Device,
    max_tokens: Option<usize>,
) -> Result<Box<dyn Engine + '_>> {
    let options = LoadOptions {
        max_tokens,
        ..LoadOptions::default()
    };
    load_with(source, device, &options)
}

/// As [`load`], with options.
///
/// # Errors
/// As [`load`], and for a cache that the device does not have.
pub fn load_with<'s>(
    source: &'s Source,
    device: Device,
    options: &LoadOptions,
) -> Result<Box<dyn Engine + 's>> {
    let gpu = match device {
        // A GPU that cannot run the kernels is none; whoever asks for it is told why.
        Device::Auto => Gpu::open(0).ok(),
        Device::Cpu => None,
        Device::Cuda => Some(Gpu::open(0)?),
    };
    if let Some(gpu) = gpu {
        return Ok(Box::new(CudaEngine::load_on(gpu, source, options)?));
    }
    let format = options.kv_cache.unwrap_or(KvCacheFormat::F32);
    let mut engine = CpuEngine::load(source)?.with_cache(format);
    if let Some(max) = options.max_tokens {
        engine.limit(max);
    }
    Ok(Box::new(engine))
}
