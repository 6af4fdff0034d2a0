//! The phases of a decode step, as `decode.cu` reads them.

use super::plan::{Epilogue, Kind};
use crate::cuda::contract::TAG_MASK;
use crate::cuda::kernels::Defines;
use crate::cuda::weights::DeviceMatrix;

/// Words of a phase.
pub(super) const WORDS: usize = 32;
/// The kind of an attention phase: no kind of product has this number.
const ATTENTION: u32 = 255;
/// Where the word of a product's scales has the bits of a code; the format is below.
const SCALES_WIDTH_AT: u32 = 8;
/// And where its bits of mantissa.
const SCALES_MANTISSA_AT: u32 = 16;

/// Declares where each word of a phase is, and the macros by which `decode.cu` (`enum Word`) knows it.
macro_rules! words {
    ($($(#[$doc:meta])* $name:ident = $at:literal, $words:literal;)*) => {
        mod word {
            $($(#[$doc])* pub(super) const $name: usize = $at;)*
        }
        /// Macro, place and number of words of each.
        const PLACES: &[(&str, usize, usize)] = &[
            $((concat!("WORD_", stringify!($name)), $at, $words)),*
        ];
    };
}
words! {
    /// Of the plan's kinds of product, or [`ATTENTION`](super::ATTENTION).
    KIND = 0, 1;
    /// Which use of its buffer, in the step, the input is.
    USE_IN = 1, 1;
    /// And the output.
    USE_OUT = 2, 1;
    /// The bits of the input's values that are a tag.
    CHECK = 3, 1;
    /// Three addresses.
    WEIGHTS = 4, 6;
    /// Three addresses.
    SCALES_AT = 10, 6;
    /// Index of the second segment's first scale; attention: the cache's capacity.
    FIRST1 = 16, 1;
    /// Three.
    BIAS = 17, 3;
    /// Format, width and bits of mantissa of a scale.
    SCALES = 20, 1;
    /// Bytes copied for one run of scale codes.
    RUN_BYTES = 21, 1;
    /// An address, as all that follow.
    X = 22, 2;
    SUMS = 24, 2;
    NEXT_NORM = 26, 2;
    OUT = 28, 2;
    OUT_SUMS = 30, 2;
}

/// The macros that tell `decode.cu` how a phase is written.
pub(super) fn defines() -> Defines {
    let mut defines = vec![
        ("PHASE_WORDS", WORDS as i64),
        ("ATTENTION_KIND", ATTENTION.into()),
        ("SCALES_WIDTH_AT", SCALES_WIDTH_AT.into()),
        ("SCALES_MANTISSA_AT", SCALES_MANTISSA_AT.into()),
    ];
    defines.extend(PLACES.iter().map(|&(name, at, _)| (name, at as i64)));
    defines
}

/// Addresses that a phase reads and writes; those that it does not use are 0.
#[derive(Debug, Clone, Copy, Default)]
pub struct Buffers {
    /// Input, f32.
    pub x: u64,
    /// The input's sums of squares, f32 `[SMs]`; attention: where its blocks exchange their parts.
    pub sums: u64,
    /// Weights of the norm behind the next product into the residual stream, f32 `[rows]`.
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
pub struct Phase(pub [u32; WORDS]);

impl Phase {
    fn new(kind: u32, b: &Buffers, uses: Uses) -> Self {
        let mut this = Self([0; WORDS]);
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
            (format | width << SCALES_WIDTH_AT | mantissa << SCALES_MANTISSA_AT) as u32;
        this.0[word::RUN_BYTES] = kind.run_bytes(width as usize) as u32;
        this
    }

    /// Attention over keys and values at two addresses, of `capacity` positions.
    #[must_use]
    pub fn attention((keys, values): (u64, u64), capacity: usize, b: &Buffers, uses: Uses) -> Self {
        let mut this = Self::new(ATTENTION, b, uses);
        this.address(word::WEIGHTS, keys);
        this.address(word::WEIGHTS + 2, values);
        this.0[word::FIRST1] = capacity as u32;
        this
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_has_a_place_of_its_own() {
        let mut end = 0;
        for &(name, at, words) in PLACES {
            assert_eq!(at, end, "{name}");
            end = at + words;
        }
        assert_eq!(end, WORDS);
    }
}
