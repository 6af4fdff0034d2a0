//! The levels of a code book: NF4's, or learned from the tensor by Lloyd's rule.
//!
//! The rule works on a histogram of the quotients `w / s` with integer counts, so its result
//! depends on neither the number of threads nor the order of the rows. The arithmetic is
//! `spec/method.md`, "Code books".

use rayon::prelude::*;
use smq_format::{Dtype, LevelChoice, Levels, ScaleRule, nf4};

use super::grid::exact_scale;
use super::kernel::Kernel;
use super::{QuantizeError, QuantizeOptions, first_not_finite};

/// Magnitude of the levels at the ends. Of a byte's 127 one is left, for the sign that the CUDA
/// kernel adds to it (kernels/decode_lut4.cuh).
const END: i32 = 126;
/// Bins of the histogram for a unit of the levels.
const BINS_A_UNIT: i32 = 16;
/// Bins of either sign; those at the ends hold the quotients of the ends.
const BINS: i32 = END * BINS_A_UNIT;
/// The rule stops where nothing changes, or after so many steps.
const MAX_STEPS: usize = 200;

/// The levels of a tensor `[rows, columns]`.
///
/// # Errors
/// The first weight that is not finite.
pub(super) fn levels(
    choice: LevelChoice,
    bytes: &[u8],
    dtype: Dtype,
    columns: usize,
    options: &QuantizeOptions,
) -> Result<Levels, QuantizeError> {
    match choice {
        LevelChoice::Nf4 => Ok(Levels::nf4()),
        LevelChoice::Learned => {
            let counts = histogram(bytes, dtype, columns, options)?;
            // Where the largest weight of every group is at the lower end, the upper one is as free
            // as the rest.
            Ok(lloyd(&counts, options.rule == ScaleRule::Signed))
        }
    }
}

/// Counts of the quotients by `round_half_even(16 w / s)`, from -126 to 126, where `s` is the exact
/// scale that puts the group's largest magnitude at the end.
fn histogram(
    bytes: &[u8],
    dtype: Dtype,
    columns: usize,
    options: &QuantizeOptions,
) -> Result<Vec<u64>, QuantizeError> {
    let kernel = Kernel::detect();
    let empty = || vec![0u64; 2 * BINS as usize + 1];
    let count_row = |counts: &mut [u64], w: &mut [f32], row: usize, source: &[u8]| {
        kernel.widen(dtype, source, w);
        for (g, w) in w.chunks(options.group).enumerate() {
            let max_abs = kernel.max_abs(w);
            let max_abs = max_abs.ok_or_else(|| first_not_finite(w, row, g * options.group))?;
            if max_abs == 0.0 {
                continue;
            }
            let s = exact_scale(options.rule, -(END as f32), END as f32, w, max_abs);
            for w in w {
                let bin = (w / s * BINS_A_UNIT as f32).round_ties_even() as i32;
                counts[(bin.clamp(-BINS, BINS) + BINS) as usize] += 1;
            }
        }
        Ok(())
    };
    bytes
        .par_chunks(columns * dtype.bytes())
        .enumerate()
        .with_min_len(8)
        .try_fold(
            || (empty(), vec![0.0; columns]),
            |(mut counts, mut w), (row, source)| {
                count_row(&mut counts, &mut w, row, source)?;
                Ok((counts, w))
            },
        )
        .map(|part| part.map(|(counts, _)| counts))
        .try_reduce(empty, |mut total, part| {
            total.iter_mut().zip(part).for_each(|(t, p)| *t += p);
            Ok(total)
        })
}

/// Lloyd's rule from NF4's levels: each becomes the mean of what is nearest to it. The ends stay
/// where they are, but for the upper one where `free_end`; so does a level that nothing is nearest
/// to.
fn lloyd(counts: &[u64], free_end: bool) -> Levels {
    // Sums of the bins below each, so that a cell's are two differences; in integers, hence exact.
    let mut below = vec![(0i128, 0i128)];
    for (bin, &count) in (-BINS..=BINS).zip(counts) {
        let (number, sum) = below[below.len() - 1];
        let count = i128::from(count);
        below.push((number + count, sum + count * i128::from(bin)));
    }
    let last = nf4::VALUES.len() - 1;
    let mut levels = nf4::VALUES.map(|v| f64::from(v) * f64::from(END));
    for _ in 0..MAX_STEPS {
        let before = levels;
        // The first bin above each midpoint: a quotient on a midpoint has the lower code.
        let mut ends = [below.len() - 1; nf4::VALUES.len()];
        for (end, pair) in ends.iter_mut().zip(before.windows(2)) {
            let midpoint = (pair[0] + pair[1]) / 2.0 * f64::from(BINS_A_UNIT);
            *end = (midpoint.floor() as i32 + BINS + 1) as usize;
        }
        let mut start = ends[0];
        for i in 1..=if free_end { last } else { last - 1 } {
            let ((n0, sum0), (n1, sum1)) = (below[start], below[ends[i]]);
            if n1 > n0 {
                levels[i] = (sum1 - sum0) as f64 / (n1 - n0) as f64 / f64::from(BINS_A_UNIT);
            }
            start = ends[i];
        }
        if levels == before {
            break;
        }
    }
    strictly_increasing(levels)
}

/// The levels rounded to bytes; one that is not above the one before becomes the next byte, with
/// room for those above.
fn strictly_increasing(levels: [f64; 16]) -> Levels {
    let mut bytes = [0i8; 16];
    let mut lowest = -END;
    for (i, (byte, level)) in (0..).zip(bytes.iter_mut().zip(levels)) {
        let rounded = level.round_ties_even() as i32;
        let rounded = rounded.min(END - 15 + i).max(lowest);
        lowest = rounded + 1;
        *byte = rounded as i8;
    }
    Levels::new(bytes).unwrap_or(Levels::nf4())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counts(of: impl Fn(i32) -> u64) -> Vec<u64> {
        (-BINS..=BINS).map(of).collect()
    }

    fn error(counts: &[u64], levels: Levels) -> f64 {
        let nearest = |v: f64| levels.values().map(|l| (v - f64::from(l)).powi(2));
        let of = |(bin, n): (i32, &u64)| {
            let v = f64::from(bin) / f64::from(BINS_A_UNIT);
            *n as f64 * nearest(v).into_iter().fold(f64::INFINITY, f64::min)
        };
        (-BINS..=BINS).zip(counts).map(of).sum()
    }

    #[test]
    fn equal_counts_give_equal_steps_and_none_gives_nf4() {
        // Between held ends 14 levels divide 252 into equal steps, the outermost cells being half
        // as wide.
        let levels = lloyd(&counts(|_| 1), false).bytes();
        let steps: Vec<i32> = levels
            .windows(2)
            .map(|p| i32::from(p[1]) - i32::from(p[0]))
            .collect();
        assert!(steps.iter().all(|s| (16..=18).contains(s)), "{levels:?}");
        assert_eq!((levels[0], levels[15]), (-126, 126));
        let start = nf4::VALUES.map(|v| (v * 126.0).round() as i8);
        assert_eq!(lloyd(&counts(|_| 0), true).bytes(), start);
    }

    #[test]
    fn levels_that_fall_together_are_moved_apart() {
        // All quotients near 0: the levels would be one byte or two.
        let near = counts(|bin| u64::from(bin.abs() < 12) * 100 + u64::from(bin == -BINS));
        let levels = lloyd(&near, false);
        assert_eq!((levels.bytes()[0], levels.bytes()[15]), (-126, 126));
        let crowded = strictly_increasing([126.0; 16]);
        assert_eq!(crowded.bytes(), std::array::from_fn(|i| 111 + i as i8));
        let crowded = strictly_increasing([-126.0; 16]);
        assert_eq!(crowded.bytes(), std::array::from_fn(|i| i as i8 - 126));
    }

    #[test]
    fn learning_does_not_lose_to_nf4() {
        let normal = |sigma: f64| {
            counts(move |bin| (1e6 * (-0.5 * (f64::from(bin) / 16.0 / sigma).powi(2)).exp()) as u64)
        };
        for sigma in [25.0, 40.0, 60.0] {
            let counts = normal(sigma);
            let (fixed, free) = (lloyd(&counts, false), lloyd(&counts, true));
            assert!(
                error(&counts, fixed) < error(&counts, Levels::nf4()),
                "{sigma}"
            );
            assert!(error(&counts, free) < error(&counts, fixed), "{sigma}");
            assert!(free.bytes()[15] < 126 && free.bytes()[0] == -126);
        }
    }

    proptest! {
        #[test]
        fn always_a_book(
            seeds in prop::collection::vec((-BINS..=BINS, 0u64..1 << 40), 0..40), free: bool,
        ) {
            let mut counts = counts(|_| 0);
            for (bin, n) in seeds {
                counts[(bin + BINS) as usize] += n;
            }
            let bytes = lloyd(&counts, free).bytes();
            prop_assert!(bytes.windows(2).all(|p| p[0] < p[1]));
            prop_assert!(bytes[0] == -126 && (free || bytes[15] == 126));
        }
    }
}
