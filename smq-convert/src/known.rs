//! What a config.json implies of the tensors, for the architectures that smq-run knows.

use smq_model::{ConfigFile, Error};

use crate::error::ConvertError;

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

/// What was decided where config.json and the tensors say two things, and why smq-run will not run
/// the model: a sentence each.
pub(crate) fn notes(file: ConfigFile) -> Vec<String> {
    let mut notes = file.notes().to_vec();
    if let Err(reason) = file.runnable() {
        notes.push(format!("smq-run will not run this model: {reason}"));
    }
    notes
}
