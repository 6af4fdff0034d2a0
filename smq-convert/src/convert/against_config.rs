//! Checks a checkpoint against its config.json, for the architectures that smq-run knows.

use crate::error::ConvertError;
use crate::known::implied;
use crate::source::Checkpoint;

/// Every tensor that the config implies is there, with its shape. A checkpoint without config.json
/// or of another architecture passes where it has what its shard index lists.
///
/// # Errors
/// The first tensor that is missing or has another shape; a config that contradicts itself.
pub(super) fn check_against_config(checkpoint: &Checkpoint) -> Result<(), ConvertError> {
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
                    "implies a tensor {name:?} {shape:?} that {}; the checkpoint is incomplete or \
                     the config is another model's{defaults}",
                    files.why_absent(&name)
                )));
            }
            Some(tensor) if tensor.shape != shape => {
                return Err(problem(format!(
                    "implies shape {shape:?} for tensor {name:?}, but {} has {:?}; the config is \
                     another model's{defaults}",
                    checkpoint.file_of(tensor).display(),
                    tensor.shape
                )));
            }
            Some(_) => {}
        }
    }
    Ok(())
}
