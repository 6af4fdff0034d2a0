//! Errors as exceptions, with the sentences that the command line prints.

use std::io;
use std::path::Path;

use pyo3::exceptions::PyValueError;
use pyo3::{PyErr, import_exception};
use smq_format::{Defect, Error};

import_exception!(smq_format._errors, DamagedError);
import_exception!(smq_format._errors, SmqError);

/// The exception for an error: what the system refused is an `OSError`, such as
/// `FileNotFoundError`, and a file that breaks the format is a `DamagedError`.
pub(crate) fn exception(error: Error) -> PyErr {
    let sentence = error.to_string();
    match error {
        Error::Io { source, .. } => io::Error::new(source.kind(), sentence).into(),
        Error::Format { path, defect } => damaged(&path, &defect),
        Error::Write { .. }
        | Error::Exists(_)
        | Error::Directory { .. }
        | Error::NotAFile { .. }
        | Error::TooLong { .. }
        | Error::Changed(_)
        | Error::OutputIsInput { .. } => SmqError::new_err(sentence),
    }
}

/// The exception for a file that breaks the format.
pub(crate) fn damaged(path: &Path, defect: &Defect) -> PyErr {
    let path = path.to_string_lossy().into_owned();
    DamagedError::new_err((path, vec![defect.to_string()]))
}

/// The exception for the use of a file that was closed.
pub(crate) fn closed(path: &Path) -> PyErr {
    let path = path.display();
    PyValueError::new_err(format!(
        "{path} was closed; open it again, or stay within the with block"
    ))
}
