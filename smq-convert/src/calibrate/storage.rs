//! What a matrix is stored as: its levels, which scales there are and where each applies, and the
//! tensor that comes of settled integers.

use rayon::prelude::*;
use smq_format::nf4;

use super::levels::Levels;
use super::scales::{nearest_of, search};
use crate::quantize::{
    Grid, Kernel, Method, QuantizeError, QuantizeOptions, Quantized, ScaleRule, SettledAbsmax,
    SettledScales, group_scale, settled, settled_nf4,
};

/// Storage that scales and codes can be chosen for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Storage {
    /// Codes with a scale a group: int4, or a code book.
    Groups(QuantizeOptions, Grid),
    /// NF4 with double quantization.
    Nf4,
}

/// Which scale a weight has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    /// Weights that share one.
    run: usize,
    /// Distance of rows, in weights: where runs end with a row, it is rounded up to whole runs.
    row: usize,
}

impl Layout {
    /// Groups of a row of `columns`, the last of which may be short.
    pub(super) fn groups(group: usize, columns: usize) -> Self {
        Self {
            run: group,
            row: columns.next_multiple_of(group),
        }
    }

    /// Weights that share a scale.
    pub(super) fn run(self) -> usize {
        self.run
    }

    /// From a row to the next, in weights.
    pub(super) fn row_stride(self) -> usize {
        self.row
    }

    /// Where the scale of the weight at `row` and `column` is.
    #[inline(always)]
    pub(super) fn index(self, row: usize, column: usize) -> usize {
        (row * self.row + column) / self.run
    }
}

/// Settled scales of a matrix.
#[derive(Debug)]
pub(super) enum Settled {
    /// Scales of int4 or lut4, one for each group.
    Groups(QuantizeOptions, Grid, SettledScales),
    /// Absmax values of NF4, one for each block.
    Nf4(SettledAbsmax),
}

impl Settled {
    /// Decoded, as [`Layout::index`] finds them.
    pub(super) fn values(&self) -> &[f32] {
        match self {
            Self::Groups(_, _, scales) => &scales.values,
            Self::Nf4(absmax) => &absmax.values,
        }
    }

    /// The tensor with `codes`, `[rows, columns]`; its errors are against `w`.
    pub(super) fn quantized(
        self,
        name: &str,
        w: &[f32],
        columns: usize,
        codes: &[i8],
    ) -> Quantized {
        match self {
            Self::Groups(options, grid, scales) => {
                settled(name, w, columns, &options, &grid, scales, codes)
            }
            Self::Nf4(absmax) => settled_nf4(name, w, columns, absmax, codes),
        }
    }
}

impl Storage {
    /// Of a matrix `w` with rows of `columns` by `method`; `None` where calibration has nothing to
    /// choose.
    ///
    /// # Errors
    /// The first weight that is not finite.
    pub(super) fn of(
        method: Method,
        w: &[f32],
        columns: usize,
    ) -> Result<Option<Self>, QuantizeError> {
        Ok(match (method, method.grid(w, columns)?) {
            (Method::Int4(options) | Method::Lut4 { options, .. }, Some(grid)) => {
                Some(Self::Groups(options, grid))
            }
            (Method::Nf4, _) => Some(Self::Nf4),
            (Method::Fp8 | Method::Int4(_) | Method::Lut4 { .. }, _) => None,
        })
    }

    /// The values of a weight whose scale is 1.
    pub(super) fn levels(self) -> Levels {
        match self {
            Self::Groups(_, Grid::Int4) => Levels::Int4,
            Self::Groups(_, Grid::Book(book)) => Levels::Table(book.values),
            Self::Nf4 => Levels::Table(nf4::VALUES),
        }
    }

    /// Which scale each weight of a matrix with rows of `columns` has.
    pub(super) fn layout(self, columns: usize) -> Layout {
        match self {
            Self::Groups(QuantizeOptions { group, .. }, _) => Layout::groups(group, columns),
            Self::Nf4 => Layout {
                run: nf4::BLOCK_ELEMS,
                row: columns,
            },
        }
    }

    /// What rounds to nearest in the same storage: calibration is compared with it.
    pub(super) fn nearest(self) -> Self {
        match self {
            Self::Groups(options, grid) => {
                let rule = match options.rule {
                    ScaleRule::Weighted => ScaleRule::Nearest,
                    rule @ (ScaleRule::Reference
                    | ScaleRule::Nearest
                    | ScaleRule::Search
                    | ScaleRule::Signed) => rule,
                };
                Self::Groups(QuantizeOptions { rule, ..options }, grid)
            }
            Self::Nf4 => Self::Nf4,
        }
    }

    /// Scales for `target`, in place of the weights `w`; both are `[rows, columns]`. `squares` are
    /// those of the columns' inputs; without them the plain rule is followed.
    ///
    /// # Errors
    /// A target that is not finite, or a scale over its format's range.
    pub(super) fn settle(
        self,
        target: &[f32],
        w: &[f32],
        columns: usize,
        squares: Option<&[f32]>,
    ) -> Result<Settled, QuantizeError> {
        match self {
            Self::Groups(options, grid) => {
                let rule = Rule {
                    options,
                    grid,
                    levels: self.levels(),
                    squares,
                };
                let scales = group_scales(&rule, target, w, columns)?;
                let scales = SettledScales::new(&options, scales)?;
                Ok(Settled::Groups(options, grid, scales))
            }
            Self::Nf4 => {
                let kernel = Kernel::detect();
                if let Some(at) = target.iter().position(|v| !v.is_finite()) {
                    return Err(not_finite(at, columns, target[at]));
                }
                let largest = |w: &[f32]| kernel.max_abs(w).unwrap_or_default();
                let absmax: Vec<f32> = target.par_chunks(nf4::BLOCK_ELEMS).map(largest).collect();
                let mut settled = SettledAbsmax::new(&absmax);
                if let Some(squares) = squares {
                    let levels = self.levels();
                    settled.choose(|block, representable| {
                        let first = block * nf4::BLOCK_ELEMS;
                        let run = first..target.len().min(first + nf4::BLOCK_ELEMS);
                        let h: Vec<f32> = run.clone().map(|i| squares[i % columns]).collect();
                        nearest_of(&target[run], &h, levels, representable)
                    });
                }
                Ok(Settled::Nf4(settled))
            }
        }
    }
}

/// How the scale of a group is found.
struct Rule<'a> {
    options: QuantizeOptions,
    grid: Grid,
    levels: Levels,
    squares: Option<&'a [f32]>,
}

/// One scale a group for `target`, each of the format's mantissa, `[rows, groups]`.
fn group_scales(
    rule: &Rule<'_>,
    target: &[f32],
    w: &[f32],
    columns: usize,
) -> Result<Vec<f32>, QuantizeError> {
    let options = &rule.options;
    let groups = columns.div_ceil(options.group);
    let mut scales = vec![0.0; w.len() / columns * groups];
    let rows = target.par_chunks(columns).zip(w.par_chunks(columns));
    scales
        .par_chunks_mut(groups)
        .zip(rows)
        .enumerate()
        .try_for_each(|(row, (scales, (target, w)))| {
            for (g, scale) in scales.iter_mut().enumerate() {
                let run = g * options.group..columns.min((g + 1) * options.group);
                // A group without weights stays one, whatever its target.
                if w[run.clone()].iter().all(|w| *w == 0.0) {
                    continue;
                }
                let target = &target[run.clone()];
                if let Some(at) = target.iter().position(|v| !v.is_finite()) {
                    return Err(not_finite(
                        row * columns + run.start + at,
                        columns,
                        target[at],
                    ));
                }
                *scale = match (options.rule, rule.squares) {
                    (ScaleRule::Weighted, Some(squares)) => {
                        search(target, &squares[run], rule.levels, options.scales)
                    }
                    (
                        ScaleRule::Reference
                        | ScaleRule::Nearest
                        | ScaleRule::Search
                        | ScaleRule::Signed
                        | ScaleRule::Weighted,
                        _,
                    ) => group_scale(target, options, &rule.grid).unwrap_or(0.0),
                };
            }
            Ok(())
        })?;
    Ok(scales)
}

fn not_finite(at: usize, columns: usize, value: f32) -> QuantizeError {
    QuantizeError::NotFinite {
        row: at / columns,
        column: at % columns,
        value,
    }
}
