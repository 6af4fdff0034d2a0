//! The GPU: finding it, and what it is.

use std::sync::Arc;

use crate::report::GpuInfo;
use cudarc::driver::{CudaContext, DriverError, result, sys};
use sys::CUdevice_attribute as Attribute;

use super::during::During;
use super::libraries::{DRIVER, open_beside};
use super::stream::Stream;
use crate::error::{Error, Result};

/// The CUDA version whose driver interface is used.
const NEEDED_CUDA: i32 = 13_000;
/// Kernels use what only Hopper has: `wgmma`.
const NEEDED_CAPABILITY: (i32, i32) = (9, 0);

/// An open GPU with a stream for work and one for copies.
#[derive(Debug)]
pub struct Gpu {
    context: Arc<CudaContext>,
    name: String,
    capability: (u32, u32),
    sm_count: u32,
    l2_bytes: usize,
    cuda: i32,
    main: Stream,
    copy: Stream,
}

impl Gpu {
    /// Opens GPU number `ordinal`.
    ///
    /// # Errors
    /// [`Error::Cuda`] if there is no driver, if it is too old, if there is no such device or if
    /// that device is of another generation: each says what was found, what is needed and what to
    /// do.
    pub fn open(ordinal: usize) -> Result<Arc<Self>> {
        let cuda = driver_cuda_version()?;
        let count = device_count()?;
        if ordinal >= count {
            return Err(Error::Cuda(format!(
                "GPU {ordinal} was asked for, but there {}; pick another, check CUDA_VISIBLE_DEVICES, \
                 or run with --device cpu",
                match count {
                    1 => "is only GPU 0".to_owned(),
                    n => format!("are only GPUs 0 to {}", n - 1),
                }
            )));
        }
        let opening = format!("opening GPU {ordinal}");
        let device = result::device::get(ordinal as i32).during(&opening)?;
        let name = result::device::get_name(device).during(&opening)?;
        let attribute = |a| {
            // SAFETY: `device` comes from the driver.
            let value = unsafe { result::device::get_attribute(device, a) };
            value.during("asking what the GPU is")
        };
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        if (major, minor) != NEEDED_CAPABILITY {
            return Err(Error::Cuda(format!(
                "GPU {ordinal} ({name}) has compute capability {major}.{minor}, the kernels are for {}.{} (H100, H200); \
                 run with --device cpu",
                NEEDED_CAPABILITY.0, NEEDED_CAPABILITY.1
            )));
        }
        // The driver is at it for 0.1 s.
        let context = open_beside(|| CudaContext::new(ordinal)).during(&opening)?;
        // SAFETY: buffers here carry no events: every copy names its stream, and its caller orders
        // it.
        unsafe { context.disable_event_tracking() };
        let stream = || Stream::new(&context);
        Ok(Arc::new(Self {
            main: stream()?,
            copy: stream()?,
            sm_count: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32,
            l2_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)? as usize,
            capability: (major as u32, minor as u32),
            name,
            cuda,
            context,
        }))
    }

    /// What NVRTC compiles for: `sm_90a`. The `a` unlocks `wgmma`, which binds the code to 9.0.
    #[must_use]
    pub fn arch(&self) -> String {
        let (major, minor) = self.capability;
        let suffix = if self.capability == (9, 0) { "a" } else { "" };
        format!("sm_{major}{minor}{suffix}")
    }

    /// Streaming multiprocessors.
    #[must_use]
    pub fn sm_count(&self) -> u32 {
        self.sm_count
    }

    /// L2 cache in bytes.
    #[must_use]
    pub fn l2_bytes(&self) -> usize {
        self.l2_bytes
    }

    /// Free and total device memory in bytes, now.
    ///
    /// # Errors
    /// If the driver fails.
    pub fn memory(&self) -> Result<(usize, usize)> {
        let what = "asking for the GPU's free memory";
        self.context.mem_get_info().during(what)
    }

    /// What it is, for a report.
    ///
    /// # Errors
    /// If the driver fails.
    pub fn info(&self) -> Result<GpuInfo> {
        let (major, minor) = self.capability;
        let nvrtc = super::compile::nvrtc_version().ok();
        Ok(GpuInfo {
            name: self.name.clone(),
            compute_capability: format!("{major}.{minor}"),
            sm_count: self.sm_count,
            memory_bytes: self.memory()?.1,
            l2_bytes: self.l2_bytes,
            cuda_version: dotted(self.cuda),
            driver_version: driver_version(),
            nvrtc_version: nvrtc.map(|(major, minor)| format!("{major}.{minor}")),
        })
    }

    /// The stream that kernels run on.
    #[must_use]
    pub fn main(&self) -> &Stream {
        &self.main
    }

    /// The stream that copies run on, beside the kernels.
    #[must_use]
    pub fn copy(&self) -> &Stream {
        &self.copy
    }

    /// Makes its context this thread's, as opening it does for the thread that opens it.
    ///
    /// # Errors
    /// If the driver fails.
    pub(crate) fn use_here(&self) -> Result<()> {
        self.context.bind_to_thread().during("using the GPU")
    }

    /// The driver's context, which everything allocated on the GPU keeps open.
    #[must_use]
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }
}

/// The CUDA version the driver supports (13.1 is 13010), if that is enough.
fn driver_cuda_version() -> Result<i32> {
    if !DRIVER.is_there() {
        return Err(Error::Cuda(
            "no NVIDIA driver: libcuda.so.1 was not found; install the driver (580 or newer), or run with \
             --device cpu"
                .into(),
        ));
    }
    let mut version = 0;
    // SAFETY: libcuda is there, every version has this function, and `version` takes its result.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }
        .during("asking for the driver's version")?;
    check_cuda_version(version)
}

/// Functions of newer versions are absent from an older driver, and cudarc panics there.
fn check_cuda_version(version: i32) -> Result<i32> {
    if version < NEEDED_CUDA {
        return Err(Error::Cuda(format!(
            "the NVIDIA driver{} supports CUDA {}, {} is needed; install driver 580 or newer, or run with \
             --device cpu",
            driver_version().map_or(String::new(), |v| format!(" {v}")),
            dotted(version),
            dotted(NEEDED_CUDA)
        )));
    }
    Ok(version)
}

fn device_count() -> Result<usize> {
    let count = result::init().and_then(|()| result::device::get_count());
    match count {
        Ok(n) if n > 0 => Ok(n as usize),
        Ok(_) | Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => Err(Error::Cuda(
            "there is an NVIDIA driver but no GPU to use; check nvidia-smi and CUDA_VISIBLE_DEVICES, or run \
             with --device cpu"
                .into(),
        )),
        Err(error) => Err(error).during("starting the NVIDIA driver (run with --device cpu to go without)"),
    }
}

/// `13.0` of 13000.
fn dotted(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// Where GPU `ordinal` sits, as NVML names it: `0000:3b:00.0`. Opens nothing on it.
///
/// # Errors
/// As [`Gpu::open`].
pub fn pci_bus_id(ordinal: usize) -> Result<String> {
    driver_cuda_version()?;
    device_count()?;
    let asking = "asking where the GPU sits";
    let device = result::device::get(ordinal as i32).during(asking)?;
    let attribute = |a| {
        // SAFETY: `device` comes from the driver.
        unsafe { result::device::get_attribute(device, a) }.during(asking)
    };
    Ok(format!(
        "{:04x}:{:02x}:{:02x}.0",
        attribute(Attribute::CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID)?,
        attribute(Attribute::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID)?,
        attribute(Attribute::CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID)?
    ))
}

/// Bytes of memory in use, by this process or another, on the GPU whose context this thread has.
///
/// # Errors
/// If there is no context, or the driver fails.
pub fn memory_in_use() -> Result<u64> {
    driver_cuda_version()?;
    let (free, total) = result::mem_get_info().during("asking for the GPU's free memory")?;
    Ok((total - free) as u64)
}

/// The kernel module's version, from its own line in /proc.
fn driver_version() -> Option<String> {
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    let mut words = text.lines().next()?.split_whitespace();
    let is_version = |w: &str| w.contains('.') && w.starts_with(|c: char| c.is_ascii_digit());
    words.find(|w| is_version(w)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_read_as_people_write_them() {
        assert_eq!(
            (dotted(13_000), dotted(12_080)),
            ("13.0".into(), "12.8".into())
        );
    }

    #[test]
    fn an_older_driver_is_named_with_what_is_needed() {
        let message = check_cuda_version(12_080).unwrap_err().to_string();
        assert!(
            message.contains("CUDA 12.8, 13.0 is needed; install driver 580"),
            "{message}"
        );
        assert_eq!(check_cuda_version(13_010).unwrap(), 13_010);
    }

    #[test]
    fn without_a_driver_it_says_so() {
        let says_so = Gpu::open(0).is_err_and(|e| e.to_string().contains("no NVIDIA driver"));
        assert_eq!(says_so, !DRIVER.is_there());
    }
}
