//! Machine code on the GPU, and its kernels.

use std::ffi::CString;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use cudarc::driver::sys::{self, CUfunction_attribute as Attribute, CUresult};
use cudarc::driver::{CudaContext, result};

use super::compile::compile;
use super::device::Gpu;
use super::during::During;
use super::elf;
use crate::error::{Error, Result};

/// Loaded machine code; it stays loaded while one of its kernels is held.
#[derive(Debug, Clone)]
pub struct Module(Arc<Loaded>);

#[derive(Debug)]
struct Loaded {
    raw: sys::CUmodule,
    context: Arc<CudaContext>,
}

// SAFETY: the driver's handles may be used by any thread that has the context bound.
unsafe impl Send for Loaded {}
// SAFETY: as above; the driver locks.
unsafe impl Sync for Loaded {}

impl Drop for Loaded {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: the handle is alive, and no kernel of it is left.
            let _ = unsafe { result::module::unload(self.raw) };
        }
    }
}

impl Module {
    /// Loads a cubin made for this GPU.
    ///
    /// # Errors
    /// If the driver refuses it.
    pub fn load(gpu: &Gpu, cubin: &[u8]) -> Result<Self> {
        let what = "loading kernels";
        let context = Arc::clone(gpu.context());
        context.bind_to_thread().during(what)?;
        // The driver is told no length: what an image's headers point at beyond its end would be
        // read.
        if !elf::is_whole_cubin(cubin) {
            return Err(Error::Cuda(format!(
                "{what}: the machine code is not a whole cubin"
            )));
        }
        // SAFETY: the image is an ELF file for a GPU, and everything that its headers point at lies
        // within it. Its code is what NVRTC wrote in this process, or came from a cache that nobody
        // else may write to (`cache`).
        let raw = unsafe { result::module::load_data(cubin.as_ptr().cast()) }.during(what)?;
        Ok(Self(Arc::new(Loaded { raw, context })))
    }

    /// Compiles (or finds in the cache) and loads a kernel file.
    ///
    /// # Errors
    /// As [`compile`] and [`Module::load`].
    pub fn build(gpu: &Gpu, file: &str, defines: &[(&str, i64)]) -> Result<Self> {
        Self::load(gpu, &compile(&gpu.arch(), file, defines)?)
    }

    /// The kernel called `name`.
    ///
    /// # Errors
    /// If there is none.
    pub fn kernel(&self, name: &str) -> Result<Kernel> {
        let what = format!("finding kernel {name}");
        self.0.context.bind_to_thread().during(&what)?;
        let symbol = CString::new(name).map_err(|_| Error::Cuda(what.clone()))?;
        // SAFETY: the module is alive.
        let raw = unsafe { result::module::get_function(self.0.raw, symbol) }.during(&what)?;
        let mut kernel = Kernel {
            raw,
            name: name.to_owned(),
            parameters: parameters(raw).during(&what)?,
            dynamic_shared_limit: AtomicI32::new(0),
            module: self.clone(),
        };
        let limit = kernel.attribute(Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)?;
        kernel.dynamic_shared_limit = AtomicI32::new(limit);
        Ok(kernel)
    }
}

/// A kernel: what [`Kernel::launch`] runs.
#[derive(Debug)]
pub struct Kernel {
    raw: sys::CUfunction,
    name: String,
    /// Bytes of each parameter.
    parameters: Vec<usize>,
    /// Dynamic shared memory that a launch may ask for so far.
    dynamic_shared_limit: AtomicI32,
    module: Module,
}

// SAFETY: the driver's handles may be used by any thread that has the context bound.
unsafe impl Send for Kernel {}
// SAFETY: as above; the driver locks.
unsafe impl Sync for Kernel {}

impl Kernel {
    /// Its name in the source.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The driver's handle.
    #[must_use]
    pub fn raw(&self) -> sys::CUfunction {
        self.raw
    }

    /// Bytes of each parameter.
    #[must_use]
    pub fn parameters(&self) -> &[usize] {
        &self.parameters
    }

    /// Raises the limit on dynamic shared memory, 48 KB less the static part at first.
    pub(super) fn allow_shared(&self, bytes: u32) -> Result<()> {
        let bytes = bytes as i32;
        if bytes <= self.dynamic_shared_limit.load(Ordering::Acquire) {
            return Ok(());
        }
        self.set(
            Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
            bytes,
        )?;
        self.dynamic_shared_limit.fetch_max(bytes, Ordering::AcqRel);
        Ok(())
    }

    fn set(&self, attribute: Attribute, value: i32) -> Result<()> {
        self.module
            .0
            .context
            .bind_to_thread()
            .during("using the GPU")?;
        // SAFETY: the kernel is alive.
        let result =
            unsafe { result::function::set_function_attribute(self.raw, attribute, value) };
        result.during(&format!(
            "setting {attribute:?} of {} to {value}",
            self.name
        ))
    }

    fn attribute(&self, attribute: Attribute) -> Result<i32> {
        self.module
            .0
            .context
            .bind_to_thread()
            .during("using the GPU")?;
        // SAFETY: the kernel is alive.
        unsafe { result::function::get_function_attribute(self.raw, attribute) }
            .during(&format!("reading {attribute:?} of {}", self.name))
    }
}

/// The bytes of each parameter: a launch reads its arguments by these.
fn parameters(kernel: sys::CUfunction) -> std::result::Result<Vec<usize>, result::DriverError> {
    let mut sizes = Vec::new();
    loop {
        let (mut offset, mut size) = (0, 0);
        // SAFETY: the kernel is alive, and both pointers take results.
        let found =
            unsafe { sys::cuFuncGetParamInfo(kernel, sizes.len(), &raw mut offset, &raw mut size) };
        match found {
            CUresult::CUDA_SUCCESS => sizes.push(size),
            CUresult::CUDA_ERROR_INVALID_VALUE => return Ok(sizes),
            error => return Err(result::DriverError(error)),
        }
    }
}
