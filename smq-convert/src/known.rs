//! Checks a checkpoint against its config.json, for the architectures that smq-run knows.

use crate::error::ConvertError;
use crate::source::Checkpoint;
use crate::synth::{SynthError, expected_tensors};

/// Tensors by name and shape.
pub(crate) type Implied = Vec<(String, Vec<usize>)>;

/// Names and shapes of the tensors that config.json implies. `None` without one, and of an
/// architecture that is not known: such a checkpoint can be converted, though not run.
///
/// # Errors
/// A config that is not JSON or contradicts itself.
pub(crate) fn implied(files: &smq_model::Checkpoint) -> Result<Option<Implied>, ConvertError> {
    if files.file("config.json").is_none() {
        return Ok(None);
    }
    match expected_tensors(&files.config_path()) {
        Ok(expected) => Ok(Some(expected)),
        Err(SynthError::UnknownArchitecture { .. }) => Ok(None),
        Err(other) => Err(ConvertError::Synth(other)),
    }
}

/// Every tensor that the config implies is there, with its shape. A checkpoint without config.json or of
/// another architecture passes where it has what its shard index lists.
///
/// # Errors
/// The first tensor that is missing or has another shape; a config that contradicts itself.
pub(crate) fn check_against_config(checkpoint: &Checkpoint) -> Result<(), ConvertError> {
    let files = checkpoint.files();
    let problem = |problem: String| ConvertError::Config {
        path: checkpoint.config_path(),
        problem,
    };
    let Some(expected) = implied(files)? else {
        return match files.absent().next() {
            Some((name, _)) => Err(ConvertError::Config {
                path: checkpoint.path().to_path_buf(),
                problem: format!("tensor {name:?} {}", files.why_absent(name)),
            }),
            None => Ok(()),
        };
    };
    for (name, shape) in expected {
        match checkpoint.tensor(&name) {
            None => {
                return Err(problem(format!(
                    "implies a tensor {name:?} {shape:?} that {}; the checkpoint is incomplete or the \
                     config is another model's",
                    files.why_absent(&name)
                )));
            }
            Some(tensor) if tensor.shape != shape => {
                return Err(problem(format!(
                    "implies shape {shape:?} for tensor {name:?}, but {} has {:?}; the config is another model's",
                    checkpoint.file_of(tensor).display(),
                    tensor.shape
                )));
            }
            Some(_) => {}
        }
    }
    Ok(())
}
