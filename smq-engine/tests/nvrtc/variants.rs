//! Every kernel file with the macros of the models that are tested, as the engine cuts them for an H100.

use smq_format::scale::{MiniFloat, ScaleFormat};

use smq_engine::cuda::decode::plan::{Epilogue, Kind, Plan};
use smq_engine::cuda::memory::Span;
use smq_engine::cuda::prefill::attention::{Attention, rope_defines};
use smq_engine::cuda::rows::{self, Target};
use smq_engine::cuda::swiglu::{SwigluCut, fuses_bf16};
use smq_engine::cuda::weights::{DeviceMatrix, Format};
use smq_model::ModelConfig;

/// Multiprocessors of an H100.
const SMS: usize = 132;

/// A kernel file and the macros it is compiled with.
#[derive(Debug, Clone)]
pub(crate) struct Variant {
    /// The model and the case it is for.
    pub(crate) name: String,
    /// The kernel file.
    pub(crate) file: &'static str,
    /// Macros, by name.
    pub(crate) defines: Vec<(&'static str, i64)>,
}

/// A model's shape, as kernels need it.
struct Shape {
    name: &'static str,
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    intermediate: usize,
    vocab: usize,
    /// q, k, v and gate, up are one matrix each.
    fused: bool,
}

impl Shape {
    fn config(&self) -> Option<ModelConfig> {
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
        ModelConfig::from_json(json.as_bytes()).ok()
    }
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

/// What the NVRTC test compiles.

pub(crate) fn kernel_variants() -> Vec<Variant> {
    let mut list: Vec<_> = [2, 4, 8]
        .map(|loads| Variant {
            name: format!("{loads} loads"),
            file: "measure.cu",
            defines: vec![("LOADS", loads)],
        })
        .into();
    for shape in &SHAPES {
        of_model(shape, &mut list);
    }
    list
}

fn of_model(s: &Shape, list: &mut Vec<Variant>) {
    let e5m5 = MiniFloat::new(5, 5, 100).map_or(ScaleFormat::F16, ScaleFormat::Mini);
    let mut add = |file, case: &str, defines| {
        let name = format!("{} {case}", s.name);
        list.push(Variant {
            name,
            file,
            defines,
        });
    };
    let eps = 1e-5_f32;
    let number = |n: usize| n as i64;
    if let Some(c) = s.config() {
        for packed in [false, true] {
            let case = if packed { "packed" } else { "" };
            add("rope.cu", case, rope_defines(&c, packed));
        }
        for kind in Attention::ALL {
            let Attention { warpgroups, packed } = kind;
            let case = if packed { ", packed" } else { "" };
            for order in [0, 1] {
                let case = format!("order {order}, {warpgroups} warpgroups{case}");
                add("attention_prefill.cu", &case, kind.defines(&c, order));
            }
        }
    }
    let row_defines = vec![
        ("HIDDEN", number(s.hidden)),
        ("INTERMEDIATE", number(s.intermediate)),
        ("VOCAB", number(s.vocab)),
        ("EPS_BITS", i64::from(eps.to_bits())),
        ("GRID", number(SMS)),
    ];
    add("rows.cu", "", row_defines);
    let (q, kv, inner) = (
        s.heads * s.head_dim,
        s.kv_heads * s.head_dim,
        s.intermediate,
    );
    let nowhere = Span::at(0, 0);
    let int4 = |format, group| Format::Int4 {
        scales: nowhere,
        format,
        group,
    };
    let formats = [
        ("bf16", Format::Bf16),
        ("int4", int4(e5m5, 128)),
        ("int4 in groups of 64", int4(e5m5, 64)),
        ("int4 in groups of 64, f32", int4(ScaleFormat::F32, 64)),
        ("int4 in groups of 32", int4(e5m5, 32)),
        (
            "NF4",
            Format::Nf4 {
                absmax: nowhere,
                nested_absmax: nowhere,
                offset: 0.0,
            },
        ),
        ("FP8", Format::Fp8 { scales: nowhere }),
    ];
    for (stored, format) in formats {
        let of = |rows, cols| matrix(rows, cols, format);
        let (qkv, gate_up) = if s.fused {
            (
                vec![of(q + 2 * kv, s.hidden)],
                vec![of(2 * inner, s.hidden)],
            )
        } else {
            let (k, up) = (of(kv, s.hidden), of(inner, s.hidden));
            (vec![of(q, s.hidden), k, k], vec![up, up])
        };
        let (o, down, head) = (of(s.hidden, q), of(s.hidden, inner), of(s.vocab, s.hidden));
        let products = [
            (&qkv[..], Epilogue::Store),
            (&[o], Epilogue::Residual),
            (&gate_up, Epilogue::Swiglu),
            (&[down], Epilogue::Residual),
            (&[head], Epilogue::Logits),
        ];
        let kinds =
            products.map(|(m, epilogue)| (Kind::new(m, epilogue), m[0].scale_defines().to_vec()));
        // None of these models is refused: the test of `plan.rs` says so.
        if let Some(plan) = s.config().and_then(|c| Plan::new(&c, &kinds, SMS).ok()) {
            add("decode.cu", stored, plan.defines);
        }
        for m in [16, 32, 64, 128] {
            if fuses_bf16(&gate_up, m) {
                let cut = SwigluCut::new(&gate_up[0], m);
                add("swiglu_bf16.cu", &format!("{m} rows"), cut.defines);
            }
        }
        let Format::Int4 {
            group,
            format: ScaleFormat::Mini(_),
            ..
        } = format
        else {
            continue;
        };
        let of_stored = |m: &[DeviceMatrix], as_bf16: bool, mantissa_bits| {
            let scales = MiniFloat::new(5, mantissa_bits, 100).map(ScaleFormat::Mini);
            let format = match scales.filter(|_| !as_bf16) {
                Some(format) => int4(format, group),
                None => Format::Bf16,
            };
            let alike = m.iter().map(|m| matrix(m.rows, m.cols, format));
            alike.collect::<Vec<_>>()
        };
        let [head_product, layer_products @ ..] = [4, 0, 1, 2, 3].map(|i| products[i]);
        // As `smq-convert --mbits auto` may choose: every product of a layer bf16 in one and int4 in another, and each
        // with scales of another width.
        let mut mixed = vec![of_stored(head_product.0, true, 0)];
        let mut epilogues = vec![head_product.1];
        for (width, (m, epilogue)) in layer_products.into_iter().enumerate() {
            mixed.extend([of_stored(m, true, 0), of_stored(m, false, width as u32)]);
            epilogues.extend([epilogue; 2]);
        }
        let kinds: Vec<_> = mixed
            .iter()
            .zip(epilogues)
            .map(|(m, epilogue)| (Kind::new(m, epilogue), m[0].scale_defines().to_vec()))
            .collect();
        if let Some(plan) = s.config().and_then(|c| Plan::new(&c, &kinds, SMS).ok()) {
            let case = format!("bf16 and {stored} of many widths");
            add("decode.cu", &case, plan.defines);
        }
        let swiglu = match rows::reads_int4_order(&gate_up[..1], 1) {
            true => Target::Swiglu(0, true),
            false => Target::Bf16(0, gate_up[0].rows),
        };
        for (part, w, target) in [
            ("qkv", &qkv[0], Target::Bf16(0, qkv[0].rows)),
            ("o", &o, Target::Add(0)),
            ("down", &down, Target::Add(0)),
            ("gate_up", &gate_up[0], swiglu),
        ] {
            let case = format!("{stored}, {part}");
            add("dequantize.cu", &case, rows::widen_defines(w));
            if stored == "int4" {
                add("fp8.cu", part, vec![("K", number(w.cols))]);
            }
            // Only matrices that are whole go through gemm_int4.
            for m in [16, 64, 128, 512] {
                let fits = s.fused || matches!(target, Target::Add(_));
                if fits {
                    let cut = rows::Cut::new(w, m, target, SMS);
                    add("gemm_int4.cu", &format!("{case}, {m} rows"), cut.defines);
                }
            }
        }
    }
}

/// A matrix that is nowhere: its shape alone.
fn matrix(rows: usize, cols: usize, format: Format) -> DeviceMatrix {
    DeviceMatrix {
        rows,
        cols,
        data: Span::at(0, 0),
        format,
    }
}
