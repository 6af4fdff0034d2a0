//! Matrix products with mapped weights: `y = x * W^T`.
//!
//! Kernels read each weight straight from the map and widen it in registers, for four activation
//! rows at a time. Each output is summed by one thread in one order, which depends neither on how
//! weight rows are shared out nor on how many activation rows there are. So results are the same
//! at any thread count, and those of a row are the same whatever rows are beside it: a prompt may
//! be cut anywhere, and it does not show which sequences a token was computed beside.
//!
//! Widening tiles of weights once for a general matrix product of many rows is not faster: on one
//! AVX-512 core, in GFLOP/s, these kernels and that (the gemm crate's), `[3072, 3072]`:
//!
//! | rows | int4 | with gemm | bf16 | with gemm |
//! |---:|---:|---:|---:|---:|
//! | 32 | 155 | 60 | 129 | 54 |
//! | 128 | 121 | 101 | 136 | 92 |
//! | 512 | 170 | 115 | 102 | 109 |

mod dense;
mod fp8;
mod int4;
pub(crate) mod lanes;
mod load;
mod matrix;
#[cfg(test)]
mod naive;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::ops::Range;

use rayon::prelude::*;

pub(crate) use dense::product_f32 as dense_product_f32;
pub use fp8::QuantizedX;
use int4::{Code, NibbleRows, PackedX};
pub(crate) use lanes::Isa;
pub(crate) use load::{check_fp8, load_vector};
pub use matrix::{Matrix, Weights};

/// Output rows that a staged result is transposed into together.
const TRANSPOSE_ROWS: usize = 8;
/// Products that read fewer weight bytes, one pass over them for every eight activation rows, stay
/// on the calling thread.
const SERIAL_MAX_BYTES: usize = 96 << 10;
/// Weight rows that are widened together where no kernel reads them: a kernel takes four at a time.
const WIDENED_ROWS: usize = 4;
/// Weight bytes of one parallel job, at most.
const JOB_BYTES: usize = 256 << 10;

/// One product of a set that shares its activations.
pub struct Product<'m, 'w, 'o> {
    /// `[rows, cols]`.
    pub matrix: &'m Matrix<'w>,
    /// `[m, rows]`, overwritten.
    pub out: &'o mut [f32],
}

/// Multiplies `x`, `[m, cols]`, with each matrix: `out[i, row] = sum x[i, c] * W[row, c]`, where an
/// FP8 matrix multiplies the activations as FP8.
///
/// # Panics
/// If a length does not fit its matrix.
pub fn products(x: &[f32], m: usize, set: &mut [Product<'_, '_, '_>]) {
    for p in set.iter() {
        assert_eq!(x.len(), m * p.matrix.cols, "x is [m, cols]");
        assert_eq!(p.out.len(), m * p.matrix.rows, "out is [m, rows]");
    }
    fused(Isa::best(), x, m, set);
}

/// The activations as FP8, where a matrix of the set needs them.
fn quantized_x(x: &[f32], set: &[Product<'_, '_, '_>]) -> Option<QuantizedX> {
    let fp8 = |p: &&Product<'_, '_, '_>| matches!(p.matrix.data, Weights::Fp8 { .. });
    let cols = set.iter().find(fp8)?.matrix.cols;
    Some(QuantizedX::new(x, cols))
}

/// A single product, see [`products`].
pub fn product(x: &[f32], m: usize, matrix: &Matrix<'_>, out: &mut [f32]) {
    products(x, m, &mut [Product { matrix, out }]);
}

/// The product with matrices stacked into one of `sum of rows` rows: `[m, sum of rows]`.
#[must_use]
pub fn stacked(x: &[f32], m: usize, matrices: &[Matrix<'_>]) -> Vec<f32> {
    let total: usize = matrices.iter().map(|matrix| matrix.rows).sum();
    let mut out = vec![0.0; m * total];
    if let (1, _) | (_, [_]) = (m, matrices) {
        let mut rest = out.as_mut_slice();
        let mut set = Vec::with_capacity(matrices.len());
        for matrix in matrices {
            let (own, others) = std::mem::take(&mut rest).split_at_mut(m * matrix.rows);
            set.push(Product { matrix, out: own });
            rest = others;
        }
        products(x, m, &mut set);
        return out;
    }
    let mut parts: Vec<Vec<f32>> = matrices
        .iter()
        .map(|matrix| vec![0.0; m * matrix.rows])
        .collect();
    let mut set: Vec<_> = matrices
        .iter()
        .zip(&mut parts)
        .map(|(matrix, out)| Product { matrix, out })
        .collect();
    products(x, m, &mut set);
    for (i, row) in out.chunks_exact_mut(total).enumerate() {
        let mut at = 0;
        for (matrix, part) in matrices.iter().zip(&parts) {
            row[at..at + matrix.rows].copy_from_slice(&part[i * matrix.rows..][..matrix.rows]);
            at += matrix.rows;
        }
    }
    out
}

/// Weight rows for one thread, and where their outputs go, `[rows, m]`.
struct Job<'m, 'w, 'o> {
    matrix: &'m Matrix<'w>,
    rows: Range<usize>,
    packed: Option<&'m PackedX>,
    out: &'o mut [f32],
}

/// The activations of a set in every form that its matrices take.
struct Forms<'x> {
    /// `[m, cols]`.
    x: &'x [f32],
    m: usize,
    /// By group length.
    packed: Vec<(usize, PackedX)>,
    quantized: Option<QuantizedX>,
}

fn fused(isa: Isa, x: &[f32], m: usize, set: &mut [Product<'_, '_, '_>]) {
    let mut packed: Vec<(usize, PackedX)> = Vec::new();
    for p in set.iter() {
        let absent = |g: &usize| packed.iter().all(|(have, _)| have != g);
        if let Some(group) = p.matrix.packed_group().filter(absent) {
            packed.push((group, PackedX::new(isa, x, m, p.matrix.cols, group)));
        }
    }
    let forms = Forms {
        x,
        m,
        packed,
        quantized: quantized_x(x, set),
    };
    if m == 1 {
        let outs = set.iter_mut().map(|p| (p.matrix, &mut *p.out)).collect();
        return run_jobs(isa, &forms, outs);
    }
    let mut staged: Vec<Vec<f32>> = set.iter().map(|p| vec![0.0; p.out.len()]).collect();
    let outs = set
        .iter()
        .map(|p| p.matrix)
        .zip(staged.iter_mut().map(Vec::as_mut_slice))
        .collect();
    run_jobs(isa, &forms, outs);
    for (from, p) in staged.iter().zip(set) {
        transpose(from, m, p.out);
    }
}

/// `[rows, m]` to `[m, rows]`.
fn transpose(from: &[f32], m: usize, to: &mut [f32]) {
    let rows = to.len() / m;
    let block = |(i, to): (usize, &mut [f32])| {
        let start = i * TRANSPOSE_ROWS;
        for (row, values) in from.chunks_exact(m).enumerate() {
            for (to, value) in to.chunks_exact_mut(rows).zip(&values[start..]) {
                to[row] = *value;
            }
        }
    };
    let blocks = TRANSPOSE_ROWS * rows;
    if from.len() * 4 <= SERIAL_MAX_BYTES {
        to.chunks_mut(blocks).enumerate().for_each(block);
    } else {
        to.par_chunks_mut(blocks).enumerate().for_each(block);
    }
}

/// Shares the rows of all matrices out; each `out` is `[rows, m]`.
fn run_jobs(isa: Isa, forms: &Forms<'_>, outs: Vec<(&Matrix<'_>, &mut [f32])>) {
    let (m, packed) = (forms.m, &forms.packed);
    let total_bytes: usize = outs.iter().map(|(matrix, _)| matrix.weight_bytes()).sum();
    let serial = total_bytes * m.div_ceil(8) <= SERIAL_MAX_BYTES;
    // Some jobs a thread even out their ends; small ones keep all threads on a small product.
    let job_bytes = (total_bytes / (rayon::current_num_threads() * 4)).clamp(16 << 10, JOB_BYTES);
    let mut jobs = Vec::new();
    for (matrix, out) in outs {
        let packed = matrix
            .packed_group()
            .and_then(|g| packed.iter().find(|(have, _)| *have == g));
        let row_bytes = (matrix.weight_bytes() / matrix.rows.max(1)).max(1);
        // Kernels take four rows at a time.
        let rows_a_job = if serial {
            matrix.rows
        } else {
            (job_bytes / row_bytes).next_multiple_of(4).max(4)
        };
        for (i, out) in out.chunks_mut(rows_a_job * m).enumerate() {
            let start = i * rows_a_job;
            jobs.push(Job {
                matrix,
                rows: start..start + out.len() / m,
                packed: packed.map(|p| &p.1),
                out,
            });
        }
    }
    if serial {
        jobs.into_iter().for_each(|job| run_job(isa, forms, job));
    } else {
        jobs.into_par_iter()
            .for_each(|job| run_job(isa, forms, job));
    }
}

fn run_job(isa: Isa, forms: &Forms<'_>, job: Job<'_, '_, '_>) {
    let cols = job.matrix.cols;
    let (x, m) = (forms.x, forms.m);
    let code = match &job.matrix.data {
        Weights::Dense { dtype, bytes } => {
            let row_bytes = cols * dtype.bytes();
            let bytes = &bytes[job.rows.start * row_bytes..job.rows.end * row_bytes];
            return dense::product(isa, *dtype, bytes, x, m, job.out);
        }
        Weights::Fp8 { codes, scales } => {
            let codes = &codes[job.rows.start * cols..job.rows.end * cols];
            let x = quantized_or_now(forms.quantized.as_ref(), x, cols);
            return fp8::product(isa, codes, &scales[job.rows], &x, job.out);
        }
        Weights::Int4 { .. } => Code::Int4,
        Weights::Lut4 { levels, .. } => Code::Book(levels.values()),
        Weights::Nf4 { .. } => Code::Nf4,
    };
    if let Some(packed) = job.packed {
        let (nibbles, scales) = job.matrix.nibble_rows(job.rows);
        let group = packed.group();
        let rows = NibbleRows {
            code,
            nibbles,
            scales,
            group,
            cols,
        };
        return int4::product(rows, packed, job.out);
    }
    // Odd groups start inside a byte, and NF4 blocks inside a row where 64 does not divide it: no
    // model has them, so widen some rows at a time. Weights rounded to bf16 only check a GPU.
    let mut widened = vec![0.0; WIDENED_ROWS * cols];
    let starts = job.rows.step_by(WIDENED_ROWS);
    for (start, out) in starts.zip(job.out.chunks_mut(WIDENED_ROWS * m)) {
        let rows = out.len() / m;
        let widened = &mut widened[..rows * cols];
        job.matrix.dequantize(start..start + rows, widened);
        dense_product_f32(isa, widened, x, m, out);
    }
}

/// The activations as FP8, which whoever has a set of products has made once for all of them.
fn quantized_or_now<'q>(
    quantized: Option<&'q QuantizedX>,
    x: &[f32],
    cols: usize,
) -> Cow<'q, QuantizedX> {
    match quantized {
        Some(quantized) => Cow::Borrowed(quantized),
        None => Cow::Owned(QuantizedX::new(x, cols)),
    }
}
