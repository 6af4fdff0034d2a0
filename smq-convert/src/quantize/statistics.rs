//! From the figures of each group to the record of a tensor, in a fixed order.

use rayon::prelude::*;
use smq_format::statistics::{
    EXPONENT_BUCKETS, ErrorSummary, MAX_ROW_BLOCKS, PERCENTILES_PER_MILLE, TensorStatistics,
};

use super::Group;
use super::kernel::GroupError;

/// Sums over the groups of one row.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RowSums {
    rel_mse: f64,
    cosine: f64,
    squared_error: f64,
    squared_weight: f64,
}

impl RowSums {
    /// Sums and the relative MSE of each group, from elements and errors of a row's groups.
    pub(super) fn of(groups: impl Iterator<Item = (usize, GroupError)>) -> (Self, Vec<f32>) {
        let mut sums = RowSums::default();
        let rel_mse = groups
            .map(|(elems, errors)| {
                let rel_mse = errors.rel_mse(elems);
                sums.rel_mse += f64::from(rel_mse);
                sums.cosine += f64::from(errors.cosine());
                sums.squared_error += f64::from(errors.squared_error);
                sums.squared_weight += f64::from(errors.squared_weight);
                rel_mse
            })
            .collect();
        (sums, rel_mse)
    }
}

/// The record of a tensor with `columns` columns; `groups`, of `group` elements of a row, are
/// row-major.
pub(super) fn summarise(
    name: &str,
    groups: &[Group],
    (first_exponent, exponent_counts): (i16, Vec<u64>),
    group: usize,
    columns: usize,
) -> TensorStatistics {
    let groups_a_row = columns.div_ceil(group);
    let elems = |g: usize| group.min(columns - g % groups_a_row * group);
    let rows_of = |errors: fn(&Group) -> GroupError| -> Vec<(RowSums, Vec<f32>)> {
        groups
            .par_chunks(groups_a_row)
            .with_min_len(64)
            .map(|row| {
                RowSums::of(
                    row.iter()
                        .enumerate()
                        .map(|(g, group)| (elems(g), errors(group))),
                )
            })
            .collect()
    };
    let stored = rows_of(|g| g.errors);
    let block_rows = stored.len().div_ceil(MAX_ROW_BLOCKS).max(1);
    let row_blocks = stored
        .chunks(block_rows)
        .map(|rows| {
            let sum: f64 = rows.iter().map(|(sums, _)| sums.rel_mse).sum();
            (sum / (rows.len() * groups_a_row) as f64) as f32
        })
        .collect();
    let count = |test: fn(&Group) -> bool| groups.iter().filter(|g| test(g)).count() as u64;
    TensorStatistics {
        name: name.to_owned(),
        groups: groups.len() as u64,
        zero_groups: count(|g| g.exact == 0.0),
        under_window: count(|g| g.under_window),
        clipped: groups.iter().map(|g| u64::from(g.errors.clipped)).sum(),
        stored: summary(stored),
        exact: summary(rows_of(|g| g.exact_errors)),
        first_exponent,
        exponent_counts,
        block_rows: block_rows as u64,
        row_blocks,
        output: None,
    }
}

/// Adds up rows in order and finds the percentiles.
pub(super) fn summary(rows: Vec<(RowSums, Vec<f32>)>) -> ErrorSummary {
    let mut total = RowSums::default();
    let mut rel_mse = Vec::new();
    for (row, of_groups) in rows {
        total.rel_mse += row.rel_mse;
        total.cosine += row.cosine;
        total.squared_error += row.squared_error;
        total.squared_weight += row.squared_weight;
        rel_mse.extend(of_groups);
    }
    let count = rel_mse.len().max(1) as f64;
    ErrorSummary {
        mean_rel_mse: total.rel_mse / count,
        max_rel_mse: rel_mse.iter().copied().fold(0.0, f32::max),
        percentiles_rel_mse: percentiles(&mut rel_mse),
        mean_cosine: total.cosine / count,
        squared_error: total.squared_error,
        squared_weight: total.squared_weight,
    }
}

/// Nearest-rank percentiles; each selection leaves a smaller part to select from.
fn percentiles(values: &mut [f32]) -> [f32; PERCENTILES_PER_MILLE.len()] {
    let mut out = [0.0; PERCENTILES_PER_MILLE.len()];
    let mut end = values.len();
    for (out, per_mille) in out.iter_mut().zip(PERCENTILES_PER_MILLE).rev() {
        if end == 0 {
            break;
        }
        let rank = (values.len() * per_mille as usize).div_ceil(1000).max(1) - 1;
        let (_, value, _) = values[..end].select_nth_unstable_by(rank, f32::total_cmp);
        *out = *value;
        end = rank + 1;
    }
    out
}

/// Stored scales by exponent: the top [`EXPONENT_BUCKETS`] binades, the first also counting all
/// below.
pub(super) fn exponents(scales: impl Iterator<Item = f32>) -> (i16, Vec<u64>) {
    let exponents: Vec<i16> = scales
        .filter(|s| *s != 0.0)
        .map(|s| (s.to_bits() >> 23 & 0xff) as i16 - 127)
        .collect();
    let mut counts = vec![0; EXPONENT_BUCKETS];
    let top = exponents.iter().max().copied().unwrap_or(0);
    let first = top - (EXPONENT_BUCKETS as i16 - 1);
    for e in exponents {
        counts[(e - first).max(0) as usize] += 1;
    }
    (first, counts)
}
