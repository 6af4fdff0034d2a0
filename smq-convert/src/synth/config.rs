//! The config of the checkpoint to make: what is written, and the tensors that it implies.

use std::path::Path;

use serde_json::{Map, Value};
use smq_model::architecture::Architecture;
use smq_model::{ConfigFile, Error, TensorSpec};

use super::error::SynthError;
use crate::directory::{DirectoryError, pretty};

/// A config that is to be followed.
#[derive(Debug)]
pub(super) struct SynthConfig {
    pub(super) architecture: &'static Architecture,
    pub(super) json: Map<String, Value>,
    /// The config file to write: the one read, unless its number of layers or dtype is not what is
    /// generated.
    pub(super) text: Vec<u8>,
    /// The tensors in `state_dict()` order, which decides the sharding.
    pub(super) tensors: Vec<TensorSpec>,
}

impl SynthConfig {
    /// Reads and checks the config at `path`; `layers` replaces its number of layers.
    pub(super) fn read(path: &Path, layers: Option<u64>) -> Result<Self, SynthError> {
        let problem = |problem: String| SynthError::Config {
            path: path.to_owned(),
            problem,
        };
        let text = std::fs::read(path).map_err(DirectoryError::io("read", path))?;
        let original = smq_model::parse_object(&path.display().to_string(), &text)?;
        let mut json = original.clone();
        if let Some(layers) = layers {
            json.insert("num_hidden_layers".to_owned(), layers.into());
        }
        for key in ["torch_dtype", "dtype"] {
            if let Some(dtype) = json.get_mut(key) {
                *dtype = "bfloat16".into();
            }
        }
        let text = match json == original {
            true => text,
            false => pretty(&json),
        };
        let file = ConfigFile::from_object(&json).map_err(|error| match error {
            Error::Config(reason) => problem(reason),
            other => SynthError::Model(other),
        })?;
        let architecture = file.architecture();
        // A model that nobody gave the sizes of is not the one that was meant.
        if let Some((key, _)) = file.absent().first() {
            let name = architecture.name;
            return Err(problem(format!("missing key {key}, which {name} needs")));
        }
        Ok(Self {
            architecture,
            json,
            text,
            tensors: file.tensors(),
        })
    }
}

/// Bytes of a tensor's data in bf16; exact, because dimensions are limited.
pub(super) fn size_bytes(tensor: &TensorSpec) -> u64 {
    tensor
        .shape
        .iter()
        .fold(2, |bytes, &dim| bytes * dim as u64)
}

/// Rows and columns of a tensor; a vector is one row.
pub(super) fn rows_columns(tensor: &TensorSpec) -> (usize, usize) {
    match *tensor.shape {
        [rows, columns] => (rows, columns),
        _ => (1, tensor.shape.iter().product()),
    }
}
