//! A decode step: one kernel that works through a program of phases, every product and attention of
//! a token.

pub(super) mod plan;
pub(super) mod program;
mod word;

use std::sync::Arc;

use super::args::Args;
use super::device::Gpu;
use super::family::{Rotation, rotation_of, rotations};
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
        Self::of(kernels, c, products, (code, 0), None)
    }

    /// As [`Decoder::new`], for sequences of up to `longest` tokens, in pages where `paged` says
    /// so.
    fn of(
        kernels: &Kernels,
        c: &ModelConfig,
        products: &[(&[DeviceMatrix], Epilogue)],
        (code, longest): (KvCode, usize),
        paged: Option<Paged>,
    ) -> Result<Self> {
        let sms = kernels.gpu().sm_count();
        let mut plan = plan_of(c, products, sms as usize)?;
        plan.defines.extend(kv_defines(code));
        if paged.is_some() {
            plan.defines.extend(paged_defines());
        }
        let kernel = kernels.get("decode.cu", plan.defines.clone(), "decode")?;
        let many = many_from(c, code).filter(|from| *from < longest);
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
        Self::of(parts, None)
    }

    /// As [`Step::new`] of a sequence whose keys and values lie in pages of the cache.
    ///
    /// # Errors
    /// As [`Step::new`].
    pub(super) fn paged(parts: &Parts<'_>, paged: Paged) -> Result<Self> {
        Self::of(parts, Some(paged))
    }

    fn of(parts: &Parts<'_>, paged: Option<Paged>) -> Result<Self> {
        let Parts {
            kernels,
            config: c,
            model,
            state,
            cache,
        } = *parts;
        // Pages are any sequence's, up to the longest.
        let longest = match paged {
            None => cache.capacity,
            Some(_) => c.max_positions,
        };
        let of_cache = (cache.code, longest);
        let decoder = Decoder::of(kernels, c, &products(model), of_cache, paged)?;
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
    plan_of(c, &products(model), sms)
}

fn plan_of(c: &ModelConfig, products: &[(&[DeviceMatrix], Epilogue)], sms: usize) -> Result<Plan> {
    let kinds: Vec<_> = products
        .iter()
        .map(|(m, epilogue)| (Kind::new(m, *epilogue), m[0].scale_defines().to_vec()))
        .collect();
    Plan::new(c, &kinds, sms)
}

/// Every product of a model with what surrounds it.
fn products(model: &DeviceModel) -> Vec<(&[DeviceMatrix], Epilogue)> {
    let one = std::slice::from_ref::<DeviceMatrix>;
    let mut list: Vec<_> = model
        .layers
        .iter()
        .flat_map(|l| {
            [
                (&l.qkv[..], Epilogue::Store),
                (one(&l.o), Epilogue::Residual),
                (&l.gate_up[..], Epilogue::Swiglu),
                (one(&l.down), Epilogue::Residual),
            ]
        })
        .collect();
    list.push((one(&model.head), Epilogue::Logits));
    list
}

/// A whole step, and behind it the head alone with a prompt's input.
fn phases(decoder: &Decoder, parts: &Parts<'_>) -> Result<Vec<Phase>> {
    let Parts {
        config: c,
        model,
        state: s,
        cache,
        ..
    } = *parts;
    let one = std::slice::from_ref::<DeviceMatrix>;
    let address = |span: Option<Span>| span.map_or(0, Span::ptr);
    let mut list = Vec::with_capacity(5 * c.layers + 2);
    for (i, layer) in model.layers.iter().enumerate() {
        // The norm behind `down`, and that behind the next `o`.
        let following = model.layers.get(i + 1);
        let next_norm = following.map_or(Some(model.norm), |l| l.norms.before_attention);
        let uses = |output| Uses {
            input: Some(i),
            output,
        };
        list.push(decoder.product(
            &layer.qkv,
            Epilogue::Store,
            &Buffers {
                x: s.hidden[0].ptr(),
                sums: s.square_sums[0].ptr(),
                next_norm: address(layer.biases.qkv),
                out: s.qkv.ptr(),
                ..Buffers::default()
            },
            uses(i),
        )?);
        let attention = Buffers {
            x: s.qkv.ptr(),
            sums: s.attention_parts.ptr(),
            out: s.attended.ptr(),
            ..Buffers::default()
        };
        let attention = Phase::attention(cache.layer(i), cache.capacity, &attention, uses(i));
        let scales = cache.scales(c, i).unwrap_or_default();
        // A window that no sequence outgrows is none.
        let window = c.windows.layer(i).filter(|w| *w < c.max_positions);
        let qk_norm = layer.qk_norm.map_or([0; 2], |norms| norms.map(Span::ptr));
        let attention = attention.of_layer(window.unwrap_or(0), rotation_of(c, i), qk_norm);
        list.push(attention.scaled(scales));
        let of_attention = decoder.product(
            one(&layer.o),
            Epilogue::Residual,
            &Buffers {
                x: s.attended.ptr(),
                sums: s.product_sums[0].ptr(),
                next_norm: address(next_norm),
                out: s.hidden[1].ptr(),
                out_sums: s.square_sums[1].ptr(),
            },
            uses(i),
        )?;
        list.push(of_attention.normed(address(layer.norms.after_attention)));
        list.push(decoder.product(
            &layer.gate_up,
            Epilogue::Swiglu,
            &Buffers {
                x: s.hidden[1].ptr(),
                sums: s.square_sums[1].ptr(),
                out: s.activated.ptr(),
                ..Buffers::default()
            },
            uses(i),
        )?);
        let of_mlp = decoder.product(
            one(&layer.down),
            Epilogue::Residual,
            &Buffers {
                x: s.activated.ptr(),
                sums: s.product_sums[1].ptr(),
                next_norm: address(following.and_then(|l| l.norms.before_mlp)),
                out: s.hidden[0].ptr(),
                out_sums: s.square_sums[0].ptr(),
            },
            uses(i + 1),
        )?;
        list.push(of_mlp.normed(address(layer.norms.after_mlp)));
    }
    let head = |x: Span, sums: Span, input| {
        let buffers = Buffers {
            x: x.ptr(),
            sums: sums.ptr(),
            out: s.logits.ptr(),
            out_sums: s.best.ptr(),
            ..Buffers::default()
        };
        let uses = Uses { input, output: 0 };
        decoder.product(one(&model.head), Epilogue::Logits, &buffers, uses)
    };
    list.push(head(s.hidden[0], s.square_sums[0], Some(c.layers))?);
    list.push(head(s.last_hidden, s.last_square_sums, None)?);
    Ok(list)
}
