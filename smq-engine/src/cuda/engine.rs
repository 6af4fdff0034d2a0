//! The engine: one sequence on the GPU.

mod guessing;

use std::ops::ControlFlow;
use std::sync::Arc;

use super::decode::{GuessingStep, Parts, Step, step_plan};
use super::device::Gpu;
use super::family::{beyond_one_kernel, rotations};
use super::kernels::Kernels;
use super::kv::Cache;
use super::limits;
use super::memory::DeviceBuffer;
use super::packing::pack;
use super::prefill::{CHUNK, Prefill};
use super::state::{RING, State};
use super::upload::Staging;
use super::weights::DeviceModel;
use crate::engine::{self, Continuations, Engine, TokenScore, check_ids, check_keep, check_len};
use crate::error::{Error, Result};
use crate::kv::{KvCacheFormat, KvCacheReport, KvCode};
use crate::load::LoadOptions;
use crate::report::{GpuInfo, LoadReport};
pub use guessing::CudaGuessing;
use smq_model::ModelConfig;
use smq_model::Source;

/// Steps queued ahead of the token that the host has seen: enough that the GPU never waits for the
/// host, few enough that little is wasted when the text ends.
const AHEAD: usize = 4;
const _: () = assert!(AHEAD < RING);
/// The cache is allocated in steps of this many positions.
const CAPACITY_STEP: usize = 256;

/// A model on an NVIDIA GPU, with one sequence.
#[derive(Debug)]
pub struct CudaEngine {
    config: ModelConfig,
    info: GpuInfo,
    upload: LoadReport,
    kernels: Kernels,
    model: DeviceModel,
    state: State,
    prefill: Prefill,
    /// Whether `decode.cu` makes this family's steps.
    in_one_kernel: bool,
    /// How keys and values are held.
    code: KvCode,
    /// Cache and the step recorded for it.
    sequence: Option<Sequence>,
    /// Whether LongRoPE's long factors are in use.
    long: bool,
    /// Tokens of the sequence; all are in the cache or on their way.
    tokens: Vec<u32>,
    /// Steps queued since the start: which mailbox entry comes next.
    steps: u32,
    /// Where a step would begin on the GPU, where that is known: the position, the number of tokens
    /// chosen, the token.
    place: Option<[u32; 3]>,
    /// Buffers of steps with guesses, once there are any.
    guessing: Option<State>,
    logits: Vec<f32>,
}

#[derive(Debug)]
struct Sequence {
    /// Before the memory that it uses; none of a family whose steps the kernels of prompts make.
    step: Option<Step>,
    /// The step with guesses, once one was asked for.
    guessing: Option<GuessingStep>,
    cache: Cache,
    _memory: DeviceBuffer,
}

impl CudaEngine {
    /// Copies a model to the first GPU and compiles its kernels. Sequences have at most
    /// `max_tokens` positions.
    ///
    /// # Errors
    /// [`Error::Cuda`] with the remedy if there is no usable GPU; as
    /// [`Decoder::load`](crate::model::Decoder::load), and for what the
    /// kernels do not do.
    pub fn load(source: &Source, max_tokens: Option<usize>) -> Result<Self> {
        let options = LoadOptions {
            max_tokens,
            ..LoadOptions::default()
        };
        Self::load_with(source, &options)
    }

    /// As [`CudaEngine::load`], with options.
    ///
    /// # Errors
    /// As [`CudaEngine::load`], and for a cache that the kernels do not have.
    pub fn load_with(source: &Source, options: &LoadOptions) -> Result<Self> {
        Self::load_on(Gpu::open(0)?, source, options)
    }

    /// As [`CudaEngine::load_with`], on a GPU that is open.
    ///
    /// # Errors
    /// As [`CudaEngine::load_with`].
    pub(crate) fn load_on(gpu: Arc<Gpu>, source: &Source, options: &LoadOptions) -> Result<Self> {
        let code = limits::kv_cache(options.kv_cache)?;
        let sms = gpu.sm_count() as usize;
        let config = limits::config(source, options.max_tokens, sms)?;
        let in_one_kernel = beyond_one_kernel(&config, sms).is_empty();
        let kernels = Kernels::new(gpu.clone());
        let bytes = usize::try_from(source.file_bytes()).unwrap_or(usize::MAX);
        let (made, staging) = Staging::while_doing(&gpu, bytes, || {
            // What is wrong with the model is said before kernels are compiled.
            let placed = DeviceModel::place(&gpu, source, &config)?;
            if in_one_kernel {
                step_plan(&config, placed.model(), sms)?;
            }
            let state = State::new(&gpu, &config)?;
            Ok((placed, state, Prefill::new(&kernels, &config)?))
        })?;
        let (placed, state, prefill) = made;
        let (model, upload) = placed.upload(&gpu, staging)?;
        let mut engine = Self {
            info: gpu.info()?,
            config,
            upload,
            kernels,
            model,
            state,
            prefill,
            in_one_kernel,
            code,
            sequence: None,
            long: false,
            tokens: Vec::new(),
            steps: 0,
            place: None,
            guessing: None,
            logits: Vec::new(),
        };
        engine.set_factors(false)?;
        Ok(engine)
    }

    fn gpu(&self) -> &Arc<Gpu> {
        self.kernels.gpu()
    }

    /// As [`set_factors`](Self::set_factors), where they are not in use.
    fn use_factors(&mut self, long: bool) -> Result<()> {
        if long == self.long {
            return Ok(());
        }
        self.set_factors(long)
    }

    /// Makes LongRoPE's factors those of a sequence in the short or the long range.
    fn set_factors(&mut self, long: bool) -> Result<()> {
        let half = self.config.rope.rotary_dim / 2;
        let stream = self.gpu().main();
        for (rotation, to) in rotations(&self.config).iter().zip(self.state.inv_freq) {
            let inv_freq = rotation.inv_freq(long, half);
            // SAFETY: pageable memory is read before the call returns.
            unsafe { to.copy_from(stream, &inv_freq)? };
        }
        stream.synchronize()?;
        self.long = long;
        Ok(())
    }

    /// A cache of at least `len` positions, with its recorded step. Contents are lost where it has
    /// to grow.
    fn reserve(&mut self, len: usize) -> Result<()> {
        if self
            .sequence
            .as_ref()
            .is_some_and(|s| s.cache.capacity >= len)
        {
            return Ok(());
        }
        self.gpu().main().synchronize()?;
        self.sequence = None;
        let c = &self.config;
        let capacity = len.next_multiple_of(CAPACITY_STEP);
        let what = format!("the KV cache of {capacity} tokens");
        let memory = DeviceBuffer::new(self.gpu(), Cache::bytes(c, self.code, capacity), &what)?;
        memory.fill(self.gpu().main(), 0)?;
        let cache = Cache::new(memory.span(), c, self.code, capacity);
        let parts = Parts {
            kernels: &self.kernels,
            config: c,
            model: &self.model,
            state: &self.state,
            cache: &cache,
        };
        let step = self.in_one_kernel.then(|| Step::new(&parts));
        self.sequence = Some(Sequence {
            step: step.transpose()?,
            guessing: None,
            cache,
            _memory: memory,
        });
        Ok(())
    }

    /// Queues everything up to the choice of the token that follows `tokens`, which are appended.
    /// Returns whether the factors switched in mid-sequence.
    fn append(&mut self, tokens: &[u32]) -> Result<bool> {
        let (past, len) = (self.tokens.len(), self.tokens.len() + tokens.len());
        if tokens.is_empty() {
            return Err(Error::Input("no tokens given".into()));
        }
        check_len(&self.config, len)?;
        check_ids(&self.config, tokens)?;
        // Hugging Face picks the factors by the whole sequence's length; keys rotated with the
        // others are useless then, so everything is computed anew.
        let long = self.config.rope.is_long(len);
        let switch = long != self.long;
        let grow = self
            .sequence
            .as_ref()
            .is_none_or(|s| s.cache.capacity < len);
        self.use_factors(long)?;
        self.reserve(
            len.max(if grow { 2 * past } else { 0 })
                .min(self.config.max_positions)
                .max(len),
        )?;
        self.tokens.extend_from_slice(tokens);
        let from = if switch || grow { 0 } else { past };
        let stream = self.kernels.gpu().main().clone();
        if let ([token], true) = (&self.tokens[from..], from > 0) {
            self.go_to([from as u32, self.steps, *token])?;
            self.queue_step(from)?;
        } else {
            let pending = self.tokens[from..].to_vec();
            let one_kernel = self.in_one_kernel;
            let (parts, prefill) = self.pass()?;
            match one_kernel {
                true => prefill.run(&parts, &pending, from)?,
                false => prefill.run_and_choose(&parts, &pending, from)?,
            }
            if one_kernel {
                // The choice moves the position on by one, and takes no token.
                self.place = None;
                self.go_to([len as u32 - 1, self.steps, 0])?;
            }
            if let Some(step) = self.step()? {
                step.run_head(&stream)?;
            }
        }
        self.steps = self.steps.wrapping_add(1);
        self.place = None;
        Ok(switch && past > 0)
    }

    /// Has the next step begin there. The steps before are done, or end there.
    fn go_to(&mut self, place: [u32; 3]) -> Result<()> {
        if self.place != Some(place) {
            let stream = self.kernels.gpu().main();
            // SAFETY: the host array outlives the copy, which is done when the call returns.
            unsafe { self.state.place()?.copy_from(stream, &place)? };
        }
        Ok(())
    }

    fn step(&self) -> Result<Option<&Step>> {
        let missing = || Error::Cuda("the sequence has no cache".into());
        let sequence = self.sequence.as_ref().ok_or_else(missing)?;
        Ok(sequence.step.as_ref())
    }

    /// Queues a step of the token that is on the GPU, behind `past` cached positions.
    fn queue_step(&mut self, past: usize) -> Result<()> {
        if let Some(step) = self.step()? {
            return step.run(self.gpu().main(), past);
        }
        let (parts, prefill) = self.pass()?;
        prefill.token(&parts, past)
    }

    /// What a pass through the model works with, and what runs it.
    fn pass(&mut self) -> Result<(Parts<'_>, &mut Prefill)> {
        let Some(sequence) = &self.sequence else {
            return Err(Error::Cuda("the sequence has no cache".into()));
        };
        let parts = Parts {
            kernels: &self.kernels,
            config: &self.config,
            model: &self.model,
            state: &self.state,
            cache: &sequence.cache,
        };
        Ok((parts, &mut self.prefill))
    }

    /// Makes ready for one new sequence of all these tokens.
    fn start_whole(&mut self, tokens: &[u32]) -> Result<()> {
        let limit = self.config.max_positions;
        if tokens.is_empty() || tokens.len() > limit {
            return Err(Error::Input(format!(
                "{} tokens were given, expected 1 to {limit}",
                tokens.len()
            )));
        }
        check_ids(&self.config, tokens)?;
        self.start(tokens.len())?;
        self.use_factors(self.config.rope.is_long(tokens.len()))
    }

    /// Greedy text with steps queued ahead; some may still run when it returns.
    fn queue_ahead(
        &mut self,
        prompt: &[u32],
        limit: usize,
        on_token: &mut dyn FnMut(u32, bool) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let mut switched = self.append(prompt)?;
        let first = self.steps.wrapping_sub(1);
        let start = self.tokens.len();
        // Tokens are queued, then seen; `queued` steps follow the prompt's.
        let (mut queued, mut seen) = (0, 0);
        while seen < limit {
            // Ahead while a step only needs the token that the GPU itself chose.
            while queued + 1 < limit && queued < seen + AHEAD && self.has_room(start + queued + 1) {
                self.queue_step(start + queued)?;
                self.steps = self.steps.wrapping_add(1);
                queued += 1;
            }
            let token = self.token(first.wrapping_add(seen as u32))?;
            let flow = on_token(token, std::mem::take(&mut switched))?;
            seen += 1;
            if flow.is_break() || seen == limit || start + seen > self.config.max_positions {
                break;
            }
            if seen > queued {
                // Nothing runs ahead: this token is appended from here.
                switched = self.append(&[token])?;
                queued = seen;
            } else {
                self.tokens.push(token);
            }
        }
        Ok(())
    }

    /// Whether a step of a sequence that then has `len` tokens can be queued: a longer one than the
    /// factors or the cache are for needs its tokens on the host.
    fn has_room(&self, len: usize) -> bool {
        let sequence = self.sequence.as_ref();
        len <= self.config.max_positions
            && self.config.rope.is_long(len) == self.long
            && sequence.is_some_and(|s| len <= s.cache.capacity)
    }

    /// Waits for the token that step `step` chose.
    fn token(&self, step: u32) -> Result<u32> {
        let stream = self.gpu().main();
        self.state.token(step, || stream.check())
    }
}

impl Engine for CudaEngine {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn device(&self) -> &'static str {
        "cuda"
    }

    fn gpu(&self) -> Option<&GpuInfo> {
        Some(&self.info)
    }

    fn load_report(&self) -> Option<&LoadReport> {
        Some(&self.upload)
    }

    fn bytes_per_token(&self) -> usize {
        self.model.bytes_per_token()
    }

    fn kv_cache(&self) -> KvCacheReport {
        let capacity = self.sequence.as_ref().map_or(0, |s| s.cache.capacity);
        let format = KvCacheFormat::Coded(self.code);
        KvCacheReport {
            // With the room in which a prompt's keys and values are bf16.
            bytes: Cache::bytes(&self.config, self.code, capacity),
            ..KvCacheReport::of(format, &self.config, capacity)
        }
    }

    fn start(&mut self, capacity: usize) -> Result<()> {
        self.tokens.clear();
        self.use_factors(false)?;
        self.reserve(capacity.min(self.config.max_positions))
    }

    fn extend(&mut self, tokens: &[u32]) -> Result<engine::Step<'_>> {
        let rope_switched = self.append(tokens)?;
        let stream = self.kernels.gpu().main();
        self.logits.resize(self.config.vocab, 0.0);
        // SAFETY: the host array is waited for right below.
        unsafe { self.state.logits.copy_to(stream, &mut self.logits)? };
        stream.synchronize()?;
        Ok(engine::Step {
            logits: &self.logits,
            rope_switched,
        })
    }

    fn greedy(
        &mut self,
        prompt: &[u32],
        limit: usize,
        on_token: &mut dyn FnMut(u32, bool) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let done = self.queue_ahead(prompt, limit, on_token);
        // Steps that ran ahead are of no use; whoever comes next starts anew. Another engine may be
        // next, whose step fills the GPU as this one's does: two of them at once would each wait
        // for blocks that cannot start.
        let ended = self.gpu().main().synchronize();
        done.and(ended)
    }

    fn scores(&mut self, tokens: &[u32]) -> Result<Vec<TokenScore>> {
        self.start_whole(tokens)?;
        let (parts, prefill) = self.pass()?;
        prefill.scores(&parts, tokens)
    }

    fn continuation_scores(
        &mut self,
        context: &[u32],
        continuations: &[Vec<u32>],
    ) -> Result<Vec<Vec<TokenScore>>> {
        let one = Continuations {
            context,
            continuations,
        };
        Ok(self.batch_scores(&[one])?.remove(0))
    }

    fn batch_scores(&mut self, items: &[Continuations<'_>]) -> Result<Vec<Vec<Vec<TokenScore>>>> {
        for item in items {
            if item.context.is_empty() {
                return Err(Error::Input("the context is empty".into()));
            }
            check_ids(&self.config, item.context)?;
            item.continuations
                .iter()
                .try_for_each(|c| check_ids(&self.config, c))?;
            let longest = item.continuations.iter().map(Vec::len).max().unwrap_or(0);
            check_len(
                &self.config,
                (item.context.len() + longest).saturating_sub(1),
            )?;
        }
        let mut out: Vec<Vec<Vec<TokenScore>>> = items
            .iter()
            .map(|item| vec![Vec::new(); item.continuations.len()])
            .collect();
        for pack in pack(items, &self.config, CHUNK) {
            self.tokens.clear();
            self.use_factors(pack.long)?;
            self.reserve(pack.tokens.len())?;
            let (parts, prefill) = self.pass()?;
            let scores = prefill.packed_scores(&parts, &pack)?;
            for (scored, score) in pack.scored.iter().zip(scores) {
                let (item, continuation) = scored.of;
                out[item][continuation].push(score);
            }
        }
        Ok(out)
    }

    fn pass_tokens(&self) -> usize {
        CHUNK
    }

    fn logit_rows(
        &mut self,
        tokens: &[u32],
        keep: usize,
        on_rows: &mut dyn FnMut(&[f32]) -> Result<()>,
    ) -> Result<()> {
        check_keep(tokens.len(), keep)?;
        self.start_whole(tokens)?;
        let (parts, prefill) = self.pass()?;
        prefill.logit_rows(&parts, tokens, keep, on_rows)
    }
}
