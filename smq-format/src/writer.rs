//! Writes a file: a temporary one beside the target, fsync, rename. The header goes in last.
//!
//! Where a tensor lies follows from shapes and schemes alone, so places can be given out first, and
//! filled by any number of threads in any order.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Defect, Error};
use crate::header::{HEADER_BYTES, Header, Section, VERSION};
use crate::index::{Blob, FileEntry, Index, Provenance, TensorEntry, align};
use crate::map::not_a_file;
use crate::partial::{Partial, directory};
use crate::place::{preallocate, write_at};
use crate::reader::{SmqFile, hash};
use crate::scheme::{Dtype, Role, Scheme};
use crate::statistics::Statistics;

/// Writes one .smq file. Dropped before [`SmqWriter::finish`], it leaves nothing behind.
#[derive(Debug)]
pub struct SmqWriter {
    target: PathBuf,
    overwrite: bool,
    temp: Partial,
    end: u64,
    index: Index,
    /// Of each tensor of the index, whether its blobs are in the file.
    settled: Vec<bool>,
}

/// A tensor whose blobs fit its place and are hashed: what [`SmqWriter::settle`] enters into the
/// index once they are written.
#[derive(Debug)]
pub struct Sealed {
    tensor: usize,
    scheme: Scheme,
    hashes: Vec<[u8; 32]>,
}

/// What [`SmqWriter::finish`] wrote, and how long it took to reach the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Length of the file.
    pub file_bytes: u64,
    /// Time spent in fsync, which measures the disk and not the writer.
    pub fsync: Duration,
}

impl SmqWriter {
    /// Starts a file that will be called `target`.
    ///
    /// A symbolic link to a file is followed: with `overwrite` that file is replaced, and the link
    /// stays. One that leads nowhere is refused, since whether it or its target was meant cannot be
    /// known.
    ///
    /// # Errors
    /// [`Error::Exists`] unless `overwrite`; [`Error::NotAFile`]; [`Error::Directory`];
    /// [`Error::Io`] where the directory cannot be written.
    pub fn create(target: &Path, overwrite: bool) -> Result<Self, Error> {
        let target = match std::fs::metadata(target) {
            Ok(metadata) => {
                if let Some(kind) = not_a_file(metadata.file_type()) {
                    return Err(Error::NotAFile {
                        path: target.to_path_buf(),
                        kind,
                    });
                }
                if !overwrite {
                    return Err(Error::Exists(target.to_path_buf()));
                }
                target
                    .canonicalize()
                    .map_err(Error::io(target, "resolve it"))?
            }
            Err(_) => {
                check_new(target)?;
                target.to_path_buf()
            }
        };
        let temp = Partial::beside(&target).map_err(|e| {
            Error::io(&target, "create a temporary file beside it")(without_path(e))
        })?;
        Ok(SmqWriter {
            target,
            overwrite,
            temp,
            end: HEADER_BYTES as u64,
            index: Index::default(),
            settled: Vec::new(),
        })
    }

    /// Embeds a file; every file comes before the first tensor.
    ///
    /// # Errors
    /// [`Error::Write`] for a name the format refuses; [`Error::Io`].
    pub fn add_file(&mut self, name: &str, contents: &[u8]) -> Result<(), Error> {
        if !self.index.tensors.is_empty() {
            return Err(self.refuse(Defect::FileAfterTensor));
        }
        let offset = self.put_aligned(contents)?;
        self.index.files.push(FileEntry {
            blake3: hash(contents),
            length: contents.len() as u64,
            name: name.to_owned(),
            offset,
        });
        self.index.check().map_err(|d| self.refuse(d))
    }

    /// Appends a tensor; `blobs` are in the order of [`Scheme::blob_lengths`].
    ///
    /// # Errors
    /// [`Error::Write`] where shape, scheme and blobs disagree; [`Error::Io`].
    pub fn add_tensor(
        &mut self,
        name: &str,
        shape: &[usize],
        source_dtype: Dtype,
        scheme: Scheme,
        blobs: &[&[u8]],
    ) -> Result<(), Error> {
        let end = self.end;
        let tensor = self.reserve(name, shape, source_dtype, scheme)?;
        let sealed = self.seal(tensor, scheme, blobs);
        match sealed.and_then(|sealed| self.write(&sealed, blobs).map(|()| sealed)) {
            Ok(sealed) => {
                self.settle(sealed);
                Ok(())
            }
            Err(error) => {
                // What was refused has no place in the file.
                self.index.tensors.pop();
                self.settled.pop();
                self.end = end;
                Err(error)
            }
        }
    }

    /// Gives the next tensor its place and returns its number, which counts from 0; its blobs
    /// follow in [`SmqWriter::seal`]. Of `scheme` only what decides their lengths matters yet.
    ///
    /// # Errors
    /// [`Error::Write`] where shape and scheme disagree.
    pub fn reserve(
        &mut self,
        name: &str,
        shape: &[usize],
        source_dtype: Dtype,
        scheme: Scheme,
    ) -> Result<usize, Error> {
        let lengths = scheme
            .blob_lengths(name, shape)
            .map_err(|d| self.refuse(d))?;
        let blobs = lengths.into_iter().map(|(role, length)| {
            let offset = align(self.end);
            self.end = offset + length;
            Blob {
                blake3: [0; 32],
                length,
                offset,
                role,
            }
        });
        let blobs = blobs.collect();
        self.index.tensors.push(TensorEntry {
            name: name.to_owned(),
            shape: shape.to_vec(),
            source_dtype,
            scheme,
            blobs,
        });
        self.settled.push(false);
        Ok(self.settled.len() - 1)
    }

    /// Asks the file system for the room of all that was reserved, where it can be asked: a file
    /// that would not fit is refused before any work, and blocks that are there already are several
    /// times faster to fill than blocks that are found one by one.
    ///
    /// # Errors
    /// [`Error::Io`] where there is no room.
    pub fn preallocate(&self) -> Result<(), Error> {
        preallocate(self.temp.as_file(), self.end).map_err(Error::io(&self.target, "write it"))
    }

    /// Checks and hashes the blobs of a tensor, which are in the order of
    /// [`Scheme::blob_lengths`]; [`SmqWriter::write`] comes next. Any number of threads may do this
    /// at once.
    ///
    /// # Errors
    /// [`Error::Write`] where shape, scheme and blobs disagree, or with the place.
    ///
    /// # Panics
    /// Where `tensor` was not reserved.
    pub fn seal(&self, tensor: usize, scheme: Scheme, blobs: &[&[u8]]) -> Result<Sealed, Error> {
        let entry = &self.index.tensors[tensor];
        let lengths = scheme
            .blob_lengths(&entry.name, &entry.shape)
            .map_err(|d| self.refuse(d))?;
        let wrong_length = |role: Role, actual: u64, expected: u64| {
            (actual != expected).then(|| Defect::BlobLength {
                owner: format!("tensor {:?} {}", entry.name, role.name()),
                actual,
                expected,
            })
        };
        let given = lengths.iter().zip(blobs);
        let given = given.map(|((role, length), bytes)| (*role, bytes.len() as u64, *length));
        let places = lengths.iter().zip(&entry.blobs);
        let places = places.map(|((role, length), place)| (*role, *length, place.length));
        let mut pairs = given.chain(places);
        if let Some(defect) = pairs.find_map(|(role, a, e)| wrong_length(role, a, e)) {
            return Err(self.refuse(defect));
        }
        if lengths.len() != blobs.len() || lengths.len() != entry.blobs.len() {
            return Err(self.refuse(Defect::BlobRoles {
                tensor: entry.name.clone(),
                scheme: scheme.name(),
                found: format!("{} blobs", blobs.len()),
                expected: format!("{} blobs", entry.blobs.len()),
            }));
        }
        Ok(Sealed {
            tensor,
            scheme,
            hashes: blobs.iter().map(|bytes| hash(bytes)).collect(),
        })
    }

    /// Writes the blobs that were sealed into their place. Any number of threads may do this at
    /// once, but most file systems let one at a time into a file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, sealed: &Sealed, blobs: &[&[u8]]) -> Result<(), Error> {
        let places = &self.index.tensors[sealed.tensor].blobs;
        let mut blobs = places.iter().zip(blobs);
        blobs.try_for_each(|(place, bytes)| self.put_at(place.offset, bytes))
    }

    /// Enters a tensor that was written into the index.
    pub fn settle(&mut self, sealed: Sealed) {
        let entry = &mut self.index.tensors[sealed.tensor];
        entry.scheme = sealed.scheme;
        for (blob, hash) in entry.blobs.iter_mut().zip(sealed.hashes) {
            blob.blake3 = hash;
        }
        self.settled[sealed.tensor] = true;
    }

    /// Writes index, statistics and header, syncs, and renames the file to its target.
    ///
    /// # Errors
    /// [`Error::Write`] for names the format refuses and statistics that do not fit the tensors;
    /// [`Error::Exists`] where the target appeared meanwhile; [`Error::Io`]. In every case the
    /// target is as it was.
    pub fn finish(
        mut self,
        provenance: Provenance,
        statistics: Option<&Statistics>,
    ) -> Result<Written, Error> {
        let index = self.put_index(provenance)?;
        self.put_rest(index, statistics)?;
        self.persist()
    }

    /// As [`SmqWriter::finish`], with statistics that `measure` makes of the file: it is given the
    /// temporary file's path, where all but the statistics is complete and can be opened, and must
    /// let go of it.
    ///
    /// # Errors
    /// As [`SmqWriter::finish`], and whatever `measure` returns.
    pub fn finish_measured<E: From<Error>>(
        mut self,
        provenance: Provenance,
        measure: impl FnOnce(&Path) -> Result<Statistics, E>,
    ) -> Result<Written, E> {
        let index = self.put_index(provenance)?;
        self.put_rest(index, None)?;
        let statistics = measure(self.temp.path())?;
        self.put_rest(index, Some(&statistics))?;
        Ok(self.persist()?)
    }

    fn put_index(&mut self, provenance: Provenance) -> Result<Section, Error> {
        if let Some(tensor) = self.settled.iter().position(|settled| !settled) {
            let entry = &self.index.tensors[tensor];
            return Err(self.refuse(Defect::BlobRoles {
                tensor: entry.name.clone(),
                scheme: entry.scheme.name(),
                found: "0 blobs".to_owned(),
                expected: format!("{} blobs", entry.blobs.len()),
            }));
        }
        self.index.provenance = provenance;
        self.index.check().map_err(|d| self.refuse(d))?;
        let index_bytes = self.index.encode().map_err(|d| self.refuse(d))?;
        self.put_section(&index_bytes)
    }

    /// Writes the statistics, and the header of all that there is.
    fn put_rest(&mut self, index: Section, statistics: Option<&Statistics>) -> Result<(), Error> {
        let statistics = match statistics {
            Some(s) => {
                s.check(&self.index).map_err(|d| self.refuse(d))?;
                let bytes = s.encode().map_err(|d| self.refuse(d))?;
                self.put_section(&bytes)?
            }
            None => Section::default(),
        };
        let header = Header {
            version: VERSION,
            file_bytes: self.end,
            index,
            statistics,
            incompatible: 0,
            compatible: 0,
        };
        write_header(self.temp.as_file(), &header)
            .map_err(Error::io(&self.target, "write the header"))
    }

    /// Syncs the finished file and renames it to its target.
    fn persist(self) -> Result<Written, Error> {
        let started = Instant::now();
        let SmqWriter {
            target,
            overwrite,
            temp,
            end,
            ..
        } = self;
        temp.persist(&target, overwrite)
            .map_err(|e| match e.kind() {
                std::io::ErrorKind::AlreadyExists => Error::Exists(target.clone()),
                _ => Error::io(&target, "put the finished file in its place")(e),
            })?;
        Ok(Written {
            file_bytes: end,
            fsync: started.elapsed(),
        })
    }

    fn put_section(&mut self, bytes: &[u8]) -> Result<Section, Error> {
        Ok(Section {
            offset: self.put_aligned(bytes)?,
            length: bytes.len() as u64,
            hash: hash(bytes),
        })
    }

    fn put_aligned(&mut self, bytes: &[u8]) -> Result<u64, Error> {
        let offset = align(self.end);
        self.put_at(offset, bytes)?;
        self.end = offset + bytes.len() as u64;
        Ok(offset)
    }

    /// What lies between two places is never written, and reads as the zeros that the format asks
    /// for.
    fn put_at(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        write_at(self.temp.as_file(), bytes, offset).map_err(|e| {
            let action = match is_fault(&e) {
                true => "copy to it from a file that became shorter meanwhile",
                false => "write it",
            };
            Error::io(&self.target, action)(e)
        })
    }

    fn refuse(&self, defect: Defect) -> Error {
        Error::Write {
            path: self.target.clone(),
            defect,
        }
    }
}

/// Removes the statistics in place: rewrites the header, then truncates. Weights and index stay as
/// they are. Does nothing where there are none.
///
/// # Errors
/// Whatever [`SmqFile::open`] refuses; [`Error::Io`].
pub fn remove_statistics(path: &Path) -> Result<(), Error> {
    let mut header = *SmqFile::open(path)?.header();
    if header.statistics == Section::default() {
        return Ok(());
    }
    header.statistics = Section::default();
    header.file_bytes = header.index.offset + header.index.length;
    let action = "remove its statistics";
    let file = OpenOptions::new()
        .write(true)
        .open(path)
        .map_err(Error::io(path, action))?;
    // Synced between, so that a crash never leaves a header longer than its file.
    write_header(&file, &header)
        .and_then(|()| file.sync_all())
        .and_then(|()| file.set_len(header.file_bytes))
        .and_then(|()| file.sync_all())
        .map_err(Error::io(path, action))
}

/// A target that is not there yet must be a file's name in a directory.
pub(crate) fn check_new(target: &Path) -> Result<(), Error> {
    let not_a_file = |kind| {
        Err(Error::NotAFile {
            path: target.to_path_buf(),
            kind,
        })
    };
    if std::fs::symlink_metadata(target).is_ok_and(|m| m.is_symlink()) {
        return not_a_file("a symbolic link that leads nowhere");
    }
    let text = target.as_os_str().to_string_lossy();
    if target.file_name().is_none() || text.ends_with(std::path::is_separator) {
        return not_a_file("the name of a directory");
    }
    let parent = directory(target);
    let problem = match std::fs::metadata(parent) {
        Ok(metadata) if !metadata.is_dir() => "is not a directory",
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => "does not exist; create it first",
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => {
            "lies in something that is not a directory"
        }
        // Whatever else is wrong, creating the file says.
        _ => return Ok(()),
    };
    Err(Error::Directory {
        path: target.to_path_buf(),
        directory: parent.to_path_buf(),
        problem,
    })
}

/// Whether the system could not read the bytes that it was to write: those of a map whose file was
/// truncated, where reading them here would be SIGBUS.
fn is_fault(error: &std::io::Error) -> bool {
    #[cfg(unix)]
    return error.raw_os_error() == Some(libc::EFAULT);
    #[cfg(not(unix))]
    return false;
}

/// The error without the path that tempfile appends, whose random name tells nobody anything.
pub(crate) fn without_path(error: std::io::Error) -> std::io::Error {
    let text = error.to_string();
    match text.split_once(" at path ") {
        Some((reason, _)) => std::io::Error::new(error.kind(), reason.to_owned()),
        None => error,
    }
}

fn write_header(file: &File, header: &Header) -> std::io::Result<()> {
    write_at(file, &header.encode(), 0)
}

#[cfg(test)]
mod tests;
