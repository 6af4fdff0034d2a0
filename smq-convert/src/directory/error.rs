//! What can go wrong while a checkpoint directory is written.

use std::io;
use std::path::{Path, PathBuf};

/// Why no checkpoint was written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DirectoryError {
    /// The output path exists and is not a directory.
    #[error("{}: exists and is not a directory", .path.display())]
    NotADirectory {
        /// The output path as it was given.
        path: PathBuf,
    },
    /// The output directory holds something and overwriting was not asked for.
    #[error("{}: directory is not empty, it holds {found}; choose another, or force to replace \
             the checkpoint in it", .path.display())]
    NotEmpty {
        /// The output directory as it was given.
        path: PathBuf,
        /// The name of something that is in it.
        found: String,
    },
    /// The output directory holds an adapter.
    #[error(
        "{}: an adapter's configuration, with which transformers would add its weights to the \
         model that is to be written beside it; move the adapter away, or choose another directory",
        .path.display()
    )]
    Adapter {
        /// The configuration of the adapter that is there.
        path: PathBuf,
    },
    /// A directory has the name of a file that belongs to a checkpoint.
    #[error("{}: is a directory with the name of a model's file; move it away, or choose another \
             output directory", .path.display())]
    InTheWay {
        /// The directory that is in the way.
        path: PathBuf,
    },
    /// The output directory holds a checkpoint and cannot change places with a new one.
    #[error("{}: holds a checkpoint ({found}) and cannot be replaced as a whole, because {why}; \
             choose another directory, or move the checkpoint away", .path.display())]
    Fixed {
        /// The output directory as it was given.
        path: PathBuf,
        /// A file of the checkpoint.
        found: String,
        /// What is in the way.
        why: &'static str,
    },
    /// Another file system in the output directory.
    #[error("{}: is where a file system is mounted, so the directory that holds it cannot be \
             replaced; unmount it, or choose another output directory", .path.display())]
    Mounted {
        /// The directory that is mounted there.
        path: PathBuf,
    },
    /// The output directory is where the config or the tokenizer is read from.
    #[error("{}: output directory holds the input {}; synthetic weights would replace the real \
             ones, so choose another", .path.display(), .input.display())]
    OutputIsInput {
        /// The output directory as it was given.
        path: PathBuf,
        /// The input that lies in it.
        input: PathBuf,
    },
    /// The disk or quota ran out.
    #[error("{}: no space left on the disk; the checkpoint needs {needed_bytes} bytes, so free \
             some or choose another directory", .path.display())]
    DiskFull {
        /// The file being written.
        path: PathBuf,
        /// Bytes of tensor data in the whole checkpoint.
        needed_bytes: u64,
        /// What the system says of it.
        #[source]
        source: io::Error,
    },
    /// A safetensors header could not be made.
    #[error("{}: cannot make the safetensors header", .path.display())]
    Header {
        /// The shard that was to be written.
        path: PathBuf,
        /// What the library says of it.
        #[source]
        source: safetensors::SafeTensorError,
    },
    /// Any other I/O error.
    #[error("{}: cannot {action}", .path.display())]
    Io {
        /// What was tried, such as "read" or "create directory".
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system says of it.
        #[source]
        source: io::Error,
    },
}

impl DirectoryError {
    /// A function for `map_err` that adds what was tried on which path.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    /// As [`DirectoryError::io`] for writes, where a full disk is told apart.
    pub(crate) fn write(path: &Path, needed_bytes: u64) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull {
                path,
                needed_bytes,
                source,
            },
            _ => Self::Io {
                action: "write",
                path,
                source,
            },
        }
    }
}
