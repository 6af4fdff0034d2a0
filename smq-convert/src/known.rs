//! Checks a checkpoint against its config.json, for the architectures that smq-run knows.

use smq_model::{ConfigFile, Error};

use crate::error::ConvertError;
use crate::source::Checkpoint;

/// Every tensor that the config implies is there, with its shape. A checkpoint without config.json or of
/// another architecture passes: it can be converted, though not run.
///
/// # Errors
/// The first tensor that is missing or has another shape; a config that contradicts itself.
pub(crate) fn check_against_config(checkpoint: &Checkpoint) -> Result<(), ConvertError> {
    let path = checkpoint.config_path();
    let Some(json) = checkpoint.files().file("config.json") else {
        return Ok(());
    };
    let problem = |problem: String| ConvertError::Config {
        path: path.clone(),
        problem,
    };
    let read = ConfigFile::from_json(json)
        .and_then(|file| file.with_tensors(|name| checkpoint.tensor(name).is_some()));
    let file = match read {
        Ok(file) => file,
        Err(Error::Architecture { .. }) => return Ok(()),
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
