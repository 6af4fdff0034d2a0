//! Kernels compiled for one model, each once, and calls of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::args::Args;
use super::device::Gpu;
use super::launch::Launch;
use super::module::{Kernel, Module};
use super::stream::Stream;
use crate::error::Result;

/// Macros of a kernel file.
pub type Defines = Vec<(&'static str, i64)>;

/// The kernels of one model on one GPU.
#[derive(Debug)]
pub struct Kernels {
    gpu: Arc<Gpu>,
    modules: Mutex<HashMap<(&'static str, Defines), Module>>,
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
        let key = (file, defines);
        let module = match modules.get(&key) {
            Some(module) => module.clone(),
            None => {
                let module = Module::build(&self.gpu, file, &key.1)?;
                modules.insert(key, module.clone());
                module
            }
        };
        Ok(Arc::new(module.kernel(name)?))
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
