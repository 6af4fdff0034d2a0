//! What can go wrong while a synthetic checkpoint is made.

use std::path::PathBuf;

use crate::directory::DirectoryError;

/// Why no checkpoint was written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SynthError {
    /// The config cannot be followed.
    #[error("{}: {problem}", .path.display())]
    Config {
        /// The config file as it was given.
        path: PathBuf,
        /// The key, its value and what was expected.
        problem: String,
    },
    /// The shard limit is zero.
    #[error("shard size is 0 bytes, expected at least 1")]
    ZeroShardBytes,
    /// The tokenizer directory holds no tokenizer.
    #[error("{}: no tokenizer.json in this directory", .path.display())]
    NoTokenizer {
        /// The tokenizer directory as it was given.
        path: PathBuf,
    },
    /// A file cannot be read.
    #[error(transparent)]
    Model(#[from] smq_model::Error),
    /// A file cannot be read, or the directory cannot be written.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}
