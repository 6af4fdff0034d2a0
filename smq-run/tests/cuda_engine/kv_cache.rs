//! Caches of fewer bits than bf16, of one sequence and in pages: logits against the CPU with the
//! same cache, the same bits on every run and beside any other sequences, and what is refused.
//!
//! An element that lies near a tie is rounded the other way here or there, by a step of its format:
//! what follows is held to the twin's distance from f32, for the twin meets the same ties
//! (reference.rs, FP8).

use std::ops::ControlFlow;

use libtest_mimic::Failed;
use serde_json::{Value, json};
use smq_engine::cuda::{CudaBatch, CudaEngine, many_from};
use smq_engine::serve::BatchOptions;
use smq_engine::{Engine, KvCacheFormat, KvCode, LoadOptions};
use smq_model::{ModelConfig, Source};

use crate::logits::{DECODED, decoding, of_prompts};
use crate::models::{self, E5M5, Model, any_tokens, sample_tokens};
use crate::reference::{Path, Reference};
use crate::{Outcome, batch, drafts, none, same_bits, stale};

/// Decode steps after a prompt.
const STEPS: usize = 8;

pub(crate) fn load(source: &Source, code: KvCode) -> CudaEngine {
    let options = LoadOptions {
        kv_cache: Some(KvCacheFormat::Coded(code)),
        ..LoadOptions::default()
    };
    CudaEngine::load_with(source, &options).unwrap()
}

/// Prompts with steps after each, then token by token.
fn of(
    name: &str,
    source: &Source,
    code: KvCode,
    tokens: &[u32],
    prompts: &[usize],
    widened: bool,
) -> Vec<String> {
    let format = KvCacheFormat::Coded(code);
    let name = format!("{name}, {format} cache");
    let lengths = prompts
        .iter()
        .flat_map(|p| *p..=p + STEPS)
        .chain(1..=DECODED);
    let reference = Reference::cached(source, tokens, lengths, format);
    let mut engine = load(source, code);
    let all = (prompts, STEPS);
    let mut failures = of_prompts(&name, &mut engine, &reference, tokens, all, |_| widened);
    let path = Path::Fp8Decode;
    failures.extend(decoding(&name, &mut engine, &reference, tokens, path));
    failures
}

/// The fixture: one tile of tokens and its neighbours, more than one chunk, LongRoPE's long
/// factors.
pub(crate) fn logits(code: KvCode) -> Outcome {
    let tokens = sample_tokens(2300 + STEPS);
    let prompts = [1, 127, 129, 700, 2300];
    let mut failures = of(
        "C0",
        &Model::fixture().open(),
        code,
        &tokens,
        &prompts,
        false,
    );
    let int4 = Model::fixture().quantized(E5M5, "all");
    failures.extend(of("int4", &int4.open(), code, &tokens, &prompts[..3], true));
    none(failures)
}

/// Tokens of the vocabulary of [`models_of_shapes`].
pub(crate) const VOCAB: u32 = 1000;

/// Heads of every size, shared or not; a window that begins anywhere in a tile; norms of queries
/// and keys; and a family whose steps the kernels of prompts make.
pub(crate) fn models_of_shapes() -> Vec<(String, Model)> {
    let mut window = models::phi(384, 6, 2);
    window["sliding_window"] = 50.into();
    let of_family = |class: &str, model_type: &str, heads: [usize; 3], more: Value| {
        let [heads, kv_heads, head_dim] = heads;
        let mut config = json!({
            "architectures": [class], "model_type": model_type, "torch_dtype": "bfloat16",
            "hidden_size": 256, "intermediate_size": 576, "num_hidden_layers": 3,
            "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim,
            "vocab_size": 4096, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            "max_position_embeddings": 4096, "tie_word_embeddings": false,
        });
        let map = config.as_object_mut().unwrap();
        map.extend(more.as_object().unwrap().clone());
        config
    };
    let gemma = json!({
        "sliding_window": 48, "query_pre_attn_scalar": 224, "tie_word_embeddings": true,
    });
    let all = [
        ("heads of 96", models::phi(384, 4, 4)),
        ("heads of 128, of which four share", models::phi(512, 4, 1)),
        ("heads of 64 with a window", window),
        ("Llama", models::llama()),
        (
            "Qwen3",
            of_family("Qwen3ForCausalLM", "qwen3", [4, 2, 64], json!({})),
        ),
        (
            "Gemma 2, heads of 256",
            of_family("Gemma2ForCausalLM", "gemma2", [4, 2, 256], gemma),
        ),
    ];
    let made = |(name, config): (&str, Value)| (name.to_owned(), Model::synthetic(&config));
    all.into_iter().map(made).collect()
}

pub(crate) fn shapes(code: KvCode) -> Outcome {
    let mut failures = Vec::new();
    for (name, model) in models_of_shapes() {
        let source = model.open();
        let tokens = any_tokens(130 + STEPS, VOCAB);
        let prompts = [1, 5, 64, 130];
        failures.extend(of(&name, &source, code, &tokens, &prompts, false));
    }
    none(failures)
}

/// Many sequences, whose keys and values are codes in pages, against the CPU with the same cache;
/// each with the same bits however it is cut and whatever it is computed beside, and with guessed
/// tokens.
pub(crate) fn pages(code: KvCode) -> Outcome {
    let model = Model::fixture();
    batch::scores(&model, None, Some(code))?;
    batch::invariant(&model, None, Some(code))?;
    batch::invariant(&model.quantized(E5M5, "all"), None, Some(code))?;
    drafts::drafts(&model, Some(code))
}

/// All shapes at once: what takes long is to compile for each.
pub(crate) fn pages_shapes(code: KvCode) -> Outcome {
    let of = |model: &Model| -> Outcome {
        batch::scores(model, Some(VOCAB), Some(code))?;
        batch::invariant(model, Some(VOCAB), Some(code))
    };
    let models = models_of_shapes();
    let failures = std::thread::scope(|scope| {
        let started = models.iter().map(|(name, model)| {
            let test = scope.spawn(|| of(model).err());
            (name, test)
        });
        let started: Vec<_> = started.collect();
        let failure = |(name, test): (&String, std::thread::ScopedJoinHandle<'_, _>)| {
            let failed: Failed = test.join().unwrap()?;
            Some(format!("{name}: {}", failed.message().unwrap_or("failed")))
        };
        started.into_iter().filter_map(failure).collect()
    });
    none(failures)
}

/// Steps on both sides of the number of tokens from which on they have a kernel of their own, with
/// queries that share keys and without. Scores are large, so that what a query gets is a few
/// tokens', wherever among all these they are.
pub(crate) fn many_tokens(code: KvCode) -> Outcome {
    let of_heads = |heads: usize, kv_heads: usize, head_dim: usize| {
        let config = json!({
            "architectures": ["GraniteForCausalLM"], "model_type": "granite",
            "torch_dtype": "bfloat16", "hidden_size": 384, "intermediate_size": 2176,
            "num_hidden_layers": 2, "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, "head_dim": head_dim, "vocab_size": 1000,
            "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 16384,
            "tie_word_embeddings": false, "embedding_multiplier": 12.0,
            "attention_multiplier": 4.0, "residual_multiplier": 0.5, "logits_scaling": 0.25,
        });
        let name = format!("{heads} queries of {head_dim}, {kv_heads} keys");
        (name, Model::synthetic(&config))
    };
    let models = match code {
        KvCode::Bf16 => [(7, 1, 128), (6, 2, 64), (4, 2, 96), (8, 1, 32)],
        KvCode::Fp8 | KvCode::Int8 | KvCode::Int4 => {
            [(7, 1, 128), (6, 2, 64), (6, 6, 64), (4, 4, 96)]
        }
    };
    let mut failures = Vec::new();
    for (heads, kv_heads, head_dim) in models {
        let (name, model) = of_heads(heads, kv_heads, head_dim);
        let source = model.open();
        let from = many_from(&ModelConfig::of(&source).unwrap(), code).unwrap();
        let prompt = from - STEPS / 2;
        let tokens = any_tokens(prompt + STEPS, VOCAB);
        let format = match code {
            KvCode::Bf16 => KvCacheFormat::F32,
            KvCode::Fp8 | KvCode::Int8 | KvCode::Int4 => KvCacheFormat::Coded(code),
        };
        let reference = Reference::cached(&source, &tokens, prompt..=prompt + STEPS, format);
        let mut engine = load(&source, code);
        let name = format!("{name}, {code:?} cache");
        let prompts = (&[prompt][..], STEPS);
        let of_prompts = of_prompts(&name, &mut engine, &reference, &tokens, prompts, |_| false);
        failures.extend(of_prompts);
    }
    none(failures)
}

/// One sequence alone by the kernel of one sequence, over pages of codes.
pub(crate) fn pages_fast(code: KvCode) -> Outcome {
    batch::fast_alone(&Model::fixture(), None, Some(code))?;
    let int4 = Model::synthetic(&models::llama()).quantized_in_groups(E5M5, "all", 64);
    batch::fast_alone(&int4, Some(VOCAB), Some(code))
}

/// Greedy text and log-probabilities twice, the second time in a cache that has grown.
pub(crate) fn repeats(code: KvCode) -> Outcome {
    let model = Model::fixture().quantized(E5M5, "all");
    let source = model.open();
    let mut engine = load(&source, code);
    let tokens = sample_tokens(700);
    let mut work = |room: usize| {
        let mut text = Vec::new();
        engine.start(room).unwrap();
        let mut on_token = |token, _| {
            text.push(token);
            Ok(ControlFlow::Continue(()))
        };
        engine.greedy(&tokens[..300], 60, &mut on_token).unwrap();
        engine.start(room).unwrap();
        let mut logits = engine.extend(&tokens[..650]).unwrap().logits.to_vec();
        logits.extend(engine.log_probs(&tokens).unwrap().iter().map(|p| *p as f32));
        (text, logits)
    };
    let (text, logits) = work(300);
    let mut failures = Vec::new();
    for room in [300, 1500] {
        let (again, others) = work(room);
        if again != text || !same_bits(&logits, &others) {
            failures.push(format!("{code:?}, room for {room}: other bits"));
        }
    }
    none(failures)
}

pub(crate) fn stale_buffers() -> Outcome {
    let mut failures = Vec::new();
    for code in KvCode::SMALLER {
        let name = format!("{code:?} cache");
        let model = Model::fixture_copy();
        failures.extend(stale::failures(&name, &model, |source| load(source, code)));
    }
    none(failures)
}

/// In words that say what to do.
pub(crate) fn refused() -> Outcome {
    let source = Model::fixture().open();
    let mut failures = Vec::new();
    let mut check = |message: Option<String>, words: &[&str]| {
        let message = message.unwrap_or_else(|| "taken".to_owned());
        if !words.iter().all(|word| message.contains(word)) {
            failures.push(message);
        }
    };
    let plain = LoadOptions {
        kv_cache: Some(KvCacheFormat::F32),
        ..LoadOptions::default()
    };
    let loaded = CudaEngine::load_with(&source, &plain).err();
    check(
        loaded.map(|e| e.to_string()),
        &["--kv-cache f32", "--device cpu"],
    );
    let options = BatchOptions {
        kv_tokens: Some(1024),
        kv_cache: Some(KvCacheFormat::F32),
        ..BatchOptions::default()
    };
    let loaded = CudaBatch::load(&source, &options).err();
    check(
        loaded.map(|e| e.to_string()),
        &["--kv-cache f32", "--device cpu"],
    );
    none(failures)
}
