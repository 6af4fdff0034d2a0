//! The values that a weight can take, and the inner loops over them, compiled for several
//! instruction sets from one source. Nothing is contracted into fused multiply-adds, so every
//! instruction set gives the same bits.

use crate::quantize::{Kernel, LANES, ROUND, for_each_isa};

/// The values that a weight can take under a scale of 1.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Levels {
    /// The integers -8 to 7; a code is the integer.
    Int4,
    /// Sixteen rising values; a code is an index. The midpoints between neighbours decide.
    Table([f32; 16]),
}

impl Levels {
    /// The value of a code that [`Levels::round`] gave, under a scale of 1.
    #[inline(always)]
    pub(super) fn value(self, code: i8) -> f32 {
        match self {
            Self::Int4 => f32::from(code),
            Self::Table(levels) => levels[usize::from(code.cast_unsigned() & 15)],
        }
    }

    /// What the largest weight of a group is divided by for the scale that clips nothing.
    pub(super) fn top(self) -> f32 {
        match self {
            Self::Int4 => 7.0,
            Self::Table(levels) => levels[15].min(-levels[0]),
        }
    }

    /// The code nearest to `w`, and its value, under `scale`; that of zero where the scale is.
    #[inline(always)]
    pub(super) fn round(self, w: f32, scale: f32) -> (i8, f32) {
        let v = if scale == 0.0 { 0.0 } else { w / scale };
        match self {
            Self::Int4 => {
                let q = nearest_int4(v);
                (q as i8, q * scale)
            }
            Self::Table(levels) => {
                let code = nearest_of(&levels, v);
                (code.cast_signed(), levels[usize::from(code & 15)] * scale)
            }
        }
    }
}

/// Half to even; the bounds are integers, so clamping first changes nothing.
#[inline(always)]
fn nearest_int4(v: f32) -> f32 {
    (v.clamp(-8.0, 7.0) + ROUND) - ROUND
}

/// The number of midpoints below `v`; without branches, so that loops over it are wide.
#[inline(always)]
fn nearest_of(levels: &[f32; 16], v: f32) -> u8 {
    let above = levels.windows(2).map(|p| u8::from(v > 0.5 * (p[0] + p[1])));
    above.fold(0, u8::wrapping_add)
}

/// One row's part of a block of columns, in the order of rounding.
pub(crate) struct BlockRow<'a> {
    /// The weights, `[width]`; each is left as it was when it was rounded.
    pub(super) w: &'a mut [f32],
    /// The scale of each column's group, `[width]`.
    pub(super) scales: &'a [f32],
    /// The block of `U` on its diagonal, `[width, width]`.
    pub(super) upper: &'a [f32],
    /// `(w - v) / U_jj`, `[width]`, overwritten.
    pub(super) errors: &'a mut [f32],
    /// Where the codes are written, `[width]`.
    pub(super) codes: &'a mut [i8],
}

impl Kernel {
    for_each_isa! {
        /// `sum h (w - v)^2` with the nearest `v` under `scale`.
        weighted_error, weighted_error, (w: &[f32], h: &[f32], levels: Levels, scale: f32) -> f64
    }

    for_each_isa! {
        /// Rounds each column of the row and hands its error on to those behind it.
        round_block, round_block, (row: BlockRow<'_>, levels: Levels) -> ()
    }
}

#[inline(always)]
fn weighted_error(w: &[f32], h: &[f32], levels: Levels, scale: f32) -> f64 {
    let divisor = if scale == 0.0 { f32::INFINITY } else { scale };
    let mut lanes = [0f32; LANES];
    let ((w, w_tail), (h, h_tail)) = (w.as_chunks::<LANES>(), h.as_chunks::<LANES>());
    let mut add = |w: &[f32; LANES], h: &[f32; LANES]| {
        for l in 0..LANES {
            let v = w[l] / divisor;
            let v = match levels {
                Levels::Int4 => nearest_int4(v),
                Levels::Table(levels) => nearest_value(&levels, v),
            };
            let error = w[l] - v * scale;
            lanes[l] += error * error * h[l];
        }
    };
    for (w, h) in w.iter().zip(h) {
        add(w, h);
    }
    if !w_tail.is_empty() {
        let (mut w, mut h) = ([0.0; LANES], [0.0; LANES]);
        w[..w_tail.len()].copy_from_slice(w_tail);
        h[..h_tail.len()].copy_from_slice(h_tail);
        add(&w, &h);
    }
    lanes.iter().map(|v| f64::from(*v)).sum()
}

/// [`nearest_of`]'s value, by selection and not by index, so that loops over it are wide.
#[inline(always)]
fn nearest_value(levels: &[f32; 16], v: f32) -> f32 {
    let mut value = levels[0];
    for p in levels.windows(2) {
        value = if v > 0.5 * (p[0] + p[1]) { p[1] } else { value };
    }
    value
}

#[inline(always)]
fn round_block(row: BlockRow<'_>, levels: Levels) {
    let width = row.w.len();
    for j in 0..width {
        let (code, value) = levels.round(row.w[j], row.scales[j]);
        row.codes[j] = code;
        let u = &row.upper[j * width..(j + 1) * width];
        let error = (row.w[j] - value) / u[j];
        row.errors[j] = error;
        for (w, u) in row.w[j + 1..].iter_mut().zip(&u[j + 1..]) {
            *w -= error * u;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_goes_to_the_nearest_level() {
        let levels = std::array::from_fn(|i| i as f32 - 7.5);
        let table = Levels::Table(levels);
        assert_eq!(table.round(0.9, 2.0), (8, 1.0));
        assert_eq!(table.round(-90.0, 2.0), (0, -15.0));
        assert_eq!(table.value(15), 7.5);
        for (w, scale, expected) in [
            (0.25, 0.1, (2, 0.2)),
            (9.0, 1.0, (7, 7.0)),
            (-9.0, 1.0, (-8, -8.0)),
            (1.0, 0.0, (0, 0.0)),
            (0.5, -0.5, (-1, 0.5)),
            (2.5, 1.0, (2, 2.0)),
        ] {
            assert_eq!(Levels::Int4.round(w, scale), expected, "{w} {scale}");
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let w: Vec<f32> = (0..77).map(|i| (i as f32 * 0.7).sin()).collect();
        let h: Vec<f32> = (0..77).map(|i| (i % 5) as f32).collect();
        for levels in [Levels::Int4, Levels::Table(smq_format::nf4::VALUES)] {
            for scale in [0.1, -0.13, 0.9] {
                let plain: f64 = (w.iter().zip(&h))
                    .map(|(w, h)| f64::from(h * (w - levels.round(*w, scale).1).powi(2)))
                    .sum();
                let all: Vec<f64> = (Kernel::available().iter())
                    .map(|k| k.weighted_error(&w, &h, levels, scale))
                    .collect();
                assert!(all.iter().all(|v| *v == all[0]), "{all:?}");
                // 77 sums in f32.
                assert!((all[0] - plain).abs() <= plain * 77.0 * f64::from(f32::EPSILON));
            }
        }
    }
}
