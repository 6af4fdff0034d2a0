//! How far the weights of two tensors of one shape lie apart, a few rows at a time.

use rayon::prelude::*;
use serde::Serialize;
use smq_format::{Defect, SmqFile, TensorData, TensorView, int4};

use super::super::error::InspectError;

/// Elements that one task holds of each tensor, in whole rows.
const TASK_ELEMS: usize = 1 << 16;

/// How many of how many differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Counted {
    /// How many of them differ.
    pub differ: u64,
    /// How many there are.
    pub of: u64,
}

/// The difference of two tensors of one shape.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WeightDiff {
    /// Integers; `null` unless both are int4.
    pub nibbles: Option<Counted>,
    /// Scales by value, whatever their formats; `null` unless both are int4 with the same groups.
    pub scales: Option<Counted>,
    /// Weights that differ once they are dequantized.
    pub weights: Counted,
    /// Largest `|a - b|`; `null` where weights that are not finite differ.
    pub max_abs: Option<f64>,
    /// Root of the mean of `(a - b)^2`; `null` as above.
    pub rms: Option<f64>,
    /// Root of `sum (a - b)^2 / sum a^2`; `null` as above, or where A is all zero.
    pub relative_rms: Option<f64>,
}

/// Sums over a run of rows.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    nibbles: u64,
    scales: u64,
    weights: u64,
    max_abs: f64,
    squared_difference: f64,
    squared_a: f64,
}

/// Compares two tensors of one shape. The sums have a fixed order, so threads do not change them.
///
/// # Errors
/// An invalid scale code, with its file.
pub(super) fn compare(
    a: (&SmqFile, &TensorView),
    b: (&SmqFile, &TensorView),
) -> Result<WeightDiff, InspectError> {
    let (rows, columns) = a.1.matrix_shape();
    let same_groups = match (a.1.data(), b.1.data()) {
        (TensorData::Int4 { group: x, .. }, TensorData::Int4 { group: y, .. })
        | (TensorData::Lut4 { group: x, .. }, TensorData::Lut4 { group: y, .. }) => Some(x == y),
        _ => None,
    };
    let task_rows = (TASK_ELEMS / columns.max(1)).max(1);
    let tasks = match columns {
        0 => 0,
        _ => rows.div_ceil(task_rows),
    };
    let parts: Vec<Sums> = (0..tasks)
        .into_par_iter()
        .map(|task| {
            let rows = task * task_rows..rows.min((task + 1) * task_rows);
            let mut buffers = [
                vec![0.0; rows.len() * columns],
                vec![0.0; rows.len() * columns],
            ];
            for ((file, view), out) in [a, b].into_iter().zip(&mut buffers) {
                view.dequantize_rows(rows.clone(), out)
                    .map_err(|defect| damaged(file, defect))?;
            }
            let mut sums = of_weights(&buffers[0], &buffers[1]);
            if let (TensorData::Int4 { nibbles: x, .. }, TensorData::Int4 { nibbles: y, .. })
            | (TensorData::Lut4 { nibbles: x, .. }, TensorData::Lut4 { nibbles: y, .. }) =
                (a.1.data(), b.1.data())
            {
                let row_bytes = int4::row_bytes(columns);
                let range = rows.start * row_bytes..rows.end * row_bytes;
                sums.nibbles = differing_nibbles(&x[range.clone()], &y[range], columns);
            }
            if same_groups == Some(true) {
                sums.scales = differing_scales(a, b, rows)?;
            }
            Ok(sums)
        })
        .collect::<Result<_, InspectError>>()?;
    let total = parts.into_iter().fold(Sums::default(), |t, s| Sums {
        nibbles: t.nibbles + s.nibbles,
        scales: t.scales + s.scales,
        weights: t.weights + s.weights,
        max_abs: larger(t.max_abs, s.max_abs),
        squared_difference: t.squared_difference + s.squared_difference,
        squared_a: t.squared_a + s.squared_a,
    });
    let elems = (rows * columns) as u64;
    let groups = a.1.scheme().groups(a.1.shape()) as u64;
    let counted = |differ, of| Counted { differ, of };
    let finite = |v: f64| Some(v).filter(|v| v.is_finite());
    let relative_rms = match total.squared_difference {
        0.0 => 0.0,
        squared => (squared / total.squared_a).sqrt(),
    };
    Ok(WeightDiff {
        nibbles: same_groups.map(|_| counted(total.nibbles, elems)),
        scales: same_groups.and_then(|same| same.then(|| counted(total.scales, groups))),
        weights: counted(total.weights, elems),
        max_abs: finite(total.max_abs),
        rms: finite((total.squared_difference / elems.max(1) as f64).sqrt()),
        relative_rms: finite(relative_rms),
    })
}

fn damaged(file: &SmqFile, defect: Defect) -> InspectError {
    InspectError::File(smq_format::Error::Format {
        path: file.path().to_path_buf(),
        defect,
    })
}

/// The larger one, or NaN where one is.
fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}

fn of_weights(a: &[f32], b: &[f32]) -> Sums {
    let mut sums = Sums::default();
    for (&a, &b) in a.iter().zip(b) {
        let (wide_a, wide_b) = (f64::from(a), f64::from(b));
        sums.squared_a += wide_a * wide_a;
        // Equal infinities have no difference, and -0 is 0.
        if a == b || (a.is_nan() && b.is_nan()) {
            continue;
        }
        let difference = (wide_a - wide_b).abs();
        sums.weights += 1;
        sums.max_abs = larger(sums.max_abs, difference);
        sums.squared_difference += difference * difference;
    }
    sums
}

/// Integers that differ in rows of `columns`; the unused half of an odd row's last byte does not
/// count.
fn differing_nibbles(a: &[u8], b: &[u8], columns: usize) -> u64 {
    let row_bytes = int4::row_bytes(columns);
    let rows = a.chunks_exact(row_bytes).zip(b.chunks_exact(row_bytes));
    rows.map(|(a, b)| {
        let mut differ = 0;
        for (i, (a, b)) in a.iter().zip(b).enumerate() {
            let bits = a ^ b;
            differ += u64::from(bits & 15 != 0);
            differ += u64::from(bits >> 4 != 0 && 2 * i + 1 < columns);
        }
        differ
    })
    .sum()
}

/// Scales of a range of rows whose values differ.
fn differing_scales(
    a: (&SmqFile, &TensorView),
    b: (&SmqFile, &TensorView),
    rows: std::ops::Range<usize>,
) -> Result<u64, InspectError> {
    let decode = |(file, view): (&SmqFile, &TensorView)| {
        let (TensorData::Int4 { scales, group, .. } | TensorData::Lut4 { scales, group, .. }) =
            view.data()
        else {
            return Ok(Vec::new());
        };
        let groups = view.matrix_shape().1.div_ceil(group);
        let range = rows.start * groups..rows.end * groups;
        let mut values = vec![0.0; range.len()];
        scales
            .decode(range, &mut values)
            .map_err(|defect| damaged(file, defect))?;
        Ok::<_, InspectError>(values)
    };
    let (a, b) = (decode(a)?, decode(b)?);
    Ok(a.iter().zip(&b).filter(|(a, b)| a != b).count() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_nibbles_but_not_the_padding() {
        assert_eq!(differing_nibbles(&[0x21, 0xf3], &[0x11, 0x03], 3), 1);
        assert_eq!(differing_nibbles(&[0x21, 0xf3], &[0x11, 0x03], 4), 2);
        assert_eq!(differing_nibbles(&[0x21, 0xf3], &[0x12, 0x3f], 2), 4);
    }

    #[test]
    fn weights_by_hand() {
        let sums = of_weights(&[1.0, -2.0, 0.0, 3.0], &[1.0, -2.5, -0.0, 7.0]);
        assert_eq!((sums.weights, sums.max_abs), (2, 4.0));
        assert_eq!((sums.squared_difference, sums.squared_a), (16.25, 14.0));
        let sums = of_weights(
            &[f32::INFINITY, f32::NAN, 1.0],
            &[f32::INFINITY, f32::NAN, f32::NAN],
        );
        assert_eq!(sums.weights, 1);
        assert!(sums.max_abs.is_nan() && larger(1.0, f64::NAN).is_nan());
        assert!(larger(f64::NAN, 1.0).is_nan());
    }
}
