//! The kernels with the macros that families beyond Llama's and Phi-3's layers ask for.

use serde_json::{Value, json};
use smq_engine::cuda::{
    Attention, Bf16Cut, Cut, ROW_THREADS, SMS, SwigluCut, Target, leave_defines, leaves,
    logits_defines, row_defines, windows,
};
use smq_format::ScaleChoice;
use smq_model::ModelConfig;
use smq_model::architecture::Activation;

use crate::variants::{
    Layer, Shape, Variant, formats, int4, matrix, of_cache, of_caches, of_many_tokens,
    of_smaller_caches, step, with_a_guess,
};

/// A config of each family with what it has beyond the others, of the sizes of a well-known model's
/// heads.
fn configs() -> [(&'static str, Value); 11] {
    let of = |model_type: &str, heads: [usize; 3], more: Value| {
        let [heads, kv_heads, head_dim] = heads;
        let mut config = json!({
            "model_type": model_type, "hidden_size": 2048, "intermediate_size": 8192,
            "vocab_size": 50304, "num_hidden_layers": 12, "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, "head_dim": head_dim,
        });
        let map = config.as_object_mut().unwrap();
        map.extend(more.as_object().unwrap().clone());
        config
    };
    let biases = json!({"attention_bias": true, "mlp_bias": true});
    let scaled = json!({
        "embedding_multiplier": 12.0, "attention_multiplier": 0.25,
        "residual_multiplier": 0.22, "logits_scaling": 8.0,
    });
    let window = json!({"sliding_window": 512});
    [
        ("Qwen3", of("qwen3", [32, 8, 128], json!({}))),
        (
            "Qwen3 with biases",
            of("qwen3", [16, 8, 64], json!({"attention_bias": true})),
        ),
        ("Qwen2", of("qwen2", [28, 4, 128], json!({}))),
        ("Llama with biases", of("llama", [8, 2, 96], biases)),
        ("SmolLM3", of("smollm3", [16, 4, 128], json!({}))),
        (
            "Gemma 2",
            of("gemma2", [8, 4, 256], json!({"query_pre_attn_scalar": 224})),
        ),
        ("Gemma 3", of("gemma3_text", [4, 1, 256], window.clone())),
        ("Granite", of("granite", [32, 8, 64], scaled)),
        ("OLMo 2", of("olmo2", [32, 32, 128], json!({}))),
        ("OLMo 3", of("olmo3", [8, 8, 32], window)),
        (
            "Phi-3 with a window",
            of("phi3", [32, 32, 96], json!({"sliding_window": 2047})),
        ),
    ]
}

pub(crate) fn variants() -> Vec<Variant> {
    let mut list: Vec<Variant> = configs().iter().flat_map(of_family).collect();
    let mut add = |file, name: String, defines| {
        list.push(Variant {
            name: format!("any family {name}"),
            file,
            defines,
        });
    };
    // What the products have for them.
    let gelu = Activation::GeluTanh;
    for m in [1, 64, 128] {
        let bf16 = matrix(4096, 2048, smq_engine::cuda::Format::Bf16);
        let cut = SwigluCut::new(&bf16, m, gelu);
        add("swiglu_bf16.cu", format!("gelu, {m} rows"), cut.defines);
        let cut = Bf16Cut::new(m, [2048, 2048], None, SMS).overwriting();
        add(
            "gemm_bf16.cu",
            format!("overwriting, {m} rows"),
            cut.defines,
        );
        let w = matrix(4096, 2048, int4(ScaleChoice::e5(5), 128));
        for (what, target) in [
            ("overwriting", Target::F32(0)),
            ("gelu", Target::Swiglu(0, true, gelu)),
        ] {
            let cut = Cut::new(&w, m, target, SMS);
            add("gemm_int4.cu", format!("{what}, {m} rows"), cut.defines);
        }
    }
    list
}

fn of_family((name, config): &(&'static str, Value)) -> Vec<Variant> {
    let c = ModelConfig::from_json(config.to_string().as_bytes()).unwrap();
    let mut cases = vec![
        ("rows.cu", String::new(), row_defines(&c, SMS)),
        ("logits.cu", String::new(), logits_defines(&c)),
    ];
    if leaves(&c) {
        let defines = leave_defines(&c, ROW_THREADS);
        cases.push(("leave.cu", String::new(), defines));
    }
    cases.extend(of_caches(&c));
    let windows = windows(&c);
    for kind in Attention::all().filter(|kind| kind.fits(&c)) {
        let Attention {
            warpgroups,
            rows,
            ring,
            code,
        } = kind;
        for (i, window) in windows.iter().enumerate() {
            let cache = of_cache(code);
            let case = format!(
                "window {window:?}, {warpgroups} warpgroups, {rows:?}, {ring} tiles{cache}"
            );
            let defines = kind.defines(&c, *window, (i % 2) as i64);
            cases.push((kind.file(), case, defines));
        }
    }
    if !c.biases.o && !c.biases.mlp {
        let shape = Shape {
            name,
            hidden: c.hidden,
            heads: c.heads,
            kv_heads: c.kv_heads,
            head_dim: c.head_dim,
            intermediate: c.intermediate,
            vocab: c.vocab,
            fused: false,
        };
        let stored = formats().into_iter();
        for (how, format) in stored.filter(|(how, _)| ["bf16", "int4", "NF4"].contains(how)) {
            let layer = Layer::new(&shape, |rows, cols| matrix(rows, cols, format));
            let step = step(&c, &layer.products());
            if how == "bf16" {
                cases.extend(of_smaller_caches(how, &step));
                cases.extend(of_many_tokens(how, &c, &step).into_iter().take(1));
                cases.extend(with_a_guess(how, &c, &layer.products()));
            }
            cases.push(("decode.cu", how.to_owned(), step));
        }
    }
    let named = |(file, case, defines)| Variant {
        name: format!("{name} {case}"),
        file,
        defines,
    };
    cases.into_iter().map(named).collect()
}
