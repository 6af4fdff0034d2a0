//! Dequantizes a tensor into memory that Python has allocated.

use half::{bf16, f16};
use rayon::prelude::*;
use smq_format::{Defect, Dtype, TensorData, TensorView};

/// Elements that one task makes, in whole rows.
const TASK_ELEMS: usize = 64 << 10;

/// Fills `out` with the elements as f32, which is exact.
///
/// # Errors
/// An invalid scale or element.
pub(crate) fn fill_f32(view: &TensorView, out: &mut [f32]) -> Result<(), Defect> {
    let columns = view.matrix_shape().1;
    in_rows(columns, out, |first, out| {
        view.dequantize_rows(first..first + out.len() / columns, out)
    })
}

/// Fills `out` with the bits of the elements as `to`: as they are stored where that is their type,
/// and rounded half to even otherwise.
///
/// # Errors
/// An invalid scale or element.
pub(crate) fn fill_half(view: &TensorView, to: Half, out: &mut [u16]) -> Result<(), Defect> {
    let columns = view.matrix_shape().1;
    match view.data() {
        TensorData::Raw { dtype, bytes } if dtype == to.dtype() => {
            in_rows(columns, out, |first, out| {
                let bytes = &bytes[first * columns * 2..][..out.len() * 2];
                for (out, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *out = u16::from_le_bytes(*b);
                }
                Ok(())
            })
        }
        TensorData::Raw { .. }
        | TensorData::Int4 { .. }
        | TensorData::Lut4 { .. }
        | TensorData::Nf4 { .. }
        | TensorData::Fp8 { .. } => in_rows(columns, out, |first, out| {
            let mut values = vec![0.0; out.len()];
            view.dequantize_rows(first..first + out.len() / columns, &mut values)?;
            for (out, value) in out.iter_mut().zip(values) {
                *out = to.bits(value);
            }
            Ok(())
        }),
    }
}

/// An element type of two bytes.
#[derive(Clone, Copy)]
pub(crate) enum Half {
    Bf16,
    F16,
}

impl Half {
    fn dtype(self) -> Dtype {
        match self {
            Half::Bf16 => Dtype::Bf16,
            Half::F16 => Dtype::F16,
        }
    }

    fn bits(self, value: f32) -> u16 {
        match self {
            Half::Bf16 => bf16::from_f32(value).to_bits(),
            Half::F16 => f16::from_f32(value).to_bits(),
        }
    }
}

/// Whether a tensor is so small that one thread has it sooner than several.
pub(crate) fn is_small(elems: usize) -> bool {
    elems <= TASK_ELEMS
}

/// Has `fill` make runs of whole rows, given the first row of each; on all threads where that pays.
fn in_rows<T: Send>(
    columns: usize,
    out: &mut [T],
    fill: impl Fn(usize, &mut [T]) -> Result<(), Defect> + Sync,
) -> Result<(), Defect> {
    if out.is_empty() {
        return Ok(());
    }
    if is_small(out.len()) {
        return fill(0, out);
    }
    let task_rows = (TASK_ELEMS / columns).max(1);
    out.par_chunks_mut(task_rows * columns)
        .enumerate()
        .try_for_each(|(task, out)| fill(task * task_rows, out))
}
