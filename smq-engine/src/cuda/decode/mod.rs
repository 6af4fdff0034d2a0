//! A decode step: one kernel that works through a program of phases, every product and attention of
//! a token.

mod phases;
pub(super) mod plan;
pub(super) mod program;
mod word;

use std::sync::Arc;

use super::args::Args;
use super::device::Gpu;
use super::family::{Rotation, rotations};
use super::kernels::{Call, Kernels};
use super::kv::{Cache, kv_defines};
use super::launch::Launch;
use super::memory::Span;
use super::module::Kernel;
use super::prefill::attention::KEYS;
use super::state::State;
use super::stream::Stream;
use super::weights::{DeviceMatrix, DeviceModel};
use crate::error::{Error, Result};
use crate::kv::KvCode;
use phases::{phases, products};
use plan::{Epilogue, Kind, Plan};
use program::{Buffers, Phase, Program, Uses};
use smq_model::ModelConfig;

/// What a pass through the model works with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parts<'a> {
    /// Compiled for this model.
    pub kernels: &'a Kernels,
    /// Its shape.
    pub config: &'a ModelConfig,
    /// Its weights.
    pub model: &'a DeviceModel,
    /// A step's buffers.
    pub state: &'a State,
    /// Keys and values.
    pub cache: &'a Cache,
}

/// Where a step finds what else it needs of a sequence whose keys and values lie in pages.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paged {
    /// The frequencies of its factors, f32 `[rotary_dim / 2]`, and of the other rotary embedding.
    pub inv_freq: [u64; 2],
    /// The numbers of its pages in order, i32 each.
    pub pages: u64,
}

/// What a step is of.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// A token, of a sequence whose keys and values may lie in pages.
    One(Option<Paged>),
    /// A token and guesses at what comes behind it, [`STEP_ROWS`] in all.
    Guessing,
}

impl Way {
    fn rows(self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Guessing => STEP_ROWS,
        }
    }

    fn paged(self) -> Option<Paged> {
        match self {
            Self::One(paged) => paged,
            Self::Guessing => None,
        }
    }
}

/// Tokens of a step of one sequence that has guesses: with one guess a warp's activations fit its
/// registers.
pub(super) const STEP_ROWS: usize = 2;

/// The kernel for one model's products.
#[derive(Debug, Clone)]
pub struct Decoder {
    plan: Plan,
    kernel: Arc<Kernel>,
    /// The kernel for steps behind at least so many tokens.
    many: Option<(usize, Arc<Kernel>)>,
    launch: Launch,
    paged: Option<Paged>,
}

impl Decoder {
    /// Compiles it for these products.
    ///
    /// # Errors
    /// As [`Plan::new`] and [`Kernels::get`].
    pub fn new(
        kernels: &Kernels,
        c: &ModelConfig,
        products: &[(&[DeviceMatrix], Epilogue)],
    ) -> Result<Self> {
        Self::with_cache(kernels, c, products, KvCode::Bf16)
    }

    /// As [`Decoder::new`], with a cache that is held so.
    ///
    /// # Errors
    /// As [`Decoder::new`].
    pub fn with_cache(
        kernels: &Kernels,
        c: &ModelConfig,
        products: &[(&[DeviceMatrix], Epilogue)],
        code: KvCode,
    ) -> Result<Self> {
        Self::of(kernels, c, products, (code, 0), Way::One(None))
    }

    /// As [`Decoder::new`], for sequences of up to `longest` tokens.
    fn of(
        kernels: &Kernels,
        c: &ModelConfig,
        products: &[(&[DeviceMatrix], Epilogue)],
        (code, longest): (KvCode, usize),
        way: Way,
    ) -> Result<Self> {
        let sms = kernels.gpu().sm_count();
        let mut plan = plan_of(c, products, sms as usize, way.rows())?;
        plan.defines.extend(kv_defines(code));
        let paged = way.paged();
        if paged.is_some() {
            plan.defines.extend(paged_defines());
        }
        let kernel = kernels.get("decode.cu", plan.defines.clone(), "decode")?;
        let many = many_from(c, code).filter(|from| *from < longest && way.rows() == 1);
        let many = many.map(|from| {
            let defines = [&plan.defines[..], &many_defines()].concat();
            let kernel = kernels.get("decode.cu", defines, "decode")?;
            Ok::<_, Error>((from, kernel))
        });
        let launch = Launch::new(sms, plan.threads).shared(plan.shared).overlap();
        Ok(Self {
            plan,
            kernel,
            many: many.transpose()?,
            launch,
            paged,
        })
    }

    /// A phase of the product of `matrices`, one of those that it was compiled for.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda) if it is none of them.
    pub fn product(
        &self,
        matrices: &[DeviceMatrix],
        epilogue: Epilogue,
        buffers: &Buffers,
        uses: Uses,
    ) -> Result<Phase> {
        let kind = Kind::new(matrices, epilogue);
        let index = self.plan.number_of(&kind)?;
        Ok(Phase::product(
            &kind, index, epilogue, matrices, buffers, uses,
        ))
    }

    /// Puts phases on the GPU.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda) if the memory is not there, or for a matrix that cannot
    /// be loaded in boxes.
    pub fn program(&self, gpu: &Gpu, phases: Vec<Phase>) -> Result<Program> {
        Program::new(gpu, &self.plan.kinds, phases)
    }

    /// A call that works through `program`; `whole`: with the embedding before it. Tables:
    /// embedding, the first layer's two norms.
    #[must_use]
    pub fn call(
        &self,
        program: (Span, usize),
        whole: bool,
        c: &ModelConfig,
        s: &State,
        [embedding, input_norm, first_norm]: [Span; 3],
    ) -> Call {
        let (program, phases) = program;
        let inv_freq = |i: usize| match self.paged {
            None => s.inv_freq[i].ptr(),
            Some(paged) => paged.inv_freq[i],
        };
        let args = Args::new()
            .ptr(program.ptr())
            .i32(phases as i32)
            .i32(i32::from(whole))
            .ptr(s.state.ptr())
            .ptr(embedding.ptr())
            .ptr(input_norm.ptr())
            .ptr(first_norm.ptr())
            .ptr(inv_freq(0))
            .f32(c.rope.attention_factor())
            .ptr(s.hidden[0].ptr())
            .ptr(s.square_sums[0].ptr())
            .ptr(s.mailbox.device_ptr());
        // Of the other rotary embedding, where there is one.
        let factors = rotations(c).into_iter().map(Rotation::attention_factor);
        let others = factors.enumerate().skip(1);
        let args = others.fold(args, |args, (i, factor)| args.ptr(inv_freq(i)).f32(factor));
        Call {
            kernel: self.kernel.clone(),
            launch: self.launch,
            args: match self.paged {
                None => args,
                Some(paged) => args.ptr(paged.pages),
            },
        }
    }
}

/// The step of one cache.
#[derive(Debug)]
pub(super) struct Step {
    whole: Call,
    /// The same behind at least so many tokens.
    many: Option<(usize, Call)>,
    head: Call,
    _program: Program,
}

impl Step {
    /// Compiles the kernel and writes its program for one cache.
    ///
    /// # Errors
    /// As [`Decoder::new`]; [`Error::Cuda`](crate::Error::Cuda) if the memory is not there.
    pub(super) fn new(parts: &Parts<'_>) -> Result<Self> {
        Self::of(parts, Way::One(None))
    }

    /// As [`Step::new`] of a sequence whose keys and values lie in pages of the cache.
    ///
    /// # Errors
    /// As [`Step::new`].
    pub(super) fn paged(parts: &Parts<'_>, paged: Paged) -> Result<Self> {
        Self::of(parts, Way::One(Some(paged)))
    }

    fn of(parts: &Parts<'_>, way: Way) -> Result<Self> {
        let Parts {
            kernels,
            config: c,
            model,
            state,
            cache,
        } = *parts;
        // Pages are any sequence's, up to the longest.
        let longest = match way.paged() {
            None => cache.capacity,
            Some(_) => c.max_positions,
        };
        let of_cache = (cache.code, longest);
        let decoder = Decoder::of(kernels, c, &products(model), of_cache, way)?;
        let phases = phases(&decoder, parts)?;
        // The last phase is the head behind a prompt.
        let count = phases.len() - 1;
        let program = decoder.program(kernels.gpu(), phases)?;
        let first = &model.layers[0].norms;
        // Where there are no norms they are not read.
        let norm = |norm: Option<Span>| norm.unwrap_or(model.norm);
        let tables = [
            model.embedding,
            norm(first.before_attention),
            norm(first.before_mlp),
        ];
        let whole = program.phases(0, count)?;
        let head = program.phases(count, 1)?;
        let whole = decoder.call(whole, true, c, state, tables);
        let head = decoder.call(head, false, c, state, tables);
        let many = decoder.many.map(|(from, kernel)| {
            let call = whole.clone();
            (from, Call { kernel, ..call })
        });
        Ok(Self {
            whole,
            many,
            head,
            _program: program,
        })
    }

    /// Tokens below which all steps have the same arithmetic.
    pub(super) fn alike_below(&self) -> usize {
        self.many.as_ref().map_or(usize::MAX, |(from, _)| *from)
    }

    /// Queues a step behind `past` tokens.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda) if the driver refuses.
    pub(super) fn run(&self, stream: &Stream, past: usize) -> Result<()> {
        let many = self.many.as_ref().filter(|(from, _)| past >= *from);
        let call = many.map_or(&self.whole, |(_, call)| call);
        // SAFETY: the program has buffers of its model's and GPU's size, which the engine keeps.
        unsafe { call.run(stream) }
    }

    /// Queues only the head and the choice of a token, of what a prompt left.
    ///
    /// # Errors
    /// As [`Step::run`].
    pub(super) fn run_head(&self, stream: &Stream) -> Result<()> {
        // SAFETY: as in `run`.
        unsafe { self.head.run(stream) }
    }
}

/// The step with guesses of one cache.
#[derive(Debug)]
pub(super) struct GuessingStep {
    call: Call,
    _program: Program,
}

impl GuessingStep {
    /// Compiles the kernel and writes its program, of parts whose state is that of such steps.
    ///
    /// # Errors
    /// As [`Step::new`].
    pub(super) fn new(parts: &Parts<'_>) -> Result<Self> {
        let Step {
            whole, _program, ..
        } = Step::of(parts, Way::Guessing)?;
        Ok(Self {
            call: whole,
            _program,
        })
    }

    /// Queues a step of the token that is on the GPU and of `guess` behind it.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda) if the driver refuses.
    pub(super) fn run(&self, stream: &Stream, guess: u32) -> Result<()> {
        let args = self.call.args.clone().u32(guess);
        let call = Call {
            args,
            ..self.call.clone()
        };
        // SAFETY: as in `Step::run`.
        unsafe { call.run(stream) }
    }
}

/// Tokens from which on a step has a kernel of its own, for many tokens, where that is faster:
/// measured on an H200 (kernels/NOTES.md, 41 and 42).
#[must_use]
pub fn many_from(c: &ModelConfig, code: KvCode) -> Option<usize> {
    // As `decode_attention.cuh` has it: by tensor cores where queries share keys.
    let shared = c.heads > c.kv_heads;
    let by_tensor_cores = shared && c.heads <= 8 * c.kv_heads && c.head_dim <= 128;
    match code {
        KvCode::Bf16 => by_tensor_cores.then_some(8192),
        KvCode::Fp8 | KvCode::Int8 => (by_tensor_cores || !shared).then_some(8192),
        // Widening takes more of the time, which both kernels do alike.
        KvCode::Int4 if by_tensor_cores => Some(12288),
        KvCode::Int4 => (!shared).then_some(8192),
    }
}

/// The macro of `decode.cu` beside those of its plan, for steps behind many tokens.
#[must_use]
pub fn many_defines() -> [(&'static str, i64); 1] {
    [("MANY_TOKENS", 1)]
}

/// The macros of `decode.cu` beside those of its plan, where keys and values lie in pages.
#[must_use]
pub fn paged_defines() -> [(&'static str, i64); 2] {
    [("PAGED", 1), ("PAGE_TOKENS", KEYS as i64)]
}

/// How `decode.cu` is cut for a model's steps.
pub(super) fn step_plan(c: &ModelConfig, model: &DeviceModel, sms: usize) -> Result<Plan> {
    plan_of(c, &products(model), sms, 1)
}

/// The same for steps with guesses.
pub(super) fn guessing_plan(c: &ModelConfig, model: &DeviceModel, sms: usize) -> Result<Plan> {
    plan_of(c, &products(model), sms, STEP_ROWS)
}

fn plan_of(
    c: &ModelConfig,
    products: &[(&[DeviceMatrix], Epilogue)],
    sms: usize,
    rows: usize,
) -> Result<Plan> {
    let kinds: Vec<_> = products
        .iter()
        .map(|(m, epilogue)| (Kind::new(m, *epilogue), m[0].scale_defines().to_vec()))
        .collect();
    Plan::of_rows(c, &kinds, sms, rows)
}
