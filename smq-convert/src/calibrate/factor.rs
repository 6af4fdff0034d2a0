//! The factorizations that the target and the column loop of one set of products use.

use std::cmp::Ordering;
use std::convert::Infallible;

use faer::linalg::matmul::matmul;
use faer::linalg::triangular_inverse::invert_lower_triangular;
use faer::linalg::triangular_solve::{
    solve_lower_triangular_in_place, solve_upper_triangular_in_place,
};
use faer::prelude::ReborrowMut;
use faer::{Accum, Mat, MatMut, MatRef, Par, Side};
use rayon::prelude::*;

use super::arithmetic::{Losses, Sizes};
use super::moments::Moments;

/// Damping of the column loop: this share of the mean diagonal of `H` is added to its diagonal.
pub(super) const COLUMN_DAMPING: f64 = 0.01;
/// Damping of the target, likewise. It has more to fear from chance: it fits `in` numbers a row to
/// a difference that is mostly noise.
pub(super) const TARGET_DAMPING: f64 = 0.2;
/// What damping is multiplied with where the damped matrix is still not positive definite.
const DAMPING_STEP: f64 = 10.0;
/// Times that it is. By then the identity outweighs any `H` that is finite.
const MAX_STEPS: u32 = 8;
/// Rows that one task works on.
const TASK_ROWS: usize = 64;

/// The damped `H` of one set of products, factorized.
#[derive(Debug)]
pub(super) struct Factor {
    /// Columns in the order in which they are rounded: by falling diagonal of `H`.
    pub(super) order: Vec<usize>,
    /// `U` with `inverse(H) = U' U` in that order, `[in, in]` row-major, upper triangular.
    pub(super) upper: Vec<f32>,
    /// The diagonal of `H`, undamped, in the columns' own order.
    pub(super) diagonal: Vec<f32>,
    /// Times that damping was raised.
    pub(super) raised: u32,
    /// What is added to the diagonal of `H` for the target.
    damping: f64,
    /// `H`, undamped and whole, `[in, in]`.
    h: Vec<f32>,
    /// `D inverse(H)`, damped for the target, `[in, in]`.
    correction: Vec<f32>,
    /// `sum x' x`, `[in, in]`.
    whole: Vec<f32>,
    /// `sum (x - y)' (x - y)`, `[in, in]`.
    c: Vec<f32>,
}

impl Factor {
    /// Of the sums in `moments`. `None` where they are not finite.
    pub(super) fn new(moments: &Moments) -> Option<Self> {
        let n = moments.features();
        let diagonal: Vec<f64> = (0..n).map(|i| moments.h(i, i)).collect();
        if !diagonal.iter().all(|v| v.is_finite()) {
            return None;
        }
        let order = falling(&diagonal);
        let (of_columns, target) = rayon::join(
            || {
                let damped = Damped::new(moments, &diagonal, &order, COLUMN_DAMPING)?;
                let mut inverse = Mat::<f64>::zeros(n, n);
                invert_lower_triangular(inverse.as_mut(), damped.lower.as_ref(), Par::Seq);
                Some((inverse, damped.raised))
            },
            || Damped::new(moments, &diagonal, &order, TARGET_DAMPING),
        );
        let ((inverse, raised), target) = (of_columns?, target?);
        // H = L L' in reversed order means H = R R' in `order`, with the upper triangular R whose
        // inverse is U.
        let mut upper = vec![0.0; n * n];
        upper.par_chunks_mut(n).enumerate().for_each(|(i, row)| {
            for (j, v) in row.iter_mut().enumerate().skip(i) {
                *v = inverse[(n - 1 - i, n - 1 - j)] as f32;
            }
        });
        let matrix = |at: &(dyn Fn(usize, usize) -> f64 + Sync)| {
            let mut out = vec![0.0; n * n];
            out.par_chunks_mut(n).enumerate().for_each(|(i, row)| {
                for (j, v) in row.iter_mut().enumerate() {
                    *v = at(i, j) as f32;
                }
            });
            out
        };
        let d = moments.d();
        Some(Self {
            upper,
            diagonal: diagonal.iter().map(|&v| v as f32).collect(),
            raised,
            damping: target.damping,
            correction: target.correction(moments, &order),
            h: matrix(&|i, j| moments.h(i, j)),
            whole: matrix(&|i, j| moments.h(i, j) + d[(i, j)] + d[(j, i)] + moments.c(i, j)),
            c: matrix(&|i, j| moments.c(i, j)),
            order,
        })
    }

    /// With these parts alone, which are all that the column loop reads.
    #[cfg(test)]
    pub(super) fn of_parts(order: Vec<usize>, upper: Vec<f32>) -> Self {
        Self {
            order,
            upper,
            diagonal: Vec::new(),
            raised: 0,
            damping: 0.0,
            h: Vec::new(),
            correction: Vec::new(),
            whole: Vec::new(),
            c: Vec::new(),
        }
    }

    /// What `w`, `[rows, in]`, is rounded towards: `W + W D inverse(H)`.
    pub(super) fn target(&self, w: &[f32]) -> Vec<f32> {
        let mut out = w.to_vec();
        self.add_product(w, &self.correction, &mut out);
        out
    }

    /// The outputs of `w`, `[rows, in]`.
    pub(super) fn sizes(&self, w: &[f32]) -> Sizes {
        let mut product = vec![0.0; w.len()];
        let mut weighed = |sum: &[f32]| {
            product.fill(0.0);
            self.add_product(w, sum, &mut product);
            let products = w.par_chunks(self.order.len());
            let products = products.zip(product.par_chunks(self.order.len()));
            let of_row = |(w, product): (&[f32], &[f32])| -> f64 {
                let products = w.iter().zip(product);
                products.map(|(w, p)| f64::from(*w) * f64::from(*p)).sum()
            };
            // In order, so that the sum doesn't depend on the number of threads.
            products.map(of_row).collect::<Vec<_>>().iter().sum()
        };
        Sizes {
            whole: weighed(&self.whole),
            at_weights: weighed(&self.c),
        }
    }

    /// `sum over rows of e H e'` for `e`, `[rows, in]`: the squared error that it causes in the
    /// outputs. Then what the objective loses by it, where `shift` is the target less the weights.
    pub(super) fn losses(&self, e: &[f32], shift: &[f32]) -> Losses {
        let mut product = vec![0.0; e.len()];
        self.add_product(e, &self.h, &mut product);
        let n = self.order.len();
        let rows = e.par_chunks(n).zip(shift.par_chunks(n));
        let rows = rows
            .zip(product.par_chunks(n))
            .map(|((e, shift), product)| {
                let mut losses = Losses::default();
                for ((e, shift), product) in e.iter().zip(shift).zip(product) {
                    let [e, shift, product] = [e, shift, product].map(|v| f64::from(*v));
                    losses.output += e * product;
                    losses.objective += e * product - 2.0 * shift * (product + self.damping * e);
                }
                losses
            });
        // In order, so that the sum doesn't depend on the number of threads.
        rows.collect::<Vec<_>>()
            .iter()
            .fold(Losses::default(), |a, b| Losses {
                output: a.output + b.output,
                objective: a.objective + b.objective,
            })
    }

    /// Adds `a m` to `out`; `m` is `[in, in]`, the others `[rows, in]`.
    fn add_product(&self, a: &[f32], m: &[f32], out: &mut [f32]) {
        let n = self.order.len();
        let m = MatRef::from_row_major_slice(m, n, n);
        let tasks = a
            .par_chunks(TASK_ROWS * n)
            .zip(out.par_chunks_mut(TASK_ROWS * n));
        tasks.for_each(|(a, out)| {
            let rows = a.len() / n;
            let a = MatRef::from_row_major_slice(a, rows, n);
            let out = MatMut::from_row_major_slice_mut(out, rows, n);
            matmul(out, Accum::Add, a, m, 1.0, Par::Seq);
        });
    }
}

/// Columns by falling diagonal of `H`, equal ones by rising index.
pub(super) fn falling(diagonal: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..diagonal.len()).collect();
    // A stable sort: equal diagonals keep the columns' order.
    order.sort_by(|&a, &b| {
        diagonal[b]
            .partial_cmp(&diagonal[a])
            .unwrap_or(Ordering::Equal)
    });
    order
}

/// Damps by `share` of the mean diagonal, and by more as long as `factorize` says that the damped
/// matrix is not positive definite: the times that it was raised, and the damping. `None` where no
/// damping does.
pub(super) fn raise<E>(
    diagonal: &[f64],
    share: f64,
    mut factorize: impl FnMut(f64) -> Result<bool, E>,
) -> Result<Option<(u32, f64)>, E> {
    let mean = diagonal.iter().sum::<f64>() / diagonal.len() as f64;
    // Inputs that are all zero say nothing: any damping then gives plain rounding.
    let mut damping = if mean > 0.0 { share * mean } else { 1.0 };
    for raised in 0..=MAX_STEPS {
        if factorize(damping)? {
            return Ok(Some((raised, damping)));
        }
        damping *= DAMPING_STEP;
    }
    Ok(None)
}

/// `H` with something added to its diagonal, factorized.
struct Damped {
    /// `L L' = H`, its rows and columns in reverse of the order of rounding.
    lower: Mat<f64>,
    damping: f64,
    raised: u32,
}

impl Damped {
    /// `None` where no damping makes it positive definite.
    fn new(moments: &Moments, diagonal: &[f64], order: &[usize], share: f64) -> Option<Self> {
        let n = order.len();
        let mut lower = None;
        let factorize = |damping: f64| {
            let damped = Mat::from_fn(n, n, |i, j| {
                let (a, b) = (order[n - 1 - i], order[n - 1 - j]);
                moments.h(a, b) + if i == j { damping } else { 0.0 }
            });
            lower = damped.llt(Side::Lower).ok().map(|llt| llt.L().to_owned());
            Ok::<_, Infallible>(lower.is_some())
        };
        let Ok(raised) = raise(diagonal, share, factorize);
        let (raised, damping) = raised?;
        Some(Self {
            lower: lower?,
            damping,
            raised,
        })
    }

    /// `D inverse(H)`, in the columns' own order.
    fn correction(&self, moments: &Moments, order: &[usize]) -> Vec<f32> {
        let n = order.len();
        let (d, lower) = (moments.d(), self.lower.as_ref());
        let mut out = vec![0.0; n * n];
        out.par_chunks_mut(TASK_ROWS * n)
            .enumerate()
            .for_each(|(task, out)| {
                let (first, rows) = (task * TASK_ROWS, out.len() / n);
                // X L L' = D by rows; as columns, L (L' X') = D'.
                let mut solved = Mat::from_fn(n, rows, |i, r| d[(first + r, order[n - 1 - i])]);
                let mut right: MatMut<'_, f64> = solved.as_mut();
                solve_lower_triangular_in_place(lower, right.rb_mut(), Par::Seq);
                solve_upper_triangular_in_place(lower.transpose(), right.rb_mut(), Par::Seq);
                for (r, out) in out.chunks_exact_mut(n).enumerate() {
                    for (i, &column) in order.iter().enumerate() {
                        out[column] = solved[(n - 1 - i, r)] as f32;
                    }
                }
            });
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(n: usize, tokens: usize) -> Moments {
        let mut moments = Moments::new(n);
        let value = |i: usize| ((i * i * 31 + i * 7919 + 13) % 1009) as f32 / 500.0 - 1.0;
        let x: Vec<f32> = (0..n * tokens).map(value).collect();
        let difference = |(i, v): (usize, &f32)| v + 0.1 * value(i + 3);
        let y: Vec<f32> = x.iter().enumerate().map(difference).collect();
        moments.add(&x, &y);
        moments
    }

    #[test]
    fn the_factor_inverts_the_damped_sums() {
        let n = 12;
        let moments = moments(n, 100);
        let f = Factor::new(&moments).unwrap();
        let falls = |p: &[usize]| f.diagonal[p[0]] >= f.diagonal[p[1]];
        assert!(f.order.windows(2).all(falls));
        let mean = (0..n).map(|i| moments.h(i, i)).sum::<f64>() / n as f64;
        let u = |i: usize, j: usize| f64::from(f.upper[i * n + j]);
        let h = |i: usize, j: usize| {
            moments.h(f.order[i], f.order[j]) + if i == j { COLUMN_DAMPING * mean } else { 0.0 }
        };
        for i in 0..n {
            for j in 0..n {
                let inverse = |a: usize, b: usize| (0..n).map(|k| u(k, a) * u(k, b)).sum::<f64>();
                let product: f64 = (0..n).map(|k| h(i, k) * inverse(k, j)).sum();
                let identity = f64::from(u8::from(i == j));
                // U is rounded to f32, and the condition number is below 100.
                assert!((product - identity).abs() < 1e-4, "{i} {j} {product}");
            }
        }
    }

    #[test]
    fn losses_are_those_of_the_definition_and_the_target_has_the_least() {
        let (n, rows) = (12, 3);
        let moments = moments(n, 100);
        let f = Factor::new(&moments).unwrap();
        let w: Vec<f32> = (0..rows * n).map(|i| (i as f32 * 0.37).sin()).collect();
        let t = f.target(&w);
        let shift: Vec<f32> = t.iter().zip(&w).map(|(t, w)| t - w).collect();
        let at = |v: &[f32], r: usize, c: usize| f64::from(v[r * n + c]);
        for share in [0.0, 0.5, 1.0, 1.5] {
            let e: Vec<f32> = shift.iter().map(|s| share * s).collect();
            let (mut output, mut objective) = (0.0, 0.0);
            for r in 0..rows {
                for a in 0..n {
                    for b in 0..n {
                        output += at(&e, r, a) * moments.h(a, b) * at(&e, r, b);
                        objective -= 2.0 * at(&w, r, a) * moments.d()[(a, b)] * at(&e, r, b);
                    }
                }
            }
            objective += output;
            let found = f.losses(&e, &shift);
            // f32 products of sums of 12 terms.
            let near = |a: f64, b: f64| (a - b).abs() <= 1e-4 * b.abs();
            assert!(near(found.output, output), "{found:?} {output}");
            assert!(near(found.objective, objective), "{found:?} {objective}");
            // The target has the least but for its damping.
            assert!(share == 1.0 || found.objective > f.losses(&shift, &shift).objective);
        }
    }

    #[test]
    fn inputs_that_are_zero_or_dependent_are_damped() {
        let mut zero = Moments::new(4);
        zero.add(&[0.0; 8], &[0.0; 8]);
        let f = Factor::new(&zero).unwrap();
        assert_eq!(f.order, [0, 1, 2, 3]);
        let w = [1.0, 2.0, 3.0, 4.0];
        assert_eq!(f.target(&w), w);
        let mut one = Moments::new(3);
        one.add(&[1.0, 2.0, 0.0], &[1.0, 2.0, 0.0]);
        let f = Factor::new(&one).unwrap();
        assert_eq!((f.order, f.raised), (vec![1, 0, 2], 0));
        let mut bad = Moments::new(2);
        bad.add(&[f32::NAN, 1.0], &[f32::NAN, 1.0]);
        assert!(Factor::new(&bad).is_none());
    }
}
