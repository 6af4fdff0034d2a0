//! What the calibration tokens say of one set of products that share their input: three matrices of
//! sums over tokens, `[in, in]` each.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

/// Rows of the sums that one task adds to. Fixed, so that sums have the same order on every
/// machine.
const TASK_ROWS: usize = 96;

/// `H`, `D` and `C` of `spec/method.md`, "Calibrated rounding". With one row `x` a token of what
/// the unquantized model feeds the products, and `y` of what the layers quantized so far feed them:
///
/// ```text
///     H = sum y' y      D = sum (x - y)' y      C = sum (x - y)' (x - y)      [in, in]
/// ```
///
/// Products of a block of tokens are summed in f32, blocks in f64.
#[derive(Debug, Clone)]
pub(super) struct Moments {
    n: usize,
    /// Row-major; the lower triangle alone is meaningful.
    h: Vec<f64>,
    d: Vec<f64>,
    /// Products with the other stream, laid out as `h` is.
    c: Vec<f64>,
}

impl Moments {
    /// Of `n` input features, over no token yet.
    pub(super) fn new(n: usize) -> Self {
        Self {
            n,
            h: vec![0.0; n * n],
            d: vec![0.0; n * n],
            c: vec![0.0; n * n],
        }
    }

    /// Number of input features, which is the order of the matrices.
    pub(super) fn features(&self) -> usize {
        self.n
    }

    /// `H` at a row and a column.
    pub(super) fn h(&self, row: usize, column: usize) -> f64 {
        self.h[row.max(column) * self.n + row.min(column)]
    }

    /// An element of `C`, whose triangle is stored as that of `H` is.
    pub(super) fn c(&self, row: usize, column: usize) -> f64 {
        self.c[row.max(column) * self.n + row.min(column)]
    }

    /// `D`, of which every element is stored.
    pub(super) fn d(&self) -> MatRef<'_, f64> {
        MatRef::from_row_major_slice(&self.d, self.n, self.n)
    }

    /// Adds a block of tokens: `x` and `y` are `[tokens, in]`.
    pub(super) fn add(&mut self, x: &[f32], y: &[f32]) {
        let (n, tokens) = (self.n, y.len() / self.n);
        debug_assert_eq!(x.len(), y.len());
        let difference: Vec<f32> = x.iter().zip(y).map(|(x, y)| x - y).collect();
        let difference = MatRef::from_row_major_slice(&difference, tokens, n);
        let y = MatRef::from_row_major_slice(y, tokens, n);
        let rows = self.h.par_chunks_mut(TASK_ROWS * n);
        rows.zip(self.d.par_chunks_mut(TASK_ROWS * n))
            .zip(self.c.par_chunks_mut(TASK_ROWS * n))
            .enumerate()
            .for_each_init(Vec::new, |sums, (task, ((h, d), c))| {
                let (first, count) = (task * TASK_ROWS, h.len() / n);
                // What lies right of the diagonal's block is the mirror of what lies below it.
                for (of, out) in [(y, h), (difference, c)] {
                    add_product(
                        of.subcols(first, count),
                        of.subcols(0, first + count),
                        sums,
                        out,
                    );
                }
                add_product(difference.subcols(first, count), y, sums, d);
            });
    }
}

/// Adds `a' b` to the leading columns of `out`'s rows; `sums` is room for the product.
fn add_product(a: MatRef<'_, f32>, b: MatRef<'_, f32>, sums: &mut Vec<f32>, out: &mut [f64]) {
    let (rows, columns) = (a.ncols(), b.ncols());
    sums.resize(rows * columns, 0.0);
    let product = MatMut::from_row_major_slice_mut(sums, rows, columns);
    matmul(product, Accum::Replace, a.transpose(), b, 1.0, Par::Seq);
    let out = out.chunks_exact_mut(out.len() / rows);
    for (out, sums) in out.zip(sums.chunks_exact(columns)) {
        for (out, sum) in out.iter_mut().zip(sums) {
            *out += f64::from(*sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_the_definition() {
        for (n, tokens) in [(5, 37), (200, 31)] {
            let value = |i: usize| ((i * 7919 + 13) % 101) as f32 / 50.0 - 1.0;
            let x: Vec<f32> = (0..n * tokens).map(value).collect();
            let y: Vec<f32> = (0..n * tokens).map(|i| value(i + 5) * 0.5).collect();
            let mut moments = Moments::new(n);
            moments.add(&x[..20 * n], &y[..20 * n]);
            moments.add(&x[20 * n..], &y[20 * n..]);
            for i in 0..n {
                for j in 0..n {
                    let sum = |f: &dyn Fn(usize) -> f64| (0..tokens).map(f).sum::<f64>();
                    let at = |v: &[f32], t: usize, c: usize| f64::from(v[t * n + c]);
                    let h = sum(&|t| at(&y, t, i) * at(&y, t, j));
                    let d = sum(&|t| (at(&x, t, i) - at(&y, t, i)) * at(&y, t, j));
                    // f32 sums of 37 products below 1: 37 roundings of 2^-24.
                    let tolerance = 37.0 * 37.0 / f64::from(1u32 << 24);
                    assert!((moments.h(i, j) - h).abs() < tolerance);
                    assert!((moments.d()[(i, j)] - d).abs() < tolerance);
                    let difference = |t, c| at(&x, t, c) - at(&y, t, c);
                    let c = sum(&|t| difference(t, i) * difference(t, j));
                    assert!((moments.c(i, j) - c).abs() < tolerance);
                }
            }
        }
    }
}
