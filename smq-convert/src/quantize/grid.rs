//! What the codes of a group stand for: int4's integers, or the levels of a code book.

use smq_format::{Levels, ScaleRule, Scheme, int4, scale::ScaleFormat};

use super::kernel::{GroupError, Kernel};
use super::{MAX_ABS_FLOOR, QuantizeOptions};

/// A code book as the loops over a group need it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Book {
    pub(super) levels: Levels,
    /// The 16 levels, as the codes count them.
    pub(crate) values: [f32; 16],
    /// The code of a quotient is the number of these below it.
    pub(super) midpoints: [f32; 15],
    /// Quotients outside these, half a step beyond the ends, are clipped.
    pub(super) bounds: [f32; 2],
    /// The code of a quotient of 0.
    pub(super) zero_code: i8,
}

impl Book {
    pub(super) fn new(levels: Levels) -> Self {
        let (values, midpoints) = (levels.values(), levels.midpoints());
        Self {
            levels,
            values,
            midpoints,
            bounds: [
                2.0 * values[0] - midpoints[0],
                2.0 * values[15] - midpoints[14],
            ],
            zero_code: levels.zero_code() as i8,
        }
    }
}

/// What codes stand for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Grid {
    /// The integers -8 to 7, which are their own codes.
    Int4,
    /// The levels of a book, whose codes are indices.
    Book(Book),
}

impl Grid {
    /// What a code stands for under a scale of 1.
    pub(super) fn value(&self, code: i8) -> f32 {
        match self {
            Grid::Int4 => f32::from(code),
            Grid::Book(book) => book.values[usize::from(code.cast_unsigned() & 15)],
        }
    }

    /// Codes of `w / s` into `q`, and their errors. `largest` is the largest magnitude in `w`, here
    /// and below.
    pub(super) fn quantize(
        &self,
        kernel: &Kernel,
        (w, largest): (&[f32], f32),
        s: f32,
        q: &mut [i8],
    ) -> GroupError {
        match self {
            Grid::Int4 => kernel.quantize(w, largest, s, q),
            Grid::Book(book) => kernel.quantize_levels(w, s, book, q),
        }
    }

    /// [`Grid::quantize`] under `s`, and beside its errors those under the scale `exact`.
    pub(super) fn quantize_beside(
        &self,
        kernel: &Kernel,
        (w, largest): (&[f32], f32),
        s: f32,
        exact: f32,
        q: &mut [i8],
    ) -> [GroupError; 2] {
        match self {
            Grid::Int4 => kernel.quantize_beside(w, largest, s, exact, q),
            Grid::Book(book) => [
                kernel.quantize_levels(w, s, book, q),
                kernel.errors_levels(w, exact, book),
            ],
        }
    }

    /// The errors that [`Grid::quantize`] would have.
    pub(super) fn errors(
        &self,
        kernel: &Kernel,
        (w, largest): (&[f32], f32),
        s: f32,
    ) -> GroupError {
        match self {
            Grid::Int4 => kernel.errors(w, largest, s),
            Grid::Book(book) => kernel.errors_levels(w, s, book),
        }
    }

    /// The code of a weight where the scale is zero.
    pub(super) fn zero_code(&self) -> i8 {
        match self {
            Grid::Int4 => 0,
            Grid::Book(book) => book.zero_code,
        }
    }

    /// The codes of a byte, even column first.
    pub(super) fn unpack(&self, byte: u8) -> (i8, i8) {
        match self {
            Grid::Int4 => int4::unpack(byte),
            Grid::Book(_) => ((byte & 15) as i8, (byte >> 4) as i8),
        }
    }

    /// The exact scale of a group of magnitudes up to `max_abs`, which is not 0.
    pub(super) fn exact_scale(&self, rule: ScaleRule, w: &[f32], max_abs: f32) -> f32 {
        match self {
            Grid::Int4 => exact_scale(rule, -8.0, 7.0, w, max_abs),
            Grid::Book(book) => {
                let largest = f32::from(book.levels.largest());
                exact_scale(rule, largest, largest.abs(), w, max_abs)
            }
        }
    }

    /// How a tensor is stored that has these codes.
    pub(super) fn scheme(&self, options: &QuantizeOptions, scales: ScaleFormat) -> Scheme {
        let group = options.group;
        match self {
            Grid::Int4 => Scheme::Int4 { group, scales },
            Grid::Book(book) => Scheme::Lut4 {
                group,
                scales,
                levels: book.levels,
            },
        }
    }
}

/// The exact scale of a group: `max|w| / divisor`; signed, what puts the first element of largest
/// magnitude on `signed`. With the published reference's floor under `max|w|`.
pub(super) fn exact_scale(
    rule: ScaleRule,
    signed: f32,
    divisor: f32,
    w: &[f32],
    max_abs: f32,
) -> f32 {
    let extreme = || w.iter().find(|w| w.abs() == max_abs).copied();
    let floored = max_abs.max(MAX_ABS_FLOOR);
    match rule {
        ScaleRule::Signed => floored.copysign(extreme().unwrap_or(0.0)) / signed,
        ScaleRule::Reference | ScaleRule::Nearest | ScaleRule::Search | ScaleRule::Weighted => {
            floored / divisor
        }
    }
}

#[cfg(test)]
mod tests;
