//! Which scale a group takes: of all that its format holds near the group's largest weight, of both
//! signs, the one with the least squared error, each column weighted by how large its inputs are.

use smq_format::scale::{Zero, round_mantissa};

use super::columns::Levels;
use crate::quantize::ScaleChoice;

/// Steps an octave that are tried where the format has more.
const STEPS_PER_OCTAVE: u32 = 32;
/// Scales down to this share of the largest that clips nothing are tried.
const SMALLEST: f32 = 0.5;

/// The scale for the weights `w` of a group, whose columns' inputs have the squares `h`; 0 for a group of zeros.
pub(super) fn search(w: &[f32], h: &[f32], levels: Levels<'_>, format: ScaleChoice) -> f32 {
    let extreme = |largest: f32, v: &f32| if v.abs() > largest.abs() { *v } else { largest };
    let extreme = w.iter().fold(0.0, extreme);
    if extreme == 0.0 {
        return 0.0;
    }
    let mut best = (f64::INFINITY, 0.0);
    // The level of largest magnitude may be -8 or the first of a table; a negative scale turns it over.
    for magnitude in candidates(extreme.abs() / levels.top(), format) {
        for scale in [magnitude, -magnitude] {
            let error = weighted_error(w, h, levels, scale);
            if error < best.0 {
                best = (error, scale);
            }
        }
    }
    best.1
}

/// Representable magnitudes at most a step over `largest`, falling, to [`SMALLEST`] of it.
fn candidates(largest: f32, format: ScaleChoice) -> impl Iterator<Item = f32> {
    let step_bits = match format {
        ScaleChoice::F32 | ScaleChoice::F16 => STEPS_PER_OCTAVE.trailing_zeros(),
        ScaleChoice::Mini { mantissa_bits, .. } => {
            mantissa_bits.min(STEPS_PER_OCTAVE.trailing_zeros())
        }
    };
    let step = 1u32 << (23 - step_bits);
    let first = round_mantissa(largest, step_bits, Zero::Nearest).to_bits() + step;
    let count = 2 * (1u32 << step_bits) + 2;
    (0..count)
        .map(move |i| f32::from_bits(first.saturating_sub(i * step)))
        .take_while(move |s| s.is_normal() && *s >= SMALLEST * largest)
}

fn weighted_error(w: &[f32], h: &[f32], levels: Levels<'_>, scale: f32) -> f64 {
    const LANES: usize = 16;
    let mut lanes = [0f32; LANES];
    let add = |lanes: &mut [f32; LANES], w: &[f32], h: &[f32]| {
        for ((lane, w), h) in lanes.iter_mut().zip(w).zip(h) {
            let error = w - levels.round(*w, scale).1;
            *lane += error * error * h;
        }
    };
    let ((w, w_tail), (h, h_tail)) = (w.as_chunks::<LANES>(), h.as_chunks::<LANES>());
    for (w, h) in w.iter().zip(h) {
        add(&mut lanes, w, h);
    }
    add(&mut lanes, w_tail, h_tail);
    lanes.iter().map(|v| f64::from(*v)).sum()
}
