//! BLAKE3 of every source file, of which any thread hashes any part in any order: beside the
//! quantizer, which reads the same bytes, so that a cold file is read once.
//!
//! BLAKE3 is a tree, and blocks of a power of two of its chunks of 1,024 bytes are subtrees of it.

use std::ops::Range;
use std::sync::OnceLock;

use blake3::Hasher;
use blake3::hazmat::{
    ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root,
};
use rayon::prelude::*;

use crate::source::Checkpoint;
use crate::tensor::SourceTensor;

/// Bytes of a block: wide enough that its hash fills the widest instructions, and few enough that
/// sixteen threads share a tensor.
const BLOCK_BYTES: usize = 1 << 20;

/// Hashes of a checkpoint's files, as far as they are known.
pub(crate) struct SourceHasher<'a> {
    files: Vec<FileHasher<'a>>,
}

impl<'a> SourceHasher<'a> {
    pub(crate) fn new(checkpoint: &'a Checkpoint) -> Self {
        let shards = checkpoint.shards().iter();
        SourceHasher {
            files: shards
                .map(|shard| FileHasher::new(shard.bytes(), BLOCK_BYTES))
                .collect(),
        }
    }

    /// Hashes the tensor's part of its file, which is being read anyway.
    pub(crate) fn read(&self, tensor: &SourceTensor) {
        self.files[tensor.shard].hash_range(tensor.range.clone());
    }

    /// The hashes, in the order of the files; what nobody has read is read now.
    pub(crate) fn finish(&self) -> Vec<[u8; 32]> {
        self.files.iter().map(FileHasher::finish).collect()
    }
}

/// The hash of one file, in blocks.
struct FileHasher<'a> {
    bytes: &'a [u8],
    block_bytes: usize,
    /// The chaining value of each block, once it is known.
    blocks: Vec<OnceLock<ChainingValue>>,
}

impl<'a> FileHasher<'a> {
    /// `block_bytes` is a power of two, and at least a chunk's 1,024.
    fn new(bytes: &'a [u8], block_bytes: usize) -> Self {
        // A file of one block is its own root, which is not hashed as a subtree is.
        let blocks = match bytes.len().div_ceil(block_bytes) {
            0 | 1 => 0,
            blocks => blocks,
        };
        Self {
            bytes,
            block_bytes,
            blocks: (0..blocks).map(|_| OnceLock::new()).collect(),
        }
    }

    /// Hashes the blocks that start in `range`, so that neighbours share none.
    fn hash_range(&self, range: Range<usize>) {
        let end = self.blocks.len();
        let first = range.start.div_ceil(self.block_bytes).min(end);
        let last = range.end.div_ceil(self.block_bytes).min(end);
        (first..last.max(first)).into_par_iter().for_each(|block| {
            self.block(block);
        });
    }

    fn block(&self, block: usize) -> &ChainingValue {
        self.blocks[block].get_or_init(|| {
            let start = block * self.block_bytes;
            let end = self.bytes.len().min(start + self.block_bytes);
            let mut hasher = Hasher::new();
            hasher.set_input_offset(start as u64);
            hasher.update(&self.bytes[start..end]);
            hasher.finalize_non_root()
        })
    }

    fn finish(&self) -> [u8; 32] {
        if self.blocks.is_empty() {
            return *blake3::hash(self.bytes).as_bytes();
        }
        self.hash_range(0..self.bytes.len());
        let (left, right) = self.children(0..self.blocks.len());
        *merge_subtrees_root(&left, &right, Mode::Hash).as_bytes()
    }

    /// The two subtrees of a tree of more than one block: the left one has the largest power of
    /// two of blocks that leaves the right one any.
    fn children(&self, blocks: Range<usize>) -> (ChainingValue, ChainingValue) {
        let middle = blocks.start + blocks.len().next_power_of_two() / 2;
        let subtree = |blocks: Range<usize>| match blocks.len() {
            1 => *self.block(blocks.start),
            _ => {
                let (left, right) = self.children(blocks);
                merge_subtrees_non_root(&left, &right, Mode::Hash)
            }
        };
        (subtree(blocks.start..middle), subtree(middle..blocks.end))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Lengths about every block boundary, and parts hashed in any order or not at all.
        #[test]
        fn is_the_hash_of_the_file(
            blocks in 0usize..40,
            around in -3isize..=3,
            block_bytes in prop::sample::select(vec![1024usize, 4096]),
            parts in prop::collection::vec((0usize..200_000, 0usize..50_000), 0..6),
            seed: u8,
        ) {
            let length = (blocks * block_bytes).saturating_add_signed(around);
            let bytes: Vec<u8> = (0..length).map(|i| (i * 7 + i / 251) as u8 ^ seed).collect();
            let hasher = FileHasher::new(&bytes, block_bytes);
            for (start, part) in parts {
                let start = start.min(length);
                hasher.hash_range(start..length.min(start + part));
            }
            prop_assert_eq!(hasher.finish(), *blake3::hash(&bytes).as_bytes());
        }
    }
}
