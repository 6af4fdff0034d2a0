//! What a prompt's kernels hand each other.

use super::memory::Span;

/// A buffer of activation rows, bf16 `[capacity, stride]`, stride in elements.
#[derive(Debug, Clone, Copy)]
pub struct Activations {
    /// Its memory.
    pub span: Span,
    /// Rows that fit.
    pub capacity: usize,
    /// Elements from a row to the next: the columns rounded up to 128.
    pub stride: usize,
}
