//! A Hugging Face checkpoint on disk: memory-mapped safetensors files and the JSON files beside them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::SafeTensors;
use serde::Deserialize;
use smq_format::map_file;

use crate::error::{Error, Result};

/// Name of the shard index of a sharded checkpoint.
pub const SHARD_INDEX: &str = "model.safetensors.index.json";
/// Files that travel inside the .smq, where the checkpoint has them.
pub const EMBEDDED_FILES: [&str; 4] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
];
/// What a checkpoint directory has beside them that decides what the model says.
const READ_FILES: [&str; 3] = [
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
];
/// The directory of further chat templates, one file each.
const TEMPLATE_DIR: &str = "additional_chat_templates";
/// Largest embedded file; a tokenizer.json of a 256k vocabulary is about 33 MB.
pub const MAX_EMBEDDED_BYTES: u64 = 256 << 20;

/// An open checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    dir: PathBuf,
    shards: Vec<Shard>,
    tensors: Vec<StoredTensor>,
    files: Vec<(String, Vec<u8>)>,
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
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }
}

/// A tensor as a safetensors file lists it, of any element type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTensor {
    /// Name.
    pub name: String,
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// Element type.
    pub dtype: safetensors::Dtype,
    /// Index of its shard.
    pub shard: usize,
    /// Bytes within the shard's file.
    pub range: std::ops::Range<usize>,
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
    /// Missing or damaged files, shards that disagree with their index, a side file that cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
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
        let mut checkpoint = Checkpoint {
            path: path.to_path_buf(),
            files: side_files(&dir)?,
            dir,
            shards: Vec::new(),
            tensors: Vec::new(),
        };
        for name in names {
            checkpoint.add_shard(name)?;
        }
        if let Files::Sharded(map) = &expected {
            checkpoint.check_weight_map(map)?;
        }
        checkpoint
            .tensors
            .sort_by_cached_key(|t| (natural(&t.name), t.name.clone()));
        Ok(checkpoint)
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The safetensors files, by name.
    #[must_use]
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// The tensors, in order.
    #[must_use]
    pub fn tensors(&self) -> &[StoredTensor] {
        &self.tensors
    }

    /// A tensor by name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&StoredTensor> {
        let key = (natural(name), name);
        let at = self
            .tensors
            .binary_search_by(|t| (natural(&t.name), t.name.as_str()).cmp(&key));
        at.ok().map(|at| &self.tensors[at])
    }

    /// A tensor's bytes in the map; not necessarily aligned.
    #[must_use]
    pub fn bytes(&self, tensor: &StoredTensor) -> &[u8] {
        &self.shards[tensor.shard].map[tensor.range.clone()]
    }

    /// Bytes of all safetensors files.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.shards.iter().map(|s| s.map.len() as u64).sum()
    }

    /// Where config.json is, or would be.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        self.dir.join("config.json")
    }

    /// Contents of config.json, tokenizer.json and the like.
    #[must_use]
    pub fn file(&self, name: &str) -> Option<&[u8]> {
        let found = self.files.iter().find(|(n, _)| n == name);
        found.map(|(_, contents)| contents.as_slice())
    }

    /// Name and contents of each of [`EMBEDDED_FILES`] that the checkpoint has.
    pub fn embedded_files(&self) -> impl Iterator<Item = (&'static str, &[u8])> {
        let names = EMBEDDED_FILES.into_iter();
        names.filter_map(|name| Some((name, self.file(name)?)))
    }

    /// Name and contents of each file beside the weights that was read.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let files = self.files.iter();
        files.map(|(name, contents)| (name.as_str(), contents.as_slice()))
    }

    fn add_shard(&mut self, name: String) -> Result<()> {
        let path = self.dir.join(&name);
        let map = match map_file(&path) {
            Err(smq_format::Error::Io { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound
                    && !path.is_symlink()
                    && self.dir.join(SHARD_INDEX).exists() =>
            {
                return Err(Error::MissingShard {
                    dir: self.dir.clone(),
                    shard: name,
                });
            }
            other => other?,
        };
        let damaged = |reason: String| Error::Safetensors {
            path: path.clone(),
            reason,
        };
        let parsed = SafeTensors::deserialize(&map).map_err(|e| damaged(e.to_string()))?;
        let start = map.as_ptr() as usize;
        for (tensor, view) in parsed.iter() {
            let offset = view.data().as_ptr() as usize - start;
            self.tensors.push(StoredTensor {
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
    fn check_weight_map(&self, map: &BTreeMap<String, String>) -> Result<()> {
        let problem = |problem: String| Error::ShardIndex {
            path: self.dir.join(SHARD_INDEX),
            problem,
        };
        let mut found = BTreeMap::new();
        for tensor in &self.tensors {
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
            None if found.len() != self.tensors.len() => Err(problem(
                "the same tensor is in more than one shard".to_owned(),
            )),
            None => Ok(()),
        }
    }
}

/// Reads the files beside the weights that it has.
fn side_files(dir: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    let names = EMBEDDED_FILES.into_iter().chain(READ_FILES);
    for name in names.map(str::to_owned).chain(templates(dir)) {
        let path = dir.join(&name);
        // map_file refuses what reading would wait for or never end with: a FIFO, a device.
        match map_file(&path) {
            Ok(map) if map.len() as u64 > MAX_EMBEDDED_BYTES => {
                let bytes = map.len();
                let message = format!("{bytes} bytes, over the limit of {MAX_EMBEDDED_BYTES}");
                return Err(Error::model(path, message));
            }
            Ok(map) => files.push((name, map.to_vec())),
            Err(smq_format::Error::Io { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound && !path.is_symlink() => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(files)
}

/// The names of the further chat templates, ascending.
fn templates(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir.join(TEMPLATE_DIR))
        .into_iter()
        .flatten();
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let templates = names.filter(|name| name.ends_with(".jinja"));
    let mut templates: Vec<String> = templates.map(|n| format!("{TEMPLATE_DIR}/{n}")).collect();
    templates.sort();
    templates
}

enum Files {
    Single(String),
    Sharded(BTreeMap<String, String>),
}

fn files_of(dir: &Path) -> Result<Files> {
    let index = dir.join(SHARD_INDEX);
    // A dangling link counts as present, so that it is named rather than passed over.
    let present = |path: &Path| path.symlink_metadata().is_ok();
    if present(&index) {
        let text = map_file(&index)?;
        let parsed: ShardIndex = serde_json::from_slice(&text).map_err(|e| Error::ShardIndex {
            path: index.clone(),
            problem: format!("not a shard index: {e}"),
        })?;
        let unsafe_name = |name: &&String| name.contains(['/', '\\']) || name.as_str() == "..";
        if let Some(name) = parsed.weight_map.values().find(unsafe_name) {
            return Err(Error::ShardIndex {
                path: index,
                problem: format!("shard name {name:?} is a path, not a plain file name"),
            });
        }
        if parsed.weight_map.is_empty() {
            return Err(Error::ShardIndex {
                path: index,
                problem: "lists no tensor".to_owned(),
            });
        }
        return Ok(Files::Sharded(parsed.weight_map));
    }
    if present(&dir.join("model.safetensors")) {
        return Ok(Files::Single("model.safetensors".to_owned()));
    }
    let entries = std::fs::read_dir(dir).map_err(Error::io(dir, "list it"))?;
    let mut names: Vec<String> = entries
        .filter_map(|e| Some(e.ok()?.file_name().to_string_lossy().into_owned()))
        .filter(|name| name.ends_with(".safetensors"))
        .collect();
    match (names.pop(), names.is_empty()) {
        (Some(name), true) => Ok(Files::Single(name)),
        _ => Err(Error::NoWeights(dir.to_path_buf())),
    }
}

/// A sort key in which runs of digits compare by value: layer 2 before layer 10. The name itself breaks
/// ties (`a01`, `a1`).
#[must_use]
pub fn natural(name: &str) -> Vec<(String, u64)> {
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
