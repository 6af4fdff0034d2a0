//! Which scale a group takes: of all that its format holds near the group's largest weight, of both
//! signs, the one with the least squared error, each column weighted by how large its inputs are.

use smq_format::scale::{Zero, round_mantissa};

use super::levels::Levels;
use crate::quantize::{Kernel, ScaleChoice};

/// Mantissa bits of the finest steps that are tried, where the format has more.
pub(crate) const SEARCHED_MANTISSA_BITS: u32 = 5;
/// Scales down to this share of the largest that clips nothing are tried.
const SMALLEST: f32 = 0.5;
/// And up to this one, where it isn't a step of the format.
const LARGEST: f32 = 1.0625;

/// The scale for the weights `w` of a group, whose columns' inputs have the squares `h`; 0 for a
/// group of zeros.
pub(super) fn search(w: &[f32], h: &[f32], levels: Levels, format: ScaleChoice) -> f32 {
    let largest = Kernel::detect().max_abs(w).unwrap_or_default();
    if largest == 0.0 {
        return 0.0;
    }
    // The level of largest magnitude may be of either sign; a negative scale turns them over.
    let both = |magnitude: f32| [magnitude, -magnitude];
    best_of(
        w,
        h,
        levels,
        candidates(largest / levels.top(), format).flat_map(both),
    )
    .unwrap_or(0.0)
}

/// Of `representable` scales those near what clips nothing of `w` are tried, as in [`search`].
pub(super) fn nearest_of(
    w: &[f32],
    h: &[f32],
    levels: Levels,
    representable: impl Iterator<Item = f32>,
) -> Option<f32> {
    let largest = Kernel::detect().max_abs(w).unwrap_or_default() / levels.top();
    let near = SMALLEST * largest..=LARGEST * largest;
    best_of(w, h, levels, representable.filter(|s| near.contains(s)))
}

/// The scale of least weighted error, the first of equal ones.
fn best_of(w: &[f32], h: &[f32], levels: Levels, scales: impl Iterator<Item = f32>) -> Option<f32> {
    let kernel = Kernel::detect();
    let mut best = (f64::INFINITY, None);
    for scale in scales {
        let error = kernel.weighted_error(w, h, levels, scale);
        if error < best.0 {
            best = (error, Some(scale));
        }
    }
    best.1
}

/// Representable magnitudes at most a step over `largest`, falling, to [`SMALLEST`] of it.
fn candidates(largest: f32, format: ScaleChoice) -> impl Iterator<Item = f32> {
    let step_bits = match format {
        ScaleChoice::F32 | ScaleChoice::F16 => SEARCHED_MANTISSA_BITS,
        ScaleChoice::Mini { mantissa_bits, .. } => mantissa_bits.min(SEARCHED_MANTISSA_BITS),
    };
    let step = 1u32 << (23 - step_bits);
    let first = round_mantissa(largest, step_bits, Zero::Nearest).to_bits() + step;
    let count = 2 * (1u32 << step_bits) + 2;
    (0..count)
        .map(move |i| f32::from_bits(first.saturating_sub(i * step)))
        .take_while(move |s| s.is_normal() && *s >= SMALLEST * largest)
}
