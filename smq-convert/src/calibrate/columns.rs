//! The column loop: each column is rounded, and the columns after it take up its error (GPTQ,
//! arXiv 2210.17323, with the columns ordered by falling diagonal and the groups kept where they are).

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

/// Columns whose errors are handed on together to all columns behind them.
const BLOCK: usize = 128;
/// Rows that one task works on. Rows do not depend on each other.
const TASK_ROWS: usize = 64;

/// The values that a weight can take under a scale of 1.
#[derive(Debug, Clone, Copy)]
pub(super) enum Levels<'a> {
    /// The integers -8 to 7; a code is the integer.
    Int4,
    /// Sixteen rising values; a code is an index. The midpoints between neighbours decide.
    Table(&'a [f32; 16]),
}

impl Levels<'_> {
    /// What the largest weight of a group is divided by for the scale that clips nothing.
    pub(super) fn top(self) -> f32 {
        match self {
            Self::Int4 => 7.0,
            Self::Table(levels) => levels[15].min(-levels[0]),
        }
    }

    /// The code nearest to `w`, and its value, under `scale`; code of zero where the scale is zero.
    #[inline(always)]
    pub(super) fn round(self, w: f32, scale: f32) -> (i8, f32) {
        match self {
            Self::Int4 if scale == 0.0 => (0, 0.0),
            Self::Int4 => {
                let q = (w / scale).round_ties_even().clamp(-8.0, 7.0);
                (q as i8, q * scale)
            }
            Self::Table(levels) => {
                let v = if scale == 0.0 { 0.0 } else { w / scale };
                let above = levels.windows(2).map(|p| u8::from(v > 0.5 * (p[0] + p[1])));
                let code: u8 = above.sum();
                (code as i8, levels[usize::from(code)] * scale)
            }
        }
    }
}

/// Rounds `target`, `[rows, in]`, into `codes`, alike; `target` is overwritten.
///
/// `scales` is `[rows, in / group rounded up]`. `order` and `upper` are [`Factor`](super::factor::Factor)'s.
pub(super) fn round_columns(
    target: &mut [f32],
    scales: &[f32],
    group: usize,
    levels: Levels<'_>,
    order: &[usize],
    upper: &[f32],
    codes: &mut [i8],
) {
    let n = order.len();
    let groups = n.div_ceil(group);
    target
        .par_chunks_mut(TASK_ROWS * n)
        .zip(codes.par_chunks_mut(TASK_ROWS * n))
        .zip(scales.par_chunks(TASK_ROWS * groups))
        .for_each(|((target, codes), scales)| {
            round_rows(target, scales, group, levels, order, upper, codes);
        });
}

fn round_rows(
    target: &mut [f32],
    scales: &[f32],
    group: usize,
    levels: Levels<'_>,
    order: &[usize],
    upper: &[f32],
    codes: &mut [i8],
) {
    let n = order.len();
    let (rows, groups) = (target.len() / n, n.div_ceil(group));
    // In the order of rounding.
    let mut w = vec![0.0; target.len()];
    for (w, t) in w.chunks_exact_mut(n).zip(target.chunks_exact(n)) {
        for (w, &column) in w.iter_mut().zip(order) {
            *w = t[column];
        }
    }
    let mut errors = vec![0.0; rows * BLOCK];
    for first in (0..n).step_by(BLOCK) {
        let end = n.min(first + BLOCK);
        let width = end - first;
        for row in 0..rows {
            let w = &mut w[row * n..(row + 1) * n];
            for j in first..end {
                let column = order[j];
                let scale = scales[row * groups + column / group];
                let (code, value) = levels.round(w[j], scale);
                codes[row * n + column] = code;
                let u = &upper[j * n..(j + 1) * n];
                let error = (w[j] - value) / u[j];
                errors[row * width + j - first] = error;
                for (w, u) in w[j + 1..end].iter_mut().zip(&u[j + 1..end]) {
                    *w -= error * u;
                }
            }
        }
        if end == n {
            break;
        }
        let block = MatRef::from_row_major_slice(&errors[..rows * width], rows, width);
        let upper = MatRef::from_row_major_slice(upper, n, n);
        let rest = MatMut::from_row_major_slice_mut(&mut w, rows, n);
        matmul(
            rest.subcols_mut(end, n - end),
            Accum::Add,
            block,
            upper.submatrix(first, end, width, n - end),
            -1.0,
            Par::Seq,
        );
    }
    for (w, t) in w.chunks_exact(n).zip(target.chunks_exact_mut(n)) {
        for (w, &column) in w.iter().zip(order) {
            t[column] = *w;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The loop as the paper writes it, one column at a time over the whole row.
    fn naive(w: &mut [f64], scales: &[f32], group: usize, order: &[usize], u: &[f32]) -> Vec<i8> {
        let n = order.len();
        let mut codes = vec![0; n];
        for j in 0..n {
            let column = order[j];
            let (code, value) = Levels::Int4.round(w[column] as f32, scales[column / group]);
            codes[column] = code;
            let error = (w[column] - f64::from(value)) / f64::from(u[j * n + j]);
            for k in j + 1..n {
                w[order[k]] -= error * f64::from(u[j * n + k]);
            }
        }
        codes
    }

    #[test]
    fn blocks_of_columns_give_what_one_at_a_time_gives() {
        let (rows, n, group) = (70, 300, 64);
        let value = |i: usize| ((i * 7919 + 13) % 1009) as f32 / 500.0 - 1.0;
        let order: Vec<usize> = (0..n).map(|i| i * 7 % n).collect();
        let upper: Vec<f32> = (0..n * n)
            .map(|i| match (i / n).cmp(&(i % n)) {
                std::cmp::Ordering::Less => 0.02 * value(i),
                std::cmp::Ordering::Equal => 1.0 + 0.2 * value(i),
                std::cmp::Ordering::Greater => 0.0,
            })
            .collect();
        let scales: Vec<f32> = (0..rows * n.div_ceil(group))
            .map(|i| 0.15 + 0.01 * (i % 7) as f32)
            .collect();
        let mut w: Vec<f32> = (0..rows * n).map(value).collect();
        let expected: Vec<i8> = (w
            .chunks_exact(n)
            .zip(scales.chunks_exact(n.div_ceil(group))))
        .flat_map(|(w, s)| {
            let mut w: Vec<f64> = w.iter().map(|v| f64::from(*v)).collect();
            naive(&mut w, s, group, &order, &upper)
        })
        .collect();
        let mut codes = vec![0; rows * n];
        round_columns(
            &mut w,
            &scales,
            group,
            Levels::Int4,
            &order,
            &upper,
            &mut codes,
        );
        // A weight next to a midpoint may fall on either side by the order of summation: f32 sums of 300 terms.
        let differing = codes.iter().zip(&expected).filter(|(a, b)| a != b).count();
        assert!(
            differing * 1000 < codes.len(),
            "{differing} of {}",
            codes.len()
        );
    }

    #[test]
    fn without_correlation_it_rounds_to_nearest() {
        let n = 8;
        let upper: Vec<f32> = (0..n * n)
            .map(|i| f32::from(u8::from(i / n == i % n)))
            .collect();
        let order: Vec<usize> = (0..n).rev().collect();
        let mut w = [0.26, -0.24, 0.8, -0.9, 3.0, -3.0, 0.125, 0.375];
        let mut codes = [0; 8];
        round_columns(
            &mut w,
            &[0.25, 0.25],
            4,
            Levels::Int4,
            &order,
            &upper,
            &mut codes,
        );
        assert_eq!(codes, [1, -1, 3, -4, 7, -8, 0, 2]);
        let levels = std::array::from_fn(|i| i as f32 - 7.5);
        assert_eq!(Levels::Table(&levels).round(0.9, 2.0), (8, 1.0));
        assert_eq!(Levels::Table(&levels).round(-90.0, 2.0), (0, -15.0));
    }
}
