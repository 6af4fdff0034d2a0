//! Where weights come from: a .smq file or a Hugging Face checkpoint directory, both mapped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use smq_format::{Dtype, Scheme, SmqFile, TensorData};

use crate::checkpoint::{Checkpoint, check_length, no_tokenizer};
use crate::error::{Error, Result};
use crate::json::{parse_object, utf8};
use crate::locate::{locate, open_model};

/// An open model: mapped tensors, and the files that describe them.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    kind: Kind,
    notes: Vec<String>,
}

#[derive(Debug)]
enum Kind {
    Smq(Box<SmqFile>),
    Checkpoint(Box<Checkpoint>),
}

impl Source {
    /// Opens `path`: a .smq file, a directory with config.json and safetensors, or the id of a
    /// repository whose snapshot is in the Hugging Face cache.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Format`] or [`Error::Model`] if it is neither, a part is missing, or
    /// the weights are quantized in a form that has to be converted first.
    pub fn open(path: &Path) -> Result<Self> {
        let located = locate(path)?;
        if !located.path.is_dir() {
            let file = open_model(&located.path)?;
            for entry in &file.index().files {
                let refused = |problem| {
                    let name = &entry.name;
                    Error::model(&located.path, format!("embedded {name}: {problem}"))
                };
                check_length(&entry.name, entry.length).map_err(refused)?;
            }
            return Ok(Self {
                path: located.path,
                kind: Kind::Smq(Box::new(file)),
                notes: Vec::new(),
            });
        }
        let checkpoint = Checkpoint::open(path)?;
        refuse_quantized(&checkpoint)?;
        Ok(Self {
            path: located.path,
            notes: checkpoint.notes().to_vec(),
            kind: Kind::Checkpoint(Box::new(checkpoint)),
        })
    }

    /// The path given to [`Source::open`]; of a repository's id, its snapshot's.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was taken and what was left, where there was a choice: a sentence each, for people.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Every file that it is read from, or that belongs to it: none may be replaced by a result.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        match &self.kind {
            Kind::Smq(file) => vec![file.path().to_path_buf()],
            Kind::Checkpoint(checkpoint) => checkpoint.inputs(),
        }
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
    /// The bytes are read through the map that the model then runs from, or is uploaded from: a
    /// file that was damaged before, or replaced by another of its name since it was opened, cannot
    /// get past it. One that somebody writes to in place afterwards can; who cannot rule that out
    /// runs a private copy.
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
            Kind::Checkpoint(checkpoint) => Box::new(checkpoint.embedded_files()),
        }
    }

    /// As [`Source::file`], for a file the model cannot do without.
    ///
    /// # Errors
    /// [`Error::Model`] if it is absent, with what to do.
    pub fn require(&self, name: &str) -> Result<&[u8]> {
        self.file(name).ok_or_else(|| {
            let problem = match &self.kind {
                Kind::Checkpoint(checkpoint) if name == "tokenizer.json" => {
                    no_tokenizer(checkpoint.dir())
                }
                Kind::Checkpoint(_) => format!("holds no {name}; download it too"),
                Kind::Smq(_) => format!(
                    "holds no {name}; convert the checkpoint again with its {name} beside it"
                ),
            };
            Error::model(&self.path, problem)
        })
    }

    /// As [`Source::require`], of a file that is text.
    ///
    /// # Errors
    /// As [`Source::require`]; [`Error::File`] where it is not UTF-8.
    pub(crate) fn require_text(&self, name: &str) -> Result<&str> {
        utf8(&self.file_label(name), self.require(name)?)
    }

    /// The JSON object in a side file, read as Python reads JSON ([`parse_object`]); `None` where
    /// it is absent.
    ///
    /// # Errors
    /// [`Error::File`] where it is something else.
    pub fn json(&self, name: &str) -> Result<Option<Map<String, Value>>> {
        let parse = |bytes| parse_object(&self.file_label(name), bytes);
        self.file(name).map(parse).transpose()
    }

    /// As [`Source::json`], for a file the model cannot do without.
    ///
    /// # Errors
    /// As [`Source::require`] and [`Source::json`].
    pub(crate) fn require_json(&self, name: &str) -> Result<Map<String, Value>> {
        parse_object(&self.file_label(name), self.require(name)?)
    }

    /// What an error of a side file blames: its path, or `model.smq: embedded config.json`.
    #[must_use]
    pub(crate) fn file_label(&self, name: &str) -> String {
        match &self.kind {
            Kind::Smq(_) => format!("{}: embedded {name}", self.path.display()),
            Kind::Checkpoint(checkpoint) => checkpoint.dir().join(name).display().to_string(),
        }
    }

    /// How the tensors are stored: each scheme with its number of matrices, e.g. `int4-e5mx (8),
    /// raw (22)`.
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

    /// A tensor as it is stored, of the shape that config.json asks for. Scale codes are not
    /// checked.
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
        match &self.kind {
            Kind::Smq(file) => {
                let absent = || Error::tensor(name, format!("is not in {}", self.path.display()));
                let view = file.tensor(name).ok_or_else(absent)?;
                Ok((view.shape().to_vec(), view.data()))
            }
            Kind::Checkpoint(checkpoint) => {
                let absent = || Error::tensor(name, checkpoint.why_absent(name));
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

/// Refuses a checkpoint that holds quantized weights, which run only from a .smq file.
fn refuse_quantized(checkpoint: &Checkpoint) -> Result<()> {
    let declared = checkpoint.json("config.json")?;
    let declared = declared.and_then(|json| {
        // The second is the first one's name in older versions of compressed-tensors.
        let keys = ["quantization_config", "compression_config"];
        let given = |key| Some((key, json.get(key).filter(|value| !value.is_null())?.clone()));
        keys.into_iter().find_map(given)
    });
    let tensor = checkpoint.tensors().iter().find(|t| is_packed(&t.name));
    let found = match (declared, tensor) {
        (Some((key, value)), _) => {
            let method = value.get("quant_method").and_then(Value::as_str);
            let method = method.unwrap_or("an unnamed method");
            let config = checkpoint.config_path();
            format!("its {} has a {key} ({method})", config.display())
        }
        (None, Some(tensor)) => format!("tensor {:?} holds packed integers", tensor.name),
        (None, None) => return Ok(()),
    };
    let path = checkpoint.path();
    let shown = path.display();
    Err(Error::model(
        path,
        format!(
            "is a quantized checkpoint, {found}; convert it first with: smq-convert {shown} out.smq"
        ),
    ))
}

/// Whether a tensor is the integers of a quantized one, by the names that GPTQ, AWQ and
/// compressed-tensors give.
fn is_packed(name: &str) -> bool {
    name.ends_with(".qweight") || name.ends_with(".weight_packed")
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
