//! Two streams of windows through the layers, stage by stage: a prompt's pass, taken apart.

use std::slice;

use super::{Common, Sizes};
use crate::cuda::activations::Activations;
use crate::cuda::arena::Arena;
use crate::cuda::args::Args;
use crate::cuda::family::{leaves, rotation_of, rotations};
use crate::cuda::kernels::Call;
use crate::cuda::launch::Launch;
use crate::cuda::memory::Span;
use crate::cuda::prefill::attention::{Attention, ROPE_THREADS, Rows, TableRows, rope, table_call};
use crate::cuda::prefill::between::{Between, Joints, Left, Next, activation_call, qkv_args};
use crate::cuda::prefill::{ROW_THREADS, padded, row_defines};
use crate::cuda::rows::{RowProducts, Target};
use crate::cuda::weights::{DeviceLayer, DeviceMatrix, DeviceModel, Format};
use crate::error::{Error, Result};
use crate::kv::KvCode;
use crate::model::Stage;
use smq_model::ModelConfig;

/// Tokens whose products are made together, as far as whole windows go; bounds what lies between
/// two stages.
const CHUNK: usize = 8192;

/// One stream.
#[derive(Debug)]
struct Side {
    /// The residual stream, f32 `[tokens, hidden]`.
    x: Span,
    /// What qkv, gate and up read.
    normed: Activations,
    /// What follows attention or the activation: as many columns as that has.
    wide: Span,
}

/// Both, and what they share.
#[derive(Debug)]
pub(super) struct Streams {
    window: usize,
    windows: usize,
    plain: Side,
    quantized: Side,
    /// bf16 `[chunk, qkv]` or `[chunk, 2 intermediate]`.
    product: Span,
    /// bf16 `[window, heads head_dim]`.
    q: Span,
    /// bf16 `[kv_heads, window, head_dim]`.
    keys: Span,
    values: Span,
    /// f32 `[window, 2, rotary_dim / 2]` (`rope.cu`), of each rotary embedding that layers have.
    rotations: [Span; 2],
    /// f32 `[rotary_dim / 2]` of each.
    inv_freq: [Span; 2],
    /// f32 `[chunk, hidden]`: what leaves a block, where there is a kernel between.
    left: Span,
    /// i32, one a token.
    ids: Span,
    /// bf16, a stage's matrices one behind the other.
    stand_ins: Span,
    /// Which of them stand in for the model's.
    has_stand_in: Vec<bool>,
    /// After [`Streams::start`].
    compute: Option<Compute>,
}

/// What leads rows from a stage to the next.
#[derive(Debug)]
struct Compute {
    products: RowProducts,
    joints: Joints,
}

/// Refuses windows of several lengths, and tokens outside the vocabulary.
pub(super) fn check(c: &ModelConfig, windows: &[Vec<u32>]) -> Result<()> {
    let lengths: Vec<usize> = windows.iter().map(Vec::len).collect();
    if lengths.first().is_none_or(|l| *l == 0) || lengths.iter().any(|l| *l != lengths[0]) {
        return Err(Error::Input(
            "calibration's windows are not all of one length".into(),
        ));
    }
    match windows.iter().flatten().find(|id| **id as usize >= c.vocab) {
        None => Ok(()),
        Some(id) => Err(Error::Input(format!(
            "token id {id} is outside the model's vocabulary of {}",
            c.vocab
        ))),
    }
}

/// Input features of a stage.
pub(super) fn features(c: &ModelConfig, stage: Stage) -> usize {
    match stage {
        Stage::Qkv | Stage::GateUp => c.hidden,
        Stage::O => c.heads * c.head_dim,
        Stage::Down => c.intermediate,
    }
}

impl Streams {
    /// Takes the buffers.
    pub(super) fn take(arena: &mut Arena, c: &ModelConfig, sizes: &Sizes) -> Result<Self> {
        let tokens = sizes.tokens();
        let chunk = chunk_windows(sizes.window) * sizes.window;
        let columns = padded(c.heads * c.head_dim).max(padded(c.intermediate));
        let mut side = || -> Result<Side> {
            Ok(Side {
                x: arena.take(4 * tokens * c.hidden)?,
                normed: Activations {
                    span: arena.take(2 * tokens * padded(c.hidden))?,
                    capacity: tokens,
                    stride: padded(c.hidden),
                },
                wide: arena.take(2 * tokens * columns)?,
            })
        };
        let (plain, quantized) = (side()?, side()?);
        let cache = 2 * c.kv_heads * sizes.window * c.head_dim;
        let rotary = 4 * c.rope.rotary_dim;
        let others = usize::from(rotations(c).len() > 1);
        Ok(Self {
            window: sizes.window,
            windows: sizes.windows,
            plain,
            quantized,
            product: arena.take(2 * chunk * sizes.qkv.max(2 * sizes.intermediate))?,
            q: arena.take(2 * sizes.window * c.heads * c.head_dim)?,
            keys: arena.take(cache)?,
            values: arena.take(cache)?,
            rotations: [
                arena.take(sizes.window * rotary)?,
                arena.take(sizes.window * rotary * others)?,
            ],
            inv_freq: [arena.take(rotary / 2)?, arena.take(rotary / 2 * others)?],
            left: arena.take(if leaves(c) { 4 * chunk * c.hidden } else { 0 })?,
            ids: arena.take(4 * tokens)?,
            stand_ins: arena.take(2 * sizes.matrix_elems)?,
            has_stand_in: Vec::new(),
            compute: None,
        })
    }

    pub(super) fn tokens(&self) -> usize {
        self.window * self.windows
    }

    /// Embeds the windows, and tabulates the angles of a window's positions.
    pub(super) fn start(
        &mut self,
        common: &Common,
        model: &DeviceModel,
        products: RowProducts,
        windows: &[Vec<u32>],
    ) -> Result<()> {
        self.compute = Some(Compute {
            products,
            joints: Joints::new(&common.kernels, &common.config)?,
        });
        let (c, stream) = (&common.config, common.gpu().main());
        let ids: Vec<u32> = windows.concat();
        let embed = Call {
            kernel: common
                .kernels
                .get("rows.cu", rows_defines(common), "embed_rows")?,
            launch: Launch::new(ids.len(), ROW_THREADS).overlap(),
            args: Args::new()
                .ptr(self.ids.ptr())
                .ptr(model.embedding.ptr())
                .ptr(self.plain.x.ptr()),
        };
        let (long, half) = (c.rope.is_long(self.window), c.rope.rotary_dim / 2);
        let kind = Attention::of(c, self.window, Rows::One, KvCode::Bf16);
        let rows = TableRows {
            m: self.window,
            past: 0,
            seen: 0,
        };
        // SAFETY: all buffers are as large as the windows need, and what is copied outlives the
        // copies, which are waited for.
        unsafe {
            self.ids.copy_from(stream, &ids)?;
            embed.run(stream)?;
            let places = self.inv_freq.into_iter().zip(self.rotations);
            for (rotation, (inv_freq, table)) in rotations(c).into_iter().zip(places) {
                // Pageable memory has been read when the call returns.
                inv_freq.copy_from(stream, &rotation.inv_freq(long, half))?;
                let at = [inv_freq.ptr(), table.ptr()];
                table_call(&common.kernels, c, kind, rows, rotation, at)?.run(stream)?;
            }
            self.quantized.x.copy_within(stream, self.plain.x)?;
        }
        stream.synchronize()
    }

    /// What both streams feed the products of a stage.
    pub(super) fn inputs(&self, c: &ModelConfig, stage: Stage) -> [Activations; 2] {
        [&self.plain, &self.quantized].map(|side| self.input(side, c, stage))
    }

    fn input(&self, side: &Side, c: &ModelConfig, stage: Stage) -> Activations {
        match stage {
            Stage::Qkv | Stage::GateUp => side.normed,
            Stage::O | Stage::Down => Activations {
                span: side.wide,
                capacity: self.tokens(),
                stride: padded(features(c, stage)),
            },
        }
    }

    /// Makes the input of a layer's first stage from both residual streams.
    pub(super) fn enter(&self, common: &Common, layer: &DeviceLayer) -> Result<()> {
        let joints = &self.compute()?.joints;
        for side in [&self.plain, &self.quantized] {
            let rows = Between {
                m: self.tokens(),
                x: side.x.ptr(),
                // Nothing leaves a block here.
                left: 0,
                h: side.normed.span.ptr(),
            };
            // SAFETY: both buffers hold every token, and live as long as the calibrator, which
            // waits for the stream before it reads any.
            unsafe {
                joints.enter(
                    common.gpu().main(),
                    rows,
                    plain(layer.norms.before_attention),
                )
            }?;
        }
        Ok(())
    }

    fn compute(&self) -> Result<&Compute> {
        let missing = || Error::Cuda("the windows were not embedded".into());
        self.compute.as_ref().ok_or_else(missing)
    }

    /// Where bf16 weights that stand in for a stage's matrix `index` are to lie, in the next pass.
    pub(super) fn stand_in(
        &mut self,
        model: &DeviceModel,
        c: &ModelConfig,
        stage: Stage,
        index: usize,
    ) -> Result<Span> {
        // Every layer has the same shapes.
        let layer = model.layers.first();
        let matrices = layer.map_or(&[][..], |layer| of_stage(layer, stage));
        let elems = |m: &DeviceMatrix| m.rows * m.cols;
        let Some(matrix) = matrices.get(index) else {
            let message = format!(
                "stage {stage:?} has no matrix {index} in {}",
                c.architecture.name
            );
            return Err(Error::Cuda(message));
        };
        let first: usize = matrices[..index].iter().map(elems).sum();
        self.has_stand_in.resize(matrices.len(), false);
        self.has_stand_in[index] = true;
        self.stand_ins.part(2 * first, 2 * elems(matrix))
    }

    /// Both streams through a stage, to the input of the layer's next one. Nothing stands in for
    /// any matrix afterwards.
    pub(super) fn pass(
        &mut self,
        common: &Common,
        model: &DeviceModel,
        layer: usize,
        stage: Stage,
    ) -> Result<()> {
        let place = Place {
            index: layer,
            layer: &model.layers[layer],
            stage,
        };
        let own = of_stage(place.layer, stage);
        let mut first = 0;
        let mut stand_ins = Vec::new();
        for (i, matrix) in own.iter().enumerate() {
            let elems = matrix.rows * matrix.cols;
            let place = self.stand_ins.part(2 * first, 2 * elems)?;
            first += elems;
            stand_ins.push(match self.has_stand_in.get(i) {
                Some(true) => DeviceMatrix {
                    data: place,
                    format: Format::Bf16,
                    ..*matrix
                },
                Some(false) | None => *matrix,
            });
        }
        self.has_stand_in.clear();
        for (side, matrices) in [(&self.plain, own), (&self.quantized, &stand_ins[..])] {
            for first in (0..self.windows).step_by(chunk_windows(self.window)) {
                let count = chunk_windows(self.window).min(self.windows - first);
                self.chunk(common, side, matrices, place, [first, count])?;
            }
        }
        Ok(())
    }

    /// `count` windows from `first` on through the products, and what follows each window by
    /// itself.
    fn chunk(
        &self,
        common: &Common,
        side: &Side,
        matrices: &[DeviceMatrix],
        place: Place<'_>,
        [first, count]: [usize; 2],
    ) -> Result<()> {
        let (c, stream) = (&common.config, common.gpu().main());
        let Place { layer, stage, .. } = place;
        let Compute { products, joints } = self.compute()?;
        let (row, m) = (first * self.window, count * self.window);
        let of_rows = |all: Activations| -> Result<Activations> {
            Ok(Activations {
                span: all.span.part(2 * row * all.stride, 2 * m * all.stride)?,
                capacity: m,
                ..all
            })
        };
        let input = of_rows(self.input(side, c, stage))?;
        let rows = Between {
            m,
            x: side.x.part(4 * row * c.hidden, 4 * m * c.hidden)?.ptr(),
            left: self.left.ptr(),
            h: of_rows(side.normed)?.span.ptr(),
        };
        let target = match stage {
            Stage::Qkv => Target::Bf16(self.product.ptr(), (c.heads + 2 * c.kv_heads) * c.head_dim),
            Stage::GateUp => Target::Bf16(self.product.ptr(), 2 * c.intermediate),
            Stage::O | Stage::Down => joints.target(rows),
        };
        // SAFETY: every buffer holds the chunk's rows, and lives as long as the calibrator, which
        // waits for the stream before it reads any.
        unsafe { products.run(&common.kernels, stream, matrices, m, &input, target) }?;
        match stage {
            Stage::Qkv => {
                let out = of_rows(self.input(side, c, Stage::O))?;
                (0..count).try_for_each(|window| self.attend(common, place, window, &out))
            }
            Stage::GateUp => {
                let out = of_rows(self.input(side, c, Stage::Down))?;
                let kernel = common
                    .kernels
                    .get("rows.cu", rows_defines(common), "swiglu_rows")?;
                let at = [self.product.ptr(), out.span.ptr()];
                let activation = activation_call(kernel, (c, layer), m, at, false);
                // SAFETY: as above.
                unsafe { activation.run(stream) }
            }
            Stage::O => {
                let next = plain(layer.norms.before_mlp);
                // SAFETY: as above.
                unsafe { joints.leave_attention(stream, rows, Left::attention(layer), next) }
            }
            // SAFETY: as above.
            Stage::Down => unsafe { joints.leave_mlp(stream, rows, Left::mlp(layer), None) },
        }
    }

    /// The attention of one window of the chunk whose queries, keys and values are in `product`.
    fn attend(
        &self,
        common: &Common,
        place: Place<'_>,
        window: usize,
        out: &Activations,
    ) -> Result<()> {
        let (c, stream, m) = (&common.config, common.gpu().main(), self.window);
        let width = (c.heads + 2 * c.kv_heads) * c.head_dim;
        let qkv = self.product.part(2 * window * m * width, 2 * m * width)?;
        let out = out
            .span
            .part(2 * window * m * out.stride, 2 * m * out.stride)?;
        let angles = self.rotations[rotation_of(c, place.index)];
        let rope = Call {
            kernel: rope(&common.kernels, c, Rows::One, KvCode::Bf16)?,
            launch: Launch::new(m, ROPE_THREADS).overlap(),
            args: qkv_args(
                Args::new()
                    .ptr(qkv.ptr())
                    .ptr(self.q.ptr())
                    .ptr(self.keys.ptr())
                    .ptr(self.values.ptr())
                    .i32(m as i32)
                    .i32(0)
                    .ptr(angles.ptr()),
                place.layer,
            ),
        };
        let kind = Attention::of(c, m, Rows::One, KvCode::Bf16);
        let [attention, _] = kind.kernels(&common.kernels, c, c.windows.layer(place.index))?;
        let attention = Call {
            kernel: attention,
            launch: kind.launch(c, m),
            args: Args::new()
                .ptr(self.q.ptr())
                .ptr(self.keys.ptr())
                .ptr(self.values.ptr())
                .i32(m as i32)
                .i32(m as i32)
                .i32(0)
                .ptr(0)
                .ptr(out.ptr()),
        };
        // SAFETY: the buffers hold a window.
        unsafe {
            rope.run(stream)?;
            attention.run(stream)
        }
    }
}

/// A stage of a layer.
#[derive(Debug, Clone, Copy)]
struct Place<'a> {
    index: usize,
    layer: &'a DeviceLayer,
    stage: Stage,
}

/// An input in plain order, through a norm where there are weights.
fn plain(before: Option<Span>) -> Next {
    Next {
        before,
        int4_order: false,
    }
}

fn rows_defines(common: &Common) -> crate::cuda::contract::Defines {
    row_defines(&common.config, common.gpu().sm_count() as usize)
}

/// Windows whose products are made together.
fn chunk_windows(window: usize) -> usize {
    (CHUNK / window.max(1)).max(1)
}

fn of_stage(layer: &DeviceLayer, stage: Stage) -> &[DeviceMatrix] {
    match stage {
        Stage::Qkv => &layer.qkv,
        Stage::O => slice::from_ref(&layer.o),
        Stage::GateUp => &layer.gate_up,
        Stage::Down => slice::from_ref(&layer.down),
    }
}
