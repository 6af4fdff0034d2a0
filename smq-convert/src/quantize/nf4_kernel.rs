//! The inner loops over NF4's blocks, compiled and summed as those of [`super::kernel`].

use smq_format::nf4::{BLOCK_ELEMS, MIDPOINTS, VALUES, pack};
use smq_format::{Dtype, widen};

use super::kernel::{GroupError, Kernel, LANES, for_each_isa, max_abs};
use super::sums::Sums;

/// bitsandbytes' floor under a block's absmax where it divides by that.
const ABSMAX_FLOOR: f32 = 1e-38;
/// Bytes of the nibbles of a block.
const BLOCK_BYTES: usize = BLOCK_ELEMS / 2;

impl Kernel {
    for_each_isa! {
        /// `max|w|` and the packed codes of each block of `bytes`, elements of `dtype`; that of a
        /// short last one at least [`ABSMAX_FLOOR`]. An infinity where an element is not finite.
        nf4_blocks, nf4_blocks, (dtype: Dtype, bytes: &[u8], absmax: &mut [f32], nibbles: &mut [u8]) -> ()
    }

    for_each_isa! {
        /// The errors of whole blocks, elements of `dtype`, with each of two absmax values.
        nf4_errors, nf4_errors,
        (dtype: Dtype, bytes: &[u8], nibbles: &[u8], absmax: &[[f32; 2]], out: &mut [[GroupError; 2]]) -> ()
    }
}

#[inline(always)]
fn nf4_blocks(dtype: Dtype, bytes: &[u8], absmax: &mut [f32], nibbles: &mut [u8]) {
    let blocks = bytes.chunks(BLOCK_ELEMS * dtype.bytes());
    let out = absmax.iter_mut().zip(nibbles.chunks_mut(BLOCK_BYTES));
    let (mut w, mut q) = ([0.0; BLOCK_ELEMS], [0; BLOCK_ELEMS]);
    for (bytes, (absmax, nibbles)) in blocks.zip(out) {
        let elems = bytes.len() / dtype.bytes();
        if elems == BLOCK_ELEMS {
            widen(dtype, bytes, &mut w);
            *absmax = max_abs(&w).unwrap_or(f32::INFINITY);
            nf4_codes(&w, *absmax, &mut q);
            pack(&q, nibbles);
        } else {
            let (w, q) = (&mut w[..elems], &mut q[..elems]);
            widen(dtype, bytes, w);
            *absmax = max_abs(w).unwrap_or(f32::INFINITY).max(ABSMAX_FLOOR);
            nf4_codes(w, *absmax, q);
            pack(q, nibbles);
        }
    }
}

/// Codes of one block into `q`: of `w / absmax` where it is a short one, else of `w (1 / absmax)`.
#[inline(always)]
fn nf4_codes(w: &[f32], absmax: f32, q: &mut [u8]) {
    let absmax = absmax.max(ABSMAX_FLOOR);
    if let Ok(w) = <&[f32; BLOCK_ELEMS]>::try_from(w) {
        let inverse = 1.0 / absmax;
        for (q, w) in q.iter_mut().zip(w) {
            *q = nf4_code(w * inverse);
        }
    } else {
        for (q, w) in q.iter_mut().zip(w) {
            *q = nf4_code(w / absmax);
        }
    }
}

/// The number of midpoints below `v`: a search that halves what is left, where each step picks
/// among the midpoints that it may ask for next. Without branches, so that loops over it are wide;
/// asking all fifteen takes half as long again.
#[inline(always)]
pub(super) fn nf4_code(v: f32) -> u8 {
    let pick = |high: bool, of: [f32; 2]| if high { of[1] } else { of[0] };
    let eight = v > MIDPOINTS[7];
    let of_eight = |i: usize| pick(eight, [MIDPOINTS[i], MIDPOINTS[i + 8]]);
    let four = v > of_eight(3);
    let of_four = |i: usize| pick(four, [of_eight(i), of_eight(i + 4)]);
    let two = v > of_four(1);
    let one = v > pick(two, [of_four(0), of_four(2)]);
    u8::from(eight) << 3 | u8::from(four) << 2 | u8::from(two) << 1 | u8::from(one)
}

#[inline(always)]
fn nf4_errors(
    dtype: Dtype,
    bytes: &[u8],
    nibbles: &[u8],
    absmax: &[[f32; 2]],
    out: &mut [[GroupError; 2]],
) {
    let blocks = bytes.chunks_exact(BLOCK_ELEMS * dtype.bytes());
    let blocks = blocks.zip(nibbles.as_chunks::<BLOCK_BYTES>().0);
    let mut w = [0.0; BLOCK_ELEMS];
    for ((bytes, nibbles), (absmax, out)) in blocks.zip(absmax.iter().zip(out)) {
        widen(dtype, bytes, &mut w);
        let (mut sums, mut exact_sums) = (Sums::default(), Sums::default());
        let halves = w.as_chunks::<LANES>().0.iter();
        for (w, nibbles) in halves.zip(nibbles.as_chunks::<{ LANES / 2 }>().0) {
            let values = values(nibbles);
            sums.accumulate::<true>(w, &values.map(|value| value * absmax[0]));
            exact_sums.accumulate::<false>(w, &values.map(|value| value * absmax[1]));
        }
        *out = sums.total_beside(&exact_sums);
    }
}

/// The values of the codes of some bytes.
#[inline(always)]
fn values(nibbles: &[u8; LANES / 2]) -> [f32; LANES] {
    let mut codes = [0u32; LANES];
    for (codes, byte) in codes.as_chunks_mut::<2>().0.iter_mut().zip(nibbles) {
        *codes = [u32::from(byte >> 4), u32::from(byte & 15)];
    }
    // A bit of the code halves what it may be; a look-up in memory would be a gather.
    let mut out = [0.0; LANES];
    for (out, code) in out.iter_mut().zip(codes) {
        let pick = |bit: u32, low: f32, high: f32| if code & bit != 0 { high } else { low };
        let pair = |i: usize| pick(1, VALUES[i], VALUES[i + 1]);
        let four = |i: usize| pick(2, pair(i), pair(i + 2));
        let eight = |i: usize| pick(4, four(i), four(i + 4));
        *out = pick(8, eight(0), eight(8));
    }
    out
}
