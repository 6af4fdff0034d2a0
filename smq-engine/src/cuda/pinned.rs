//! Host memory that the GPU copies from at full speed, or reads and writes itself.

use std::ffi::c_void;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use bytemuck::Pod;
use cudarc::driver::{CudaContext, sys};
use memmap2::{MmapMut, MmapOptions};
use rayon::prelude::*;

use super::device::Gpu;
use super::during::During;
use crate::error::{Error, Result};

/// A huge page's bytes and alignment.
const HUGE: usize = 2 << 20;

/// Page-locked host memory, freed on drop.
///
/// While a queued copy or a kernel uses it the host must leave it alone: who queues one (each is
/// `unsafe`) vouches for that.
#[derive(Debug)]
pub struct PinnedBuffer {
    ptr: NonNull<u8>,
    bytes: usize,
    /// Where kernels see it; 0 if it is not mapped.
    device_ptr: u64,
    /// The memory, where it is not the driver's own.
    map: Option<MmapMut>,
    context: Arc<CudaContext>,
}

// SAFETY: it is memory like any other.
unsafe impl Send for PinnedBuffer {}
// SAFETY: shared access only reads.
unsafe impl Sync for PinnedBuffer {}

impl PinnedBuffer {
    /// For copies. All of it is zero.
    ///
    /// # Errors
    /// If the system has no memory to lock.
    pub fn new(gpu: &Gpu, bytes: usize) -> Result<Self> {
        Self::with(gpu, bytes, 0)
    }

    /// For copies, and for kernels to read and write over the bus, at
    /// [`device_ptr`](PinnedBuffer::device_ptr).
    ///
    /// # Errors
    /// As [`PinnedBuffer::new`].
    pub fn mapped(gpu: &Gpu, bytes: usize) -> Result<Self> {
        let mut buffer = Self::with(gpu, bytes, sys::CU_MEMHOSTALLOC_DEVICEMAP)?;
        // SAFETY: the memory is allocated and mapped, and `device_ptr` takes the result.
        unsafe {
            sys::cuMemHostGetDevicePointer_v2(
                &raw mut buffer.device_ptr,
                buffer.ptr.as_ptr().cast(),
                0,
            )
        }
        .during("mapping host memory to the GPU")?;
        Ok(buffer)
    }

    /// For copies, and many megabytes: huge pages, which all threads clear, are ready several times
    /// sooner than the driver's own allocation (64 MiB on 16 cores: 4 to 9 ms instead of 23 to 33).
    ///
    /// # Errors
    /// As [`PinnedBuffer::new`].
    pub fn huge(gpu: &Gpu, bytes: usize) -> Result<Self> {
        // Where that does not work (no anonymous maps, no registration) the driver's own will.
        Self::registered(gpu, bytes).or_else(|_| Self::new(gpu, bytes))
    }

    fn registered(gpu: &Gpu, bytes: usize) -> Result<Self> {
        let what = format!("locking {bytes} bytes of host memory");
        let context = Arc::clone(gpu.context());
        context.bind_to_thread().during(&what)?;
        let failed = |e| Error::Cuda(format!("{what}: {e}"));
        let options = MmapOptions::new()
            .len(bytes.next_multiple_of(HUGE) + HUGE)
            .to_owned();
        let mut map = options.map_anon().map_err(failed)?;
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let start = map.as_ptr().align_offset(HUGE);
        let range = &mut map[start..][..bytes];
        // The first write to a page has the system clear it.
        range.par_chunks_mut(HUGE).for_each(|page| {
            page.iter_mut().step_by(4096).for_each(|byte| *byte = 0);
        });
        let ptr = NonNull::from(&mut *range).cast::<u8>();
        let flags = sys::CU_MEMHOSTREGISTER_PORTABLE;
        // SAFETY: the range is mapped, and stays so until it is unregistered.
        unsafe { sys::cuMemHostRegister_v2(ptr.as_ptr().cast(), bytes, flags) }.during(&what)?;
        Ok(Self {
            ptr,
            bytes,
            device_ptr: 0,
            map: Some(map),
            context,
        })
    }

    fn with(gpu: &Gpu, bytes: usize, flags: u32) -> Result<Self> {
        let what = format!("locking {bytes} bytes of host memory");
        let context = Arc::clone(gpu.context());
        context.bind_to_thread().during(&what)?;
        let mut raw: *mut c_void = ptr::null_mut();
        let flags = flags | sys::CU_MEMHOSTALLOC_PORTABLE;
        // SAFETY: `raw` takes the result. The driver refuses zero bytes.
        unsafe { sys::cuMemHostAlloc(&raw mut raw, bytes.max(1), flags) }.during(&what)?;
        let ptr = NonNull::<u8>::new(raw.cast()).ok_or(Error::Cuda(what))?;
        // SAFETY: so many bytes were allocated there. The driver says nothing of what they hold, and
        // a slice of them must be initialised.
        unsafe { ptr.as_ptr().write_bytes(0, bytes) };
        Ok(Self {
            ptr,
            bytes,
            device_ptr: 0,
            map: None,
            context,
        })
    }

    /// Length in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where kernels see it; 0 unless it is [`mapped`](PinnedBuffer::mapped).
    #[must_use]
    pub fn device_ptr(&self) -> u64 {
        self.device_ptr
    }

    /// Where it begins, for what the GPU writes meanwhile: no reference may be made to that.
    #[must_use]
    pub fn as_ptr(&self) -> *const u8 {
        self.ptr.as_ptr()
    }

    /// As values; bytes at the end that make no whole one are left out.
    #[must_use]
    pub fn as_slice<T: Pod>(&self) -> &[T] {
        // SAFETY: allocated, page-aligned, and zeroed when it was made; `Pod` allows any bytes.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr().cast(), self.len_of::<T>()) }
    }

    /// As values to write.
    pub fn as_mut_slice<T: Pod>(&mut self) -> &mut [T] {
        // SAFETY: as above, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr().cast(), self.len_of::<T>()) }
    }

    fn len_of<T>(&self) -> usize {
        // A type of no size fits as often as one likes; none are needed.
        self.bytes.checked_div(size_of::<T>()).unwrap_or(0)
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        let at = self.ptr.as_ptr().cast();
        let freed = self.context.bind_to_thread().is_ok()
            && match self.map {
                // SAFETY: allocated by the same allocator and not used after this.
                None => unsafe { sys::cuMemFreeHost(at) },
                // SAFETY: registered from this address, and not used after this.
                Some(_) => unsafe { sys::cuMemHostUnregister(at) },
            } == sys::CUresult::CUDA_SUCCESS;
        if !freed {
            // The GPU may still know the pages: better leaked than used by somebody else.
            std::mem::forget(self.map.take());
        }
    }
}
