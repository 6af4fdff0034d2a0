//! `measure.cu`: what memory alone allows.

use super::contract::Defines;

/// The kernel file.
pub const FILE: &str = "measure.cu";
/// Threads of a block.
pub const THREADS: usize = 512;

/// Its macros, for threads with `loads` words of 16 bytes in flight.
#[must_use]
pub fn defines(loads: usize) -> Defines {
    vec![("LOADS", loads as i64), ("THREADS", THREADS as i64)]
}
