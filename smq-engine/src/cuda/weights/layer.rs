//! A decoder layer's weights on the GPU.

use super::DeviceMatrix;
use crate::cuda::memory::Span;

/// One decoder layer.
#[derive(Debug)]
pub(in crate::cuda) struct DeviceLayer {
    /// Weights of the norms.
    pub norms: DeviceNorms,
    /// One or three matrices, stored alike.
    pub qkv: Vec<DeviceMatrix>,
    /// Weights of the norms of queries and of keys, f32 `[head_dim]` or as long as all heads.
    pub qk_norm: Option<[Span; 2]>,
    /// The output projection.
    pub o: DeviceMatrix,
    /// One fused matrix, or gate and up, stored alike.
    pub gate_up: Vec<DeviceMatrix>,
    /// The MLP's output projection.
    pub down: DeviceMatrix,
    /// f32, as long as the products' rows together.
    pub biases: DeviceBiases,
}

/// Weights of a layer's norms, f32 `[hidden]` each, where there is one.
#[derive(Debug, Clone, Copy)]
pub(in crate::cuda) struct DeviceNorms {
    /// Of the input of attention.
    pub before_attention: Option<Span>,
    /// Of the attention's output.
    pub after_attention: Option<Span>,
    /// Of the input of the MLP.
    pub before_mlp: Option<Span>,
    /// Of the MLP's output.
    pub after_mlp: Option<Span>,
}

/// A layer's biases, where there are any.
#[derive(Debug, Clone, Copy)]
pub(in crate::cuda) struct DeviceBiases {
    /// Of queries, keys and values.
    pub qkv: Option<Span>,
    /// Of the attention's output.
    pub o: Option<Span>,
    /// Of gate and up.
    pub gate_up: Option<Span>,
    /// Of the MLP's output.
    pub down: Option<Span>,
}
