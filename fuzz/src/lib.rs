//! What the fuzz targets share: where inputs are written, and mutators that know the formats.
//!
//! Hashes stop a mutator that does not know them at the first check. [`mutate_smq`] therefore takes
//! a file apart, mutates one part and puts the file together again with fitting hashes, lengths and
//! offsets; what the target gets, and what a crash leaves, is always a plain file.

mod checkpoint;
mod json;
mod naive;
mod parts;
mod safetensors;
mod smq;

use std::path::PathBuf;

use tempfile::TempDir;

pub use checkpoint::{TOKENIZER, weights, write_files};
pub use naive::dequantize;
pub use parts::{Kind, Known, Parts, change_json, mutate_parts};
pub use safetensors::mutate_safetensors;
pub use smq::{Hashes, mutate_smq};

/// Defines a target: libFuzzer's entry points around `run`, which gets the input, and around
/// `mutate`, which gets the input, the most bytes that it may have, random numbers and libFuzzer's
/// own mutations, and returns the next input.
#[macro_export]
macro_rules! target {
    (mutate: $mutate:expr, run: $run:expr $(,)?) => {
        ::libfuzzer_sys::fuzz_mutator!(|data: &mut [u8],
                                        size: usize,
                                        max_size: usize,
                                        seed: u32| {
            let own = ::libfuzzer_sys::fuzzer_mutate;
            $crate::mutator(data, size, max_size, seed, own, $mutate)
        });
        ::libfuzzer_sys::fuzz_target!(|data: &[u8]| $run(data));
    };
}

/// A directory for what one input needs on disk, which goes away with the value.
///
/// It is made in `TMPDIR` where that is set, and else in memory where the system has `/dev/shm`. A
/// crash ends the process before the value is dropped; `run.sh` therefore sets `TMPDIR` to a
/// directory that it removes.
pub fn scratch() -> TempDir {
    let memory = PathBuf::from("/dev/shm");
    let parent = match std::env::var_os("TMPDIR") {
        None if memory.is_dir() => memory,
        Some(_) | None => std::env::temp_dir(),
    };
    let dir = tempfile::Builder::new()
        .prefix("smq-fuzz-")
        .tempdir_in(parent);
    dir.expect("the scratch directory can be made")
}

/// A number that depends on every byte of an input: options are chosen by it, so that one corpus
/// reaches them all.
pub fn fold(data: &[u8]) -> usize {
    let next = |n: usize, b: &u8| n.wrapping_mul(31).wrapping_add(usize::from(*b));
    data.iter().fold(0, next)
}

/// The mutator's own random numbers (xorshift), from libFuzzer's seed.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// Starts from a seed.
    pub fn new(seed: u32) -> Self {
        Random(u64::from(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `n`, which is at least 1.
    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % n
    }

    /// One of `items`, which is not empty.
    pub fn pick<T: Clone>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())].clone()
    }
}

/// libFuzzer's mutations on `bytes`, which may grow by up to `growth` bytes.
pub type Mutate<'a> = &'a mut dyn FnMut(&mut Vec<u8>, usize);

/// The body of a target's `fuzz_mutator!`: `change` gets the input, its limit, random numbers and
/// libFuzzer's own mutations (`fuzzer_mutate`).
pub fn mutator(
    data: &mut [u8],
    size: usize,
    max_size: usize,
    seed: u32,
    fuzzer_mutate: fn(&mut [u8], usize, usize) -> usize,
    change: impl FnOnce(&[u8], usize, &mut Random, Mutate) -> Vec<u8>,
) -> usize {
    let mut random = Random::new(seed);
    let mut mutate = |bytes: &mut Vec<u8>, growth: usize| {
        let size = bytes.len();
        bytes.resize((size + growth).max(1), 0);
        let limit = bytes.len();
        let new_size = fuzzer_mutate(bytes, size, limit);
        bytes.truncate(new_size);
    };
    let limit = max_size.min(data.len());
    let out = change(&data[..size], limit, &mut random, &mut mutate);
    if out.len() > limit {
        return size;
    }
    data[..out.len()].copy_from_slice(&out);
    out.len()
}
