//! Steps of one sequence alone, by the kernel of a sequence with a cache of its own: faster than a
//! step of many, but in an arithmetic of its own.

use super::inputs::Layout;
use crate::cuda::decode::{Paged, Parts, Step};
use crate::cuda::memory::Span;
use crate::cuda::pinned::PinnedBuffer;
use crate::error::Result;

/// The step of one new token whose sequence's keys and values lie in pages.
#[derive(Debug)]
pub(super) struct Alone {
    /// With the short and with the long factors of the rotary embedding.
    steps: [Step; 2],
    /// Tokens that the kernel has chosen, which nobody asks for: it counts them.
    chosen: i32,
    /// Where a step begins, on its way to the GPU.
    place: PinnedBuffer,
}

impl Alone {
    /// Compiles the kernel. The frequencies of both factors are at `inv_freq`, and a step's arrays
    /// will be at `arrays`, the sequence's page numbers among them.
    ///
    /// # Errors
    /// As [`Step::paged`].
    pub(super) fn new(parts: &Parts<'_>, inv_freq: u64, arrays: u64) -> Result<Self> {
        let pages = arrays + Layout::new(1, 1, 1)?.tables as u64;
        let of_one = 4 * (parts.config.rope.rotary_dim / 2) as u64;
        // Of each rotary embedding the short factors' and the long ones'.
        let step = |long: u64| {
            let inv_freq = [0, 2].map(|first| inv_freq + (first + long) * of_one);
            Step::paged(parts, Paged { inv_freq, pages })
        };
        Ok(Self {
            steps: [step(0)?, step(1)?],
            chosen: 0,
            place: PinnedBuffer::new(parts.kernels.gpu(), 12)?,
        })
    }

    /// Queues the step of `token` at `position`, and says where its logits will be.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda) if the driver refuses.
    pub(super) fn run(
        &mut self,
        parts: &Parts<'_>,
        (token, position, long): (u32, i32, bool),
    ) -> Result<Span> {
        let stream = parts.kernels.gpu().main();
        let place = self.place.as_mut_slice::<i32>();
        place.copy_from_slice(&[position, self.chosen, token as i32]);
        // SAFETY: nothing writes to the pinned memory before the stream was waited for, at the end
        // of every step.
        unsafe { parts.state.place()?.copy_from(stream, place)? };
        self.chosen = self.chosen.wrapping_add(1);
        self.steps[usize::from(long)].run(stream, position as usize)?;
        Ok(parts.state.logits)
    }
}
