//! The error-statistics section: what quantization did to each tensor, readable without the weights.
//!
//! Its bytes are bincode 1's wire format, specified field by field in `spec/format.md`.

use wincode::{SchemaRead, SchemaWrite, config::Configuration};

use crate::error::Defect;
use crate::index::{Index, TensorEntry};

/// Largest statistics section a reader accepts.
pub const MAX_STATISTICS_BYTES: u64 = 64 << 20;
/// Version of the section's layout.
pub const STATISTICS_VERSION: u32 = 1;
/// Length of [`TensorStatistics::exponent_counts`]: one more than E5Mx's window.
pub const EXPONENT_BUCKETS: usize = 32;
/// Row blocks of [`TensorStatistics::row_blocks`]: at most this many.
pub const MAX_ROW_BLOCKS: usize = 64;

/// Statistics of every quantized tensor, in index order.
#[derive(Debug, Clone, PartialEq, SchemaRead, SchemaWrite)]
pub struct Statistics {
    /// [`STATISTICS_VERSION`].
    pub version: u32,
    /// One record a quantized tensor.
    pub tensors: Vec<TensorStatistics>,
}

/// What quantization did to one tensor.
#[derive(Debug, Clone, PartialEq, SchemaRead, SchemaWrite)]
pub struct TensorStatistics {
    /// The tensor's name in the index.
    pub name: String,
    /// Groups, as [`Scheme::groups`](crate::Scheme::groups) counts them.
    pub groups: u64,
    /// Groups whose weights are all zero.
    pub zero_groups: u64,
    /// Non-zero scales under the window (or under the smallest normal f16).
    pub under_window: u64,
    /// Weights whose quotient, rounded, was outside -8..=7 (`fp8-e4m3`: over 448; `nf4-dq`: none).
    pub clipped: u64,
    /// The tensor as stored.
    pub stored: ErrorSummary,
    /// The same quantizer with exact f32 scales (`nf4-dq`: absmax values), so that the difference is the scale format's cost.
    pub exact: ErrorSummary,
    /// Exponent (floor of log2 of the magnitude) that `exponent_counts[0]` counts.
    pub first_exponent: i16,
    /// Non-zero stored scales by exponent: [`EXPONENT_BUCKETS`] counts that ascend from `first_exponent`
    /// to the largest exponent present; the first also counts every smaller one.
    pub exponent_counts: Vec<u64>,
    /// Rows a block; the last block may have fewer.
    pub block_rows: u64,
    /// Mean relative MSE over the groups of each block of rows, at most [`MAX_ROW_BLOCKS`] blocks.
    pub row_blocks: Vec<f32>,
}

impl TensorStatistics {
    /// What does not fit the tensor's entry in the index.
    fn check(&self, entry: &TensorEntry) -> Result<(), String> {
        let (true, &[rows, _]) = (entry.scheme.is_quantized(), entry.shape.as_slice()) else {
            let scheme = entry.scheme.name();
            return Err(format!("has a record, but its scheme is {scheme}"));
        };
        let groups = entry.scheme.groups(&entry.shape) as u64;
        if self.groups != groups {
            let actual = self.groups;
            return Err(format!("has {groups} groups, its record says {actual}"));
        }
        let counts = self.exponent_counts.len();
        if counts != EXPONENT_BUCKETS {
            return Err(format!(
                "has {counts} exponent counts in its record, not {EXPONENT_BUCKETS}"
            ));
        }
        let (blocks, block_rows) = (self.row_blocks.len(), self.block_rows);
        let fits = block_rows > 0 && (rows as u64).div_ceil(block_rows) == blocks as u64;
        if !fits || blocks > MAX_ROW_BLOCKS {
            return Err(format!(
                "has {rows} rows, which its record divides into {blocks} blocks of {block_rows}; at most {MAX_ROW_BLOCKS} blocks are allowed"
            ));
        }
        Ok(())
    }
}

/// Error figures over the groups of a tensor (`spec/method.md`, "Statistics").
#[derive(Debug, Clone, Copy, PartialEq, Default, SchemaRead, SchemaWrite)]
pub struct ErrorSummary {
    /// Mean over groups of the relative MSE.
    pub mean_rel_mse: f64,
    /// 50th, 90th, 99th and 99.9th percentile over groups of the relative MSE (nearest rank).
    pub percentiles_rel_mse: [f32; 4],
    /// Maximum over groups of the relative MSE.
    pub max_rel_mse: f32,
    /// Mean over groups of the cosine similarity.
    pub mean_cosine: f64,
    /// Sum over all elements of `(w - w')^2`.
    pub squared_error: f64,
    /// Sum over all elements of `w^2`.
    pub squared_weight: f64,
}

/// Which percentiles [`ErrorSummary::percentiles_rel_mse`] holds, in per mille.
pub const PERCENTILES_PER_MILLE: [u32; 4] = [500, 900, 990, 999];

impl ErrorSummary {
    /// Signal to quantization-noise ratio of the whole tensor in dB; infinite where there is no error.
    pub fn sqnr_db(&self) -> f64 {
        if self.squared_error == 0.0 {
            return f64::INFINITY;
        }
        10.0 * (self.squared_weight / self.squared_error).log10()
    }
}

fn wire() -> impl wincode::config::Config {
    const LIMIT: usize = MAX_STATISTICS_BYTES as usize;
    Configuration::default().with_preallocation_size_limit::<LIMIT>()
}

impl Statistics {
    /// The section's bytes.
    pub fn encode(&self) -> Result<Vec<u8>, Defect> {
        wincode::config::serialize(self, wire()).map_err(defect)
    }

    /// Decodes a section of exactly `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Self, Defect> {
        let version = bytes.first_chunk().map(|b| u32::from_le_bytes(*b));
        if version != Some(STATISTICS_VERSION) {
            return Err(Defect::Statistics {
                reason: match version {
                    Some(v) => {
                        format!("layout version {v}, this reader knows {STATISTICS_VERSION}")
                    }
                    None => "shorter than its version".to_owned(),
                },
            });
        }
        wincode::config::deserialize_exact(bytes, wire()).map_err(defect)
    }

    /// Checks the records against the index: each is of a quantized tensor, in index order and at most once, and
    /// has the groups and blocks of rows that the tensor's shape gives. The figures are not checked.
    ///
    /// # Errors
    /// [`Defect::StatisticsMismatch`] with the first record that does not fit.
    pub fn check(&self, index: &Index) -> Result<(), Defect> {
        let mut entries = index.tensors.iter();
        for record in &self.tensors {
            let mismatch = |problem: String| Defect::StatisticsMismatch {
                tensor: record.name.clone(),
                problem,
            };
            let Some(entry) = entries.find(|t| t.name == record.name) else {
                let known = index.tensors.iter().any(|t| t.name == record.name);
                let problem = if known {
                    "has a record out of index order, or a second one"
                } else {
                    "has a record, but is not in the index"
                };
                return Err(mismatch(problem.to_owned()));
            };
            record.check(entry).map_err(mismatch)?;
        }
        Ok(())
    }

    /// The record of a tensor.
    pub fn tensor(&self, name: &str) -> Option<&TensorStatistics> {
        self.tensors.iter().find(|t| t.name == name)
    }
}

fn defect(error: impl std::fmt::Display) -> Defect {
    Defect::Statistics {
        reason: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheme::Scheme;

    fn sample() -> Statistics {
        let summary = ErrorSummary {
            mean_rel_mse: 0.25,
            percentiles_rel_mse: [1.0, 2.0, 3.0, 4.0],
            max_rel_mse: 5.0,
            mean_cosine: 0.5,
            squared_error: 1.0,
            squared_weight: 100.0,
        };
        Statistics {
            version: STATISTICS_VERSION,
            tensors: vec![TensorStatistics {
                name: "ab".into(),
                groups: 3,
                zero_groups: 0,
                under_window: 1,
                clipped: 2,
                stored: summary,
                exact: ErrorSummary::default(),
                first_exponent: -7,
                exponent_counts: vec![9],
                block_rows: 4,
                row_blocks: vec![0.5],
            }],
        }
    }

    /// The layout of `spec/format.md`, written out by hand.
    #[test]
    fn bytes_are_the_specified_ones() {
        let mut expected = Vec::new();
        expected.extend(1u32.to_le_bytes());
        expected.extend(1u64.to_le_bytes());
        expected.extend(2u64.to_le_bytes());
        expected.extend(b"ab");
        for count in [3u64, 0, 1, 2] {
            expected.extend(count.to_le_bytes());
        }
        expected.extend(0.25f64.to_le_bytes());
        for p in [1f32, 2.0, 3.0, 4.0, 5.0] {
            expected.extend(p.to_le_bytes());
        }
        for v in [0.5f64, 1.0, 100.0] {
            expected.extend(v.to_le_bytes());
        }
        expected.extend([0; 8 + 20 + 24]);
        expected.extend((-7i16).to_le_bytes());
        expected.extend(1u64.to_le_bytes());
        expected.extend(9u64.to_le_bytes());
        expected.extend(4u64.to_le_bytes());
        expected.extend(1u64.to_le_bytes());
        expected.extend(0.5f32.to_le_bytes());
        assert_eq!(sample().encode().unwrap(), expected);
        assert_eq!(Statistics::decode(&expected).unwrap(), sample());
        assert_eq!(sample().tensors[0].stored.sqnr_db(), 20.0);
    }

    #[test]
    fn every_truncation_and_an_extra_byte_are_refused() {
        let mut bytes = sample().encode().unwrap();
        for end in 0..bytes.len() {
            assert!(Statistics::decode(&bytes[..end]).is_err(), "cut at {end}");
        }
        bytes.push(0);
        assert!(Statistics::decode(&bytes).is_err());
    }

    #[test]
    fn at_most_64_blocks_of_rows() {
        let scheme = Scheme::Int4 {
            group: 4,
            scales: crate::scale::ScaleFormat::F16,
        };
        let entry = |rows: usize| TensorEntry {
            name: "ab".into(),
            shape: vec![rows, 4],
            source_dtype: crate::scheme::Dtype::F32,
            scheme,
            blobs: Vec::new(),
        };
        for (rows, block_rows, fits) in [(64usize, 1u64, true), (65, 1, false), (65, 2, true)] {
            let mut statistics = sample();
            let record = &mut statistics.tensors[0];
            record.groups = rows as u64;
            record.exponent_counts = vec![0; EXPONENT_BUCKETS];
            record.block_rows = block_rows;
            record.row_blocks = vec![0.0; rows.div_ceil(block_rows as usize)];
            let index = Index {
                tensors: vec![entry(rows)],
                ..Index::default()
            };
            assert_eq!(statistics.check(&index).is_ok(), fits, "{rows} rows");
        }
    }

    #[test]
    fn a_huge_count_is_refused_before_allocating() {
        let mut bytes = 1u32.to_le_bytes().to_vec();
        bytes.extend(u64::MAX.to_le_bytes());
        assert!(Statistics::decode(&bytes).is_err());
    }
}
