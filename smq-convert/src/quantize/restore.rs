//! The record of a tensor in a file, recomputed from its codes and scales.

use smq_format::{Defect, Scales, TensorData, TensorView, int4};

use super::grid::Book;
use super::{
    Grid, QuantizeOptions, Quantized, ScaleRule, SettledAbsmax, SettledScales, settled, settled_nf4,
};

/// The tensor of `view` as [`settled`] or [`settled_nf4`] makes it of the codes and scales that are
/// stored, with its errors against `w`, `[rows, columns]`; `None` of a tensor that has no scales to
/// choose.
///
/// Which scales were under their format's window cannot be known: the record says none.
///
/// # Errors
/// The first scale that is invalid.
pub(crate) fn restore(view: &TensorView, w: &[f32]) -> Result<Option<Quantized>, Defect> {
    let (_, columns) = view.matrix_shape();
    let of_groups = |grid: Grid, group: usize, nibbles: &[u8], scales: &Scales| {
        let codes: Vec<i8> = nibbles
            .chunks(int4::row_bytes(columns))
            .flat_map(|row| {
                let codes = row.iter().map(|byte| grid.unpack(*byte));
                let codes = codes.flat_map(|(even, odd)| [even, odd]);
                codes.take(columns)
            })
            .collect();
        let options = QuantizeOptions {
            group,
            scales: scales.format.into(),
            // Whatever rule chose the scales, they are settled.
            rule: ScaleRule::Nearest,
        };
        let scales = SettledScales::stored(scales)?;
        let name = view.name();
        Ok(Some(settled(
            name, w, columns, &options, &grid, scales, &codes,
        )))
    };
    match view.data() {
        TensorData::Int4 {
            nibbles,
            scales,
            group,
        } => of_groups(Grid::Int4, group, nibbles, &scales),
        TensorData::Lut4 {
            nibbles,
            scales,
            group,
            levels,
        } => of_groups(Grid::Book(Book::new(levels)), group, nibbles, &scales),
        TensorData::Nf4 { nibbles, scales } => {
            let codes = nibbles.iter().flat_map(|b| [b >> 4, b & 15]);
            let codes: Vec<i8> = codes.take(w.len()).map(u8::cast_signed).collect();
            let absmax = SettledAbsmax::stored(&scales)?;
            let name = view.name();
            Ok(Some(settled_nf4(name, w, columns, absmax, &codes)))
        }
        TensorData::Raw { .. } | TensorData::Fp8 { .. } => Ok(None),
    }
}
