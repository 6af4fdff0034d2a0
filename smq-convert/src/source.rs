//! A Hugging Face checkpoint on disk: memory-mapped safetensors files and the JSON files beside them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::SafeTensors;
use serde::Deserialize;
use smq_format::{Dtype, map_file};

use crate::error::ConvertError;
use crate::import::{Import, Packed, PackedView, assemble};

/// Name of the shard index of a sharded checkpoint.
pub const SHARD_INDEX: &str = "model.safetensors.index.json";
/// Files that travel inside the .smq, where the checkpoint has them.
pub const EMBEDDED_FILES: [&str; 4] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
];
/// Largest embedded file; a tokenizer.json of a 256k vocabulary is about 33 MB.
pub(crate) const MAX_EMBEDDED_BYTES: u64 = 256 << 20;

/// An open checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    dir: PathBuf,
    shards: Vec<Shard>,
    tensors: Vec<SourceTensor>,
    import: Option<Import>,
    requantize: bool,
}

/// One mapped safetensors file.
#[derive(Debug)]
pub struct Shard {
    /// Plain file name.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    map: Mmap,
}

impl Shard {
    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }
}

/// A tensor of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceTensor {
    /// Name.
    pub name: String,
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// Element type; of an int4 tensor, of its scales.
    pub dtype: Dtype,
    /// Index of its shard.
    pub shard: usize,
    /// Bytes within the shard's file; of an int4 tensor, of its integers.
    pub range: std::ops::Range<usize>,
    /// What makes it an int4 tensor.
    pub(crate) packed: Option<Packed>,
}

/// A tensor as a safetensors file lists it, of any element type.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) dtype: safetensors::Dtype,
    pub(crate) shard: usize,
    pub(crate) range: std::ops::Range<usize>,
}

impl SourceTensor {
    /// Number of elements.
    pub fn elems(&self) -> usize {
        self.shape.iter().product()
    }
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Maps the checkpoint at `path`: a directory, or one .safetensors file.
    ///
    /// Tensors are ordered by name, numbers by value, so that the order does not depend on the sharding.
    ///
    /// # Errors
    /// Missing or damaged files, an element type that .smq does not hold, shards that disagree with
    /// their index, a quantization that cannot be imported.
    pub fn open(path: &Path) -> Result<Self, ConvertError> {
        let (dir, expected) = if path.is_dir() {
            (path.to_path_buf(), files_of(path)?)
        } else {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let dir = path.parent().unwrap_or(Path::new(".")).to_path_buf();
            (dir, Files::Single(name.into_owned()))
        };
        let names = match &expected {
            Files::Single(name) => vec![name.clone()],
            Files::Sharded(map) => {
                let names: BTreeSet<_> = map.values().cloned().collect();
                names.into_iter().collect()
            }
        };
        for name in EMBEDDED_FILES {
            regular_or_absent(&dir.join(name))?;
        }
        let mut checkpoint = Checkpoint {
            path: path.to_path_buf(),
            dir,
            shards: Vec::new(),
            tensors: Vec::new(),
            import: None,
            requantize: false,
        };
        let mut stored = Vec::new();
        for name in names {
            checkpoint.add_shard(name, &mut stored)?;
        }
        if let Files::Sharded(map) = &expected {
            checkpoint.check_weight_map(map, &stored)?;
        }
        let config = checkpoint.config_path();
        (checkpoint.tensors, checkpoint.import) = assemble(&config, stored, &checkpoint.shards)?;
        checkpoint
            .tensors
            .sort_by_cached_key(|t| (natural(&t.name), t.name.clone()));
        Ok(checkpoint)
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The safetensors files, by name.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// The tensors, in order.
    pub fn tensors(&self) -> &[SourceTensor] {
        &self.tensors
    }

    /// A tensor by name.
    pub fn tensor(&self, name: &str) -> Option<&SourceTensor> {
        self.tensors.iter().find(|t| t.name == name)
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
    pub fn keeps_codes(&self) -> bool {
        self.import.is_some() && !self.requantize
    }

    /// An int4 tensor's integers and scales; `None` for another tensor.
    pub fn packed<'a>(&'a self, tensor: &'a SourceTensor) -> Option<PackedView<'a>> {
        let packed = tensor.packed.as_ref()?;
        Some(PackedView {
            packed,
            rows: tensor.shape[0],
            columns: tensor.shape[1],
            codes: self.bytes(tensor),
            scales: &self.shards[packed.scale_shard].map[packed.scale_range.clone()],
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
        &self.shards[tensor.shard].map[tensor.range.clone()]
    }

    /// The file a tensor is in.
    pub fn file_of(&self, tensor: &SourceTensor) -> &Path {
        &self.shards[tensor.shard].path
    }

    /// Bytes of all safetensors files.
    pub fn total_bytes(&self) -> u64 {
        self.shards.iter().map(|s| s.map.len() as u64).sum()
    }

    /// Where config.json is, or would be.
    pub fn config_path(&self) -> PathBuf {
        self.dir.join("config.json")
    }

    /// Name and contents of each of [`EMBEDDED_FILES`] that the checkpoint has.
    ///
    /// # Errors
    /// A file that cannot be read or is implausibly large.
    pub fn embedded_files(&self) -> Result<Vec<(&'static str, Vec<u8>)>, ConvertError> {
        let mut files = Vec::new();
        for name in EMBEDDED_FILES {
            let path = self.dir.join(name);
            match std::fs::metadata(&path) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Ok(m) if m.len() > MAX_EMBEDDED_BYTES => {
                    return Err(ConvertError::Config {
                        path,
                        problem: format!(
                            "{} bytes, over the limit of {MAX_EMBEDDED_BYTES}",
                            m.len()
                        ),
                    });
                }
                _ => {}
            }
            let contents = std::fs::read(&path).map_err(ConvertError::io(&path, "read it"))?;
            files.push((name, contents));
        }
        Ok(files)
    }

    fn add_shard(&mut self, name: String, stored: &mut Vec<Stored>) -> Result<(), ConvertError> {
        let path = self.dir.join(&name);
        let map = match map_file(&path) {
            Err(smq_format::Error::Io { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound
                    && !path.is_symlink()
                    && self.dir.join(SHARD_INDEX).exists() =>
            {
                return Err(ConvertError::MissingShard {
                    dir: self.dir.clone(),
                    shard: name,
                });
            }
            other => other?,
        };
        let damaged = |reason: String| ConvertError::Safetensors {
            path: path.clone(),
            reason,
        };
        let parsed = SafeTensors::deserialize(&map).map_err(|e| damaged(e.to_string()))?;
        let start = map.as_ptr() as usize;
        for (tensor, view) in parsed.iter() {
            let offset = view.data().as_ptr() as usize - start;
            stored.push(Stored {
                name: tensor.to_owned(),
                shape: view.shape().to_vec(),
                dtype: view.dtype(),
                shard: self.shards.len(),
                range: offset..offset + view.data().len(),
            });
        }
        self.shards.push(Shard { name, path, map });
        Ok(())
    }

    /// Every listed tensor is in the listed shard, and no shard has another.
    fn check_weight_map(
        &self,
        map: &BTreeMap<String, String>,
        stored: &[Stored],
    ) -> Result<(), ConvertError> {
        let problem = |problem: String| ConvertError::ShardIndex {
            path: self.dir.join(SHARD_INDEX),
            problem,
        };
        let mut found = BTreeMap::new();
        for tensor in stored {
            let shard = &self.shards[tensor.shard].name;
            match map.get(&tensor.name) {
                None => {
                    return Err(problem(format!(
                        "does not list tensor {:?}, which {shard} holds",
                        tensor.name
                    )));
                }
                Some(listed) if listed != shard => continue, // a stale copy in another shard
                Some(_) => found.insert(tensor.name.as_str(), shard),
            };
        }
        match map
            .iter()
            .find(|(name, _)| !found.contains_key(name.as_str()))
        {
            Some((name, shard)) => Err(problem(format!(
                "lists tensor {name:?} in {shard}, which does not hold it"
            ))),
            None if found.len() != stored.len() => Err(problem(
                "the same tensor is in more than one shard".to_owned(),
            )),
            None => Ok(()),
        }
    }
}

/// Refuses a FIFO, device or directory, which reading would wait for, or never end with.
fn regular_or_absent(path: &Path) -> Result<(), ConvertError> {
    match map_file(path) {
        Err(smq_format::Error::Io { source, .. })
            if source.kind() == std::io::ErrorKind::NotFound && !path.is_symlink() =>
        {
            Ok(())
        }
        other => Ok(other.map(drop)?),
    }
}

enum Files {
    Single(String),
    Sharded(BTreeMap<String, String>),
}

fn files_of(dir: &Path) -> Result<Files, ConvertError> {
    let index = dir.join(SHARD_INDEX);
    // A dangling link counts as present, so that it is named rather than passed over.
    let present = |path: &Path| path.symlink_metadata().is_ok();
    if present(&index) {
        let text = map_file(&index)?;
        let parsed: ShardIndex =
            serde_json::from_slice(&text).map_err(|e| ConvertError::ShardIndex {
                path: index.clone(),
                problem: format!("not a shard index: {e}"),
            })?;
        let unsafe_name = |name: &&String| name.contains(['/', '\\']) || name.as_str() == "..";
        if let Some(name) = parsed.weight_map.values().find(unsafe_name) {
            return Err(ConvertError::ShardIndex {
                path: index,
                problem: format!("shard name {name:?} is a path, not a plain file name"),
            });
        }
        if parsed.weight_map.is_empty() {
            return Err(ConvertError::ShardIndex {
                path: index,
                problem: "lists no tensor".to_owned(),
            });
        }
        return Ok(Files::Sharded(parsed.weight_map));
    }
    if present(&dir.join("model.safetensors")) {
        return Ok(Files::Single("model.safetensors".to_owned()));
    }
    let entries = std::fs::read_dir(dir).map_err(ConvertError::io(dir, "list it"))?;
    let mut names: Vec<String> = entries
        .filter_map(|e| Some(e.ok()?.file_name().to_string_lossy().into_owned()))
        .filter(|name| name.ends_with(".safetensors"))
        .collect();
    match (names.pop(), names.is_empty()) {
        (Some(name), true) => Ok(Files::Single(name)),
        _ => Err(ConvertError::NoWeights(dir.to_path_buf())),
    }
}

/// A sort key in which runs of digits compare by value: layer 2 before layer 10. The name itself breaks
/// ties (`a01`, `a1`).
pub(crate) fn natural(name: &str) -> Vec<(String, u64)> {
    let mut key = vec![(String::new(), 0u64)];
    let mut in_digits = false;
    for c in name.chars() {
        match (c.to_digit(10), in_digits) {
            (Some(d), _) => {
                in_digits = true;
                if let Some(last) = key.last_mut() {
                    last.1 = last.1.saturating_mul(10).saturating_add(u64::from(d));
                }
            }
            (None, true) => {
                in_digits = false;
                key.push((c.to_string(), 0));
            }
            (None, false) => {
                if let Some(last) = key.last_mut() {
                    last.0.push(c);
                }
            }
        }
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn natural_order() {
        let mut names = vec!["l.10.a", "l.2.b", "l.2.a", "l", "l.0", "k.11"];
        names.sort_by_key(|n| natural(n));
        assert_eq!(names, ["k.11", "l", "l.0", "l.2.a", "l.2.b", "l.10.a"]);
    }
}
