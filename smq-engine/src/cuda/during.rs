//! Errors that say what was being done.

use cudarc::driver::{DriverError, sys};

use crate::error::{Error, Result};

/// Says what failed: `result.during("copying the weights")`.
pub(super) trait During<T> {
    /// Turns a failure into an [`Error::Cuda`] that starts with `what`.
    ///
    /// # Errors
    /// If `self` is one.
    fn during(self, what: &str) -> Result<T>;
}

impl<T> During<T> for std::result::Result<T, DriverError> {
    fn during(self, what: &str) -> Result<T> {
        self.map_err(|error| {
            let name = format!("{:?}", error.0);
            let reason = error
                .error_string()
                .map(|s| s.to_string_lossy().into_owned());
            let reason = reason.unwrap_or_else(|_| "unknown reason".into());
            let remedy = match error.0 {
                sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                    "; ask for fewer tokens with --context, or use another device"
                }
                _ => "",
            };
            Error::Cuda(format!("{what}: {reason} ({name}){remedy}"))
        })
    }
}

impl During<()> for sys::CUresult {
    fn during(self, what: &str) -> Result<()> {
        self.result().during(what)
    }
}
