//! The column loop: each column is rounded, and the columns after it take up its error (GPTQ,
//! arXiv 2210.17323, with the columns ordered by falling diagonal and the groups kept where they
//! are).

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::factor::Factor;
use super::levels::{BlockRow, Levels};
use super::storage::Layout;
use crate::quantize::Kernel;

/// Columns whose errors are handed on together to all columns behind them.
const BLOCK: usize = 128;
/// Rows that one task works on. Rows do not depend on each other.
const TASK_ROWS: usize = 64;

/// Rounds `target`, `[rows, in]`, into `codes`, alike; `scales` lie as `layout` says.
pub(super) fn round_columns(
    target: &[f32],
    scales: &[f32],
    layout: Layout,
    levels: Levels,
    factor: &Factor,
    codes: &mut [i8],
) {
    let n = factor.order.len();
    let diagonal: Vec<Vec<f32>> = (0..n)
        .step_by(BLOCK)
        .map(|first| {
            let columns = first..n.min(first + BLOCK);
            let row = |j: usize| &factor.upper[j * n..][columns.clone()];
            columns.clone().flat_map(row).copied().collect()
        })
        .collect();
    let kernel = Kernel::detect();
    target
        .par_chunks(TASK_ROWS * n)
        .zip(codes.par_chunks_mut(TASK_ROWS * n))
        .enumerate()
        .for_each(|(task, (target, codes))| {
            let scale = |row, column| scales[layout.index(task * TASK_ROWS + row, column)];
            round_rows(kernel, target, scale, levels, factor, &diagonal, codes);
        });
}

fn round_rows(
    kernel: Kernel,
    target: &[f32],
    scale: impl Fn(usize, usize) -> f32,
    levels: Levels,
    factor: &Factor,
    diagonal: &[Vec<f32>],
    codes: &mut [i8],
) {
    let (order, upper) = (&factor.order, &factor.upper);
    let n = order.len();
    let rows = target.len() / n;
    // In the order of rounding.
    let mut w = vec![0.0; target.len()];
    for (w, t) in w.chunks_exact_mut(n).zip(target.chunks_exact(n)) {
        for (w, &column) in w.iter_mut().zip(order) {
            *w = t[column];
        }
    }
    let mut errors = vec![0.0; rows * BLOCK];
    let (mut scales, mut block_codes) = ([0.0; BLOCK], [0; BLOCK]);
    for (first, block) in (0..n).step_by(BLOCK).zip(diagonal) {
        let columns = &order[first..n.min(first + BLOCK)];
        let width = columns.len();
        for row in 0..rows {
            for (scale_of, &column) in scales.iter_mut().zip(columns) {
                *scale_of = scale(row, column);
            }
            let row_of_block = BlockRow {
                w: &mut w[row * n + first..][..width],
                scales: &scales[..width],
                upper: block,
                errors: &mut errors[row * width..(row + 1) * width],
                codes: &mut block_codes[..width],
            };
            kernel.round_block(row_of_block, levels);
            for (&code, &column) in block_codes.iter().zip(columns) {
                codes[row * n + column] = code;
            }
        }
        let end = first + width;
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
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The loop as the paper writes it, one column at a time over the whole row.
    fn naive(w: &mut [f64], scales: &[f32], group: usize, factor: &Factor) -> Vec<i8> {
        let (order, u) = (&factor.order, &factor.upper);
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
        let upper = (0..n * n)
            .map(|i| match (i / n).cmp(&(i % n)) {
                std::cmp::Ordering::Less => 0.02 * value(i),
                std::cmp::Ordering::Equal => 1.0 + 0.2 * value(i),
                std::cmp::Ordering::Greater => 0.0,
            })
            .collect();
        let factor = Factor::of_parts((0..n).map(|i| i * 7 % n).collect(), upper);
        let scales: Vec<f32> = (0..rows * n.div_ceil(group))
            .map(|i| 0.15 + 0.01 * (i % 7) as f32)
            .collect();
        let w: Vec<f32> = (0..rows * n).map(value).collect();
        let expected: Vec<i8> = (w
            .chunks_exact(n)
            .zip(scales.chunks_exact(n.div_ceil(group))))
        .flat_map(|(w, s)| {
            let mut w: Vec<f64> = w.iter().map(|v| f64::from(*v)).collect();
            naive(&mut w, s, group, &factor)
        })
        .collect();
        let mut codes = vec![0; rows * n];
        let layout = Layout::groups(group, n);
        round_columns(&w, &scales, layout, Levels::Int4, &factor, &mut codes);
        // A weight next to a midpoint may fall on either side by the order of summation: f32 sums
        // of 300 terms.
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
        let identity = |i: usize| f32::from(u8::from(i / n == i % n));
        let upper = (0..n * n).map(identity).collect();
        let factor = Factor::of_parts((0..n).rev().collect(), upper);
        let w = [0.26, -0.24, 0.8, -0.9, 3.0, -3.0, 0.125, 0.375];
        let mut codes = [0; 8];
        let layout = Layout::groups(4, 8);
        round_columns(&w, &[0.25, 0.25], layout, Levels::Int4, &factor, &mut codes);
        assert_eq!(codes, [1, -1, 3, -4, 7, -8, 0, 2]);
    }
}
