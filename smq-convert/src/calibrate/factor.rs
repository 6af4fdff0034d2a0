//! The factorization that both the target and the column loop of one set of products use.

use std::cmp::Ordering;

use faer::linalg::matmul::matmul;
use faer::linalg::triangular_inverse::invert_lower_triangular;
use faer::linalg::triangular_solve::solve_lower_triangular_in_place;
use faer::prelude::ReborrowMut;
use faer::{Accum, Mat, MatMut, MatRef, Par, Side};

use super::moments::{Moments, PAR_SPLITS};

/// Damping: this share of the mean diagonal of `H` is added to its diagonal.
const DAMPING: f64 = 0.01;
/// What damping is multiplied with where the damped matrix is still not positive definite.
const DAMPING_STEP: f64 = 10.0;
/// Times that it is. By then the identity outweighs any `H` that is finite.
const MAX_STEPS: u32 = 8;

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
    /// `L L' = H`, damped, its rows and columns in reverse of `order`.
    lower: Mat<f64>,
}

impl Factor {
    /// Of the sums in `moments`. `None` where they are not finite.
    pub(super) fn new(moments: &Moments) -> Option<Self> {
        let n = moments.features();
        let h = moments.h();
        let diagonal: Vec<f64> = (0..n).map(|i| h[(i, i)]).collect();
        if !diagonal.iter().all(|v| v.is_finite()) {
            return None;
        }
        let mut order: Vec<usize> = (0..n).collect();
        // A stable sort: equal diagonals keep the columns' order.
        order.sort_by(|&a, &b| {
            diagonal[b]
                .partial_cmp(&diagonal[a])
                .unwrap_or(Ordering::Equal)
        });
        let mean = diagonal.iter().sum::<f64>() / n as f64;
        // Inputs that are all zero say nothing: any damping then gives plain rounding.
        let mut damping = if mean > 0.0 { DAMPING * mean } else { 1.0 };
        let reversed = |i: usize| order[n - 1 - i];
        let mut raised = 0;
        let lower = loop {
            let damped = Mat::from_fn(n, n, |i, j| {
                let (a, b) = (reversed(i), reversed(j));
                h[(a.max(b), a.min(b))] + if i == j { damping } else { 0.0 }
            });
            match damped.llt(Side::Lower) {
                Ok(llt) => break llt.L().to_owned(),
                Err(_) if raised == MAX_STEPS => return None,
                Err(_) => {
                    damping *= DAMPING_STEP;
                    raised += 1;
                }
            }
        };
        // H = L L' in reversed order means H = R R' in `order`, with the upper triangular R whose inverse is U.
        let mut inverse = Mat::<f64>::zeros(n, n);
        invert_lower_triangular(inverse.as_mut(), lower.as_ref(), par());
        let mut upper = vec![0.0; n * n];
        for (i, row) in upper.chunks_exact_mut(n).enumerate() {
            for (j, v) in row.iter_mut().enumerate().skip(i) {
                *v = inverse[(n - 1 - i, n - 1 - j)] as f32;
            }
        }
        Some(Self {
            upper,
            diagonal: diagonal.iter().map(|&v| v as f32).collect(),
            raised,
            lower,
            order,
        })
    }

    /// What `w`, `[rows, in]`, is rounded towards.
    pub(super) fn target(&self, w: &[f32], moments: &Moments) -> Target {
        let n = moments.features();
        let rows = w.len() / n;
        let weights = Mat::from_fn(rows, n, |r, c| f64::from(w[r * n + c]));
        let mut cross = Mat::<f64>::zeros(rows, n);
        matmul(
            cross.as_mut(),
            Accum::Replace,
            weights.as_ref(),
            moments.d(),
            1.0,
            par(),
        );
        // Solves X L L' = cross in the reversed order; as columns, L (L' X') = cross'.
        let mut solved = Mat::from_fn(n, rows, |i, r| cross[(r, self.order[n - 1 - i])]);
        self.solve(solved.as_mut());
        let mut position = vec![0; n];
        for (i, &column) in self.order.iter().enumerate() {
            position[column] = n - 1 - i;
        }
        let target = |(i, &w): (usize, &f32)| {
            let (row, column) = (i / n, i % n);
            (f64::from(w) + solved[(position[column], row)]) as f32
        };
        Target {
            weights: w.iter().enumerate().map(target).collect(),
            cross,
        }
    }

    fn solve(&self, mut right: MatMut<'_, f64>) {
        let lower = self.lower.as_ref();
        solve_lower_triangular_in_place(lower, right.rb_mut(), par());
        faer::linalg::triangular_solve::solve_upper_triangular_in_place(
            lower.transpose(),
            right,
            par(),
        );
    }
}

/// What the weights `W` of one matrix are rounded towards.
#[derive(Debug)]
pub(super) struct Target {
    /// The weights that do best on the inputs of the quantized layers, `W + W D inverse(H)`, `[rows, in]`.
    pub(super) weights: Vec<f32>,
    /// `W D`.
    cross: Mat<f64>,
}

impl Target {
    /// What the outputs lose by `V = W + E` in place of `W`, but for a constant: `|V y - W x|^2`, summed over tokens,
    /// less `|W (x - y)|^2`.
    pub(super) fn loss(&self, e: &[f32], h: MatRef<'_, f64>) -> f64 {
        let n = h.ncols();
        let mut cross = 0.0;
        for (r, row) in e.chunks_exact(n).enumerate() {
            for (c, e) in row.iter().enumerate() {
                cross += f64::from(*e) * self.cross[(r, c)];
            }
        }
        output_error(e, h) - 2.0 * cross
    }
}

/// `sum over rows of e H e'` for `e`, `[rows, in]`: the squared error that it causes in the outputs.
pub(super) fn output_error(e: &[f32], h: MatRef<'_, f64>) -> f64 {
    let n = h.ncols();
    let rows = e.len() / n;
    let e = Mat::from_fn(rows, n, |r, c| f64::from(e[r * n + c]));
    let mut product = Mat::<f64>::zeros(rows, n);
    use faer::linalg::matmul::triangular::{self, BlockStructure};
    // e H e' = 2 e L e' - e diag(H) e', with L the lower triangle of the symmetric H.
    triangular::matmul(
        product.as_mut(),
        BlockStructure::Rectangular,
        Accum::Replace,
        e.as_ref(),
        BlockStructure::Rectangular,
        h,
        BlockStructure::TriangularLower,
        1.0,
        par(),
    );
    let mut sum = 0.0;
    for c in 0..n {
        for r in 0..rows {
            sum += 2.0 * product[(r, c)] * e[(r, c)] - e[(r, c)] * e[(r, c)] * h[(c, c)];
        }
    }
    sum
}

pub(super) fn par() -> Par {
    Par::rayon(PAR_SPLITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(n: usize, tokens: usize) -> Moments {
        let mut moments = Moments::new(n);
        let value = |i: usize| ((i * i * 31 + i * 7919 + 13) % 1009) as f32 / 500.0 - 1.0;
        let x: Vec<f32> = (0..n * tokens).map(value).collect();
        let y: Vec<f32> = x
            .iter()
            .enumerate()
            .map(|(i, v)| v + 0.1 * value(i + 3))
            .collect();
        moments.add(&x, &y);
        moments
    }

    #[test]
    fn the_factor_inverts_the_damped_sums() {
        let n = 12;
        let moments = moments(n, 100);
        let f = Factor::new(&moments).unwrap();
        assert!(
            f.order
                .windows(2)
                .all(|p| f.diagonal[p[0]] >= f.diagonal[p[1]])
        );
        let mean = (0..n).map(|i| moments.h()[(i, i)]).sum::<f64>() / n as f64;
        let u = |i: usize, j: usize| f64::from(f.upper[i * n + j]);
        let h = |i: usize, j: usize| {
            let (a, b) = (f.order[i], f.order[j]);
            moments.h()[(a.max(b), a.min(b))] + if i == j { DAMPING * mean } else { 0.0 }
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
    fn the_target_does_better_on_the_quantized_inputs_than_the_weights() {
        let n = 12;
        let moments = moments(n, 100);
        let f = Factor::new(&moments).unwrap();
        let w: Vec<f32> = (0..3 * n).map(|i| (i as f32 * 0.37).sin()).collect();
        let t = f.target(&w, &moments);
        let loss = |v: &[f32]| {
            let e: Vec<f32> = v.iter().zip(&w).map(|(v, w)| v - w).collect();
            t.loss(&e, moments.h())
        };
        assert!(loss(&t.weights) < -0.01, "{}", loss(&t.weights));
        // A minimum, but for the damping: twice as far is worse.
        let beyond: Vec<f32> = t
            .weights
            .iter()
            .zip(&w)
            .map(|(t, w)| w + 2.0 * (t - w))
            .collect();
        assert!(loss(&beyond) > loss(&t.weights));
    }

    #[test]
    fn inputs_that_are_zero_or_dependent_are_damped() {
        let mut zero = Moments::new(4);
        zero.add(&[0.0; 8], &[0.0; 8]);
        let f = Factor::new(&zero).unwrap();
        assert_eq!(f.order, [0, 1, 2, 3]);
        let w = [1.0, 2.0, 3.0, 4.0];
        assert_eq!(f.target(&w, &zero).weights, w);
        let mut one = Moments::new(3);
        one.add(&[1.0, 2.0, 0.0], &[1.0, 2.0, 0.0]);
        let f = Factor::new(&one).unwrap();
        assert_eq!((f.order, f.raised), (vec![1, 0, 2], 0));
        let mut bad = Moments::new(2);
        bad.add(&[f32::NAN, 1.0], &[f32::NAN, 1.0]);
        assert!(Factor::new(&bad).is_none());
    }
}
