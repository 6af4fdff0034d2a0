//! Kernels compiled for one model, each once, and calls of them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use super::args::Args;
use super::contract::Defines;
use super::device::Gpu;
use super::launch::Launch;
use super::module::{Kernel, Module};
use super::stream::Stream;
use crate::error::Result;

/// The kernels of one model on one GPU.
#[derive(Debug)]
pub struct Kernels {
    gpu: Arc<Gpu>,
    modules: Mutex<HashMap<(&'static str, Defines), Loaded>>,
}

/// A module and those of its kernels that were asked for: finding one takes the driver several
/// microseconds.
#[derive(Debug)]
struct Loaded {
    module: Module,
    kernels: Vec<Arc<Kernel>>,
}

/// A kernel with its shape and arguments, ready to be queued any number of times.
#[derive(Debug, Clone)]
pub struct Call {
    /// The kernel.
    pub kernel: Arc<Kernel>,
    /// Its shape.
    pub launch: Launch,
    /// Its arguments.
    pub args: Args,
}

impl Kernels {
    /// None compiled yet.
    #[must_use]
    pub fn new(gpu: Arc<Gpu>) -> Self {
        let modules = Mutex::default();
        Self { gpu, modules }
    }

    /// The GPU.
    #[must_use]
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// Kernel `name` of `file` with `defines`, compiled or found.
    ///
    /// # Errors
    /// As [`Module::build`].
    pub fn get(&self, file: &'static str, defines: Defines, name: &str) -> Result<Arc<Kernel>> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = match modules.entry((file, defines)) {
            Entry::Occupied(there) => there.into_mut(),
            Entry::Vacant(place) => {
                let module = Module::build(&self.gpu, file, &place.key().1)?;
                let kernels = Vec::new();
                place.insert(Loaded { module, kernels })
            }
        };
        if let Some(kernel) = loaded.kernels.iter().find(|k| k.name() == name) {
            return Ok(kernel.clone());
        }
        let kernel = Arc::new(loaded.module.kernel(name)?);
        loaded.kernels.push(kernel.clone());
        Ok(kernel)
    }
}

impl Call {
    /// Queues the call.
    ///
    /// # Errors
    /// As [`Kernel::launch`].
    ///
    /// # Safety
    /// As [`Kernel::launch`].
    pub unsafe fn run(&self, stream: &Stream) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.kernel.launch(stream, &self.launch, &self.args) }
    }
}
