//! A Hugging Face checkpoint on disk: memory-mapped safetensors files and the files beside them.

mod side_files;
mod tensors;
mod weights;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use smq_format::map_file;

use crate::error::{Error, Result};
use crate::json::parse_object;
use crate::locate::{Located, locate, refuse_other_files};

use side_files::list;
pub use side_files::{TEMPLATE_DIR, is_model_file, is_side_file, side_files};
pub(crate) use side_files::{check_length, no_tokenizer};
pub use tensors::{Shard, StoredTensor, natural};
pub use weights::SHARD_INDEX;
use weights::{Weights, enumerate};

/// An open checkpoint: its weights mapped, its other files found but not yet read.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    dir: PathBuf,
    shards: Vec<Shard>,
    tensors: Vec<StoredTensor>,
    files: Vec<(String, Vec<u8>)>,
    /// The shard index's name, and what it places where.
    index: Option<(String, BTreeMap<String, String>)>,
    notes: Vec<String>,
}

impl Checkpoint {
    /// Maps the checkpoint at `path`: a directory, one .safetensors file, or the id of a repository
    /// whose snapshot is in the Hugging Face cache.
    ///
    /// Of several sets of weights the one counts that transformers loads; [`Checkpoint::notes`]
    /// says what was left. Tensors are ordered by name, numbers by value, so that the order does
    /// not depend on the sharding.
    ///
    /// # Errors
    /// Missing or damaged files, weights of which it cannot be known which are meant, a side file
    /// that cannot be read, a config.json that is not JSON.
    pub fn open(path: &Path) -> Result<Self> {
        let located = locate(path)?;
        Self::at(&located).map_err(|e| located.blame(e))
    }

    fn at(located: &Located) -> Result<Self> {
        let path = located.path.clone();
        let is_dir = path.is_dir();
        let dir = match is_dir {
            true => path.clone(),
            false => {
                refuse_other_files(&path)?;
                map_file(&path)?; // before anything beside it is blamed
                directory_of(&path).to_path_buf()
            }
        };
        let listed = match is_dir {
            true => list(&dir)?,
            false => Vec::new(),
        };
        let mut checkpoint = Checkpoint {
            files: side_files(&dir)?,
            path,
            dir,
            shards: Vec::new(),
            tensors: Vec::new(),
            index: None,
            notes: located.note().into_iter().collect(),
        };
        let config = checkpoint.json("config.json")?;
        let weights = match is_dir {
            true => weights::choose(&checkpoint.dir, &listed, config.as_ref())?,
            false => {
                let name = checkpoint.path.file_name().unwrap_or_default();
                Weights::single(&name.to_string_lossy())
            }
        };
        checkpoint.read(weights)?;
        if is_dir {
            weights::refuse_adapter_beside(&checkpoint.dir)?;
        }
        let notes = side_files::notes(&checkpoint.dir, &checkpoint.files);
        checkpoint.notes.extend(notes);
        Ok(checkpoint)
    }

    fn read(&mut self, weights: Weights) -> Result<()> {
        self.notes.extend(weights.notes);
        self.index = weights.index;
        for name in weights.names {
            self.add_shard(name)?;
        }
        // As peft names them, whatever the file is called.
        let is_adapter =
            |t: &StoredTensor| t.name.starts_with("base_model.") || t.name.contains(".lora_");
        if !self.tensors.is_empty() && self.tensors.iter().all(is_adapter) {
            return Err(Error::model(&self.path, weights::adapter(&self.dir)));
        }
        self.drop_replaced();
        self.note_index();
        Ok(())
    }

    /// The path it was opened by; of a repository's id, its snapshot's.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory that its files are in.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What was taken and what was left, where there was a choice: a sentence each, for people.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
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

    /// Every file that was read: weights, their index, side files.
    pub fn paths(&self) -> impl Iterator<Item = PathBuf> {
        let beside = self.files.iter().map(|(name, _)| name);
        let beside = beside.chain(self.index.iter().map(|(name, _)| name));
        let shards = self.shards.iter().map(|s| s.path.clone());
        shards.chain(beside.map(|name| self.dir.join(name)))
    }

    /// [`Checkpoint::paths`], and what else in the directory belongs to a checkpoint: weights that
    /// were left out, indices, what a tokenizer is made of, further templates.
    #[must_use]
    pub fn inputs(&self) -> Vec<PathBuf> {
        let mut inputs: Vec<_> = self.paths().collect();
        let belongs = |name: &String| {
            is_model_file(name)
                || name.ends_with(weights::END)
                || name.ends_with(weights::INDEX_END)
        };
        // A directory that cannot be listed any more has nothing that could be replaced either.
        let beside = list(&self.dir).unwrap_or_default().into_iter();
        inputs.extend(beside.filter(belongs).map(|name| self.dir.join(name)));
        let templates = self.dir.join(TEMPLATE_DIR);
        let further = list(&templates).unwrap_or_default().into_iter();
        inputs.extend(further.map(|name| templates.join(name)));
        inputs
    }

    /// Contents of config.json, tokenizer.json and the like.
    #[must_use]
    pub fn file(&self, name: &str) -> Option<&[u8]> {
        let found = self.files.iter().find(|(n, _)| n == name);
        found.map(|(_, contents)| contents.as_slice())
    }

    /// A side file's JSON; `None` where it is absent.
    ///
    /// # Errors
    /// [`Error::File`] where it is no JSON object.
    pub fn json(&self, name: &str) -> Result<Option<Map<String, Value>>> {
        let parse = |bytes| parse_object(&self.dir.join(name).display().to_string(), bytes);
        self.file(name).map(parse).transpose()
    }

    /// Name and contents of each file that travels inside the .smq, in the order that it has there.
    pub fn embedded_files(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let files = self.files.iter();
        files.map(|(name, contents)| (name.as_str(), contents.as_slice()))
    }

    /// Tensors that the shard index lists and no shard holds, each with the file that it should be
    /// in.
    pub fn absent(&self) -> impl Iterator<Item = (&str, &str)> {
        let listed = self.index.iter().flat_map(|(_, map)| map);
        let absent = listed.filter(|(name, _)| self.tensor(name).is_none());
        absent.map(|(name, file)| (name.as_str(), file.as_str()))
    }

    /// Why a tensor is not there, to follow its name: `is not in ...`.
    #[must_use]
    pub fn why_absent(&self, name: &str) -> String {
        let listed = self
            .index
            .as_ref()
            .and_then(|(index, map)| Some((index, map.get(name)?)));
        match listed {
            Some((index, file)) => format!(
                "is not in {}, where {index} lists it; download both again",
                self.dir.join(file).display()
            ),
            None => format!("is not in {}", self.path.display()),
        }
    }

    fn add_shard(&mut self, name: String) -> Result<()> {
        let path = self.dir.join(&name);
        let map = match (map_file(&path), &self.index) {
            (Err(smq_format::Error::Io { source, .. }), Some((index, _)))
                if source.kind() == std::io::ErrorKind::NotFound && !path.is_symlink() =>
            {
                return Err(Error::MissingShard {
                    dir: self.dir.clone(),
                    shard: name,
                    index: index.clone(),
                });
            }
            (other, _) => other?,
        };
        let shard = Shard { name, path, map };
        self.tensors.extend(shard.tensors(self.shards.len())?);
        self.shards.push(shard);
        Ok(())
    }

    /// Puts the tensors in order. Of those with one name the last file's stays, which transformers
    /// loads over the others.
    fn drop_replaced(&mut self) {
        let key = |t: &StoredTensor| (natural(&t.name), t.name.clone(), std::cmp::Reverse(t.shard));
        self.tensors.sort_by_cached_key(key);
        let mut replaced = Vec::new();
        self.tensors.dedup_by(|next, kept| {
            let same = next.name == kept.name;
            if same {
                replaced.push((next.name.clone(), next.shard, kept.shard));
            }
            same
        });
        let Some((name, other, kept)) = replaced.first() else {
            return;
        };
        let more = match replaced.len() - 1 {
            0 => String::new(),
            n => format!(", and so it is with {n} more"),
        };
        self.notes.push(format!(
            "{}: tensor {name:?} is in {} and in {}; the last file's counts, as in \
             transformers{more}",
            self.dir.display(),
            self.shards[*other].name,
            self.shards[*kept].name,
        ));
    }

    /// Says where the shard index is wrong. transformers takes from it the files and nothing else.
    fn note_index(&mut self) {
        let Some((index, map)) = &self.index else {
            return;
        };
        let path = self.dir.join(index);
        let holder = |t: &StoredTensor| &self.shards[t.shard].name;
        let names = |keep: &dyn Fn(&StoredTensor) -> bool| -> Vec<String> {
            let kept = self.tensors.iter().filter(|t| keep(t));
            kept.map(|t| format!("{:?}", t.name)).collect()
        };
        let unlisted = names(&|t| !map.contains_key(&t.name));
        let elsewhere = names(&|t| map.get(&t.name).is_some_and(|file| file != holder(t)));
        let absent: Vec<_> = self.absent().map(|(name, _)| format!("{name:?}")).collect();
        let mut notes = Vec::new();
        for (names, says) in [
            (
                unlisted,
                "its files hold tensors that it does not list, which are taken, as transformers \
                 does",
            ),
            (
                elsewhere,
                "it places tensors in other files than hold them, from which they are taken",
            ),
            (absent, "it lists tensors that none of its files holds"),
        ] {
            if !names.is_empty() {
                notes.push(format!("{}: {says}: {}", path.display(), enumerate(&names)));
            }
        }
        self.notes.extend(notes);
    }
}

/// The directory that a file is in.
fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
