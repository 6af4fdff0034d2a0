//! A tensor of a checkpoint, before anything is read of it, and the parts of one that is int4
//! already.

mod packed;

use smq_format::Dtype;

pub(crate) use packed::{Layout, Packed, PackedView};

use crate::unread::Reader;

/// A tensor of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceTensor {
    /// Name.
    pub name: String,
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// Element type; of an int4 tensor, of its scales.
    pub dtype: Dtype,
    /// Index of its shard.
    pub shard: usize,
    /// Bytes within the shard's file; of an int4 tensor, of its integers.
    pub range: std::ops::Range<usize>,
    /// What makes it an int4 tensor.
    pub(crate) packed: Option<Packed>,
    /// Who reads it.
    pub(crate) reader: Reader,
}

impl SourceTensor {
    /// Number of elements.
    pub fn elems(&self) -> usize {
        self.shape.iter().product()
    }
}
