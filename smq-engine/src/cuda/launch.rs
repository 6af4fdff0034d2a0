//! Running a kernel: its shape, and what may overlap.

use std::ptr;

use cudarc::driver::sys;

use super::args::Args;
use super::during::During;
use super::module::Kernel;
use super::stream::Stream;
use crate::error::Result;

/// The shape of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    /// Blocks, x first.
    pub grid: [u32; 3],
    /// Threads a block, x first.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory a block.
    pub shared: u32,
    /// Whether it may start before the kernel ahead of it in the stream has ended: it then must
    /// wait itself (`wait_for_previous_kernel`) before it touches what that one writes.
    pub overlap: bool,
}

impl Launch {
    /// `grid` (x, or x, y, z) blocks of `threads` along x.
    #[must_use]
    pub fn new(grid: impl Into<Grid>, threads: u32) -> Self {
        Self {
            grid: grid.into().0,
            block: [threads, 1, 1],
            shared: 0,
            overlap: false,
        }
    }

    /// With dynamic shared memory.
    #[must_use]
    pub fn shared(self, bytes: u32) -> Self {
        let shared = bytes;
        Self { shared, ..self }
    }

    /// As a programmatic dependent launch: see [`Launch::overlap`](field@Launch::overlap).
    #[must_use]
    pub fn overlap(self) -> Self {
        let overlap = true;
        Self { overlap, ..self }
    }
}

/// Blocks along x, y and z.
#[derive(Debug, Clone, Copy)]
pub struct Grid([u32; 3]);

impl From<u32> for Grid {
    fn from(x: u32) -> Self {
        Self([x, 1, 1])
    }
}

impl From<usize> for Grid {
    /// What does not fit becomes a grid that the driver refuses.
    fn from(x: usize) -> Self {
        Self([u32::try_from(x).unwrap_or(u32::MAX), 1, 1])
    }
}

impl From<[u32; 2]> for Grid {
    fn from([x, y]: [u32; 2]) -> Self {
        Self([x, y, 1])
    }
}

impl From<[u32; 3]> for Grid {
    fn from(grid: [u32; 3]) -> Self {
        Self(grid)
    }
}

impl Kernel {
    /// Queues the kernel on `stream`, which may be capturing a graph.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda) if the arguments are not as many or as wide as the
    /// kernel's, or if the driver refuses the launch.
    ///
    /// # Safety
    /// The arguments are what the kernel's header asks for: addresses of device memory that is
    /// large enough, and stays allocated and otherwise untouched until the kernel has run, at each
    /// replay of a graph that this is captured in. The kernel lives until then, too.
    pub unsafe fn launch(&self, stream: &Stream, launch: &Launch, args: &Args) -> Result<()> {
        args.check(self.name(), self.parameters())?;
        let raw_stream = stream.raw()?;
        self.allow_shared(launch.shared)?;
        let mut attributes = attributes(launch);
        let [gx, gy, gz] = launch.grid;
        let [bx, by, bz] = launch.block;
        let config = sys::CUlaunchConfig {
            gridDimX: gx,
            gridDimY: gy,
            gridDimZ: gz,
            blockDimX: bx,
            blockDimY: by,
            blockDimZ: bz,
            sharedMemBytes: launch.shared,
            hStream: raw_stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        };
        let mut values = args.pointers();
        // SAFETY: stream and kernel are alive; the driver copies attributes and arguments during
        // the call, and reads of each argument the bytes that `check` compared. The rest is the
        // caller's.
        let result = unsafe {
            sys::cuLaunchKernelEx(
                &raw const config,
                self.raw(),
                values.as_mut_ptr(),
                ptr::null_mut(),
            )
        };
        match result {
            sys::CUresult::CUDA_SUCCESS => Ok(()),
            error => error.during(&format!("launching {} as {launch:?}", self.name())),
        }
    }
}

fn attributes(launch: &Launch) -> Vec<sys::CUlaunchAttribute> {
    let mut list = Vec::new();
    if launch.overlap {
        let mut value = sys::CUlaunchAttributeValue { pad: [0; 64] };
        value.programmaticStreamSerializationAllowed = 1;
        list.push(sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value,
        });
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_asked_for_becomes_an_attribute() {
        let plain = Launch::new(4_u32, 128);
        assert_eq!((plain.grid, plain.block), ([4, 1, 1], [128, 1, 1]));
        assert_eq!(attributes(&plain).len(), 0);
        assert_eq!(attributes(&plain.overlap()).len(), 1);
    }
}
