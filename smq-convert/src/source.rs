//! The checkpoint to convert: a model's files, with int4 tensors put together from their parts.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use smq_model::{Shard, natural};

use crate::error::ConvertError;
use crate::import::{Import, assemble};
use crate::known::{self, implied};
use crate::tensor::{PackedView, SourceTensor};
use crate::unread::Readers;

/// A checkpoint that is open for conversion.
#[derive(Debug)]
pub struct Checkpoint {
    files: smq_model::Checkpoint,
    tensors: Vec<SourceTensor>,
    by_name: HashMap<String, usize>,
    import: Option<Import>,
    requantize: bool,
    notes: Vec<String>,
}

impl Checkpoint {
    /// Maps the checkpoint at `path`: a directory, or one .safetensors file.
    ///
    /// Tensors are ordered by name, numbers by value, so that the order does not depend on the
    /// sharding.
    ///
    /// # Errors
    /// As [`smq_model::Checkpoint::open`]; a weight of an element type that .smq does not hold, a
    /// quantization that cannot be imported, a config.json that contradicts itself.
    pub fn open(path: &Path) -> Result<Self, ConvertError> {
        let files = smq_model::Checkpoint::open(path)?;
        let readers = Readers::of(&files)?;
        let (stored, left_out) = readers.leave_out(files.tensors().to_vec());
        let (mut tensors, import) = assemble(&files, stored)?;
        tensors.sort_by_cached_key(|t| (natural(&t.name), t.name.clone()));
        for tensor in &mut tensors {
            tensor.reader = readers.of_tensor(&tensor.name, tensor.shape.len());
        }
        let left_out = left_out.map(|note| format!("{}: {note}", files.path().display()));
        let mut notes: Vec<_> = files.notes().iter().cloned().chain(left_out).collect();
        let places = tensors.iter().enumerate();
        // A name that is there twice is found in its first place.
        let by_name: HashMap<_, _> = places.rev().map(|(at, t)| (t.name.clone(), at)).collect();
        if let Some(config) = implied(&files, |name| by_name.contains_key(name))? {
            notes.extend(known::notes(config));
        }
        Ok(Self {
            notes,
            files,
            tensors,
            by_name,
            import,
            requantize: false,
        })
    }

    /// What was taken and what was left out: a sentence each, for people.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The files that it was read from.
    pub fn files(&self) -> &smq_model::Checkpoint {
        &self.files
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        self.files.path()
    }

    /// The safetensors files, by name.
    pub fn shards(&self) -> &[Shard] {
        self.files.shards()
    }

    /// The tensors, in order.
    pub fn tensors(&self) -> &[SourceTensor] {
        &self.tensors
    }

    /// A tensor by name.
    pub fn tensor(&self, name: &str) -> Option<&SourceTensor> {
        self.by_name.get(name).map(|&at| &self.tensors[at])
    }

    /// The int4 tensors it holds already, if any.
    pub fn import(&self) -> Option<&Import> {
        self.import.as_ref()
    }

    /// Quantizes int4 tensors anew from `q s` instead of keeping their integers.
    pub fn requantize(&mut self) {
        self.requantize = true;
    }

    /// Whether it has int4 tensors whose integers are kept.
    pub(crate) fn keeps_codes(&self) -> bool {
        self.import.is_some() && !self.requantize
    }

    /// An int4 tensor's integers and scales; `None` for another tensor.
    pub(crate) fn packed<'a>(&'a self, tensor: &'a SourceTensor) -> Option<PackedView<'a>> {
        let packed = tensor.packed.as_ref()?;
        Some(PackedView {
            packed,
            rows: tensor.shape[0],
            columns: tensor.shape[1],
            codes: self.bytes(tensor),
            scales: &self.shards()[packed.scale_shard].bytes()[packed.scale_range.clone()],
        })
    }

    /// One row of a tensor in f32, `[columns]`; of an int4 tensor, `q s`.
    ///
    /// # Panics
    /// Where the row is out of range or `out` has another length.
    pub fn read_row(&self, tensor: &SourceTensor, row: usize, out: &mut [f32]) {
        match self.packed(tensor) {
            Some(view) => view.dequantize_rows(row..row + 1, out),
            None => {
                let row_bytes = out.len() * tensor.dtype.bytes();
                let bytes = &self.bytes(tensor)[row * row_bytes..(row + 1) * row_bytes];
                smq_format::widen(tensor.dtype, bytes, out);
            }
        }
    }

    /// A tensor's bytes in the map, an int4 tensor's integers; not necessarily aligned.
    pub fn bytes(&self, tensor: &SourceTensor) -> &[u8] {
        &self.shards()[tensor.shard].bytes()[tensor.range.clone()]
    }

    /// The file a tensor is in.
    pub fn file_of(&self, tensor: &SourceTensor) -> &Path {
        &self.shards()[tensor.shard].path
    }

    /// Bytes of all safetensors files.
    pub fn total_bytes(&self) -> u64 {
        self.files.total_bytes()
    }

    /// Where config.json is, or would be.
    pub fn config_path(&self) -> PathBuf {
        self.files.config_path()
    }

    /// Name and contents of each file that travels inside the .smq.
    pub(crate) fn embedded_files(&self) -> Vec<(&str, &[u8])> {
        self.files.embedded_files().collect()
    }
}
