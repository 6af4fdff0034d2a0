//! Which engine runs a model.

use std::str::FromStr;

use smq_model::Source;

use crate::cpu::CpuEngine;
use crate::cuda::{CudaEngine, Gpu};
use crate::engine::Engine;
use crate::error::Result;

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
    let gpu = match device {
        // A GPU that cannot run the kernels is none; whoever asks for it is told why.
        Device::Auto => Gpu::open(0).ok(),
        Device::Cpu => None,
        Device::Cuda => Some(Gpu::open(0)?),
    };
    if let Some(gpu) = gpu {
        return Ok(Box::new(CudaEngine::load_on(gpu, source, max_tokens)?));
    }
    let mut engine = CpuEngine::load(source)?;
    if let Some(max) = max_tokens {
        engine.limit(max);
    }
    Ok(Box::new(engine))
}
