//! The Llama path against independent implementations: candle-transformers' Llama and, for a real
//! checkpoint, Hugging Face transformers.
//!
//! # Tolerance
//! As in `golden.rs`: the longest chain has `4 L + 1` products of at most `n` terms, each off by
//! `sqrt(2 n) u` relative, `u = 2^-24`. The tiny model (L = 3, n = 96) stays below 2e-5 of the
//! largest logit, SmolLM2 (L = 30, n = 1536) below 4e-4 of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use candle_transformers::models::llama::{Cache, Llama, LlamaConfig};
// The crate's own candle-nn: the builder has to be of the type its models take.
use candle_transformers::models::mimi::candle_nn::VarBuilder;
use smq_engine::generate::{GenerateOptions, generate};
use smq_engine::log_sum_exp;
use smq_engine::{CpuEngine, Engine, Error};
use smq_model::Message;
use smq_model::{Source, Tokenizer};

const TINY_TOLERANCE: f32 = 2e-5;
const SMOLLM2_TOLERANCE: f32 = 4e-4;

/// Grouped queries (3 to a kv head), a head that is not `hidden / heads` wide and ends in a
/// partial register, and an odd number of columns nowhere: candle refuses those.
fn tiny_config(tied: bool) -> serde_json::Value {
    serde_json::json!({
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 60, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 130,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 64,
        "tie_word_embeddings": tied,
    })
}

/// Writes a checkpoint with random f32 weights.
fn write_tiny(dir: &Path, config: &serde_json::Value) {
    let n = |key: &str| config[key].as_u64().unwrap() as usize;
    let (hidden, inner, vocab) = (n("hidden_size"), n("intermediate_size"), n("vocab_size"));
    let kv = hidden / n("num_attention_heads") * n("num_key_value_heads");
    let mut state = 1u64;
    let mut random = |shape: &[usize], mean: f32, width: f32| {
        let values: Vec<f32> = (0..shape.iter().product())
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                mean + width * ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
            })
            .collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    };
    let mut tensors = HashMap::new();
    let mut put = |name: String, shape: &[usize]| {
        let tensor = match shape.len() {
            1 => random(shape, 1.0, 0.5),
            _ => random(shape, 0.0, 0.3),
        };
        tensors.insert(name + ".weight", tensor);
    };
    put("model.embed_tokens".into(), &[vocab, hidden]);
    put("model.norm".into(), &[hidden]);
    if config["tie_word_embeddings"] == false {
        put("lm_head".into(), &[vocab, hidden]);
    }
    for i in 0..n("num_hidden_layers") {
        let parts: [(&str, &[usize]); 9] = [
            ("input_layernorm", &[hidden]),
            ("post_attention_layernorm", &[hidden]),
            ("self_attn.q_proj", &[hidden, hidden]),
            ("self_attn.k_proj", &[kv, hidden]),
            ("self_attn.v_proj", &[kv, hidden]),
            ("self_attn.o_proj", &[hidden, hidden]),
            ("mlp.gate_proj", &[inner, hidden]),
            ("mlp.up_proj", &[inner, hidden]),
            ("mlp.down_proj", &[hidden, inner]),
        ];
        for (part, shape) in parts {
            put(format!("model.layers.{i}.{part}"), shape);
        }
    }
    candle_core::safetensors::save(&tensors, dir.join("model.safetensors")).unwrap();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
}

/// candle-transformers' logits after `tokens`.
fn candle_logits(dir: &Path, tokens: &[u32]) -> Vec<f32> {
    let config: LlamaConfig =
        serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap();
    let config = config.into_config(false);
    let tensors =
        candle_core::safetensors::load(dir.join("model.safetensors"), &Device::Cpu).unwrap();
    let builder = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    let model = Llama::load(builder, &config).unwrap();
    let mut cache = Cache::new(false, DType::F32, &config, &Device::Cpu).unwrap();
    let input = Tensor::new(tokens, &Device::Cpu)
        .unwrap()
        .unsqueeze(0)
        .unwrap();
    let logits = model.forward(&input, 0, &mut cache).unwrap();
    logits.flatten_all().unwrap().to_vec1().unwrap()
}

fn assert_close(got: &[f32], want: &[f32], relative: f32) {
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(0f32, |m, v| m.max(v.abs()));
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let error = (got - want).abs();
        assert!(
            error <= relative * largest,
            "logit {i}: {got} instead of {want}, largest {largest}"
        );
    }
}

/// Prefill by gemm, prefill by the fused kernels, and cached decode, tied and untied.
#[test]
fn tiny_llama_equals_candle() {
    for tied in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        write_tiny(dir.path(), &tiny_config(tied));
        let source = Source::open(dir.path()).unwrap();
        let mut engine = CpuEngine::load(&source).unwrap();
        let tokens: Vec<u32> = (0..40).map(|i| i * 37 % 130).collect();
        for len in [1, 5, 40] {
            let want = candle_logits(dir.path(), &tokens[..len]);
            assert!(
                want.iter().any(|l| l.abs() > 0.5),
                "degenerate logits test nothing"
            );
            engine.start(len).unwrap();
            let got = engine.extend(&tokens[..len]).unwrap().logits.to_vec();
            assert_close(&got, &want, TINY_TOLERANCE);
        }
        engine.start(4).unwrap();
        for token in &tokens[..39] {
            engine.extend(&[*token]).unwrap();
        }
        let got = engine.extend(&tokens[39..]).unwrap().logits.to_vec();
        assert_close(&got, &candle_logits(dir.path(), &tokens), TINY_TOLERANCE);
    }
}

#[test]
fn a_model_that_does_not_fit_together_is_refused_by_name() {
    let refusal = |change: fn(&mut serde_json::Value)| {
        let dir = tempfile::tempdir().unwrap();
        let mut config = tiny_config(false);
        write_tiny(dir.path(), &config);
        change(&mut config);
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let source = Source::open(dir.path()).unwrap();
        CpuEngine::load(&source).unwrap_err().to_string()
    };
    let message = refusal(|c| c["intermediate_size"] = 97.into());
    assert!(
        message.contains("gate_proj")
            && message.contains("[97, 60]")
            && message.contains("[96, 60]"),
        "{message}"
    );
    let message = refusal(|c| c["num_hidden_layers"] = 4.into());
    assert!(
        message.contains("model.layers.3.") && message.contains("is not in"),
        "{message}"
    );
    let message = refusal(|c| c["architectures"][0] = "GemmaForCausalLM".into());
    assert!(
        message.contains("GemmaForCausalLM") && message.contains("LlamaForCausalLM"),
        "{message}"
    );
    let message =
        refusal(|c| c["rope_scaling"] = serde_json::json!({"rope_type": "mrope", "factor": 4.0}));
    assert!(
        message.contains("mrope") && message.contains("longrope"),
        "{message}"
    );
    let message = refusal(|c| c["attention_bias"] = true.into());
    assert!(message.contains("q_proj.bias"), "{message}");
}

#[test]
fn requests_beyond_the_context_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    write_tiny(dir.path(), &tiny_config(false));
    let source = Source::open(dir.path()).unwrap();
    let mut engine = CpuEngine::load(&source).unwrap();
    let options = |n| GenerateOptions {
        max_new_tokens: n,
        ..Default::default()
    };
    let mut run = |prompt: &[u32], n| generate(&mut engine, prompt, &options(n), |_| Ok(()));
    assert!(matches!(run(&[], 1), Err(Error::Input(_))));
    assert!(
        matches!(run(&[130], 1), Err(Error::Input(_))),
        "outside the vocabulary"
    );
    let message = run(&[1; 64], 1).unwrap_err().to_string();
    assert!(message.contains("64"), "{message}");
    // 60 of 64 positions taken: four tokens are fed back, a fifth comes from the last of them.
    let generation = run(&[1; 60], 100).unwrap();
    assert_eq!(generation.ids.len(), 5);
    assert_eq!(generation.stop, smq_engine::generate::Stop::ContextFull);
}

fn smollm2() -> PathBuf {
    PathBuf::from(std::env::var("SMQ_SMOLLM2").expect("SMQ_SMOLLM2 is not set"))
}

#[test]
#[ignore = "needs SMQ_SMOLLM2, SmolLM2-135M-Instruct's checkpoint directory"]
fn smollm2_equals_candle() {
    let source = Source::open(&smollm2()).unwrap();
    let tokenizer = Tokenizer::load(&source).unwrap();
    let mut engine = CpuEngine::load(&source).unwrap();
    let tokens = tokenizer
        .encode("The old lighthouse keeper climbed the stairs and", true)
        .unwrap();
    engine.start(tokens.len()).unwrap();
    let got = engine.extend(&tokens).unwrap().logits.to_vec();
    assert_close(&got, &candle_logits(&smollm2(), &tokens), SMOLLM2_TOLERANCE);
}

/// Values of transformers 5 in f32 from the same bf16 weights.
#[test]
#[ignore = "needs SMQ_SMOLLM2, SmolLM2-135M-Instruct's checkpoint directory"]
fn smollm2_equals_hugging_face() {
    struct Case {
        text: &'static str,
        ids: &'static [u32],
        top: [(usize, f32); 4],
        log_sum_exp: f64,
        greedy: [u32; 24],
    }
    let cases = [
        Case {
            text: "The capital of France is",
            ids: &[504, 3575, 282, 4649, 314],
            top: [
                (7042, 17.344_793),
                (260, 14.860_015),
                (4528, 13.199_56),
                (2250, 12.997_168),
            ],
            log_sum_exp: 17.605_412,
            greedy: [
                7042, 30, 198, 198, 504, 2988, 314, 42, 216, 34, 32, 33, 40, 29, 32, 33, 29, 34,
                34, 216, 33, 34, 42, 33,
            ],
        },
        Case {
            text: "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
            ids: &[
                1604, 3987, 46477, 24, 94, 727, 472, 585, 304, 2067, 216, 34, 42, 448, 1003, 304,
                472, 1003,
            ],
            top: [
                (2822, 20.932_716),
                (365, 20.498_596),
                (3987, 20.284_647),
                (304, 19.436_82),
            ],
            log_sum_exp: 21.890_364,
            greedy: [
                2822, 24, 38572, 46477, 24, 94, 731, 216, 34, 25, 1232, 216, 33, 28, 304, 25, 198,
                198, 19, 4246, 260, 1517, 198, 3272,
            ],
        },
    ];
    let source = Source::open(&smollm2()).unwrap();
    let tokenizer = Tokenizer::load(&source).unwrap();
    let mut engine = CpuEngine::load(&source).unwrap();
    for case in cases {
        let ids = tokenizer.encode(case.text, true).unwrap();
        assert_eq!(ids, case.ids);
        engine.start(ids.len()).unwrap();
        let logits = engine.extend(&ids).unwrap().logits.to_vec();
        let tolerance = SMOLLM2_TOLERANCE * case.top[0].1;
        for (id, want) in case.top {
            assert!(
                (logits[id] - want).abs() < tolerance,
                "logit {id}: {} instead of {want}",
                logits[id]
            );
        }
        assert!((log_sum_exp(&logits) - case.log_sum_exp).abs() < f64::from(tolerance));
        let options = GenerateOptions {
            max_new_tokens: 24,
            ..Default::default()
        };
        let generation = generate(&mut engine, &ids, &options, |_| Ok(())).unwrap();
        assert_eq!(generation.ids, case.greedy, "{}", case.text);
    }
    let user = |content: &str| Message {
        role: "user".to_owned(),
        content: content.into(),
    };
    let chat = tokenizer.chat().unwrap();
    assert_eq!(
        chat.render(&[user("What is the capital of France?")], true)
            .unwrap(),
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
         <|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    );
    let system = Message {
        role: "system".to_owned(),
        content: "Be brief.".into(),
    };
    assert_eq!(
        chat.render(&[system, user(" Hi \n there ")], true).unwrap(),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi \n there <|im_end|>\n<|im_start|>assistant\n"
    );
}
