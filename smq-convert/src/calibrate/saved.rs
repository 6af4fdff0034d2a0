//! Calibrated layers beside the file that they are for, so that a run which is killed can be taken
//! up again: a directory with one small .smq file a layer.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use smq_format::index::Blob;
use smq_format::statistics::TensorStatistics;
use smq_format::{Dtype, Provenance, SmqFile, SmqWriter, Statistics};

use super::product::{Calibrated, Outcome};
use crate::error::ConvertError;
use crate::quantize::Quantized;

/// Provenance key of what a saved layer was made from.
const KEY: &str = "calibration_key";
/// Provenance key, followed by a space and a tensor's name, of its [`Outcome`].
const OUTCOME: &str = "outcome";

/// A calibrated tensor that a former run saved.
#[derive(Debug)]
pub(super) struct Restored {
    pub(super) calibrated: Calibrated,
    /// What it stands for, `[rows, in]`.
    pub(super) weights: Vec<f32>,
}

/// The directory, which is removed when this is dropped: only a process that is killed leaves it.
#[derive(Debug)]
pub(crate) struct Saved {
    directory: PathBuf,
    /// What decides the layers' bytes.
    key: String,
    is_resumed: bool,
}

impl Saved {
    /// Where the layers of `target` are saved.
    pub(crate) fn directory(target: &Path) -> PathBuf {
        let mut name = target.as_os_str().to_owned();
        name.push(".calibration");
        PathBuf::from(name)
    }

    /// The directory that holds the layers that are done.
    pub(super) fn path(&self) -> &Path {
        &self.directory
    }

    /// Layers saved for `target`, by a process that isn't there any more.
    pub(crate) fn layers_of(target: &Path) -> usize {
        let directory = Self::directory(target);
        (0..)
            .take_while(|&layer| layer_path(&directory, layer).exists())
            .count()
    }

    /// Refuses what [`Saved::open`] would, as far as that can be known without the key.
    ///
    /// # Errors
    /// A directory of something else, or none where `resume` asks for it.
    pub(crate) fn check(target: &Path, resume: bool) -> Result<(), ConvertError> {
        let directory = Self::directory(target);
        let problem = match resume {
            true if !directory.is_dir() => {
                "is not there, so there is nothing to resume; leave out --resume"
            }
            false if directory.exists() && !holds_layers_alone(&directory) => {
                "is where calibrated layers are saved, and holds something else; move it away"
            }
            true | false => return Ok(()),
        };
        Err(ConvertError::Calibration {
            path: directory,
            problem: problem.to_owned(),
        })
    }

    /// Starts a directory for `target`; with `resume`, goes on with one whose `key` is the same.
    ///
    /// # Errors
    /// A directory that cannot be written, one of something else, or none where `resume` asks for
    /// it.
    pub(crate) fn open(target: &Path, key: String, resume: bool) -> Result<Self, ConvertError> {
        Self::check(target, resume)?;
        let directory = Self::directory(target);
        let problem = |problem: &str| ConvertError::Calibration {
            path: directory.clone(),
            problem: problem.to_owned(),
        };
        if !resume && directory.exists() {
            fs::remove_dir_all(&directory)
                .map_err(|e| problem(&format!("cannot be removed: {e}")))?;
        }
        fs::create_dir_all(&directory).map_err(|e| problem(&format!("cannot be made: {e}")))?;
        let saved = Self {
            directory,
            key,
            is_resumed: resume,
        };
        if resume
            && let Some(first) = saved.read(0)?
            && first.index().provenance.parameters.get(KEY) != Some(&saved.key)
        {
            let path = saved.keep();
            return Err(ConvertError::Calibration {
                path,
                problem: "was left by a run with another checkpoint, other texts or other \
                          options; give the same ones, or leave out --resume to start anew"
                    .to_owned(),
            });
        }
        Ok(saved)
    }

    /// Leaves the directory where it is.
    fn keep(mut self) -> PathBuf {
        std::mem::take(&mut self.directory)
    }

    /// Saves a layer.
    ///
    /// # Errors
    /// A disk that is full, and the like.
    pub(super) fn save(
        &self,
        layer: usize,
        tensors: &[(String, Vec<usize>, Calibrated)],
    ) -> Result<(), ConvertError> {
        let mut writer = SmqWriter::create(&layer_path(&self.directory, layer), true)?;
        let mut provenance = Provenance::default();
        provenance
            .parameters
            .insert(KEY.to_owned(), self.key.clone());
        let mut records = Vec::new();
        for (name, shape, calibrated) in tensors {
            let Quantized {
                scheme,
                blobs,
                statistics,
            } = &calibrated.quantized;
            let blobs: Vec<&[u8]> = blobs.iter().map(Vec::as_slice).collect();
            writer.add_tensor(name, shape, Dtype::F32, *scheme, &blobs)?;
            records.push(statistics.clone());
            let outcome = calibrated.outcome.to_text();
            provenance
                .parameters
                .insert(format!("{OUTCOME} {name}"), outcome);
        }
        let record = Statistics {
            tensors: records,
            receipts: Vec::new(),
        };
        writer.finish(provenance, Some(&record))?;
        Ok(())
    }

    /// The tensors of a layer that a former run saved, by name; `None` where it saved none.
    ///
    /// # Errors
    /// A file that is damaged.
    pub(super) fn load(
        &self,
        layer: usize,
    ) -> Result<Option<HashMap<String, Restored>>, ConvertError> {
        let Some(file) = self.read(layer)? else {
            return Ok(None);
        };
        let parameters = &file.index().provenance.parameters;
        let damaged = || ConvertError::Calibration {
            path: file.path().to_path_buf(),
            problem: "is damaged; delete it and those of later layers, and resume".to_owned(),
        };
        if !file.verify(|_| {}).is_empty() {
            return Err(damaged());
        }
        let statistics = file.statistics()?.ok_or_else(damaged)?;
        let mut out = HashMap::new();
        for view in file.tensors() {
            let record: Option<&TensorStatistics> = statistics.tensor(view.name());
            let blob = |blob: &Blob| {
                let first = blob.offset as usize;
                file.bytes()[first..first + blob.length as usize].to_vec()
            };
            let outcome = parameters.get(&format!("{OUTCOME} {}", view.name()));
            let calibrated = Calibrated {
                quantized: Quantized {
                    scheme: view.scheme(),
                    blobs: view.entry().blobs.iter().map(blob).collect(),
                    statistics: record.ok_or_else(damaged)?.clone(),
                },
                outcome: outcome
                    .and_then(|text| Outcome::of_text(text))
                    .ok_or_else(damaged)?,
            };
            let weights = view.dequantize().map_err(|_| damaged())?;
            let restored = Restored {
                calibrated,
                weights,
            };
            out.insert(view.name().to_owned(), restored);
        }
        Ok(Some(out))
    }

    fn read(&self, layer: usize) -> Result<Option<SmqFile>, ConvertError> {
        let path = layer_path(&self.directory, layer);
        match self.is_resumed && path.exists() {
            true => Ok(Some(SmqFile::open(&path)?)),
            false => Ok(None),
        }
    }
}

impl Drop for Saved {
    fn drop(&mut self) {
        if !self.directory.as_os_str().is_empty() {
            // What cannot be removed is found, and named, by the next run.
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

fn holds_layers_alone(directory: &Path) -> bool {
    let is_layer = |entry: std::io::Result<fs::DirEntry>| {
        let name = entry.map(|e| e.file_name()).unwrap_or_default();
        let name = name.to_string_lossy();
        // One that was being written has a dot before it.
        name.trim_start_matches('.').starts_with("layer-")
    };
    fs::read_dir(directory).is_ok_and(|mut entries| entries.all(is_layer))
}

fn layer_path(directory: &Path, layer: usize) -> PathBuf {
    directory.join(format!("layer-{layer:03}.smq"))
}
