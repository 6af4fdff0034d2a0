//! A decoder taken apart at its products: what each of them reads, one window of tokens at a time, for
//! whoever wants to see inputs or put other weights in a product's place.

use std::fs::File;

use rayon::prelude::*;

use super::cache::{KvCache, ONE_PAGE};
use super::rope::RopeTables;
use super::values::{Values, file_bytes};
use super::{Decoder, Rows};
use crate::error::Result;
use crate::kv::KvCacheFormat;
use crate::linear::{self, Matrix};

/// A set of products that share their input, in the order in which a layer computes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Queries, keys and values, from the normed residual stream.
    Qkv,
    /// The attention's output projection.
    O,
    /// Gate and up, from the normed residual stream.
    GateUp,
    /// The MLP's output projection.
    Down,
}

impl Stage {
    /// All of a layer, in order.
    pub const ALL: [Self; 4] = [Self::Qkv, Self::O, Self::GateUp, Self::Down];
}

/// A window of tokens, one sequence from its first position on, on its way through the layers.
#[derive(Debug)]
pub struct Window {
    tokens: usize,
    /// The residual stream, `[tokens, hidden]`.
    x: Values,
    /// What the next stage's products read, `[tokens, in]`.
    input: Values,
}

impl Window {
    /// Tokens.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// What the next stage's products read, `[tokens, in]`.
    #[must_use]
    pub fn input(&self) -> &[f32] {
        &self.input
    }
}

impl<'a> Decoder<'a> {
    /// The window of `tokens` before the first layer; [`Decoder::enter_layer`] comes next.
    ///
    /// # Errors
    /// [`Error::Input`](crate::Error::Input) for a token outside the vocabulary.
    pub fn window(&self, tokens: &[u32]) -> Result<Window> {
        Ok(Window {
            tokens: tokens.len(),
            x: Values::Memory(self.embed(tokens)?),
            input: Values::Memory(Vec::new()),
        })
    }

    /// As [`Decoder::window`], but its values are kept in `file`: the first window's from 0 on, the
    /// next one's [`Decoder::window_file_bytes`] later, all of which have been allocated.
    ///
    /// # Errors
    /// As [`Decoder::window`], and if the system does not map the file.
    pub fn window_in_file(&self, tokens: &[u32], file: &File, offset: u64) -> Result<Window> {
        let count = tokens.len();
        let hidden = count * self.config.hidden;
        let mut x = Values::in_file(file, offset, hidden)?;
        x.replace(self.embed(tokens)?);
        let input_at = offset + file_bytes(hidden);
        Ok(Window {
            tokens: count,
            x,
            input: Values::in_file(file, input_at, count * self.most_features())?,
        })
    }

    /// Bytes of a file that a window of so many tokens takes.
    #[must_use]
    pub fn window_file_bytes(&self, tokens: usize) -> u64 {
        file_bytes(tokens * self.config.hidden) + file_bytes(tokens * self.most_features())
    }

    /// Input features of the stage that has most.
    fn most_features(&self) -> usize {
        let c = &self.config;
        c.hidden.max(c.heads * c.head_dim).max(c.intermediate)
    }

    /// Decoder layers.
    #[must_use]
    pub fn layer_count(&self) -> usize {
        self.layers.len()
    }

    /// The matrices of a stage, to be stacked in this order; all read the same input.
    #[must_use]
    pub fn stage_matrices(&self, layer: usize, stage: Stage) -> &[Matrix<'a>] {
        let layer = &self.layers[layer];
        let projection = match stage {
            Stage::Qkv => &layer.qkv,
            Stage::O => &layer.o,
            Stage::GateUp => &layer.gate_up,
            Stage::Down => &layer.down,
        };
        &projection.matrices
    }

    /// Makes the input of a layer's first stage.
    pub fn enter_layer(&self, layer: usize, window: &mut Window) {
        let layer = &self.layers[layer];
        let input = layer.enter_attention(&self.config, self.precision, &window.x);
        window.input.replace(input);
    }

    /// Multiplies the windows' inputs with `matrices`, which stand for those of the stage, and makes
    /// the inputs of the next one. Windows do not depend on each other.
    pub fn pass(
        &self,
        layer: usize,
        stage: Stage,
        matrices: &[Matrix<'_>],
        windows: &mut [Window],
    ) {
        windows.par_iter_mut().for_each(|window| {
            let product = linear::stacked(&window.input, window.tokens, matrices);
            self.leave_stage(layer, stage, product, window);
        });
    }

    /// What the head reads, `[tokens, hidden]`, of a window that has passed every layer.
    #[must_use]
    pub fn head_input(&self, window: &Window) -> Vec<f32> {
        self.last_normed(&window.x)
    }

    /// Takes what a stage's products gave, `[tokens, sum of rows]`, and makes the input of the
    /// layer's next stage, of which there is none behind [`Stage::Down`].
    fn leave_stage(&self, layer: usize, stage: Stage, mut product: Vec<f32>, window: &mut Window) {
        let (c, precision, index) = (&self.config, self.precision, layer);
        let layer = &self.layers[index];
        let input = match stage {
            Stage::Qkv => {
                let mut cache = KvCache::new(c, KvCacheFormat::F32, 1, window.tokens);
                let mut rope = RopeTables::new(c, c.rope.is_long(window.tokens));
                rope.extend_to(0, window.tokens);
                let rows = Rows {
                    count: window.tokens,
                    past: 0,
                    table: ONE_PAGE,
                    rope: &rope,
                };
                layer.attended(c, precision, &mut product, &mut cache, &[rows])
            }
            Stage::O => {
                layer.leave_attention(c, &mut window.x, product);
                layer.enter_mlp(c, precision, &window.x)
            }
            Stage::GateUp => layer.activated(c, precision, &mut product),
            Stage::Down => {
                layer.leave_mlp(c, &mut window.x, product);
                Vec::new()
            }
        };
        window.input.replace(input);
    }
}
