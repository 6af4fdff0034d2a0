//! Device memory.

use std::sync::Arc;

use bytemuck::{NoUninit, Pod};
use cudarc::driver::{CudaContext, result, sys};

use super::device::Gpu;
use super::during::During;
use super::stream::Stream;
use crate::error::{Error, Result};

/// Device memory, freed on drop.
#[derive(Debug)]
pub struct DeviceBuffer {
    span: Span,
    context: Arc<CudaContext>,
}

/// A range of device memory. It does not keep the memory allocated: whoever holds the buffer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    ptr: u64,
    bytes: usize,
}

impl Span {
    /// A range by its address, which only who uses it vouches for.
    pub fn at(ptr: u64, bytes: usize) -> Self {
        Self { ptr, bytes }
    }

    /// Device address.
    #[must_use]
    pub fn ptr(self) -> u64 {
        self.ptr
    }

    /// Length in bytes.
    #[must_use]
    pub fn bytes(self) -> usize {
        self.bytes
    }

    /// `bytes` from `offset` on.
    ///
    /// # Errors
    /// [`Error::Cuda`] if they are not all inside.
    pub fn part(self, offset: usize, bytes: usize) -> Result<Self> {
        if offset.checked_add(bytes).is_none_or(|end| end > self.bytes) {
            let len = self.bytes;
            return Err(Error::Cuda(format!(
                "bytes {offset} to {offset} + {bytes} are outside device memory of {len} bytes"
            )));
        }
        let ptr = self.ptr + offset as u64;
        Ok(Self { ptr, bytes })
    }

    /// Copies `source` to its start; queued, and done with `source` on return unless that is
    /// pinned.
    ///
    /// # Errors
    /// If it does not fit or the driver fails.
    ///
    /// # Safety
    /// The memory is allocated, and nothing else on the GPU uses it meanwhile. Pinned memory must
    /// stay as it is until the copy has run.
    pub unsafe fn copy_from<T: NoUninit>(self, stream: &Stream, source: &[T]) -> Result<()> {
        let source: &[u8] = bytemuck::cast_slice(source);
        let to = self.part(0, source.len())?;
        if source.is_empty() {
            return Ok(());
        }
        // SAFETY: the source is that long, and so is the destination, which the caller vouches for.
        unsafe {
            sys::cuMemcpyHtoDAsync_v2(to.ptr, source.as_ptr().cast(), source.len(), stream.raw()?)
        }
        .during("copying to the GPU")
    }

    /// Copies its start to `target`; queued, and done on return unless `target` is pinned.
    ///
    /// # Errors
    /// If it is too short or the driver fails.
    ///
    /// # Safety
    /// The memory is allocated and nothing on the GPU writes it meanwhile. Pinned memory must not
    /// be touched until the copy has run.
    pub unsafe fn copy_to<T: Pod>(self, stream: &Stream, target: &mut [T]) -> Result<()> {
        let target: &mut [u8] = bytemuck::cast_slice_mut(target);
        let from = self.part(0, target.len())?;
        if target.is_empty() {
            return Ok(());
        }
        // SAFETY: the target is that long, and so is the source, which the caller vouches for.
        unsafe {
            sys::cuMemcpyDtoHAsync_v2(
                target.as_mut_ptr().cast(),
                from.ptr,
                target.len(),
                stream.raw()?,
            )
        }
        .during("copying from the GPU")
    }

    /// Copies `source` of the same length here, on the GPU; queued.
    ///
    /// # Errors
    /// If the lengths differ or the driver fails.
    ///
    /// # Safety
    /// Both are allocated, do not overlap, and nothing else on the GPU uses them meanwhile.
    pub unsafe fn copy_within(self, stream: &Stream, source: Self) -> Result<()> {
        let source = source.part(0, self.bytes)?;
        // SAFETY: both are that long; the rest is the caller's.
        unsafe { sys::cuMemcpyDtoDAsync_v2(self.ptr, source.ptr, self.bytes, stream.raw()?) }
            .during("copying on the GPU")
    }

    /// Sets every byte; queued.
    ///
    /// # Errors
    /// If the driver fails.
    ///
    /// # Safety
    /// The memory is allocated, and nothing else on the GPU uses it meanwhile.
    pub unsafe fn fill(self, stream: &Stream, byte: u8) -> Result<()> {
        if self.bytes == 0 {
            return Ok(());
        }
        // SAFETY: it is that long; the rest is the caller's.
        unsafe { sys::cuMemsetD8Async(self.ptr, byte, self.bytes, stream.raw()?) }
            .during("filling GPU memory")
    }
}

impl DeviceBuffer {
    /// Allocates `bytes`, uninitialised. `what` is said if they are not there: `the KV cache`.
    ///
    /// # Errors
    /// [`Error::Cuda`] with the bytes wanted, the bytes free and the remedy.
    pub fn new(gpu: &Gpu, bytes: usize, what: &str) -> Result<Self> {
        let context = Arc::clone(gpu.context());
        context.bind_to_thread().during("using the GPU")?;
        // SAFETY: the result is only used as an address. The driver refuses zero bytes.
        let allocated = unsafe { result::malloc_sync(bytes.max(1)) };
        if let Err(result::DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) = allocated {
            let (free, total) = gpu.memory()?;
            return Err(out_of_memory(what, bytes, free, total));
        }
        let ptr = allocated.during(&format!("allocating {bytes} bytes for {what}"))?;
        let span = Span { ptr, bytes };
        Ok(Self { span, context })
    }

    /// Device address.
    #[must_use]
    pub fn ptr(&self) -> u64 {
        self.span.ptr
    }

    /// Length in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.span.bytes
    }

    /// All of it.
    #[must_use]
    pub fn span(&self) -> Span {
        self.span
    }

    /// Copies `source` to `offset` and waits: after everything on `stream` before, and done on
    /// return.
    ///
    /// # Errors
    /// If it does not fit or the driver fails.
    pub fn upload<T: NoUninit>(&self, stream: &Stream, offset: usize, source: &[T]) -> Result<()> {
        let to = self.span.part(offset, size_of_val(source))?;
        // SAFETY: `self` keeps the memory allocated, and the copy is over before this returns.
        unsafe { to.copy_from(stream, source) }?;
        stream.synchronize()
    }

    /// Copies from `offset` to `target` and waits: after everything on `stream` before, and done on
    /// return.
    ///
    /// # Errors
    /// If it is too short or the driver fails.
    pub fn download<T: Pod>(&self, stream: &Stream, offset: usize, target: &mut [T]) -> Result<()> {
        let from = self.span.part(offset, size_of_val(target))?;
        // SAFETY: `self` keeps the memory allocated, and the copy is over before this returns.
        unsafe { from.copy_to(stream, target) }?;
        stream.synchronize()
    }

    /// Sets every byte and waits: 0 to clear it, 0xff to make every float a NaN.
    ///
    /// # Errors
    /// If the driver fails.
    pub fn fill(&self, stream: &Stream, byte: u8) -> Result<()> {
        // SAFETY: `self` keeps the memory allocated, and the fill is over before this returns.
        unsafe { self.span.fill(stream, byte) }?;
        stream.synchronize()
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: the address comes from the allocator and is not used after this; the driver
            // waits for the GPU first.
            let _ = unsafe { result::free_sync(self.span.ptr) };
        }
    }
}

fn out_of_memory(what: &str, wanted: usize, free: usize, total: usize) -> Error {
    let gb = |bytes: usize| bytes as f64 / 1e9;
    Error::Cuda(format!(
        "out of GPU memory: {what} needs {:.2} GB, {:.2} GB of {:.2} GB are free; ask for fewer tokens with \
         --context, or use another device",
        gb(wanted),
        gb(free),
        gb(total)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_stays_inside() {
        let span = Span {
            ptr: 4096,
            bytes: 100,
        };
        let part = span.part(60, 40).unwrap();
        assert_eq!((part.ptr(), part.bytes()), (4156, 40));
        assert_eq!(span.part(100, 0).unwrap().bytes(), 0);
        for (offset, bytes) in [(60, 41), (101, 0), (usize::MAX, 2)] {
            assert!(span.part(offset, bytes).is_err());
        }
    }

    #[test]
    fn out_of_memory_says_how_much() {
        let message = out_of_memory(
            "the KV cache",
            51_540_000_000,
            3_120_000_000,
            79_200_000_000,
        );
        let start =
            "out of GPU memory: the KV cache needs 51.54 GB, 3.12 GB of 79.20 GB are free; ask";
        assert!(message.to_string().starts_with(start), "{message}");
    }
}
