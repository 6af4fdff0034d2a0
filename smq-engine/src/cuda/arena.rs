//! One allocation, cut up.

use super::device::Gpu;
use super::memory::{DeviceBuffer, Span};
use crate::error::{Error, Result};

/// What [`Arena::take`] aligns to: the widest access of any kernel or copy engine, and two sectors
/// of L2.
pub(super) const ALIGN: usize = 256;

/// Hands out aligned parts of one allocation: counted first, then allocated.
///
/// ```no_run
/// # use smq_engine::cuda::{Arena, Gpu};
/// # fn main() -> smq_engine::Result<()> {
/// # let gpu = Gpu::open(0)?;
/// let (arena, (x, y)) = Arena::build(&gpu, "activations", |a| Ok((a.take(1000)?, a.take(64)?)))?;
/// assert_eq!(y.ptr() - x.ptr(), 1024);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Arena {
    /// None while sizes are counted.
    buffer: Option<DeviceBuffer>,
    used: usize,
}

impl Arena {
    /// Runs `plan` twice: with addresses that count from 0, to learn the size, then with real ones.
    /// The first pass's result is dropped, so `plan` should only [`take`](Arena::take).
    ///
    /// # Errors
    /// As `plan`, or if the memory is not there.
    pub fn build<T>(
        gpu: &Gpu,
        what: &str,
        mut plan: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<(Self, T)> {
        let mut sizes = Self::sizes();
        plan(&mut sizes)?;
        let mut arena = Self {
            buffer: Some(DeviceBuffer::new(gpu, sizes.used, what)?),
            used: 0,
        };
        let parts = plan(&mut arena)?;
        Ok((arena, parts))
    }

    /// One that only counts: what it has handed out is the size a plan needs.
    #[must_use]
    pub fn sizes() -> Self {
        Self {
            buffer: None,
            used: 0,
        }
    }

    /// The next `bytes`, aligned to `ALIGN`.
    ///
    /// # Errors
    /// [`Error::Cuda`] if the plan takes more than at its first pass.
    pub fn take(&mut self, bytes: usize) -> Result<Span> {
        let too_large = || {
            Error::Cuda(format!(
                "an arena of {} bytes has no {bytes} left",
                self.used
            ))
        };
        let end = self.used.checked_add(bytes).ok_or_else(too_large)?;
        let span = match &self.buffer {
            None => Span::at(self.used as u64, bytes),
            Some(buffer) => buffer.span().part(self.used, bytes)?,
        };
        self.used = end.checked_next_multiple_of(ALIGN).ok_or_else(too_large)?;
        Ok(span)
    }

    /// Bytes handed out so far, with what aligns them.
    #[must_use]
    pub(super) fn used_bytes(&self) -> usize {
        self.used
    }

    /// The allocation behind it; none while sizes are counted.
    #[must_use]
    pub fn buffer(&self) -> Option<&DeviceBuffer> {
        self.buffer.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arena_aligns_and_counts() {
        let mut arena = Arena::sizes();
        let spans: Vec<Span> = [1, 256, 0, 257, 8].map(|n| arena.take(n).unwrap()).into();
        let at: Vec<u64> = spans.iter().map(|s| s.ptr()).collect();
        assert_eq!(at, [0, 256, 512, 512, 1024]);
        assert_eq!(spans[3].bytes(), 257);
        assert_eq!(arena.used, 1280);
        assert!(arena.take(usize::MAX).is_err());
        assert!(arena.take(usize::MAX - 1300).is_err());
    }
}
