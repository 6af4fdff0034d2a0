//! Which engine runs a model.

use std::str::FromStr;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use smq_model::Source;

use crate::cpu::CpuEngine;
use crate::cuda::{CudaEngine, Gpu};
use crate::engine::Engine;
use crate::error::{Error, Result};
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

/// A device, or one that a thread is opening while this one reads a model: the driver of a GPU
/// takes 0.2 s to start.
#[derive(Debug)]
pub struct Opening {
    device: Device,
    thread: Option<JoinHandle<Result<Option<Arc<Gpu>>>>>,
}

impl Opening {
    /// Has a thread open `device`, where it is no CPU.
    #[must_use]
    pub fn begin(device: Device) -> Self {
        let thread = match device {
            Device::Cpu => None,
            // Where there is no thread to be had, it is opened once it is needed.
            Device::Auto | Device::Cuda => thread::Builder::new().spawn(move || open(device)).ok(),
        };
        Self { device, thread }
    }

    /// The GPU, once it is open; none for the CPU.
    pub(crate) fn finish(mut self) -> Result<Option<Arc<Gpu>>> {
        let failed = |_| Error::Cuda("a thread failed while it opened the GPU".into());
        let Some(thread) = self.thread.take() else {
            return open(self.device);
        };
        let gpu = thread.join().map_err(failed)??;
        if let Some(gpu) = &gpu {
            gpu.use_here()?;
        }
        Ok(gpu)
    }
}

impl From<Device> for Opening {
    /// A device that is opened once it is needed.
    fn from(device: Device) -> Self {
        let thread = None;
        Self { device, thread }
    }
}

impl Drop for Opening {
    /// A process must not end while its driver starts.
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn open(device: Device) -> Result<Option<Arc<Gpu>>> {
    match device {
        // A GPU that cannot run the kernels is none; whoever asks for it is told why.
        Device::Auto => Ok(Gpu::open(0).ok()),
        Device::Cpu => Ok(None),
        Device::Cuda => Gpu::open(0).map(Some),
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
    device: impl Into<Opening>,
    options: &LoadOptions,
) -> Result<Box<dyn Engine + 's>> {
    if let Some(gpu) = device.into().finish()? {
        return Ok(Box::new(CudaEngine::load_on(gpu, source, options)?));
    }
    let format = options.kv_cache.unwrap_or(KvCacheFormat::F32);
    let mut engine = CpuEngine::load(source)?.with_cache(format);
    if let Some(max) = options.max_tokens {
        engine.limit(max);
    }
    Ok(Box::new(engine))
}
