//! Writes the page to where it was asked for.

use std::path::{Path, PathBuf};

use smq_format::Output;

use super::page;
use crate::inspect::error::InspectError;
use crate::inspect::report::Report;

/// Writes the page of `report` to `target`, replacing an older page; returns its length in bytes.
///
/// # Errors
/// [`InspectError::File`] where the target cannot be written, is the .smq file or no regular one;
/// [`InspectError::Plot`]. The target is then as it was.
pub fn write_page(report: &Report, target: &Path) -> Result<u64, InspectError> {
    let output = Output::create(target, &[PathBuf::from(&report.path)])?;
    let page = page(report)?;
    output.write(page.as_bytes())?;
    Ok(page.len() as u64)
}
