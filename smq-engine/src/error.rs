//! What can go wrong between an open model and a generated token.

use std::path::PathBuf;

/// The library's result.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of loading or running a model: one lower-case sentence each.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model cannot be read.
    #[error(transparent)]
    Model(#[from] smq_model::Error),
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The request cannot be served: an empty prompt, a text too short, a context too long.
    #[error("{0}")]
    Input(String),
    /// The GPU, its driver or a CUDA library failed or is not there.
    #[error("{0}")]
    Cuda(String),
    /// A step that computed several sequences failed, this one's among them.
    #[error("{0}")]
    Step(String),
}

impl From<smq_format::Error> for Error {
    fn from(error: smq_format::Error) -> Self {
        Self::Model(error.into())
    }
}

impl Error {
    /// [`Error::Io`] of the file at `path`.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn tensor(name: &str, message: impl Into<String>) -> Self {
        Self::Model(smq_model::Error::tensor(name, message))
    }

    pub(crate) fn config(message: impl Into<String>) -> Self {
        Self::Model(smq_model::Error::Config(message.into()))
    }
}
