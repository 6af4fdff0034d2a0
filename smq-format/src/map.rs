//! Maps files for reading, and knows of each whether it is still what it was.

use std::fs::{self, File};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use memmap2::Mmap;

use crate::error::Error;

/// Every map of this process that is not empty: its bounds, and whose they are.
static MAPS: Mutex<Vec<(usize, usize, PathBuf)>> = Mutex::new(Vec::new());

fn maps() -> MutexGuard<'static, Vec<(usize, usize, PathBuf)>> {
    MAPS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The file that is mapped at an address.
pub(crate) fn file_at(address: usize) -> Option<PathBuf> {
    let maps = maps();
    let map = maps
        .iter()
        .find(|(start, end, _)| (*start..*end).contains(&address))?;
    Some(map.2.clone())
}

/// A file's bytes, mapped into memory.
#[derive(Debug)]
pub struct MappedFile {
    map: Mmap,
    path: PathBuf,
    stamp: Stamp,
}

impl MappedFile {
    /// Whether the file is what it was when it was mapped: the same one by its path, with the same
    /// length and time of change. Where only the time of its metadata's change differs, as after a
    /// renaming or a copy that sets the older time back, `is_same` is asked to compare the bytes.
    ///
    /// # Errors
    /// [`Error::Changed`].
    pub fn check_unchanged(&self, is_same: impl FnOnce(&[u8]) -> bool) -> Result<(), Error> {
        let now = fs::metadata(&self.path).map(|metadata| Stamp::of(&metadata));
        let same = match now {
            Ok(now) if now == self.stamp => true,
            Ok(now) if now.contents() == self.stamp.contents() => is_same(&self.map),
            Ok(_) | Err(_) => false,
        };
        match same {
            true => Ok(()),
            false => Err(Error::Changed(self.path.clone())),
        }
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

impl Drop for MappedFile {
    fn drop(&mut self) {
        let start = self.map.as_ptr() as usize;
        let mut maps = maps();
        if let Some(at) = maps.iter().position(|map| map.0 == start) {
            maps.swap_remove(at);
        }
    }
}

/// What tells a file that was written to from one that was not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    modified: Option<std::time::SystemTime>,
    /// Device and inode, which stay the same when a file is renamed.
    #[cfg(unix)]
    inode: (u64, u64),
    /// Seconds and nanoseconds of the metadata's change, which no program can set.
    #[cfg(unix)]
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        #[cfg(unix)]
        use std::os::unix::fs::MetadataExt;
        Self {
            bytes: metadata.len(),
            modified: metadata.modified().ok(),
            #[cfg(unix)]
            inode: (metadata.dev(), metadata.ino()),
            #[cfg(unix)]
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Without what may change while the contents stay.
    fn contents(self) -> Self {
        Self {
            #[cfg(unix)]
            changed: (0, 0),
            ..self
        }
    }
}

/// Maps a regular file for reading.
///
/// Symbolic links are followed. The map is of the file, not of its name: a file renamed over `path`
/// later does not change it.
///
/// # Errors
/// [`Error::NotAFile`] for a directory, FIFO, socket or device; [`Error::Io`].
pub fn map_file(path: &Path) -> Result<MappedFile, Error> {
    // Opening a FIFO would block, so look before opening.
    let metadata = fs::metadata(path).map_err(|e| {
        // The name is there, so "no such file" alone would puzzle.
        let action = match path.is_symlink() {
            true => "follow this symbolic link",
            false => "open it",
        };
        Error::io(path, action)(e)
    })?;
    if let Some(kind) = not_a_file(metadata.file_type()) {
        return Err(Error::NotAFile {
            path: path.to_path_buf(),
            kind,
        });
    }
    let file = File::open(path).map_err(Error::io(path, "open it"))?;
    let stamp = file.metadata().map_err(Error::io(path, "open it"))?;
    // SAFETY: the map is read-only and private to this process's view; another process that writes
    // the file while it is mapped can change what we read, which no reader of a map can rule out,
    // and one that truncates it raises SIGBUS, which `catch_signals` turns into an error. All
    // bounds come from the map's own length, never from a second look at the file, and no value
    // read through the map is used to index memory without a check against that length.
    let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path, "map it"))?;
    if !map.is_empty() {
        let start = map.as_ptr() as usize;
        maps().push((start, start + map.len(), path.to_path_buf()));
    }
    Ok(MappedFile {
        map,
        path: path.to_path_buf(),
        stamp: Stamp::of(&stamp),
    })
}

/// What a path is, where it is not a regular file.
pub(crate) fn not_a_file(file_type: fs::FileType) -> Option<&'static str> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if file_type.is_fifo() {
            return Some("a FIFO");
        }
        if file_type.is_block_device() || file_type.is_char_device() {
            return Some("a device");
        }
        if file_type.is_socket() {
            return Some("a socket");
        }
    }
    match file_type {
        t if t.is_dir() => Some("a directory"),
        t if t.is_file() => None,
        _ => Some("a special file"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_written_to_is_told_from_one_that_was_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, "0123").unwrap();
        let map = map_file(&path).unwrap();
        let is_same = |bytes: &[u8]| bytes == b"0123";
        map.check_unchanged(is_same).unwrap();
        assert_eq!(file_at(map.as_ptr() as usize + 3), Some(path.clone()));
        // Its metadata alone.
        fs::hard_link(&path, dir.path().join("b")).unwrap();
        map.check_unchanged(is_same).unwrap();
        // Rewritten in place, with the older time set back.
        let time = fs::metadata(&path).unwrap().modified().unwrap();
        fs::write(&path, "4567").unwrap();
        assert!(map.check_unchanged(is_same).is_err());
        File::open(&path).unwrap().set_modified(time).unwrap();
        assert!(map.check_unchanged(is_same).is_err());
        // Another file in its place.
        fs::write(&path, "0123").unwrap();
        let map = map_file(&path).unwrap();
        fs::write(dir.path().join("c"), "0123").unwrap();
        fs::rename(dir.path().join("c"), &path).unwrap();
        let error = map.check_unchanged(is_same).unwrap_err().to_string();
        assert!(
            error.contains("/a was changed while it was read"),
            "{error}"
        );
        let start = map.as_ptr() as usize;
        drop(map);
        assert_eq!(file_at(start), None);
    }
}
