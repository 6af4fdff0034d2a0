//! What a config makes of a family's rules: numbers, by layer where layers differ.

use crate::rope::RopeConfig;

/// How far back the layers of a model see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Windows {
    /// A query of any layer sees this many latest positions, itself included; `None` sees all.
    Alike(Option<usize>),
    /// The same by layer, of which at least two differ.
    ByLayer(Vec<Option<usize>>),
}

/// Which of the layers rotate queries and keys, and by what.
#[derive(Debug, Clone, PartialEq)]
pub enum Rotations {
    /// All by the model's one rotary embedding.
    Alike,
    /// By layer, whether it rotates at all; at least one does not.
    Listed(Vec<bool>),
    /// Layers with a window by this one, the others by the model's.
    Windowed(RopeConfig),
}

/// Factors along the way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Multipliers {
    /// What the embedding's rows are multiplied with.
    pub embedding: f32,
    /// Of the products of queries and keys, before a soft cap.
    pub scores: f32,
    /// Of what attention and MLP add to the residual stream.
    pub residual: f32,
    /// What logits are divided by, before a soft cap.
    pub logits_divisor: f32,
}

/// Soft caps, `c tanh(x / c)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SoftCaps {
    /// The cap of the attention's scores.
    pub scores: Option<f32>,
    /// The cap of the logits.
    pub logits: Option<f32>,
}

impl Windows {
    /// The windows of layers that have these.
    pub(crate) fn of(layers: Vec<Option<usize>>) -> Self {
        let first = layers.first().copied().flatten();
        match layers.iter().all(|window| *window == first) {
            true => Self::Alike(first),
            false => Self::ByLayer(layers),
        }
    }

    /// Latest positions that a layer sees; `None` where it sees all.
    #[must_use]
    pub fn layer(&self, layer: usize) -> Option<usize> {
        match self {
            Self::Alike(window) => *window,
            Self::ByLayer(windows) => windows.get(layer).copied().flatten(),
        }
    }

    /// The window that all layers have; `None` where they see all, and where they differ.
    #[must_use]
    pub fn alike(&self) -> Option<usize> {
        match self {
            Self::Alike(window) => *window,
            Self::ByLayer(_) => None,
        }
    }
}

impl Multipliers {
    /// Of a model that scales its scores by `1 / sqrt(head_dim)` and nothing else.
    #[must_use]
    pub fn of_head_dim(head_dim: usize) -> Self {
        Self {
            embedding: 1.0,
            scores: 1.0 / (head_dim as f32).sqrt(),
            residual: 1.0,
            logits_divisor: 1.0,
        }
    }
}
