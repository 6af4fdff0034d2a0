//! How many rows a product has, and whether that may matter to a row.

/// How many rows a product has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowCount {
    /// Rows.
    pub m: usize,
    /// Whether the order of additions is the same for any number of rows, so that a row's result is
    /// the same bits whatever it is computed beside; else it is what is fastest for `m`.
    pub alike: bool,
}

impl From<usize> for RowCount {
    /// What is fastest for `m` rows.
    fn from(m: usize) -> Self {
        Self { m, alike: false }
    }
}

impl RowCount {
    /// How many rows decide which kernel multiplies, and in which order it adds up.
    pub(super) fn like(self) -> usize {
        if self.alike { 1 } else { self.m }
    }
}
