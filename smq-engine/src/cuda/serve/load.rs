//! Loading a model, and the memory of its pages and steps.

use std::collections::HashMap;
use std::sync::Arc;

use super::CudaBatch;
use super::alone::Alone;
use super::choose::{Chooser, Rows};
use super::inputs::Layout;
use crate::cuda::decode::Parts;
use crate::cuda::device::Gpu;
use crate::cuda::family::{Rotation, rotations};
use crate::cuda::kernels::Kernels;
use crate::cuda::kv::Cache;
use crate::cuda::limits;
use crate::cuda::memory::{DeviceBuffer, Span};
use crate::cuda::pinned::PinnedBuffer;
use crate::cuda::prefill::attention::KEYS;
use crate::cuda::prefill::{Prefill, STEP_ROWS, WANTED_ROWS};
use crate::cuda::state::State;
use crate::cuda::upload::Staging;
use crate::cuda::weights::DeviceModel;
use crate::error::{Error, Result};
use crate::serve::BatchOptions;
use smq_model::Source;

/// Memory that is left to the driver and to libraries, bytes.
const LEFT_FREE: usize = 1 << 30;

impl CudaBatch {
    /// Copies a model to the first GPU; pages take nine tenths of the memory that is free, where
    /// `options` do not say for how many tokens they are.
    ///
    /// # Errors
    /// As [`CudaEngine::load`](crate::cuda::CudaEngine::load); [`Error::Cuda`] if there is no room for a
    /// page.
    pub fn load(source: &Source, options: &BatchOptions) -> Result<Self> {
        Self::load_on(Gpu::open(0)?, source, options)
    }

    /// As [`CudaBatch::load`], on a GPU that is open.
    ///
    /// # Errors
    /// As [`CudaBatch::load`].
    pub(crate) fn load_on(gpu: Arc<Gpu>, source: &Source, options: &BatchOptions) -> Result<Self> {
        let code = limits::kv_cache(options.kv_cache)?;
        let sms = gpu.sm_count() as usize;
        let config = limits::config(source, options.max_tokens, sms)?;
        limits::pages(&config, code)?;
        if options.fast_nondeterministic {
            limits::alone(&config, sms)?;
        }
        let kernels = Kernels::new(gpu.clone());
        let bytes = usize::try_from(source.file_bytes()).unwrap_or(usize::MAX);
        let (made, staging) = Staging::while_doing(&gpu, bytes, || {
            let placed = DeviceModel::place(&gpu, source, &config)?;
            let state = State::new(&gpu, &config)?;
            Ok((placed, state, Prefill::new(&kernels, &config)?))
        })?;
        let (placed, state, mut prefill) = made;
        let (model, _) = placed.upload(&gpu, staging)?;
        let none = Cache::new(Span::at(0, 0), &config, code, 0);
        prefill.reserve_steps(&Parts {
            kernels: &kernels,
            config: &config,
            model: &model,
            state: &state,
            cache: &none,
        })?;
        let chooser = Chooser::new(&kernels, config.vocab, WANTED_ROWS)?;
        let stream = gpu.main();
        let width = config.rope.rotary_dim / 2;
        let of = |rotation: Rotation<'_>| [false, true].map(|long| rotation.inv_freq(long, width));
        let half = rotations(&config).into_iter().flat_map(of);
        let half: Vec<f32> = half.flatten().collect();
        let inv_freq = DeviceBuffer::new(&gpu, size_of_val(&half[..]), "rotary frequencies")?;
        inv_freq.upload(stream, 0, &half)?;

        let of_page = Cache::bytes_of_rows(&config, code, KEYS);
        let free = gpu.memory()?.0.saturating_sub(LEFT_FREE) / 10 * 9;
        // One more for rows that fill up a recorded step.
        let pages = match options.kv_tokens {
            Some(tokens) => tokens / KEYS,
            None => (free / of_page).saturating_sub(1),
        };
        if pages == 0 {
            return Err(Error::Cuda(format!(
                "the KV cache has no room for a page of {KEYS} tokens, {of_page} bytes; {free} bytes of GPU memory are \
                 free for it"
            )));
        }
        let memory = DeviceBuffer::new(&gpu, (pages + 1) * of_page, "the KV cache")?;
        memory.fill(stream, 0)?;
        let cache = Cache::new(memory.span(), &config, code, (pages + 1) * KEYS);
        let max_rows = options.max_rows.min(WANTED_ROWS);
        let of_tables = 4 * WANTED_ROWS * config.max_positions.div_ceil(KEYS).min(pages);
        let arrays = Layout::new(STEP_ROWS, STEP_ROWS, STEP_ROWS)?.bytes + of_tables;
        let staged = PinnedBuffer::new(&gpu, arrays)?;
        let arrays = DeviceBuffer::new(&gpu, arrays, "a step's arrays")?;
        let alone = match options.fast_nondeterministic {
            false => None,
            true => {
                let (kernels, config, model) = (&kernels, &config, &model);
                let (state, cache) = (&state, &cache);
                let parts = Parts {
                    kernels,
                    config,
                    model,
                    state,
                    cache,
                };
                Some(Alone::new(&parts, inv_freq.ptr(), arrays.ptr())?)
            }
        };
        Ok(Self {
            info: gpu.info()?,
            staged,
            arrays,
            alone,
            logits_at: prefill.logits_span()?,
            config,
            graphs: HashMap::new(),
            chooser,
            prefill,
            kernels,
            model,
            state,
            cache,
            pages,
            max_rows,
            inv_freq,
            logits: Vec::new(),
            asked: Rows::default(),
            _pages: memory,
        })
    }
}
