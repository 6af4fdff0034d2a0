//! What the CPU reference rounds its activations to.

use half::bf16;

/// What activations are rounded to between f32 computations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// Nothing is rounded.
    #[default]
    F32,
    /// To bf16, half to even, what a GPU engine holds in bf16: every matrix product's input, the
    /// outputs of qkv and gate_up, queries and keys again after the rotation, and attention
    /// weights. Sums, norms, the residual stream and logits stay f32.
    Bf16,
}

impl Precision {
    pub(crate) fn round(self, values: &mut [f32]) {
        if self == Self::Bf16 {
            for v in values {
                *v = bf16::from_f32(*v).to_f32();
            }
        }
    }
}
