//! Where weights come from: a .smq file or a Hugging Face checkpoint directory, both mapped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use smq_format::{Dtype, Scheme, SmqFile, TensorData};

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};

/// An open model: mapped tensors, and the files that describe them.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Smq(Box<SmqFile>),
    Checkpoint(Box<Checkpoint>),
}

impl Source {
    /// Opens `path`: a .smq file, or a directory with config.json and safetensors.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Format`] or [`Error::Model`] if it is neither or a part is missing.
    pub fn open(path: &Path) -> Result<Self> {
        if path.extension().is_some_and(|e| e == "safetensors") && !path.is_dir() {
            let message =
                "is a bare safetensors file; give the directory that holds it and config.json";
            return Err(Error::model(path, message));
        }
        let kind = match path.is_dir() {
            true => Kind::Checkpoint(Box::new(Checkpoint::open(path)?)),
            false => Kind::Smq(Box::new(SmqFile::open(path)?)),
        };
        Ok(Self {
            path: path.to_owned(),
            kind,
        })
    }

    /// The path given to [`Source::open`].
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the .smq file, or of all shards of a checkpoint.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        match &self.kind {
            Kind::Smq(file) => file.header().file_bytes,
            Kind::Checkpoint(checkpoint) => checkpoint.total_bytes(),
        }
    }

    /// The .smq file; `None` for a checkpoint directory.
    #[must_use]
    pub fn smq(&self) -> Option<&SmqFile> {
        match &self.kind {
            Kind::Smq(file) => Some(file),
            Kind::Checkpoint(_) => None,
        }
    }

    /// Recomputes every hash of a .smq file; a checkpoint directory has none to check.
    ///
    /// The bytes are read through the map that the model then runs from, or is uploaded from: a file that was
    /// damaged before, or replaced by another of its name since it was opened, cannot get past it. One that
    /// somebody writes to in place afterwards can; who cannot rule that out runs a private copy.
    ///
    /// # Errors
    /// [`Error::Format`] or [`Error::Model`] naming what does not match, or that nothing can.
    pub fn verify(&self) -> Result<()> {
        let Kind::Smq(file) = &self.kind else {
            return Err(Error::model(
                &self.path,
                "a checkpoint directory carries no hashes to verify",
            ));
        };
        let defects = file.verify(|_| ());
        match defects.as_slice() {
            [] => Ok(()),
            [first, rest @ ..] => {
                let more = if rest.is_empty() {
                    String::new()
                } else {
                    format!(" (and {} more)", rest.len())
                };
                Err(Error::model(&self.path, format!("{first}{more}")))
            }
        }
    }

    /// Contents of config.json, tokenizer.json and the like.
    #[must_use]
    pub fn file(&self, name: &str) -> Option<&[u8]> {
        match &self.kind {
            Kind::Smq(file) => file.embedded(name),
            Kind::Checkpoint(checkpoint) => checkpoint.file(name),
        }
    }

    /// Name and contents of each of those files.
    pub(crate) fn files(&self) -> Box<dyn Iterator<Item = (&str, &[u8])> + '_> {
        match &self.kind {
            Kind::Smq(file) => {
                let names = file.index().files.iter().map(|f| f.name.as_str());
                Box::new(names.filter_map(|name| Some((name, file.embedded(name)?))))
            }
            Kind::Checkpoint(checkpoint) => Box::new(checkpoint.files()),
        }
    }

    /// As [`Source::file`], for a file the model cannot do without.
    ///
    /// # Errors
    /// [`Error::Model`] if it is absent.
    pub fn require(&self, name: &str) -> Result<&[u8]> {
        self.file(name)
            .ok_or_else(|| Error::model(&self.path, format!("holds no {name}")))
    }

    /// How the tensors are stored: each scheme with its number of matrices, e.g. `int4-e5mx (8), raw (22)`.
    #[must_use]
    pub fn schemes(&self) -> String {
        let mut counts = BTreeMap::new();
        match &self.kind {
            Kind::Smq(file) => {
                for tensor in file.tensors() {
                    let name = match tensor.scheme() {
                        Scheme::Raw(dtype) => format!("raw {}", dtype.name()),
                        scheme => scheme.name().to_owned(),
                    };
                    *counts.entry(name).or_insert(0) += 1;
                }
            }
            Kind::Checkpoint(checkpoint) => {
                for tensor in checkpoint.tensors() {
                    let name = format!("{:?}", tensor.dtype).to_lowercase();
                    *counts.entry(name).or_insert(0) += 1;
                }
            }
        }
        counts
            .iter()
            .map(|(name, n)| format!("{name} ({n})"))
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// Whether a tensor is there.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        match &self.kind {
            Kind::Smq(file) => file.tensor(name).is_some(),
            Kind::Checkpoint(checkpoint) => checkpoint.tensor(name).is_some(),
        }
    }

    /// A tensor as it is stored, of the shape that config.json asks for. Scale codes are not checked.
    ///
    /// # Errors
    /// [`Error::Tensor`] if it is absent, of another shape, or of a type that cannot be run.
    pub fn stored(&self, name: &str, expected: &[usize]) -> Result<TensorData<'_>> {
        let (shape, data) = self.tensor(name)?;
        if shape != expected {
            let message = format!("shape is {shape:?}, config.json asks for {expected:?}");
            return Err(Error::tensor(name, message));
        }
        Ok(data)
    }

    fn tensor(&self, name: &str) -> Result<(Vec<usize>, TensorData<'_>)> {
        let absent = || Error::tensor(name, format!("absent from {}", self.path.display()));
        match &self.kind {
            Kind::Smq(file) => {
                let view = file.tensor(name).ok_or_else(absent)?;
                Ok((view.shape().to_vec(), view.data()))
            }
            Kind::Checkpoint(checkpoint) => {
                let tensor = checkpoint.tensor(name).ok_or_else(absent)?;
                let dtype = dtype(tensor.dtype).ok_or_else(|| {
                    let found = format!("{:?}", tensor.dtype).to_lowercase();
                    let message = format!("type {found} cannot be run; bf16, f16 and f32 can");
                    Error::tensor(name, message)
                })?;
                let bytes = checkpoint.bytes(tensor);
                Ok((tensor.shape.clone(), TensorData::Raw { dtype, bytes }))
            }
        }
    }
}

/// The safetensors dtype as ours; `None` for one that no weight of a .smq file has.
#[must_use]
pub fn dtype(dtype: safetensors::Dtype) -> Option<Dtype> {
    match dtype {
        safetensors::Dtype::BF16 => Some(Dtype::Bf16),
        safetensors::Dtype::F16 => Some(Dtype::F16),
        safetensors::Dtype::F32 => Some(Dtype::F32),
        _ => None,
    }
}
