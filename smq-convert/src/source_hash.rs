//! BLAKE3 of every source file, advanced alongside the quantizer so that a cold file is read once.

use crate::source::Checkpoint;
use crate::tensor::SourceTensor;

/// Incremental hashes of a checkpoint's files.
pub(crate) struct SourceHasher<'a> {
    checkpoint: &'a Checkpoint,
    files: Vec<(blake3::Hasher, usize)>,
}

impl<'a> SourceHasher<'a> {
    pub(crate) fn new(checkpoint: &'a Checkpoint) -> Self {
        let files = checkpoint.shards().iter();
        SourceHasher {
            checkpoint,
            files: files.map(|_| (blake3::Hasher::new(), 0)).collect(),
        }
    }

    /// Hashes the tensor's file up to the tensor's end, which is being read anyway.
    pub(crate) fn advance(&mut self, tensor: &SourceTensor) {
        self.advance_to(tensor.shard, tensor.range.end);
    }

    /// Hashes what is left of every file.
    pub(crate) fn finish_all(&mut self) {
        for file in 0..self.files.len() {
            self.advance_to(file, self.checkpoint.shards()[file].bytes().len());
        }
    }

    /// The hashes, in the order of the files; after [`Self::finish_all`].
    pub(crate) fn hashes(&self) -> impl Iterator<Item = [u8; 32]> + '_ {
        self.files
            .iter()
            .map(|(hasher, _)| *hasher.finalize().as_bytes())
    }

    fn advance_to(&mut self, file: usize, end: usize) {
        let bytes = self.checkpoint.shards()[file].bytes();
        let (hasher, done) = &mut self.files[file];
        if end > *done {
            hasher.update_rayon(&bytes[*done..end]);
            *done = end;
        }
    }
}
