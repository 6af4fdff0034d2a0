//! A tensor of a checkpoint, before anything is read of it, and the parts of one that is int4
//! already.

mod packed;

use smq_format::Dtype;

pub(crate) use packed::{Layout, Packed, PackedView};

use crate::unread::Reader;

/// A tensor of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceTensor {
    /// Name of the tensor in the checkpoint.
    pub name: String,
    /// Row-major shape, `[out, in]` for a linear layer.
    pub shape: Vec<usize>,
    /// Element type; of an int4 tensor, of its scales.
    pub dtype: Dtype,
    /// Index of its shard.
    pub shard: usize,
    /// Bytes within the shard's file; of an int4 tensor, of its integers.
    pub range: std::ops::Range<usize>,
    /// What makes it an int4 tensor.
    pub(crate) packed: Option<Packed>,
    /// Who reads its elements: they lie in one file, or are put together.
    pub(crate) reader: Reader,
}

impl SourceTensor {
    /// Number of elements, which is the product of the shape.
    pub fn elems(&self) -> usize {
        self.shape.iter().product()
    }
}
