//! From the figures of each group to the record of a tensor, in a fixed order.

use rayon::prelude::*;
use smq_format::statistics::{
    EXPONENT_BUCKETS, ErrorSummary, MAX_ROW_BLOCKS, PERCENTILES_PER_MILLE, TensorStatistics,
};

use super::Group;
use super::kernel::{GroupError, Kernel, LANES};

/// Codes that are counted by one task.
const CODES_A_TASK: usize = 1 << 14;

/// Groups whose figures are computed together.
const BATCH: usize = LANES;

/// Sums over the groups of one row.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RowSums {
    rel_mse: f64,
    cosine: f64,
    squared_error: f64,
    squared_weight: f64,
}

impl RowSums {
    /// Sums, in order, over the groups of a row with these errors, which have `group` elements but
    /// for the last, of `last`; the relative MSE of each goes into `rel_mse`.
    pub(super) fn of(
        kernel: &Kernel,
        errors: impl ExactSizeIterator<Item = GroupError>,
        (group, last): (usize, usize),
        rel_mse: &mut [f32],
    ) -> Self {
        let (mut sums, mut errors) = (RowSums::default(), errors);
        let mut batch = [GroupError::default(); BATCH];
        let mut cosine = [0.0; BATCH];
        for out in rel_mse.chunks_mut(BATCH) {
            for (slot, errors) in batch.iter_mut().zip(errors.by_ref().take(out.len())) {
                *slot = errors;
            }
            let batch = &batch[..out.len()];
            kernel.figures(batch, group, out, &mut cosine);
            if errors.len() == 0
                && let (Some(out), Some(errors)) = (out.last_mut(), batch.last())
            {
                *out = errors.rel_mse(last);
            }
            for ((errors, rel_mse), cosine) in batch.iter().zip(out).zip(cosine) {
                sums.rel_mse += f64::from(*rel_mse);
                sums.cosine += f64::from(cosine);
                sums.squared_error += f64::from(errors.squared_error);
                sums.squared_weight += f64::from(errors.squared_weight);
            }
        }
        sums
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
    let kernel = Kernel::detect();
    let groups_a_row = columns.div_ceil(group);
    let elems = (group, columns - (groups_a_row - 1) * group);
    let mut rel_mse = [(); 2].map(|()| vec![0.0; groups.len()]);
    let [stored_rel_mse, exact_rel_mse] = &mut rel_mse;
    let rows: Vec<_> = groups
        .par_chunks(groups_a_row)
        .zip(stored_rel_mse.par_chunks_mut(groups_a_row))
        .zip(exact_rel_mse.par_chunks_mut(groups_a_row))
        .with_min_len(64)
        .map(|((groups, stored), exact)| {
            let sums = |errors: fn(&Group) -> GroupError, rel_mse: &mut [f32]| {
                RowSums::of(&kernel, groups.iter().map(errors), elems, rel_mse)
            };
            let count = |test: fn(&Group) -> bool| groups.iter().filter(|g| test(g)).count() as u64;
            Row {
                stored: sums(|g| g.errors, stored),
                exact: sums(|g| g.exact_errors, exact),
                zero_groups: count(|g| g.exact == 0.0),
                under_window: count(|g| g.under_window),
                clipped: groups.iter().map(|g| u64::from(g.errors.clipped)).sum(),
            }
        })
        .collect();
    let block_rows = rows.len().div_ceil(MAX_ROW_BLOCKS).max(1);
    let row_blocks = rows
        .chunks(block_rows)
        .map(|rows| {
            let sum: f64 = rows.iter().map(|row| row.stored.rel_mse).sum();
            (sum / (rows.len() * groups_a_row) as f64) as f32
        })
        .collect();
    let [stored_rel_mse, exact_rel_mse] = rel_mse;
    let (stored, exact) = rayon::join(
        || summary(rows.iter().map(|row| row.stored), stored_rel_mse),
        || summary(rows.iter().map(|row| row.exact), exact_rel_mse),
    );
    let sum = |of: fn(&Row) -> u64| rows.iter().map(of).sum();
    TensorStatistics {
        name: name.to_owned(),
        groups: groups.len() as u64,
        zero_groups: sum(|row| row.zero_groups),
        under_window: sum(|row| row.under_window),
        clipped: sum(|row| row.clipped),
        stored,
        exact,
        first_exponent,
        exponent_counts,
        block_rows: block_rows as u64,
        row_blocks,
        output: None,
    }
}

/// What the record says of one row.
struct Row {
    stored: RowSums,
    exact: RowSums,
    zero_groups: u64,
    under_window: u64,
    clipped: u64,
}

/// Adds up rows in order and finds the percentiles of their groups' relative MSE.
pub(super) fn summary(rows: impl Iterator<Item = RowSums>, mut rel_mse: Vec<f32>) -> ErrorSummary {
    let mut total = RowSums::default();
    for row in rows {
        total.rel_mse += row.rel_mse;
        total.cosine += row.cosine;
        total.squared_error += row.squared_error;
        total.squared_weight += row.squared_weight;
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

/// The scales of `codes` by exponent: the top [`EXPONENT_BUCKETS`] binades, the first also counting
/// all below. Zeros, and codes that `scale` knows no scale of, are in none.
pub(super) fn exponents<T: Sync>(
    codes: &[T],
    scale: impl Fn(&T) -> Option<f32> + Sync,
) -> (i16, Vec<u64>) {
    let empty = || vec![0u64; 256];
    let counted = codes
        .par_chunks(CODES_A_TASK)
        .map(|codes| {
            let mut counts = empty();
            for scale in codes.iter().filter_map(&scale).filter(|s| *s != 0.0) {
                counts[(scale.to_bits() >> 23 & 0xff) as usize] += 1;
            }
            counts
        })
        .reduce(empty, |mut counts, more| {
            counts.iter_mut().zip(more).for_each(|(n, m)| *n += m);
            counts
        });
    let top = counted.iter().rposition(|&n| n > 0);
    // Where there is no scale, the exponent 0 is in the top bucket.
    let top = top.unwrap_or(127);
    let mut counts = vec![0; EXPONENT_BUCKETS];
    for (field, count) in counted[..=top].iter().enumerate() {
        counts[(field + EXPONENT_BUCKETS).saturating_sub(top + 1)] += count;
    }
    (top as i16 - 127 - (EXPONENT_BUCKETS as i16 - 1), counts)
}
