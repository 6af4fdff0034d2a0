//! Calibrated rounding's arithmetic on a GPU (`spec/method.md`, "Calibrated rounding"): what the
//! products of a layer read in two streams, sums of it over all tokens, their factorizations, and
//! the column loop. Which scales there are, and what becomes of the codes, is its caller's.
//!
//! ```text
//!   embed -> enter_layer -> sums -> factor_target, factor_columns
//!                              -> for each matrix: begin -> round (twice) -> keep
//!                              -> pass -> sums of the next stage ...
//! ```
//!
//! Products that a model does in bf16 are done in bf16 here, as in a prompt's pass, so that the sums
//! are of what the GPU will feed the layers. What is made of the sums is f64 as far as it is
//! factorized, and f32 behind that.

mod matrix;
mod streams;
mod sums;

use std::collections::BTreeMap;

use super::arena::Arena;
use super::blas::Blas;
use super::device::Gpu;
use super::kernels::{Call, Kernels};
use super::launch::Launch;
use super::limits;
use super::memory::Span;
use super::rows::RowProducts;
use super::solver::Solver;
use super::upload::Staging;
use super::weights::DeviceModel;
use super::{args::Args, contract::Defines, pinned::PinnedBuffer};
use crate::error::{Error, Result};
use crate::model::Stage;
use matrix::Matrices;
pub use matrix::{CalibrationLosses, CalibrationScales, Rounding, Slot};
use smq_model::{ModelConfig, Source};
use streams::Streams;
use sums::Sums;

const FILE: &str = "calibrate.cu";
/// Threads of a block of `calibrate.cu`.
const THREADS: u32 = 256;
/// Blocks of a sum: its order is theirs.
const PARTS: usize = 1024;
/// cuBLASLt's workspace, bytes.
const WORKSPACE: usize = 32 << 20;

/// The macros of `calibrate.cu`.
#[must_use]
pub fn calibrate_defines() -> Defines {
    vec![("PARTS", PARTS as i64)]
}

/// A checkpoint on a GPU, with two streams of windows on their way through its layers: through the
/// model as it is, and through what stands in for its matrices.
#[derive(Debug)]
pub struct Calibrator {
    common: Common,
    model: DeviceModel,
    streams: Streams,
    sums: Sums,
    matrices: Matrices,
    _arena: Arena,
}

/// What every part works with.
#[derive(Debug)]
struct Common {
    kernels: Kernels,
    config: ModelConfig,
    blas: Blas,
    /// By rows of the matrices.
    solvers: BTreeMap<usize, Solver>,
    staging: Staging,
    /// What comes to the host, page-locked.
    host: PinnedBuffer,
    /// f64 `[2, PARTS]`.
    parts: Span,
}

impl Calibrator {
    /// Copies a checkpoint to the first GPU, and embeds `windows`, all of one length.
    ///
    /// # Errors
    /// [`Error::Cuda`] with the remedy if there is no usable GPU, no cuBLASLt, no cuSOLVER or too
    /// little memory; as [`CudaEngine::load`](super::CudaEngine::load) for the model;
    /// [`Error::Input`] for windows of several lengths or a token outside the vocabulary.
    pub fn new(source: &Source, windows: &[Vec<u32>]) -> Result<Self> {
        let gpu = Gpu::open(0)?;
        let mut config = ModelConfig::of(source)?;
        // Nothing longer than a window is computed.
        if let Some(longest) = windows.iter().map(Vec::len).max() {
            config.max_positions = config.max_positions.min(longest);
        }
        check(&config, windows, gpu.sm_count() as usize)?;
        let kernels = Kernels::new(gpu.clone());
        let placed = DeviceModel::place(&gpu, source, &config)?;
        let bytes = usize::try_from(source.file_bytes()).unwrap_or(usize::MAX);
        let (model, _) = placed.upload(&gpu, Staging::new(&gpu, bytes)?)?;
        let sizes = Sizes::new(&config, windows);
        let plan = |arena: &mut Arena| {
            Ok((
                Streams::take(arena, &config, &sizes)?,
                Sums::take(arena, &sizes)?,
                Matrices::take(arena, &sizes)?,
                arena.take(2 * 8 * PARTS)?,
            ))
        };
        check_memory(gpu.memory()?.0, &sizes, plan)?;
        let (arena, (mut streams, sums, matrices, parts)) =
            Arena::build(&gpu, "calibration's sums", plan)?;
        if let Some(memory) = arena.buffer() {
            // Padding columns are read as zero.
            memory.fill(gpu.main(), 0)?;
        }
        let mut solvers = BTreeMap::new();
        for n in sizes.inputs {
            if let std::collections::btree_map::Entry::Vacant(place) = solvers.entry(n) {
                place.insert(Solver::new(&gpu, n)?);
            }
        }
        let common = Common {
            blas: Blas::new(&gpu, WORKSPACE)?,
            staging: Staging::new(&gpu, 4 * sizes.matrix_elems)?,
            host: PinnedBuffer::huge(&gpu, 4 * sizes.matrix_elems)?,
            kernels,
            config,
            solvers,
            parts,
        };
        let products = RowProducts::new(Blas::new(&gpu, WORKSPACE)?, Arena::sizes().take(0)?);
        streams.start(&common, &model, products, windows)?;
        Ok(Self {
            common,
            model,
            streams,
            sums,
            matrices,
            _arena: arena,
        })
    }

    /// Makes the input of a layer's first stage, in both streams.
    ///
    /// # Errors
    /// [`Error::Cuda`] if the driver fails.
    pub fn enter_layer(&mut self, layer: usize) -> Result<()> {
        self.streams.enter(&self.common, &self.model.layers[layer])
    }

    /// Sums over the tokens of what a stage reads: the diagonal of `H`.
    ///
    /// # Errors
    /// As [`enter_layer`](Self::enter_layer).
    pub fn sum(&mut self, stage: Stage) -> Result<Vec<f64>> {
        let config = &self.common.config;
        let (n, inputs) = (
            streams::features(config, stage),
            self.streams.inputs(config, stage),
        );
        self.sums
            .add_all(&self.common, n, inputs, self.streams.tokens())
    }

    /// Factorizes `H` with `damping` on its diagonal for the target, once a [`sum`](Self::sum).
    /// False where it is not positive definite.
    ///
    /// # Errors
    /// As [`enter_layer`](Self::enter_layer).
    pub fn factor_target(&mut self, damping: f64) -> Result<bool> {
        self.sums.factor_target(&mut self.common, damping)
    }

    /// Likewise for the column loop, which takes the columns in `order`.
    ///
    /// # Errors
    /// As [`enter_layer`](Self::enter_layer).
    pub fn factor_columns(&mut self, order: &[usize], damping: f64) -> Result<bool> {
        self.sums.factor_columns(&mut self.common, order, damping)
    }

    /// Takes up a matrix `w`, `[rows, in]`, of the stage that was summed, and makes its target:
    /// `sum |W x|^2`, then `sum |W (x - y)|^2`, which is the objective's part that no choice
    /// changes.
    ///
    /// # Errors
    /// As [`enter_layer`](Self::enter_layer).
    pub fn begin(&mut self, w: &[f32]) -> Result<[f64; 2]> {
        self.matrices.begin(&mut self.common, &self.sums, w)
    }

    /// The target of the matrix in hand, whose elements are `elems`.
    #[must_use]
    pub fn target(&self, elems: usize) -> &[f32] {
        &self.common.host.as_slice()[..elems]
    }

    /// Rounds the matrix under `scales`.
    ///
    /// # Errors
    /// As [`enter_layer`](Self::enter_layer).
    pub fn round(
        &mut self,
        rounding: Rounding,
        scales: &CalibrationScales<'_>,
    ) -> Result<CalibrationLosses> {
        self.matrices
            .round(&self.common, &self.sums, rounding, scales)
    }

    /// The codes of a rounding, whose weights stand in for the stage's matrix `index` in the
    /// [`pass`](Self::pass) that comes next.
    ///
    /// # Errors
    /// As [`enter_layer`](Self::enter_layer).
    pub fn keep(&mut self, slot: Slot, stage: Stage, index: usize) -> Result<Vec<i8>> {
        let config = &self.common.config;
        let place = self.streams.stand_in(&self.model, config, stage, index)?;
        self.matrices.keep(&self.common, slot, place)
    }

    /// Lets `weights`, `[rows, in]`, stand in for the stage's matrix `index`.
    ///
    /// # Errors
    /// As [`enter_layer`](Self::enter_layer).
    pub fn stand_in(&mut self, weights: &[f32], stage: Stage, index: usize) -> Result<()> {
        let place = self
            .streams
            .stand_in(&self.model, &self.common.config, stage, index)?;
        self.matrices.place(&self.common, weights, place)
    }

    /// Leads both streams through a stage, the quantized one through what stands in.
    ///
    /// # Errors
    /// As [`enter_layer`](Self::enter_layer).
    pub fn pass(&mut self, layer: usize, stage: Stage) -> Result<()> {
        self.streams.pass(&self.common, &self.model, layer, stage)
    }
}

impl Common {
    fn gpu(&self) -> &Gpu {
        self.kernels.gpu()
    }

    /// A call of `calibrate.cu`.
    fn call(&self, name: &'static str, launch: Launch, args: Args) -> Result<Call> {
        Ok(Call {
            kernel: self.kernels.get(FILE, calibrate_defines(), name)?,
            launch,
            args,
        })
    }

    /// A launch over `count` elements.
    fn over(count: usize) -> Launch {
        /// Enough to fill any GPU.
        const BLOCKS: usize = 4096;
        Launch::new(count.div_ceil(THREADS as usize).clamp(1, BLOCKS), THREADS)
    }
}

/// Refuses what a GPU of `sms` multiprocessors does not calibrate: of models, those that no
/// prompt's pass computes either.
fn check(c: &ModelConfig, windows: &[Vec<u32>], sms: usize) -> Result<()> {
    limits::longest(c, "--calibrate-window")?;
    limits::check(c, sms)?;
    streams::check(c, windows)
}

/// What decides the sizes of buffers.
#[derive(Debug)]
struct Sizes {
    window: usize,
    windows: usize,
    /// Rows of a layer's queries, keys and values together.
    qkv: usize,
    /// Input features of each stage.
    inputs: [usize; 4],
    intermediate: usize,
    /// Elements of the largest stage's matrices together; no matrix has more.
    matrix_elems: usize,
    /// Rows of the matrix that has most.
    most_rows: usize,
}

impl Sizes {
    fn new(c: &ModelConfig, windows: &[Vec<u32>]) -> Self {
        let attention = c.heads * c.head_dim;
        let qkv = attention + 2 * c.kv_heads * c.head_dim;
        let matrix_elems = [
            qkv * c.hidden,
            attention * c.hidden,
            2 * c.intermediate * c.hidden,
        ];
        Self {
            window: windows.first().map_or(0, Vec::len),
            windows: windows.len(),
            qkv,
            inputs: Stage::ALL.map(|stage| streams::features(c, stage)),
            intermediate: c.intermediate,
            matrix_elems: matrix_elems.into_iter().max().unwrap_or(0),
            most_rows: qkv.max(2 * c.intermediate).max(c.hidden),
        }
    }

    fn tokens(&self) -> usize {
        self.window * self.windows
    }

    fn most_inputs(&self) -> usize {
        self.inputs.into_iter().max().unwrap_or(0)
    }
}

/// Bytes that cuBLASLt, cuSOLVER and the kernels may take beside the arena.
const RESERVED_BYTES: usize = 1 << 30;

/// Says what would do where the memory is not there.
fn check_memory<T>(
    free_bytes: usize,
    sizes: &Sizes,
    plan: impl Fn(&mut Arena) -> Result<T>,
) -> Result<()> {
    let mut arena = Arena::sizes();
    plan(&mut arena)?;
    let needed = arena.used_bytes() + RESERVED_BYTES;
    if needed <= free_bytes {
        return Ok(());
    }
    Err(Error::Cuda(format!(
        "calibrating on {} tokens takes {:.1} GB of GPU memory beside the model, and {:.1} GB are free; give fewer \
         --calibrate-tokens, or run with --device cpu",
        sizes.tokens(),
        needed as f64 / 1e9,
        free_bytes as f64 / 1e9
    )))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config() -> ModelConfig {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/phi3-tiny/config.json");
        ModelConfig::from_json(&std::fs::read(path).unwrap()).unwrap()
    }

    #[test]
    fn too_many_tokens_are_refused_with_the_remedy() {
        let (c, windows) = (config(), vec![vec![1; 512]; 200]);
        let sizes = Sizes::new(&c, &windows);
        let plan = |arena: &mut Arena| Streams::take(arena, &c, &sizes);
        let mut arena = Arena::sizes();
        plan(&mut arena).unwrap();
        let enough = arena.used_bytes() + RESERVED_BYTES;
        check_memory(enough, &sizes, plan).unwrap();
        let message = check_memory(enough - 1, &sizes, plan)
            .unwrap_err()
            .to_string();
        let start = "calibrating on 102400 tokens takes 1.7 GB of GPU memory beside the model, and \
                     1.7 GB are free; give fewer --calibrate-tokens";
        assert!(message.starts_with(start), "{message}");
    }

    #[test]
    fn every_family_is_calibrated() {
        for architecture in &smq_model::architecture::ARCHITECTURES {
            let keys = serde_json::json!({
                "model_type": architecture.model_type, "vocab_size": 64, "hidden_size": 128,
                "intermediate_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4,
                "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 64,
            });
            let c = ModelConfig::from_json(keys.to_string().as_bytes()).unwrap();
            let windows = vec![vec![1; 64]; 4];
            check(&c, &windows, 132).unwrap();
        }
    }

    #[test]
    fn windows_beyond_what_a_rotation_is_fixed_for_are_refused() {
        let keys = serde_json::json!({
            "model_type": "llama", "vocab_size": 64, "hidden_size": 128, "intermediate_size": 128,
            "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64,
            "rope_scaling": {"rope_type": "dynamic", "factor": 2.0},
        });
        let mut c = ModelConfig::from_json(keys.to_string().as_bytes()).unwrap();
        let mut refusal = |window: usize| {
            c.max_positions = window;
            check(&c, &[vec![1; window]], 132).map_err(|error| error.to_string())
        };
        refusal(64).unwrap();
        let message = refusal(65).unwrap_err();
        assert!(message.contains("beyond 64"), "{message}");
        assert!(
            message.contains("give --calibrate-window 64, or run with"),
            "{message}"
        );
    }

    #[test]
    fn windows_of_several_lengths_and_foreign_tokens_are_refused() {
        let c = config();
        streams::check(&c, &[vec![1, 2], vec![3, 4]]).unwrap();
        for (windows, problem) in [
            (vec![], "not all of one length"),
            (vec![vec![]], "not all of one length"),
            (vec![vec![1, 2], vec![3]], "not all of one length"),
            (
                vec![vec![1, 4096]],
                "4096 is outside the model's vocabulary of 4096",
            ),
        ] {
            let message = streams::check(&c, &windows).unwrap_err().to_string();
            assert!(message.contains(problem), "{message}");
        }
    }
}
