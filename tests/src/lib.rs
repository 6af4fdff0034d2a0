//! What the end-to-end tests share: where the fixtures are, and checkpoints made on the spot.

pub mod corrupt;

use std::path::{Path, PathBuf};

/// A file or directory under `tests/fixtures`.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(name)
}

/// The bundled checkpoint: a small, really trained Phi-3.
pub fn phi3_tiny() -> PathBuf {
    fixture("phi3-tiny")
}

/// One of the fixture's JSON files.
pub fn json(path: &Path) -> std::io::Result<serde_json::Value> {
    Ok(serde_json::from_slice(&std::fs::read(path)?)?)
}

/// A program of the workspace, beside the directory of the test that runs.
///
/// # Errors
/// With how to build it, if it is not there.
pub fn program(name: &str) -> std::io::Result<PathBuf> {
    let mut path = std::env::current_exe()?;
    path.pop();
    path.set_file_name(name);
    match path.exists() {
        true => Ok(path),
        false => Err(std::io::Error::new(
            std::io::ErrorKind::NotFound,
            format!(
                "{} is not there: cargo test --workspace builds it, as does cargo build --workspace",
                path.display()
            ),
        )),
    }
}
