//! Writes a file: a temporary one beside the target, fsync, rename. The header goes in last.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Defect, Error};
use crate::header::{HEADER_BYTES, Header, Section, VERSION};
use crate::index::{ALIGN_BYTES, Blob, FileEntry, Index, Provenance, TensorEntry, align};
use crate::map::not_a_file;
use crate::partial::{Partial, directory};
use crate::reader::{SmqFile, hash};
use crate::scheme::{Dtype, Scheme};
use crate::statistics::Statistics;

/// Writes one .smq file. Dropped before [`SmqWriter::finish`], it leaves nothing behind.
#[derive(Debug)]
pub struct SmqWriter {
    target: PathBuf,
    overwrite: bool,
    temp: Partial,
    end: u64,
    index: Index,
}

/// What [`SmqWriter::finish`] wrote.
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
    /// A symbolic link to a file is followed: with `overwrite` that file is replaced, and the link stays. One that
    /// leads nowhere is refused, since whether it or its target was meant cannot be known.
    ///
    /// # Errors
    /// [`Error::Exists`] unless `overwrite`; [`Error::NotAFile`]; [`Error::Directory`]; [`Error::Io`] where the
    /// directory cannot be written.
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
        let mut writer = SmqWriter {
            target,
            overwrite,
            temp,
            end: 0,
            index: Index::default(),
        };
        writer.put(&[0; HEADER_BYTES])?;
        Ok(writer)
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
        let lengths = scheme
            .blob_lengths(name, shape)
            .map_err(|d| self.refuse(d))?;
        let fits = |((role, expected), bytes): (&(_, u64), &&[u8])| {
            let actual = bytes.len() as u64;
            let role: crate::scheme::Role = *role;
            (actual != *expected).then(|| Defect::BlobLength {
                owner: format!("tensor {name:?} {}", role.name()),
                actual,
                expected: *expected,
            })
        };
        if let Some(defect) = lengths.iter().zip(blobs).find_map(fits) {
            return Err(self.refuse(defect));
        }
        if lengths.len() != blobs.len() {
            return Err(self.refuse(Defect::BlobRoles {
                tensor: name.to_owned(),
                scheme: scheme.name(),
                found: format!("{} blobs", blobs.len()),
                expected: format!("{} blobs", lengths.len()),
            }));
        }
        let mut entry = TensorEntry {
            name: name.to_owned(),
            shape: shape.to_vec(),
            source_dtype,
            scheme,
            blobs: Vec::new(),
        };
        for ((role, _), bytes) in lengths.into_iter().zip(blobs) {
            entry.blobs.push(Blob {
                blake3: hash(bytes),
                length: bytes.len() as u64,
                offset: self.put_aligned(bytes)?,
                role,
            });
        }
        self.index.tensors.push(entry);
        Ok(())
    }

    /// Writes index, statistics and header, syncs, and renames the file to its target.
    ///
    /// # Errors
    /// [`Error::Write`] for names the format refuses and statistics that do not fit the tensors;
    /// [`Error::Exists`] where the target appeared meanwhile; [`Error::Io`]. In every case the target is as it was.
    pub fn finish(
        mut self,
        provenance: Provenance,
        statistics: Option<&Statistics>,
    ) -> Result<Written, Error> {
        let index = self.put_index(provenance)?;
        self.put_rest(index, statistics)?;
        self.persist()
    }

    /// As [`SmqWriter::finish`], with statistics that `measure` makes of the file: it is given the temporary
    /// file's path, where all but the statistics is complete and can be opened, and must let go of it.
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
        let action = "go to its end";
        self.temp
            .file()
            .seek(SeekFrom::Start(self.end))
            .map_err(Error::io(&self.target, action))?;
        self.put_rest(index, Some(&statistics))?;
        Ok(self.persist()?)
    }

    fn put_index(&mut self, provenance: Provenance) -> Result<Section, Error> {
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
        write_header(self.temp.file(), &header).map_err(Error::io(&self.target, "write the header"))
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
        self.put(&[0; ALIGN_BYTES as usize][..(offset - self.end) as usize])?;
        self.put(bytes)?;
        Ok(offset)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.temp.file().write_all(bytes).map_err(|e| {
            let action = match is_fault(&e) {
                true => "copy to it from a file that became shorter meanwhile",
                false => "write it",
            };
            Error::io(&self.target, action)(e)
        })?;
        self.end += bytes.len() as u64;
        Ok(())
    }

    fn refuse(&self, defect: Defect) -> Error {
        Error::Write {
            path: self.target.clone(),
            defect,
        }
    }
}

/// Removes the statistics in place: rewrites the header, then truncates. Weights and index stay as they
/// are. Does nothing where there are none.
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
    let mut file = OpenOptions::new()
        .write(true)
        .open(path)
        .map_err(Error::io(path, action))?;
    // Synced between, so that a crash never leaves a header longer than its file.
    write_header(&mut file, &header)
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

fn write_header(file: &mut File, header: &Header) -> std::io::Result<()> {
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&header.encode())
}
