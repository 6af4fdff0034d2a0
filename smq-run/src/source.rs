//! Where weights come from: a .smq file or a Hugging Face checkpoint directory, both mapped.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::DType;
use candle_core::safetensors::MmapedSafetensors;
use rayon::prelude::*;
use smq_format::{Dtype, Scheme, SmqFile, TensorData, fp8, map_file};

use crate::error::{Error, Result};
use crate::linear::{Matrix, Weights};

/// The JSON and template files a model may bring along.
const FILES: [&str; 5] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
];
const SINGLE: &str = "model.safetensors";
const SHARD_INDEX: &str = "model.safetensors.index.json";

/// An open model: mapped tensors, and the files that describe them.
pub struct Source {
    path: PathBuf,
    /// Bytes of the .smq file or of all shards.
    file_bytes: u64,
    kind: Kind,
}

enum Kind {
    Smq(Box<SmqFile>),
    Checkpoint {
        tensors: MmapedSafetensors,
        files: HashMap<&'static str, Vec<u8>>,
    },
}

impl Source {
    /// Opens `path`: a .smq file, or a directory with config.json and safetensors.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Format`] or [`Error::Model`] if it is neither or a part is missing.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Self::open_checkpoint(path);
        }
        if path.extension().is_some_and(|e| e == "safetensors") {
            let message =
                "is a bare safetensors file; give the directory that holds it and config.json";
            return Err(Error::model(path, message));
        }
        let file = SmqFile::open(path)?;
        Ok(Self {
            path: path.to_owned(),
            file_bytes: file.header().file_bytes,
            kind: Kind::Smq(Box::new(file)),
        })
    }

    fn open_checkpoint(dir: &Path) -> Result<Self> {
        let mut files = HashMap::new();
        for name in FILES {
            // map_file refuses what reading would wait for or never end with: a FIFO, a device.
            match map_file(&dir.join(name)) {
                Ok(map) => drop(files.insert(name, map.to_vec())),
                Err(smq_format::Error::Io { source, .. })
                    if source.kind() == std::io::ErrorKind::NotFound
                        && !dir.join(name).is_symlink() => {}
                Err(e) => return Err(e.into()),
            }
        }
        let shards = shards(dir)?;
        let mut file_bytes = 0;
        for shard in &shards {
            file_bytes += map_file(shard)?.len() as u64;
        }
        // SAFETY: the maps are read-only. As with any mapped file, the process may fault if
        // another one truncates a shard meanwhile; nothing is assumed about the contents, which
        // are checked when parsed and copied or read as plain numbers afterwards.
        let tensors = unsafe { MmapedSafetensors::multi(&shards) }
            .map_err(|e| Error::model(dir, format!("cannot read the safetensors: {e}")))?;
        Ok(Self {
            path: dir.to_owned(),
            file_bytes,
            kind: Kind::Checkpoint { tensors, files },
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
        self.file_bytes
    }

    /// The .smq file; `None` for a checkpoint directory.
    #[must_use]
    pub fn smq(&self) -> Option<&SmqFile> {
        match &self.kind {
            Kind::Smq(file) => Some(file),
            Kind::Checkpoint { .. } => None,
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
            Kind::Checkpoint { files, .. } => files.get(name).map(Vec::as_slice),
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
        let mut counts = std::collections::BTreeMap::new();
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
            Kind::Checkpoint { tensors, .. } => {
                for (_, tensor) in tensors.tensors() {
                    *counts
                        .entry(format!("{:?}", tensor.dtype()).to_lowercase())
                        .or_insert(0) += 1;
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
            Kind::Checkpoint { tensors, .. } => tensors.get(name).is_ok(),
        }
    }

    /// A weight matrix of `[rows, cols]`.
    ///
    /// # Errors
    /// [`Error::Tensor`] if it is absent, of another shape, or of a type that cannot be run.
    pub fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Matrix<'_>> {
        let data = self.shaped(name, &[rows, cols])?;
        Ok(Matrix { rows, cols, data })
    }

    /// A vector of `len` elements, widened to f32.
    ///
    /// # Errors
    /// As [`Source::matrix`].
    pub fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let data = self.shaped(name, &[len])?;
        let mut out = vec![0.0; len];
        Matrix {
            rows: 1,
            cols: len,
            data,
        }
        .dequantize(0..1, &mut out);
        Ok(out)
    }

    fn shaped(&self, name: &str, expected: &[usize]) -> Result<Weights<'_>> {
        Ok(match self.stored(name, expected)? {
            TensorData::Raw { dtype, bytes } => Weights::Dense { dtype, bytes },
            TensorData::Int4 {
                nibbles,
                scales,
                group,
            } => {
                let scales = scales
                    .decode_all()
                    .map_err(|e| Error::tensor(name, e.to_string()))?;
                Weights::Int4 {
                    nibbles,
                    scales,
                    group,
                }
            }
            TensorData::Nf4 { nibbles, scales } => Weights::Nf4 {
                nibbles,
                absmax: scales
                    .decode_all()
                    .map_err(|e| Error::tensor(name, e.to_string()))?,
                bf16: false,
            },
            TensorData::Fp8 { codes, scales } => {
                check_fp8(name, codes)?;
                let scales = scales
                    .decode_all()
                    .map_err(|e| Error::tensor(name, e.to_string()))?;
                Weights::Fp8 { codes, scales }
            }
        })
    }

    /// A tensor as it is stored, of the shape that config.json asks for. Scale codes are not checked.
    ///
    /// # Errors
    /// As [`Source::matrix`].
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
            Kind::Checkpoint { tensors, .. } => {
                let view = tensors.get(name).map_err(|_| absent())?;
                let dtype = match DType::try_from(view.dtype()) {
                    Ok(DType::BF16) => Dtype::Bf16,
                    Ok(DType::F16) => Dtype::F16,
                    Ok(DType::F32) => Dtype::F32,
                    _ => {
                        let message = format!(
                            "type {:?} cannot be run; bf16, f16 and f32 can",
                            view.dtype()
                        );
                        return Err(Error::tensor(name, message));
                    }
                };
                let bytes = view.data();
                Ok((view.shape().to_vec(), TensorData::Raw { dtype, bytes }))
            }
        }
    }
}

/// Kernels decode any code; a NaN would poison every token.
pub(crate) fn check_fp8(name: &str, codes: &[u8]) -> Result<()> {
    const CHUNK: usize = 1 << 20;
    // Without an exit in the inner loop, which keeps it wide.
    let any_nan = |codes: &[u8]| {
        codes
            .iter()
            .fold(false, |nan, &code| nan | fp8::is_nan(code))
    };
    match codes.par_chunks(CHUNK).any(any_nan) {
        true => Err(Error::tensor(
            name,
            "holds a NaN; the file is damaged, which smq-inspect --verify locates",
        )),
        false => Ok(()),
    }
}

/// The safetensors files of a checkpoint directory.
fn shards(dir: &Path) -> Result<Vec<PathBuf>> {
    #[derive(serde::Deserialize)]
    struct ShardIndex {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    // A dangling link counts as present, so that it is named rather than passed over.
    let present = |path: &Path| path.symlink_metadata().is_ok();
    let index = dir.join(SHARD_INDEX);
    if !present(&index) {
        let single = dir.join(SINGLE);
        if present(&single) {
            return Ok(vec![single]);
        }
        let message = format!("holds neither {SINGLE} nor {SHARD_INDEX}");
        return Err(Error::model(dir, message));
    }
    let json = map_file(&index)?;
    let parsed: ShardIndex = serde_json::from_slice(&json)
        .map_err(|e| Error::model(&index, format!("is no shard index: {e}")))?;
    let names: std::collections::BTreeSet<String> = parsed.weight_map.into_values().collect();
    let mut paths = Vec::new();
    for name in names {
        // A shard's name is a file beside the index, never a path elsewhere.
        if Path::new(&name).file_name() != Some(name.as_ref()) {
            return Err(Error::model(
                &index,
                format!("names a shard outside the directory: {name}"),
            ));
        }
        let path = dir.join(&name);
        if !present(&path) {
            return Err(Error::model(&index, format!("shard {name} is missing")));
        }
        paths.push(path);
    }
    Ok(paths)
}
