//! Tensors as safetensors files list them.

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use smq_format::MappedFile;

use crate::error::{Error, Result};
use crate::json::{LFS_POINTER, LFS_REMEDY};

/// A safetensors file of the checkpoint, mapped into memory.
#[derive(Debug)]
pub struct Shard {
    /// Plain file name, without the directory.
    pub name: String,
    /// Where the file is.
    pub path: PathBuf,
    pub(super) map: MappedFile,
}

impl Shard {
    /// The whole file, mapped into memory.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Whether the file is what it was when it was opened; `blake3` is the hash taken of its bytes.
    ///
    /// # Errors
    /// [`smq_format::Error::Changed`].
    pub fn check_unchanged(&self, blake3: [u8; 32]) -> Result<()> {
        let is_same = |bytes: &[u8]| smq_format::hash(bytes) == blake3;
        Ok(self.map.check_unchanged(is_same)?)
    }

    /// The tensors that its header lists, `shard` being the number that they give for it.
    pub(super) fn tensors(&self, shard: usize) -> Result<Vec<StoredTensor>> {
        let parsed =
            SafeTensors::deserialize(&self.map).map_err(|e| damaged(&self.path, &self.map, e))?;
        let start = self.map.as_ptr() as usize;
        let tensors = parsed.iter().map(|(name, view)| {
            let offset = view.data().as_ptr() as usize - start;
            StoredTensor {
                name: name.to_owned(),
                shape: view.shape().to_vec(),
                dtype: view.dtype(),
                shard,
                range: offset..offset + view.data().len(),
            }
        });
        Ok(tensors.collect())
    }
}

fn damaged(path: &Path, bytes: &[u8], error: impl std::fmt::Display) -> Error {
    match bytes.starts_with(LFS_POINTER) {
        true => Error::model(path, LFS_REMEDY),
        false => Error::Safetensors {
            path: path.to_path_buf(),
            reason: error.to_string(),
        },
    }
}

/// A tensor as a safetensors file lists it, of any element type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTensor {
    /// Name of the tensor in the checkpoint.
    pub name: String,
    /// Row-major shape, `[out, in]` for a linear layer.
    pub shape: Vec<usize>,
    /// Type of its elements as the file has it.
    pub dtype: safetensors::Dtype,
    /// Index of its shard.
    pub shard: usize,
    /// Bytes within the shard's file.
    pub range: std::ops::Range<usize>,
}

/// A sort key in which runs of digits compare by value: layer 2 before layer 10. The name itself
/// breaks ties (`a01`, `a1`).
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
