//! From a tensor as it is stored to a matrix that can be multiplied with.

use rayon::prelude::*;
use smq_format::{TensorData, fp8};
use smq_model::Source;

use super::{Matrix, Weights};
use crate::error::{Error, Result};

impl<'a> Matrix<'a> {
    /// The weight matrix `name` of `source`, whose shape must be `[rows, cols]`.
    ///
    /// # Errors
    /// [`Source::stored`]'s, and [`smq_model::Error::Tensor`] for scales or codes that are damaged.
    pub fn load(source: &'a Source, name: &str, [rows, cols]: [usize; 2]) -> Result<Self> {
        let data = weights(name, source.stored(name, &[rows, cols])?)?;
        Ok(Matrix { rows, cols, data })
    }
}

/// The vector `name` of `source`, `[len]`, widened to f32.
///
/// # Errors
/// As [`Matrix::load`].
pub(crate) fn load_vector(source: &Source, name: &str, len: usize) -> Result<Vec<f32>> {
    let data = weights(name, source.stored(name, &[len])?)?;
    let (rows, cols) = (1, len);
    let mut out = vec![0.0; len];
    Matrix { rows, cols, data }.dequantize(0..1, &mut out);
    Ok(out)
}

fn weights<'a>(name: &str, stored: TensorData<'a>) -> Result<Weights<'a>> {
    let damaged = |e: smq_format::Defect| Error::tensor(name, e.to_string());
    Ok(match stored {
        TensorData::Raw { dtype, bytes } => Weights::Dense { dtype, bytes },
        TensorData::Int4 {
            nibbles,
            scales,
            group,
        } => Weights::Int4 {
            nibbles,
            scales: scales.decode_all().map_err(damaged)?,
            group,
        },
        TensorData::Lut4 {
            nibbles,
            scales,
            group,
            levels,
        } => Weights::Lut4 {
            nibbles,
            scales: scales.decode_all().map_err(damaged)?,
            group,
            levels,
        },
        TensorData::Nf4 { nibbles, scales } => Weights::Nf4 {
            nibbles,
            absmax: scales.decode_all().map_err(damaged)?,
            bf16: false,
        },
        TensorData::Fp8 { codes, scales } => {
            check_fp8(name, codes)?;
            let scales = scales.decode_all().map_err(damaged)?;
            Weights::Fp8 { codes, scales }
        }
    })
}

/// Kernels decode any code; a NaN would poison every token.
pub(crate) fn check_fp8(name: &str, codes: &[u8]) -> Result<()> {
    const CHUNK: usize = 1 << 20;
    // Without an exit in the inner loop, which keeps it wide.
    let any_nan = |codes: &[u8]| {
        codes
            .iter()
            .fold(false, |nan, &code| nan | fp8::is_nan(code))
    };
    match codes.par_chunks(CHUNK).any(any_nan) {
        true => Err(Error::tensor(
            name,
            "holds a NaN; the file is damaged, which smq-inspect --verify locates",
        )),
        false => Ok(()),
    }
}
