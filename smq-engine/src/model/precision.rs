//! What the CPU reference rounds its activations to.

use half::bf16;

use crate::linear::Matrix;

/// What activations are rounded to between f32 computations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// Nothing is rounded.
    #[default]
    F32,
    /// To bf16, half to even, what a GPU engine holds in bf16: every matrix product's input, the
    /// outputs of qkv and gate_up, queries and keys again after the rotation, and attention
    /// weights. Sums, norms, the residual stream and logits stay f32. NF4 weights are rounded to
    /// bf16 as well, as bitsandbytes dequantizes them for a model in bf16.
    Bf16,
}

impl Precision {
    pub(crate) fn weights(self, matrix: Matrix<'_>) -> Matrix<'_> {
        match self {
            Self::F32 => matrix,
            Self::Bf16 => matrix.in_bf16(),
        }
    }

    pub(crate) fn round(self, values: &mut [f32]) {
        if self == Self::Bf16 {
            for v in values {
                *v = bf16::from_f32(*v).to_f32();
            }
        }
    }
}
