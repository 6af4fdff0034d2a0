//! What statistics must be to be those of a file.

use super::{
    EXPONENT_BUCKETS, MAX_RECEIPTS, MAX_ROW_BLOCKS, OutputError, Receipt, Statistics,
    TensorStatistics,
};
use crate::error::Defect;
use crate::index::{Index, MAX_NAME_BYTES, TensorEntry};

impl Statistics {
    /// Checks the records against the index: each is of a quantized tensor, in index order and at
    /// most once, and has the groups and blocks of rows that the tensor's shape gives. Of the
    /// figures, those of output errors and of receipts are checked, which only version 2 has.
    ///
    /// # Errors
    /// [`Defect::StatisticsMismatch`] with the first record that does not fit;
    /// [`Defect::StatisticsFigure`] with the first figure that cannot be.
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
            if let Some(output) = &record.output {
                output.check().map_err(|problem| Defect::StatisticsFigure {
                    owner: format!("tensor {:?}", record.name),
                    problem,
                })?;
            }
        }
        let receipts = self.receipts.len();
        if receipts > MAX_RECEIPTS {
            return Err(Defect::StatisticsFigure {
                owner: "the file".to_owned(),
                problem: format!("has {receipts} receipts; at most {MAX_RECEIPTS} are allowed"),
            });
        }
        for (number, receipt) in self.receipts.iter().enumerate() {
            receipt
                .check()
                .map_err(|problem| Defect::StatisticsFigure {
                    owner: format!("receipt {number}"),
                    problem,
                })?;
        }
        Ok(())
    }
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
                "has {rows} rows, which its record divides into {blocks} blocks of {block_rows}; \
                 at most {MAX_ROW_BLOCKS} blocks are allowed"
            ));
        }
        Ok(())
    }
}

impl OutputError {
    fn check(&self) -> Result<(), String> {
        for (name, figure) in [("rounded", self.rounded), ("stored", self.stored)] {
            check_figure(&format!("an output error ({name})"), figure)?;
        }
        if self.is_rounded && self.rounded != self.stored {
            return Err(format!(
                "is stored as rounding to nearest has it, yet its output error is {} and not {}",
                self.stored, self.rounded
            ));
        }
        Ok(())
    }
}

impl Receipt {
    fn check(&self) -> Result<(), String> {
        let bytes = self.text.len();
        if bytes == 0 || bytes > MAX_NAME_BYTES {
            return Err(format!(
                "has a text's name of {bytes} bytes, expected 1 to {MAX_NAME_BYTES}"
            ));
        }
        if self.window < 2 || self.tokens_scored == 0 {
            return Err(format!(
                "scores {} tokens in windows of {}, expected at least 1 in windows of at least 2",
                self.tokens_scored, self.window
            ));
        }
        for (name, figure) in [
            ("mean_kl", self.mean_kl),
            ("kl_stderr", self.kl_stderr),
            ("perplexity", self.perplexity),
            ("base_perplexity", self.base_perplexity),
            ("top1_agreement", self.top1_agreement),
        ] {
            check_figure(&format!("a {name}"), figure)?;
        }
        if self.top1_agreement > 1.0 {
            return Err(format!(
                "has a top1_agreement of {}, which is a share",
                self.top1_agreement
            ));
        }
        Ok(())
    }
}

/// Only what can be measured: a number, and none below zero.
fn check_figure(name: &str, figure: f64) -> Result<(), String> {
    match figure.is_finite() && figure >= 0.0 {
        true => Ok(()),
        false => Err(format!(
            "has {name} of {figure}, which must be finite and not negative"
        )),
    }
}
