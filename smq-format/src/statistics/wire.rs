//! The section's bytes, of each version.

use wincode::config::Configuration;
use wincode::{SchemaRead, SchemaWrite};

use super::{
    MAX_STATISTICS_BYTES, OutputError, Receipt, STATISTICS_VERSIONS, Statistics, TensorStatistics,
    defect,
};
use crate::error::Defect;

#[derive(SchemaRead, SchemaWrite)]
struct Version1 {
    version: u32,
    tensors: Vec<TensorStatistics>,
}

#[derive(SchemaRead, SchemaWrite)]
struct Version2 {
    version: u32,
    tensors: Vec<Record2>,
    receipts: Vec<Receipt>,
}

/// A record of version 1, and what version 2 has after it.
#[derive(SchemaRead, SchemaWrite)]
struct Record2 {
    record: TensorStatistics,
    output: Option<OutputError>,
}

fn config() -> impl wincode::config::Config {
    const LIMIT: usize = MAX_STATISTICS_BYTES as usize;
    Configuration::default().with_preallocation_size_limit::<LIMIT>()
}

pub(super) fn encode(statistics: &Statistics) -> wincode::WriteResult<Vec<u8>> {
    let (version, tensors) = (statistics.version(), statistics.tensors.iter());
    let [first, _] = STATISTICS_VERSIONS;
    if version == first {
        let tensors = tensors.cloned().collect();
        return wincode::config::serialize(&Version1 { version, tensors }, config());
    }
    let with_output = |record: &TensorStatistics| Record2 {
        output: record.output,
        record: record.clone(),
    };
    let statistics = Version2 {
        version,
        tensors: tensors.map(with_output).collect(),
        receipts: statistics.receipts.clone(),
    };
    wincode::config::serialize(&statistics, config())
}

pub(super) fn decode(bytes: &[u8]) -> Result<Statistics, Defect> {
    let Some(version) = bytes.first_chunk().map(|b| u32::from_le_bytes(*b)) else {
        return Err(defect("shorter than its version"));
    };
    let [first, second] = STATISTICS_VERSIONS;
    if version == first {
        let read: Version1 = wincode::config::deserialize_exact(bytes, config()).map_err(defect)?;
        return Ok(Statistics {
            tensors: read.tensors,
            receipts: Vec::new(),
        });
    }
    if version != second {
        return Err(defect(format!(
            "layout version {version}, this reader knows {first} and {second}"
        )));
    }
    let read: Version2 = wincode::config::deserialize_exact(bytes, config()).map_err(defect)?;
    let join = |Record2 { record, output }| TensorStatistics { output, ..record };
    let statistics = Statistics {
        tensors: read.tensors.into_iter().map(join).collect(),
        receipts: read.receipts,
    };
    match statistics.version() == second {
        true => Ok(statistics),
        // There is one form of each.
        false => Err(defect(format!(
            "layout version {second} without anything that {first} does not have"
        ))),
    }
}
