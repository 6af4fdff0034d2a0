//! The sums over one group, lane by lane, and what they add up to.

use super::grid::Book;
use super::kernel::{GroupError, LANES, ROUND};

/// Sums over the weights of a group, of which those of a second scale leave out what the first
/// scale's have already: the squares of the weights alone.
#[derive(Default)]
pub(super) struct Sums {
    squared_error: [f32; LANES],
    squared_weight: [f32; LANES],
    squared_stored: [f32; LANES],
    product: [f32; LANES],
    clipped: [u32; LANES],
}

impl Sums {
    /// With `CLIPS` where a quotient may have to be clipped, as where `s` is 0.
    #[inline(always)]
    pub(super) fn add<const WEIGHTS: bool, const CLIPS: bool>(
        &mut self,
        w: &[f32; LANES],
        s: f32,
    ) -> [i8; LANES] {
        let mut codes = [0i8; LANES];
        if CLIPS && s == 0.0 {
            self.accumulate::<WEIGHTS>(w, &[0.0; LANES]);
            return codes;
        }
        let mut stored = [0.0; LANES];
        for l in 0..LANES {
            let rounded = (w[l] / s + ROUND) - ROUND;
            let code = match CLIPS {
                true => rounded.clamp(-8.0, 7.0),
                false => rounded,
            };
            if CLIPS {
                // Wrapping: an overflow check a lane would keep the loop scalar, and a group has
                // 2^20 at most.
                self.clipped[l] = self.clipped[l].wrapping_add(u32::from(rounded != code));
            }
            stored[l] = code * s;
            // The integer is in the low bits of the sum, where a plain `as` would add a saturation
            // check a lane. Of a NaN they are some bits, and its group is refused elsewhere.
            codes[l] = (code + ROUND).to_bits() as i8;
        }
        self.accumulate::<WEIGHTS>(w, &stored);
        codes
    }

    /// The first `len` lanes are weights. A book need not have the level 0, so what the others
    /// would add is taken out.
    #[inline(always)]
    pub(super) fn add_levels(
        &mut self,
        w: &[f32; LANES],
        len: usize,
        s: f32,
        book: &Book,
    ) -> [i8; LANES] {
        if s == 0.0 {
            self.accumulate::<true>(w, &[0.0; LANES]);
            return [book.zero_code; LANES];
        }
        let (mut codes, mut stored) = ([0i8; LANES], [0.0; LANES]);
        for l in 0..LANES {
            let quotient = w[l] / s;
            let (mut code, mut value) = (0i8, book.values[0]);
            for (midpoint, next) in book.midpoints.iter().zip(&book.values[1..]) {
                let above = quotient > *midpoint;
                code = code.wrapping_add(i8::from(above));
                value = if above { *next } else { value };
            }
            let outside = (quotient < book.bounds[0]) | (quotient > book.bounds[1]);
            self.clipped[l] = self.clipped[l].wrapping_add(u32::from(outside & (l < len)));
            codes[l] = code;
            stored[l] = if l < len { value * s } else { 0.0 };
        }
        self.accumulate::<true>(w, &stored);
        codes
    }

    /// With the squares of the weights where `WEIGHTS`.
    #[inline(always)]
    pub(super) fn accumulate<const WEIGHTS: bool>(&mut self, w: &[f32; LANES], v: &[f32; LANES]) {
        for l in 0..LANES {
            let e = w[l] - v[l];
            self.squared_error[l] += e * e;
            if WEIGHTS {
                self.squared_weight[l] += w[l] * w[l];
            }
            self.squared_stored[l] += v[l] * v[l];
            self.product[l] += w[l] * v[l];
        }
    }

    #[inline(always)]
    pub(super) fn total(&self) -> GroupError {
        self.total_of(total(&self.squared_weight))
    }

    /// Of these, and of sums over the same weights that leave out the weights' squares.
    #[inline(always)]
    pub(super) fn total_beside(&self, other: &Sums) -> [GroupError; 2] {
        let squared_weight = total(&self.squared_weight);
        [
            self.total_of(squared_weight),
            other.total_of(squared_weight),
        ]
    }

    #[inline(always)]
    fn total_of(&self, squared_weight: f32) -> GroupError {
        GroupError {
            squared_error: total(&self.squared_error),
            squared_weight,
            squared_stored: total(&self.squared_stored),
            product: total(&self.product),
            // Wrapping, as above: a group has 2^20 elements at most.
            clipped: self.clipped.iter().fold(0, |sum, n| sum.wrapping_add(*n)),
        }
    }
}

/// Adds the halves until one is left.
///
/// Left to itself the compiler interleaves the trees of all sums of a group, which takes it three
/// times the instructions: on Emerald Rapids 50 of a group's 150 ns. So each tree is written as
/// the instructions that it is, which every x86-64 processor has.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn total(lanes: &[f32; LANES]) -> f32 {
    use std::arch::x86_64::{
        _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_loadu_ps, _mm_movehl_ps, _mm_shuffle_ps,
    };
    // A copy in memory: loads of quarters from the sums themselves would have the compiler keep
    // these in quarters, in the loop too.
    let lanes = *lanes;
    let (quarters, _) = std::hint::black_box(&lanes).as_chunks::<{ LANES / 4 }>();
    // SAFETY: every x86-64 processor has SSE, and four lanes are read of each array of four.
    unsafe {
        let at = |quarter: usize| _mm_loadu_ps(quarters[quarter].as_ptr());
        let four = _mm_add_ps(_mm_add_ps(at(0), at(2)), _mm_add_ps(at(1), at(3)));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }
}

/// Adds the halves until one is left.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn total(lanes: &[f32; LANES]) -> f32 {
    tree(*lanes)
}

/// The definition of [`total`].
#[cfg(any(test, not(target_arch = "x86_64")))]
#[inline(always)]
fn tree(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            lanes[l] += lanes[l + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn totals_have_the_order_of_the_tree(lanes: [f32; LANES]) {
            prop_assert_eq!(total(&lanes).to_bits(), tree(lanes).to_bits());
        }
    }
}
