//! The weights that a config runs from: the checkpoint, or a file that is made from it for as long
//! as it is needed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use smq_convert::{Checkpoint, ConvertOptions, convert};
use smq_format::SmqFile;

use super::identity::COMMIT;
use super::record::ModelIdentity;

/// What a process runs from.
#[derive(Debug)]
pub(super) struct Weights {
    pub(super) path: PathBuf,
    /// Of a file, as [`FileRecord::index_blake3`](super::record::FileRecord::index_blake3).
    pub(super) index_blake3: Option<String>,
}

impl Weights {
    /// The checkpoint as it is.
    pub(super) fn of_checkpoint(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            index_blake3: None,
        }
    }

    /// A converted file.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub(super) fn of_file(path: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            index_blake3: Some(hex(&SmqFile::open(path)?.header().index.hash)),
        })
    }
}

/// The file of a config, made in `work` unless an earlier run left it; and how long that took.
/// `tick` is called while it is made.
///
/// # Errors
/// If it cannot be made.
pub(super) fn make(
    work: &Path,
    (checkpoint, model): (&Checkpoint, &ModelIdentity),
    id: &str,
    how: &ConvertOptions,
    tick: impl Fn() + Sync,
) -> anyhow::Result<(PathBuf, Option<Duration>)> {
    std::fs::create_dir_all(work)
        .with_context(|| format!("{}: cannot create it", work.display()))?;
    // Its name says all that decides its bytes, so one that is there is the right one, and whole.
    let of = format!("{} {COMMIT} {how:?}", model.id);
    let hash = blake3::hash(of.as_bytes()).to_hex();
    let path = work.join(format!("{id}-{}.smq", &hash[..16]));
    if path.exists() {
        return Ok((path, None));
    }
    let summary = convert(checkpoint, &path, how, &|_| {
        tick();
        true
    })?;
    Ok((path, Some(summary.elapsed)))
}

/// Deletes a file that [`make`] made.
///
/// # Errors
/// If it cannot be deleted.
pub(super) fn delete(path: &Path) -> anyhow::Result<()> {
    std::fs::remove_file(path).with_context(|| format!("{}: cannot delete it", path.display()))
}

pub(super) fn hex(hash: &[u8; 32]) -> String {
    blake3::Hash::from_bytes(*hash).to_hex().to_string()
}
