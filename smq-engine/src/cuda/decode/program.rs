//! The phases of a decode step, as `decode.cu` reads them.

use super::plan::{BOX, Epilogue, Kind};
use super::word;
use crate::cuda::contract::TAG_MASK;
use crate::cuda::device::Gpu;
use crate::cuda::memory::{DeviceBuffer, Span};
use crate::cuda::tensor_map::TensorMap;
use crate::cuda::weights::DeviceMatrix;
use crate::error::Result;

/// Addresses that a phase reads and writes; those that it does not use are 0.
#[derive(Debug, Clone, Copy, Default)]
pub struct Buffers {
    /// Input, f32.
    pub x: u64,
    /// The input's sums of squares, f32 `[SMs]`; attention: where its blocks exchange their parts; of
    /// what is normed on its way into the residual stream: where its squares go.
    pub sums: u64,
    /// Weights of the norm behind the next product into the residual stream, f32 `[rows]`; of
    /// queries, keys and values: their bias.
    pub next_norm: u64,
    /// Output, f32.
    pub out: u64,
    /// The output's sums of squares, f32 `[SMs]`; the head's: u64 `[SMs]`, each block's best.
    pub out_sums: u64,
}

/// Which use, in its step, of their buffers input and output are.
#[derive(Debug, Clone, Copy)]
pub struct Uses {
    /// `None`: the input has no tags, a kernel before wrote it.
    pub input: Option<usize>,
    /// Of the output.
    pub output: usize,
}

/// One phase.
#[derive(Debug, Clone, Copy)]
pub struct Phase([u32; word::WORDS]);

/// Phases on a GPU, and behind them the tensor maps of the matrices that come as boxes, which the
/// phases then have in place of the matrices.
#[derive(Debug)]
pub struct Program {
    memory: DeviceBuffer,
}

/// Bytes of a phase.
const PHASE_BYTES: usize = 4 * word::WORDS;
/// Bytes of a tensor map, which lies at a multiple of 64.
const MAP_BYTES: usize = 128;

impl Program {
    /// Of phases of products of these kinds.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda) if the memory is not there, or for a matrix that cannot
    /// be loaded in boxes.
    pub(super) fn new(gpu: &Gpu, kinds: &[Kind], mut phases: Vec<Phase>) -> Result<Self> {
        const { assert!(PHASE_BYTES.is_multiple_of(64)) };
        let boxed = |phase: &Phase| {
            let kind = kinds.get(phase.0[word::KIND] as usize);
            kind.filter(|kind| kind.is_boxed())
        };
        let matrices = |kind: &Kind| kind.segments().iter().filter(|rows| **rows > 0).count();
        let count: usize = phases.iter().filter_map(boxed).map(matrices).sum();
        let first = PHASE_BYTES * phases.len();
        let bytes = first + MAP_BYTES * count;
        let memory = DeviceBuffer::new(gpu, bytes, "a decode step's program")?;
        let mut maps: Vec<[u64; 16]> = Vec::with_capacity(count);
        for phase in &mut phases {
            let Some(kind) = boxed(phase) else { continue };
            for (i, rows) in kind.segments().into_iter().enumerate() {
                if rows == 0 {
                    continue;
                }
                let at = word::WEIGHTS + 2 * i;
                let map = TensorMap::bytes(phase.address_at(at), kind.row_bytes(), rows, BOX)?;
                let place = memory.span().ptr() + (first + MAP_BYTES * maps.len()) as u64;
                phase.address(at, place);
                maps.push(map.words());
            }
        }
        let words: Vec<_> = phases.iter().map(|phase| phase.0).collect();
        memory.upload(gpu.main(), 0, &words)?;
        memory.upload(gpu.main(), first, &maps)?;
        Ok(Self { memory })
    }

    /// `count` phases from `first` on.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda) if there are not so many.
    pub fn phases(&self, first: usize, count: usize) -> Result<(Span, usize)> {
        let span = self.memory.span();
        Ok((span.part(PHASE_BYTES * first, PHASE_BYTES * count)?, count))
    }
}

impl Phase {
    fn new(kind: u32, b: &Buffers, uses: Uses) -> Self {
        let mut this = Self([0; word::WORDS]);
        this.0[word::KIND] = kind;
        this.0[word::USE_OUT] = uses.output as u32;
        if let Some(input) = uses.input {
            this.0[word::USE_IN] = input as u32;
            this.0[word::CHECK] = TAG_MASK;
        }
        this.address(word::X, b.x);
        this.address(word::SUMS, b.sums);
        this.address(word::NEXT_NORM, b.next_norm);
        this.address(word::OUT, b.out);
        this.address(word::OUT_SUMS, b.out_sums);
        this
    }

    fn address(&mut self, at: usize, address: u64) {
        self.0[at] = address as u32;
        self.0[at + 1] = (address >> 32) as u32;
    }

    fn address_at(&self, at: usize) -> u64 {
        u64::from(self.0[at + 1]) << 32 | u64::from(self.0[at])
    }

    /// The product of `matrices`, kind `index` of the plan.
    #[must_use]
    pub(super) fn product(
        kind: &Kind,
        index: usize,
        epilogue: Epilogue,
        matrices: &[DeviceMatrix],
        b: &Buffers,
        uses: Uses,
    ) -> Self {
        let mut this = Self::new(index as u32, b, uses);
        let mut segment = |i: usize, data: u64, scales: u64, bias: i32| {
            this.address(word::WEIGHTS + 2 * i, data);
            this.address(word::SCALES_AT + 2 * i, scales);
            this.0[word::BIAS + i] = bias.cast_unsigned();
        };
        for (i, m) in matrices.iter().enumerate() {
            let (scales, bias) = m.scales();
            segment(i, m.data.ptr(), scales, bias);
        }
        let first = &matrices[0];
        if epilogue == Epilogue::Swiglu && matrices.len() == 1 {
            // The up projection is the second half of a fused matrix.
            let (scales, bias) = first.scales();
            segment(
                1,
                first.data.ptr() + first.data.bytes() as u64 / 2,
                scales,
                bias,
            );
            this.0[word::FIRST1] = (first.rows / 2 * kind.groups()) as u32;
        }
        let [(_, format), (_, width), (_, mantissa)] = first.scale_defines();
        this.0[word::SCALES] =
            (format | width << word::SCALES_WIDTH_AT | mantissa << word::SCALES_MANTISSA_AT) as u32;
        this.0[word::RUN_BYTES] = kind.run_bytes(width as usize) as u32;
        this
    }

    /// Attention over keys and values at two addresses, of `capacity` positions.
    #[must_use]
    pub fn attention((keys, values): (u64, u64), capacity: usize, b: &Buffers, uses: Uses) -> Self {
        let mut this = Self::new(word::ATTENTION, b, uses);
        this.address(word::WEIGHTS, keys);
        this.address(word::WEIGHTS + 2, values);
        this.0[word::FIRST1] = capacity as u32;
        this
    }

    /// The same with what layers may differ in: the window, 0 for none, which of the rotary
    /// embeddings, and the weights of the norms of queries and keys.
    #[must_use]
    pub(super) fn of_layer(mut self, window: usize, rotation: usize, norms: [u64; 2]) -> Self {
        self.0[word::BIAS] = window as u32;
        self.0[word::BIAS + 1] = rotation as u32;
        let [queries, keys] = norms;
        self.address(word::WEIGHTS + 4, queries);
        self.address(word::SCALES_AT, keys);
        self
    }

    /// Attention whose keys and values are codes, with these scales.
    #[must_use]
    pub fn scaled(mut self, [keys, values]: [u64; 2]) -> Self {
        self.address(word::SCALES_AT + 2, keys);
        self.address(word::SCALES_AT + 4, values);
        self
    }

    /// The product into the residual stream with a norm of it first, of these weights.
    #[must_use]
    pub(super) fn normed(mut self, weights: u64) -> Self {
        self.address(word::WEIGHTS + 2, weights);
        self
    }
}
