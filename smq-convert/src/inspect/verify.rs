//! Recomputes every hash of a file, with a progress bar where someone watches.

use indicatif::{ProgressBar, ProgressStyle};
use smq_format::{Defect, SmqFile};

/// What checking every hash and every code found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Blobs hashed: embedded files and each tensor's.
    pub blobs: usize,
    /// Bytes of these blobs together.
    pub bytes: u64,
    /// All that is wrong, in file order.
    pub defects: Vec<Defect>,
}

/// Verifies an open file. The bar goes to stderr, and only to a terminal.
pub fn verify(file: &SmqFile) -> Verified {
    let index = file.index();
    let files = index.files.iter().map(|f| f.length);
    let tensors = index.tensors.iter().flat_map(|t| &t.blobs);
    let lengths: Vec<u64> = files.chain(tensors.map(|b| b.length)).collect();
    let bytes = lengths.iter().sum();
    let bar = byte_bar(bytes);
    let defects = file.verify(|done| bar.inc(done));
    bar.finish_and_clear();
    Verified {
        blobs: lengths.len(),
        bytes,
        defects,
    }
}

/// A bar over `total_bytes` with rate and time left, on stderr, where that is a terminal.
pub fn byte_bar(total_bytes: u64) -> ProgressBar {
    const TEMPLATE: &str = "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    let bar = ProgressBar::new(total_bytes);
    match ProgressStyle::with_template(TEMPLATE) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar, // the template is constant; the default style still serves
    }
}
