//! What can go wrong while a model is read.

use std::path::{Path, PathBuf};

/// What a function of this library gives back: a value, or an [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Why a checkpoint or a .smq file cannot be read as a model: one lower-case sentence each.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file that the system refused something of.
        path: PathBuf,
        /// What was being done, as an infinitive.
        action: &'static str,
        /// What the system says of it.
        source: std::io::Error,
    },
    /// The container is damaged or is not a .smq file.
    #[error(transparent)]
    Format(Box<smq_format::Error>),
    /// A directory without weights.
    #[error("{}: {problem}", dir.display())]
    NoWeights {
        /// The directory that was opened.
        dir: PathBuf,
        /// What it holds instead, and what to do.
        problem: String,
    },
    /// The shard index lists a file that is not there.
    #[error(
        "{}: shard {shard} is missing, though {index} lists it; download it again, or remove \
         {index} and rename the file that holds the whole model, if there is one, to \
         model.safetensors",
        dir.display()
    )]
    MissingShard {
        /// The directory of the checkpoint.
        dir: PathBuf,
        /// The file that is not there.
        shard: String,
        /// Name of the shard index that lists it.
        index: String,
    },
    /// The shard index and the shards disagree.
    #[error("{}: {problem}", path.display())]
    ShardIndex {
        /// The shard index, which was read.
        path: PathBuf,
        /// What it says, and what the shards have in its place.
        problem: String,
    },
    /// A file that is not safetensors, or a damaged one.
    #[error("{}: not a complete safetensors file: {reason}; download it again", path.display())]
    Safetensors {
        /// The file that was read.
        path: PathBuf,
        /// What the parser found.
        reason: String,
    },
    /// A checkpoint or one of its files cannot be used.
    #[error("{}: {message}", path.display())]
    Model {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong and what was expected.
        message: String,
    },
    /// A family of models that is not supported.
    #[error(
        "config.json: {found}, but only {} are supported",
        crate::config::supported()
    )]
    Architecture {
        /// What config.json says: the key and its value.
        found: String,
    },
    /// A file beside the weights, or inside a .smq, is not what it should be.
    #[error("{file}: {problem}")]
    File {
        /// The file: its path, or `model.smq: embedded config.json`.
        file: String,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// A value in config.json that is not implemented or that contradicts another one.
    #[error("config.json: {0}")]
    Config(String),
    /// A tensor is absent or does not fit the configuration.
    #[error("tensor {name}: {message}")]
    Tensor {
        /// Name of the tensor in the checkpoint.
        name: String,
        /// What is wrong and what was expected.
        message: String,
    },
    /// The tokenizer refused its file or a text.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The chat template could not be rendered.
    #[error("chat template: {0}")]
    Template(String),
    /// A generation setting that is malformed, or that asks for what is not implemented.
    #[error("{file}: {message}")]
    Generation {
        /// The file that holds it.
        file: &'static str,
        /// The key, its value and what was expected.
        message: String,
    },
}

impl From<smq_format::Error> for Error {
    fn from(error: smq_format::Error) -> Self {
        Self::Format(Box::new(error))
    }
}

impl Error {
    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io {
            path,
            action,
            source,
        }
    }

    /// An [`Error::Model`], of a path and a message that names what was expected.
    pub fn model(path: impl Into<PathBuf>, message: impl Into<String>) -> Self {
        Self::Model {
            path: path.into(),
            message: message.into(),
        }
    }

    /// An [`Error::File`], of a place and what is wrong there.
    pub fn file(file: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::File {
            file: file.into(),
            problem: problem.into(),
        }
    }

    /// The same error of a value in config.json, with the file's place; any other as it is.
    pub(crate) fn in_config(self, file: impl FnOnce() -> String) -> Self {
        match self {
            Self::Config(problem) => Self::file(file(), problem),
            other => other,
        }
    }

    /// An [`Error::Tensor`], of a name and a message that names what was expected.
    pub fn tensor(name: &str, message: impl Into<String>) -> Self {
        Self::Tensor {
            name: name.to_owned(),
            message: message.into(),
        }
    }
}
