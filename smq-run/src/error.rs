//! What can go wrong between a model file and a generated token.

use std::path::PathBuf;

/// The library's result.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of loading or running a model: one lower-case sentence each.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The container is damaged or is not a .smq file.
    #[error(transparent)]
    Format(Box<smq_format::Error>),
    /// A checkpoint or one of its JSON files cannot be used.
    #[error("{}: {message}", path.display())]
    Model {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong and what was expected.
        message: String,
    },
    /// A value in config.json that this runner does not implement or that contradicts another one.
    #[error("config.json: {0}")]
    Config(String),
    /// A tensor is absent or does not fit the configuration.
    #[error("tensor {name}: {message}")]
    Tensor {
        /// The tensor's name.
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
    /// The request cannot be served: an empty prompt, a text too short, a context too long.
    #[error("{0}")]
    Input(String),
    /// The GPU, its driver or a CUDA library failed or is not there.
    #[error("{0}")]
    Cuda(String),
    /// The tensor library failed.
    #[error("candle: {0}")]
    Candle(#[from] candle_core::Error),
}

impl From<smq_format::Error> for Error {
    fn from(error: smq_format::Error) -> Self {
        Self::Format(Box::new(error))
    }
}

impl Error {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn model(path: impl Into<PathBuf>, message: impl Into<String>) -> Self {
        Self::Model {
            path: path.into(),
            message: message.into(),
        }
    }

    pub(crate) fn tensor(name: &str, message: impl Into<String>) -> Self {
        Self::Tensor {
            name: name.to_owned(),
            message: message.into(),
        }
    }
}
