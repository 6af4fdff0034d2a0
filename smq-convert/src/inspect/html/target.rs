//! Writes the page: a temporary file beside the target, then a rename.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use smq_format::header::MAGIC;

use super::page;
use crate::inspect::error::InspectError;
use crate::inspect::report::Report;

/// Writes the page of `report` to `target`, replacing an older page; returns its length in bytes.
///
/// # Errors
/// [`InspectError::Target`] where the target is a .smq or no regular file; [`InspectError::Io`];
/// [`InspectError::Plot`]. The target is then as it was.
pub fn write_page(report: &Report, target: &Path) -> Result<u64, InspectError> {
    let resolved = resolve(target)?;
    let page = page(report)?;
    let io = |action| {
        move |source| InspectError::Io {
            path: target.to_path_buf(),
            action,
            source,
        }
    };
    let directory = match resolved.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".smq-inspect.").suffix(".html-partial");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // As any new file: the umask decides, not tempfile's private default.
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let mut temp = builder
        .tempfile_in(directory)
        .map_err(io("create a temporary file beside it"))?;
    temp.write_all(page.as_bytes()).map_err(io("write it"))?;
    temp.persist(&resolved)
        .map_err(|e| io("rename the finished page to it")(e.error))?;
    Ok(page.len() as u64)
}

/// The file to replace: links followed, and nothing but an ordinary file that is no .smq.
fn resolve(target: &Path) -> Result<PathBuf, InspectError> {
    let refuse = |kind| InspectError::Target {
        path: target.to_path_buf(),
        kind,
    };
    let Ok(metadata) = std::fs::metadata(target) else {
        return Ok(target.to_path_buf());
    };
    if metadata.is_dir() {
        return Err(refuse("a directory"));
    }
    if !metadata.is_file() {
        return Err(refuse("not a regular file"));
    }
    let mut start = [0; MAGIC.len()];
    let read = std::fs::File::open(target).and_then(|mut f| f.read_exact(&mut start));
    if read.is_ok() && start == MAGIC {
        return Err(refuse("an .smq file"));
    }
    target.canonicalize().map_err(|source| InspectError::Io {
        path: target.to_path_buf(),
        action: "resolve it",
        source,
    })
}
