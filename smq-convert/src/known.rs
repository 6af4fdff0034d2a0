//! Checks a checkpoint against its config.json, for the architectures that smq-run knows.

use smq_model::{ConfigFile, Error};

use crate::error::ConvertError;
use crate::source::Checkpoint;

/// What config.json says of the tensors that there are; `None` without one, and of another architecture.
fn read(checkpoint: &Checkpoint) -> smq_model::Result<Option<ConfigFile>> {
    let Some(json) = checkpoint.files().file("config.json") else {
        return Ok(None);
    };
    match ConfigFile::from_json(json) {
        Ok(file) => file
            .with_tensors(|name| checkpoint.tensor(name).is_some())
            .map(Some),
        Err(Error::Architecture { .. }) => Ok(None),
        Err(other) => Err(other),
    }
}

/// What was decided where config.json and the tensors say two things, and why smq-run will not run the model: a sentence
/// each.
pub(crate) fn notes(checkpoint: &Checkpoint) -> Vec<String> {
    let Ok(Some(file)) = read(checkpoint) else {
        return Vec::new();
    };
    let mut notes = file.notes().to_vec();
    if let Err(reason) = file.runnable() {
        notes.push(format!("smq-run will not run this model: {reason}"));
    }
    notes
}

/// Every tensor that the config implies is there, with its shape. A checkpoint without config.json or of
/// another architecture passes: it can be converted, though not run.
///
/// # Errors
/// The first tensor that is missing or has another shape; a config that contradicts itself.
pub(crate) fn check_against_config(checkpoint: &Checkpoint) -> Result<(), ConvertError> {
    let path = checkpoint.config_path();
    let problem = |problem: String| ConvertError::Config {
        path: path.clone(),
        problem,
    };
    let file = match read(checkpoint) {
        Ok(Some(file)) => file,
        Ok(None) => return Ok(()),
        Err(Error::Config(reason)) => return Err(problem(reason)),
        Err(other) => return Err(problem(other.to_string())),
    };
    let defaults = file.defaults_in_words();
    let defaults = defaults.map_or(String::new(), |words| format!("; {words}"));
    for expected in file.tensors() {
        let (name, shape) = (expected.name, expected.shape);
        match checkpoint.tensor(&name) {
            None => {
                return Err(problem(format!(
                    "implies a tensor {name:?} {shape:?} that {} does not have; the checkpoint is incomplete or the config is another model's{defaults}",
                    checkpoint.path().display()
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
