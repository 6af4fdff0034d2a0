//! What the calibration tokens say of one set of products that share their input: two matrices of
//! sums over tokens, `[in, in]` each.

use faer::linalg::matmul::{matmul, triangular};
use faer::{Accum, MatMut, MatRef, Par};

/// Splits of a product among threads. It is fixed, and not the number of threads at hand, so that
/// sums have the same order on every machine.
pub(super) const PAR_SPLITS: usize = 16;

/// `H` and `D` of `spec/method.md`, "Calibrated rounding". With one row `x` a token of what the
/// unquantized model feeds the products, and `y` of what the layers quantized so far feed them:
///
/// ```text
///     H = sum y' y          D = sum (x - y)' y          [in, in]
/// ```
///
/// Products of a block of tokens are summed in f32, blocks in f64.
#[derive(Debug, Clone)]
pub(super) struct Moments {
    n: usize,
    tokens: usize,
    /// Row-major; the lower triangle alone is meaningful.
    h: Vec<f64>,
    d: Vec<f64>,
    block: Vec<f32>,
}

impl Moments {
    /// Of `n` input features, over no token yet.
    pub(super) fn new(n: usize) -> Self {
        Self {
            n,
            tokens: 0,
            h: vec![0.0; n * n],
            d: vec![0.0; n * n],
            block: vec![0.0; n * n],
        }
    }

    /// Input features.
    pub(super) fn features(&self) -> usize {
        self.n
    }

    /// Tokens summed.
    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    /// `H`, of which only the lower triangle may be read.
    pub(super) fn h(&self) -> MatRef<'_, f64> {
        MatRef::from_row_major_slice(&self.h, self.n, self.n)
    }

    /// `D`.
    pub(super) fn d(&self) -> MatRef<'_, f64> {
        MatRef::from_row_major_slice(&self.d, self.n, self.n)
    }

    /// Adds a block of tokens: `x` and `y` are `[tokens, in]`.
    pub(super) fn add(&mut self, x: &[f32], y: &[f32]) {
        use triangular::BlockStructure::{Rectangular, TriangularLower};
        let (n, tokens) = (self.n, y.len() / self.n);
        debug_assert_eq!(x.len(), y.len());
        let par = Par::rayon(PAR_SPLITS);
        let rows = MatRef::from_row_major_slice(y, tokens, n);
        let block = MatMut::from_row_major_slice_mut(&mut self.block, n, n);
        triangular::matmul(
            block,
            TriangularLower,
            Accum::Replace,
            rows.transpose(),
            Rectangular,
            rows,
            Rectangular,
            1.0,
            par,
        );
        for (row, (sum, block)) in
            (self.h.chunks_exact_mut(n).zip(self.block.chunks_exact(n))).enumerate()
        {
            add(&mut sum[..=row], &block[..=row]);
        }
        let difference: Vec<f32> = x.iter().zip(y).map(|(x, y)| x - y).collect();
        let difference = MatRef::from_row_major_slice(&difference, tokens, n);
        let block = MatMut::from_row_major_slice_mut(&mut self.block, n, n);
        matmul(
            block,
            Accum::Replace,
            difference.transpose(),
            rows,
            1.0,
            par,
        );
        add(&mut self.d, &self.block);
        self.tokens += tokens;
    }
}

fn add(sums: &mut [f64], block: &[f32]) {
    for (sum, v) in sums.iter_mut().zip(block) {
        *sum += f64::from(*v);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_the_definition() {
        let (n, tokens) = (5, 37);
        let value = |i: usize| ((i * 7919 + 13) % 101) as f32 / 50.0 - 1.0;
        let x: Vec<f32> = (0..n * tokens).map(value).collect();
        let y: Vec<f32> = (0..n * tokens).map(|i| value(i + 5) * 0.5).collect();
        let mut moments = Moments::new(n);
        moments.add(&x[..20 * n], &y[..20 * n]);
        moments.add(&x[20 * n..], &y[20 * n..]);
        assert_eq!(moments.tokens(), tokens);
        for i in 0..n {
            for j in 0..n {
                let sum = |f: &dyn Fn(usize) -> f64| (0..tokens).map(f).sum::<f64>();
                let at = |v: &[f32], t: usize, c: usize| f64::from(v[t * n + c]);
                let h = sum(&|t| at(&y, t, i) * at(&y, t, j));
                let d = sum(&|t| (at(&x, t, i) - at(&y, t, i)) * at(&y, t, j));
                // f32 sums of 37 products below 1: 37 roundings of 2^-24.
                let tolerance = 37.0 * 37.0 / f64::from(1u32 << 24);
                if j <= i {
                    assert!((moments.h()[(i, j)] - h).abs() < tolerance);
                }
                assert!((moments.d()[(i, j)] - d).abs() < tolerance);
            }
        }
    }
}
