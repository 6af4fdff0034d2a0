//! Values that are kept in memory, or in a part of a file where memory is short.

use std::fs::File;
use std::ops::{Deref, DerefMut};

use memmap2::{MmapMut, MmapOptions};

use crate::error::{Error, Result};

/// What parts of a file begin at multiples of: a page of any system's.
const PAGE_BYTES: u64 = 1 << 16;

/// f32 values.
#[derive(Debug)]
pub(super) enum Values {
    /// In memory.
    Memory(Vec<f32>),
    /// In a file's part, of which the first `len` values count. The system keeps as much of it in
    /// memory as there is room for.
    File { map: MmapMut, len: usize },
}

/// Bytes of a file that up to `count` values take.
pub(super) fn file_bytes(count: usize) -> u64 {
    (4 * count as u64).next_multiple_of(PAGE_BYTES)
}

impl Values {
    /// None yet, with room for `count` in `file` from `offset` on, a multiple of [`PAGE_BYTES`].
    ///
    /// # Errors
    /// [`Error::Input`] if the system does not map it.
    pub(super) fn in_file(file: &File, offset: u64, count: usize) -> Result<Self> {
        let mut options = MmapOptions::new();
        options.offset(offset).len((4 * count).max(1));
        // SAFETY: the file is this process's own and has no name, so that nobody else changes it;
        // parts of it do not overlap, and all of it has been allocated.
        let map = unsafe { options.map_mut(file) };
        let map = map.map_err(|e| Error::Input(format!("mapping hidden states: {e}")))?;
        Ok(Self::File { map, len: 0 })
    }

    /// Takes other values in place of those that are there.
    pub(super) fn replace(&mut self, values: Vec<f32>) {
        match self {
            Self::Memory(there) => *there = values,
            Self::File { map, len } => {
                *len = values.len();
                bytemuck::cast_slice_mut(map)[..values.len()].copy_from_slice(&values);
            }
        }
    }
}

impl Deref for Values {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Self::Memory(values) => values,
            Self::File { map, len } => &bytemuck::cast_slice(map)[..*len],
        }
    }
}

impl DerefMut for Values {
    fn deref_mut(&mut self) -> &mut [f32] {
        match self {
            Self::Memory(values) => values,
            Self::File { map, len } => &mut bytemuck::cast_slice_mut(map)[..*len],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_in_a_file_are_those_that_were_put_there() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(2 * file_bytes(3)).unwrap();
        let mut both = [0, file_bytes(3)].map(|at| Values::in_file(&file, at, 3).unwrap());
        assert!(both[0].is_empty());
        both[0].replace(vec![1.0, 2.0, 3.0]);
        both[1].replace(vec![4.0]);
        both[0][1] += 0.5;
        assert_eq!(&both[0][..], [1.0, 2.5, 3.0]);
        assert_eq!(&both[1][..], [4.0]);
        let mut memory = Values::Memory(Vec::new());
        memory.replace(vec![5.0]);
        assert_eq!(&memory[..], [5.0]);
    }
}
