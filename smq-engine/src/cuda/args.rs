//! A kernel's arguments.

use std::ffi::c_void;

use bytemuck::NoUninit;

use crate::error::{Error, Result};

/// A kernel's arguments, in order.
///
/// ```
/// # use smq_engine::cuda::Args;
/// let args = Args::new().ptr(0x7f00).i32(3072).f32(1e-5);
/// assert_eq!(args.widths(), [8, 4, 4]);
/// ```
#[derive(Debug, Clone, Default)]
pub struct Args {
    /// Values, each from its own word on, lowest byte first.
    words: Vec<u64>,
    /// First word and bytes of each argument.
    arguments: Vec<(usize, usize)>,
}

impl Args {
    /// None so far.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A device address; 0 is a null pointer.
    #[must_use]
    pub fn ptr(self, address: u64) -> Self {
        self.word(address, 8)
    }

    /// A signed 32-bit integer.
    #[must_use]
    pub fn i32(self, value: i32) -> Self {
        self.word(u64::from(value.cast_unsigned()), 4)
    }

    /// An unsigned 32-bit integer.
    #[must_use]
    pub fn u32(self, value: u32) -> Self {
        self.word(u64::from(value), 4)
    }

    /// An unsigned 64-bit integer.
    #[must_use]
    pub fn u64(self, value: u64) -> Self {
        self.word(value, 8)
    }

    /// A 32-bit float.
    #[must_use]
    pub fn f32(self, value: f32) -> Self {
        self.word(u64::from(value.to_bits()), 4)
    }

    /// A structure, laid out as the kernel's (`repr(C)`).
    #[must_use]
    pub fn value<T: NoUninit>(mut self, value: &T) -> Self {
        let bytes = bytemuck::bytes_of(value);
        self.arguments.push((self.words.len(), bytes.len()));
        let words = bytes.chunks(8).map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_ne_bytes(word)
        });
        self.words.extend(words);
        self
    }

    /// Bytes of each argument.
    #[must_use]
    pub fn widths(&self) -> Vec<usize> {
        self.arguments.iter().map(|&(_, bytes)| bytes).collect()
    }

    fn word(mut self, value: u64, bytes: usize) -> Self {
        self.arguments.push((self.words.len(), bytes));
        // The driver reads the first bytes of the word.
        self.words.push(value.to_le());
        self
    }

    /// Refuses arguments of another number or width than the kernel declares.
    pub(super) fn check(&self, kernel: &str, declared: &[usize]) -> Result<()> {
        let given = self.arguments.iter().map(|&(_, bytes)| bytes);
        if given.eq(declared.iter().copied()) {
            return Ok(());
        }
        let given = self.widths();
        Err(Error::Cuda(format!(
            "kernel {kernel} takes arguments of {declared:?} bytes, given were {given:?}"
        )))
    }

    /// Where each argument starts, as the driver wants them.
    pub(super) fn pointers(&self) -> Vec<*mut c_void> {
        let start = |&(word, _): &(usize, usize)| self.words.as_ptr().wrapping_add(word);
        let starts = self.arguments.iter().map(start);
        starts.map(|p| p.cast_mut().cast()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_lie_as_the_driver_reads_them() {
        let args = Args::new()
            .ptr(0x1122_3344_5566_7788)
            .i32(-2)
            .f32(1.5)
            .u32(7)
            .value(&[1_u32, 2, 3])
            .u64(9);
        assert_eq!(args.widths(), [8, 4, 4, 4, 12, 8]);
        let bytes = |i: usize| {
            let (word, width) = args.arguments[i];
            let all: Vec<u8> = args.words[word..]
                .iter()
                .flat_map(|w| w.to_ne_bytes())
                .collect();
            all[..width].to_vec()
        };
        assert_eq!(bytes(0), 0x1122_3344_5566_7788_u64.to_le_bytes());
        assert_eq!(bytes(1), (-2_i32).to_le_bytes());
        assert_eq!(bytes(2), 1.5_f32.to_le_bytes());
        assert_eq!(bytes(3), 7_u32.to_le_bytes());
        assert_eq!(bytes(4), [1_u32, 2, 3].map(u32::to_le_bytes).concat());
        assert_eq!(bytes(5), 9_u64.to_le_bytes());
    }

    #[test]
    fn other_arguments_than_declared_are_refused() {
        let args = Args::new().ptr(1).i32(2);
        assert!(args.check("k", &[8, 4]).is_ok());
        for declared in [&[8][..], &[8, 8], &[8, 4, 4], &[]] {
            let message = args.check("k", declared).unwrap_err().to_string();
            assert!(message.contains("given were [8, 4]"), "{message}");
        }
    }
}
