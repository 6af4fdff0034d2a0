//! Every kernel file with the macros of the models that are tested, as the engine cuts them for an
//! H100.

use smq_engine::cuda::{
    Attention, Bf16Cut, Cut, Defines, DeviceMatrix, Epilogue, Format, KV_FILE, Kind, Plan, Rows,
    SMS, Span, SwigluCut, Target, calibrate_defines, choose_defines, fp8_defines, fuses_bf16,
    kv_cache_defines, kv_defines, many_defines, many_from, measure, paged_defines,
    reads_int4_order, rope_defines, row_defines, widen_defines,
};
use smq_engine::{KvCacheFormat, KvCode};
use smq_format::scale::ScaleFormat;
use smq_format::{Levels, ScaleChoice};
use smq_model::ModelConfig;
use smq_model::architecture::Activation;

use crate::families;

/// A kernel file and the macros it is compiled with.
#[derive(Debug, Clone)]
pub(crate) struct Variant {
    /// The model and the case it is for.
    pub(crate) name: String,
    /// The kernel file.
    pub(crate) file: &'static str,
    /// Macros, by name.
    pub(crate) defines: Defines,
}

/// A model's shape, as kernels need it.
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    pub(crate) hidden: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) intermediate: usize,
    pub(crate) vocab: usize,
    /// q, k, v and gate, up are one matrix each.
    pub(crate) fused: bool,
}

const SHAPES: [Shape; 3] = [
    Shape {
        name: "phi3-tiny",
        hidden: 256,
        heads: 8,
        kv_heads: 8,
        head_dim: 32,
        intermediate: 768,
        vocab: 4096,
        fused: true,
    },
    Shape {
        name: "SmolLM2-135M",
        hidden: 576,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        intermediate: 1536,
        vocab: 49152,
        fused: false,
    },
    Shape {
        name: "Phi-3.5-mini",
        hidden: 3072,
        heads: 32,
        kv_heads: 32,
        head_dim: 96,
        intermediate: 8192,
        vocab: 32064,
        fused: true,
    },
];

/// What the test compiles.
pub(crate) fn kernel_variants() -> Vec<Variant> {
    let mut list = Vec::new();
    for loads in [2, 4, 8] {
        list.push(Variant {
            name: format!("{loads} loads"),
            file: measure::FILE,
            defines: measure::defines(loads),
        });
    }
    list.push(Variant {
        name: "any model".to_owned(),
        file: "calibrate.cu",
        defines: calibrate_defines(),
    });
    list.extend(SHAPES.iter().flat_map(of_shape));
    list.extend(families::variants());
    list
}

/// Every kernel of a model, with every kind of weights.
fn of_shape(s: &Shape) -> Vec<Variant> {
    let c = s.config();
    let mut cases = of_any_weights(&c);
    for (stored, format) in formats() {
        let layer = Layer::new(s, |rows, cols| matrix(rows, cols, format));
        cases.push(("decode.cu", stored.to_owned(), step(&c, &layer.products())));
        if s.fused || stored == "int4" {
            cases.extend(with_a_guess(stored, &c, &layer.products()));
        }
        cases.extend(fused_swiglu(&layer));
        if stored == "bf16" || stored == "int4" {
            let step = step(&c, &layer.products());
            cases.extend(of_smaller_caches(stored, &step));
            cases.extend(of_many_tokens(stored, &c, &step));
        }
        if matches!(format, Format::Bf16) {
            if let Some((_, case, step)) = with_a_guess(stored, &c, &layer.products()) {
                cases.extend(of_smaller_caches(&case, &step));
            }
            let mut paged = step(&c, &layer.products());
            paged.extend(paged_defines());
            cases.extend(of_smaller_caches(&format!("{stored}, paged"), &paged));
            cases.extend(of_many_tokens(&format!("{stored}, paged"), &c, &paged));
            cases.push(("decode.cu", format!("{stored}, paged"), paged));
            for (part, w, target) in layer.parts() {
                cases.extend(of_many_sequences(part, &w, target));
            }
        }
        if matches!(format, Format::Nf4 { .. }) {
            for (part, w, target) in layer.parts() {
                let case = format!("{stored}, {part}");
                cases.extend(of_many_rows(&case, &w, target, s.fused));
            }
        }
        let (Format::Int4 {
            group,
            format: ScaleFormat::Mini(_),
            ..
        }
        | Format::Lut4 {
            group,
            format: ScaleFormat::Mini(_),
            ..
        }) = format
        else {
            continue;
        };
        let mixed = step(&c, &of_many_widths(s, format, group));
        let case = format!("bf16 and {stored} of many widths");
        cases.push(("decode.cu", case, mixed));
        for (part, w, target) in layer.parts() {
            cases.extend(of_many_rows(
                &format!("{stored}, {part}"),
                &w,
                target,
                s.fused,
            ));
            if group == 128 && matches!(format, Format::Int4 { .. }) {
                cases.push(("fp8.cu", part.to_owned(), fp8_defines(w.cols)));
            }
        }
    }
    let named = |(file, case, defines)| Variant {
        name: format!("{} {case}", s.name),
        file,
        defines,
    };
    cases.into_iter().map(named).collect()
}

/// A kernel file, what the macros are for, and these.
pub(crate) type Case = (&'static str, String, Defines);

/// What does not depend on how weights are stored.
fn of_any_weights(c: &ModelConfig) -> Vec<Case> {
    let mut cases = vec![("rows.cu", String::new(), row_defines(c, SMS))];
    cases.push(("choose.cu", String::new(), choose_defines(c.vocab)));
    cases.extend(of_caches(c));
    for kind in Attention::all() {
        let Attention {
            warpgroups,
            rows,
            ring,
            code,
        } = kind;
        for order in [0, 1] {
            let cache = of_cache(code);
            let case =
                format!("order {order}, {warpgroups} warpgroups, {rows:?}, {ring} tiles{cache}");
            let defines = kind.defines(c, c.windows.alike(), order);
            cases.push((kind.file(), case, defines));
        }
    }
    cases
}

/// The rotation of every kind of rows, and what a prompt's pass does with caches of fewer bits than
/// bf16.
pub(crate) fn of_caches(c: &ModelConfig) -> Vec<Case> {
    let rope = |rows, code| {
        let case = format!("{rows:?}{}", of_cache(code));
        ("rope.cu", case, rope_defines(c, rows, code))
    };
    let mut cases: Vec<Case> = Rows::ALL.map(|rows| rope(rows, KvCode::Bf16)).into();
    for code in KvCode::SMALLER {
        let cache = KvCacheFormat::Coded(code).to_string();
        cases.push((KV_FILE, cache, kv_cache_defines(c, code)));
        cases.push(rope(Rows::Paged, code));
    }
    cases
}

/// A cache, where it is not bf16, behind a case's name.
pub(crate) fn of_cache(code: KvCode) -> String {
    match code {
        KvCode::Bf16 => String::new(),
        KvCode::Fp8 | KvCode::Int8 | KvCode::Int4 => {
            format!(", {} cache", KvCacheFormat::Coded(code))
        }
    }
}

/// A step behind many tokens, with each cache with which it has a kernel of its own.
pub(crate) fn of_many_tokens(stored: &str, c: &ModelConfig, step: &Defines) -> Vec<Case> {
    let codes = [KvCode::Bf16].into_iter().chain(KvCode::SMALLER);
    let of_code = |code| {
        let defines = [&step[..], &kv_defines(code), &many_defines()].concat();
        let case = format!("{stored}, many tokens{}", of_cache(code));
        ("decode.cu", case, defines)
    };
    let codes = codes.filter(|code| many_from(c, *code).is_some());
    codes.map(of_code).collect()
}

/// A step with these caches.
pub(crate) fn of_smaller_caches(stored: &str, step: &[(&'static str, i64)]) -> [Case; 3] {
    KvCode::SMALLER.map(|code| {
        let defines = [step, &kv_defines(code)].concat();
        ("decode.cu", format!("{stored}{}", of_cache(code)), defines)
    })
}

/// A product of bf16 weights in a step of many sequences.
fn of_many_sequences(part: &str, w: &DeviceMatrix, target: Target) -> Vec<Case> {
    let stride = match target {
        Target::Bf16(_, stride) => Some(stride),
        Target::Add(_) | Target::F32(_) => None,
        Target::Swiglu(..) => return Vec::new(),
    };
    let case = |m| {
        let cut = Bf16Cut::new(m, [w.rows, w.cols], stride, SMS);
        ("gemm_bf16.cu", format!("{part}, {m} rows"), cut.defines)
    };
    [16, 32, 64, 128].map(case).into()
}

/// Gate and up of a short prompt in one kernel, where it does these.
fn fused_swiglu(layer: &Layer) -> Vec<Case> {
    let tiles = [16, 32, 64, 128].into_iter();
    let fused = tiles.filter(|m| fuses_bf16(&layer.gate_up, *m));
    let case = |m| {
        let cut = SwigluCut::new(&layer.gate_up[0], m, Activation::Silu);
        ("swiglu_bf16.cu", format!("{m} rows"), cut.defines)
    };
    fused.map(case).collect()
}

/// A prompt's product with weights of four bits: by its own kernel, where the matrix is whole, and widened.
fn of_many_rows(case: &str, w: &DeviceMatrix, target: Target, fused: bool) -> Vec<Case> {
    let mut cases = vec![("dequantize.cu", case.to_owned(), widen_defines(w))];
    if fused || matches!(target, Target::Add(_)) {
        for m in [16, 64, 128, 512] {
            let cut = Cut::new(w, m, target, SMS);
            cases.push(("gemm_int4.cu", format!("{case}, {m} rows"), cut.defines));
        }
    }
    cases
}

/// A step of one sequence with a guess; none where its scratch leaves the ring no room.
pub(crate) fn with_a_guess(
    stored: &str,
    c: &ModelConfig,
    products: &[(Vec<DeviceMatrix>, Epilogue)],
) -> Option<Case> {
    let plan = Plan::of_rows(c, &kinds(products), SMS, 2).ok()?;
    Some(("decode.cu", format!("{stored}, a guess"), plan.defines))
}

/// The macros of a decode step of these products.
pub(crate) fn step(c: &ModelConfig, products: &[(Vec<DeviceMatrix>, Epilogue)]) -> Defines {
    Plan::new(c, &kinds(products), SMS).unwrap().defines
}

fn kinds(products: &[(Vec<DeviceMatrix>, Epilogue)]) -> Vec<(Kind, Defines)> {
    let kind = |(m, epilogue): &(Vec<DeviceMatrix>, Epilogue)| {
        (Kind::new(m, *epilogue), m[0].scale_defines().to_vec())
    };
    products.iter().map(kind).collect()
}

/// As `smq-convert --mbits auto` may choose: every product of a layer bf16 in one and int4 in
/// another, and each with scales of another width.
fn of_many_widths(s: &Shape, like: Format, group: usize) -> Vec<(Vec<DeviceMatrix>, Epilogue)> {
    let stored = |format| Layer::new(s, |rows, cols| matrix(rows, cols, format)).products();
    let [.., head] = stored(Format::Bf16);
    let mut mixed = vec![head];
    for i in 0..4 {
        let scales = ScaleChoice::e5(i as u32);
        let coded = match like {
            Format::Lut4 { levels, .. } => lut4(scales, group, levels),
            Format::Bf16 | Format::Int4 { .. } | Format::Nf4 { .. } | Format::Fp8 { .. } => {
                int4(scales, group)
            }
        };
        for format in [Format::Bf16, coded] {
            mixed.push(stored(format)[i].clone());
        }
    }
    mixed
}

/// Ways of storing weights, by name.
pub(crate) fn formats() -> [(&'static str, Format); 11] {
    let nowhere = Span::at(0, 0);
    let e5m5 = ScaleChoice::e5(5);
    let nf4 = Format::Nf4 {
        absmax: nowhere,
        nested_absmax: nowhere,
        offset: 0.0,
    };
    [
        ("bf16", Format::Bf16),
        ("int4", int4(e5m5, 128)),
        ("int4 in groups of 64", int4(e5m5, 64)),
        ("int4 in groups of 64, f32", int4(ScaleChoice::F32, 64)),
        ("int4 in groups of 32", int4(e5m5, 32)),
        ("NF4", nf4),
        ("FP8", Format::Fp8 { scales: nowhere }),
        ("lut4", lut4(e5m5, 128, Levels::nf4())),
        ("lut4 that is shifted", lut4(e5m5, 128, shifted())),
        ("lut4 in groups of 64", lut4(e5m5, 64, shifted())),
        ("lut4 in groups of 32", lut4(e5m5, 32, Levels::nf4())),
    ]
}

pub(crate) fn int4(scales: ScaleChoice, group: usize) -> Format {
    Format::Int4 {
        scales: Span::at(0, 0),
        format: scales.format(1.0).unwrap(),
        group,
    }
}

fn lut4(scales: ScaleChoice, group: usize, levels: Levels) -> Format {
    // The book is before the scales.
    Format::Lut4 {
        scales: Span::at(32, 0),
        format: scales.format(1.0).unwrap(),
        group,
        levels,
    }
}

/// NF4's levels, but that the one of 0 is negative: the decode kernel shifts them.
fn shifted() -> Levels {
    let mut levels = Levels::nf4().bytes();
    levels[7] = -2;
    Levels::new(levels).unwrap()
}

/// A matrix that is nowhere: its shape alone.
pub(crate) fn matrix(rows: usize, cols: usize, format: Format) -> DeviceMatrix {
    DeviceMatrix {
        rows,
        cols,
        data: Span::at(0, 0),
        format,
    }
}

/// The matrices of a layer, and the head.
pub(crate) struct Layer {
    qkv: Vec<DeviceMatrix>,
    o: DeviceMatrix,
    gate_up: Vec<DeviceMatrix>,
    down: DeviceMatrix,
    head: DeviceMatrix,
}

impl Layer {
    pub(crate) fn new(s: &Shape, of: impl Fn(usize, usize) -> DeviceMatrix) -> Self {
        let (q, kv) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
        let inner = s.intermediate;
        let (qkv, gate_up) = match s.fused {
            true => (vec![q + 2 * kv], vec![2 * inner]),
            false => (vec![q, kv, kv], vec![inner, inner]),
        };
        let side_by_side = |rows: Vec<usize>| rows.into_iter().map(|r| of(r, s.hidden)).collect();
        Self {
            qkv: side_by_side(qkv),
            o: of(s.hidden, q),
            gate_up: side_by_side(gate_up),
            down: of(s.hidden, inner),
            head: of(s.vocab, s.hidden),
        }
    }

    /// Of a decode step, the head last.
    pub(crate) fn products(&self) -> [(Vec<DeviceMatrix>, Epilogue); 5] {
        [
            (self.qkv.clone(), Epilogue::Store),
            (vec![self.o], Epilogue::Residual),
            (self.gate_up.clone(), Epilogue::Swiglu),
            (vec![self.down], Epilogue::Residual),
            (vec![self.head], Epilogue::Logits),
        ]
    }

    /// Of a prompt, the first of several, each with where it goes.
    fn parts(&self) -> [(&'static str, DeviceMatrix, Target); 4] {
        let (qkv, gate_up) = (self.qkv[0], self.gate_up[0]);
        let joined = match gate_up.gemm_group() {
            Some(_) => Target::Swiglu(0, reads_int4_order(&[self.down], 1), Activation::Silu),
            None => Target::Bf16(0, gate_up.rows),
        };
        [
            ("qkv", qkv, Target::Bf16(0, qkv.rows)),
            ("o", self.o, Target::Add(0)),
            ("down", self.down, Target::Add(0)),
            ("gate_up", gate_up, joined),
        ]
    }
}

impl Shape {
    fn config(&self) -> ModelConfig {
        let Self {
            hidden,
            heads,
            kv_heads,
            head_dim,
            intermediate,
            vocab,
            ..
        } = self;
        let json = format!(
            r#"{{"architectures": ["LlamaForCausalLM"], "hidden_size": {hidden}, "num_attention_heads": {heads},
                "num_key_value_heads": {kv_heads}, "head_dim": {head_dim}, "intermediate_size": {intermediate},
                "vocab_size": {vocab}, "num_hidden_layers": 2, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
                "max_position_embeddings": 4096}}"#
        );
        ModelConfig::from_json(json.as_bytes()).unwrap()
    }
}
