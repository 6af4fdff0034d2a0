//! Int4 tensors whose scales and integers somebody else chose, as calibration does.

use rayon::prelude::*;
use smq_format::int4;
use smq_format::scale::ScaleFormat;
use smq_format::{Defect, Scales};

use super::{
    Grid, Group, Kernel, QuantizeError, QuantizeOptions, Quantized, ScaleRule, finish, scale_format,
};

/// Scales as the file will hold them.
#[derive(Debug)]
pub(crate) struct SettledScales {
    format: ScaleFormat,
    codes: Vec<u32>,
    /// The scales as a reader decodes them, `[rows, groups]`.
    pub(crate) values: Vec<f32>,
    under_window: Vec<bool>,
}

impl SettledScales {
    /// Encodes `scales`, `[rows, groups]`, each already of the mantissa that `options` ask for.
    ///
    /// # Errors
    /// A scale over the format's range.
    pub(crate) fn new(options: &QuantizeOptions, scales: Vec<f32>) -> Result<Self, QuantizeError> {
        let largest = scales.iter().fold(0f32, |m, s| m.max(s.abs()));
        let format = scale_format(options.scales, largest)?;
        let encoded: Vec<_> = scales.into_par_iter().map(|s| format.encode(s)).collect();
        let decode = |e: &smq_format::scale::Encoded| format.decode(e.code).unwrap_or(0.0);
        Ok(Self {
            values: encoded.iter().map(decode).collect(),
            under_window: encoded.iter().map(|e| e.under_window).collect(),
            codes: encoded.into_iter().map(|e| e.code).collect(),
            format,
        })
    }

    /// As a file holds them. What was under the window is not known any more, so nothing is.
    ///
    /// # Errors
    /// The first invalid code.
    pub(super) fn stored(scales: &Scales) -> Result<Self, Defect> {
        Ok(Self {
            format: scales.format,
            codes: (0..scales.count).map(|i| scales.code(i)).collect(),
            values: scales.decode_all()?,
            under_window: vec![false; scales.count],
        })
    }
}

/// The tensor with `integers`, `[rows, columns]`, under `scales`; its errors are against `w`,
/// `[rows, columns]`, and those of exact scales are rounding to nearest's.
pub(crate) fn settled(
    name: &str,
    w: &[f32],
    columns: usize,
    options: &QuantizeOptions,
    grid: &Grid,
    scales: SettledScales,
    integers: &[i8],
) -> Quantized {
    let kernel = Kernel::detect();
    let (groups_a_row, row_bytes) = (columns.div_ceil(options.group), int4::row_bytes(columns));
    let mut nibbles = vec![0u8; w.len() / columns * row_bytes];
    let mut groups = vec![Group::default(); scales.values.len()];
    nibbles
        .par_chunks_mut(row_bytes)
        .zip(groups.par_chunks_mut(groups_a_row))
        .zip(w.par_chunks(columns).zip(integers.par_chunks(columns)))
        .enumerate()
        .with_min_len(8)
        .for_each(|(row, ((nibbles, groups), (w, integers)))| {
            kernel.pack_row(integers, nibbles);
            let first = row * groups_a_row;
            for (g, group) in groups.iter_mut().enumerate() {
                let range = g * options.group..columns.min((g + 1) * options.group);
                let w = &w[range.clone()];
                let scale = scales.values[first + g];
                let stored: Vec<f32> = integers[range]
                    .iter()
                    .map(|&q| grid.value(q) * scale)
                    .collect();
                let largest = kernel.max_abs(w).unwrap_or(0.0);
                *group = Group {
                    exact: match largest {
                        0.0 => 0.0,
                        largest => grid.exact_scale(ScaleRule::Nearest, w, largest),
                    },
                    stored: scale,
                    under_window: scales.under_window[first + g],
                    errors: kernel.compare(w, &stored),
                    exact_errors: kernel.compare(w, w),
                };
                if group.exact != 0.0 {
                    let w = (w, largest);
                    group.exact_errors = grid.errors(&kernel, w, group.exact);
                    group.errors.clipped = grid.errors(&kernel, w, scale).clipped;
                }
            }
        });
    let (codes, format) = (scales.codes, scales.format);
    let scheme = grid.scheme(options, format);
    finish(name, &groups, nibbles, codes, scheme, format, columns)
}
