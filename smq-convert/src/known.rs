//! Checks a checkpoint against its config.json, for the architectures that smq-run knows.

use smq_model::{ConfigFile, Error};

use crate::error::ConvertError;
use crate::source::Checkpoint;

/// What config.json implies, where `has` tells which tensors there are. `None` without a
/// config.json, and of an architecture that is not known: such a checkpoint can be converted,
/// though not run.
///
/// # Errors
/// A config that is not JSON or contradicts itself, or the tensors.
pub(crate) fn implied(
    files: &smq_model::Checkpoint,
    has: impl Fn(&str) -> bool,
) -> Result<Option<ConfigFile>, ConvertError> {
    let Some(json) = files.json("config.json")? else {
        return Ok(None);
    };
    let problem = |problem: String| ConvertError::Config {
        path: files.config_path(),
        problem,
    };
    match ConfigFile::from_object(&json).and_then(|file| file.with_tensors(has)) {
        Ok(file) => Ok(Some(file)),
        Err(Error::Architecture { .. }) => Ok(None),
        Err(Error::Config(reason)) => Err(problem(reason)),
        Err(other) => Err(problem(other.to_string())),
    }
}

/// What was decided where config.json and the tensors say two things, and why smq-run will not run the model: a sentence
/// each.
pub(crate) fn notes(file: ConfigFile) -> Vec<String> {
    let mut notes = file.notes().to_vec();
    if let Err(reason) = file.runnable() {
        notes.push(format!("smq-run will not run this model: {reason}"));
    }
    notes
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
    let Some(file) = implied(files, |name| checkpoint.tensor(name).is_some())? else {
        return match files.absent().next() {
            Some((name, _)) => Err(ConvertError::Config {
                path: checkpoint.path().to_path_buf(),
                problem: format!("tensor {name:?} {}", files.why_absent(name)),
            }),
            None => Ok(()),
        };
    };
    let defaults = file.defaults_in_words();
    let defaults = defaults.map_or(String::new(), |words| format!("; {words}"));
    for expected in file.tensors() {
        let (name, shape) = (expected.name, expected.shape);
        match checkpoint.tensor(&name) {
            None => {
                return Err(problem(format!(
                    "implies a tensor {name:?} {shape:?} that {}; the checkpoint is incomplete or the \
                     config is another model's{defaults}",
                    files.why_absent(&name)
                )));
            }
            Some(tensor) if tensor.shape != shape => {
                return Err(problem(format!(
                    "implies shape {shape:?} for tensor {name:?}, but {} has {:?}; the config is another model's{defaults}",
                    checkpoint.file_of(tensor).display(),
                    tensor.shape
                )));
            }
            Some(_) => {}
        }
    }
    Ok(())
}
