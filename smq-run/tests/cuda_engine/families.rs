//! Every family beyond Llama's and Phi-3's layers: small models with random weights, biases and
//! norms that matter, in bf16, int4 and NF4, on both engines.

use std::ops::ControlFlow;

use half::bf16;
use rayon::prelude::*;
use serde_json::{Value, json};
use smq_convert::Method;
use smq_engine::Engine;
use smq_engine::cuda::compile::compile;
use smq_engine::cuda::{CudaEngine, Need, SMS, kernels_of};
use smq_model::{ConfigFile, ModelConfig};

use crate::logits::of_all;
use crate::models::{self, E5M5, Model, any_tokens, sample_tokens};
use crate::reference::{Path, argmax};
use crate::{Outcome, batch, none, rows};

/// Entries of the vocabularies.
const VOCAB: u32 = 4096;
/// Latest positions that a layer with a window sees: of the prompts below some are shorter.
const WINDOW: usize = 48;
/// Models whose steps of one sequence are made by the kernels of prompts.
const BY_PROMPTS: [&str; 3] = [
    "Qwen3 with biases",
    "Llama with biases",
    "Llama that is small",
];
/// The prompts of one sequence: on both sides of the window and of a tile of keys.
const PROMPTS: [usize; 5] = [1, 40, 64, 130, 300];
const STEPS: usize = 8;
const GREEDY: usize = 40;

/// Each family, some with what a config of it may turn on.
fn configs() -> Vec<(&'static str, Value)> {
    let of = |class: &str, model_type: &str, layers: usize, heads: [usize; 3], more: Value| {
        let [heads, kv_heads, head_dim] = heads;
        let mut config = json!({
            "architectures": [class], "model_type": model_type, "torch_dtype": "bfloat16",
            "hidden_size": 256, "intermediate_size": 576, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim,
            "vocab_size": VOCAB, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            "max_position_embeddings": 4096, "tie_word_embeddings": false,
        });
        let map = config.as_object_mut().unwrap();
        map.extend(more.as_object().unwrap().clone());
        config
    };
    let qwen2 = |heads, more| of("Qwen2ForCausalLM", "qwen2", 3, heads, more);
    let window = json!({"sliding_window": WINDOW});
    vec![
        (
            "Qwen3",
            of(
                "Qwen3ForCausalLM",
                "qwen3",
                3,
                [4, 2, 64],
                json!({"tie_word_embeddings": true}),
            ),
        ),
        (
            "Qwen3 with biases",
            of(
                "Qwen3ForCausalLM",
                "qwen3",
                2,
                [6, 1, 128],
                json!({"attention_bias": true}),
            ),
        ),
        ("Qwen2", qwen2([4, 2, 64], json!({}))),
        // More queries to a key than a warp of decode.cu keeps at a time: other warps', and passes.
        ("Qwen2 of 7 queries", qwen2([7, 1, 128], json!({}))),
        ("Qwen2 of 16 queries", qwen2([16, 1, 128], json!({}))),
        (
            "Qwen2 with windows and yarn",
            qwen2(
                [4, 4, 32],
                json!({
                    "use_sliding_window": true, "sliding_window": WINDOW, "max_window_layers": 1,
                    "rope_scaling": {
                        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64,
                    },
                }),
            ),
        ),
        (
            "Llama with biases",
            of(
                "LlamaForCausalLM",
                "llama",
                2,
                [4, 2, 96],
                json!({"attention_bias": true, "mlp_bias": true}),
            ),
        ),
        (
            "Llama that is small",
            of(
                "LlamaForCausalLM",
                "llama",
                5,
                [4, 2, 64],
                json!({"intermediate_size": 256}),
            ),
        ),
        (
            "Mistral",
            of(
                "MistralForCausalLM",
                "mistral",
                2,
                [4, 1, 64],
                window.clone(),
            ),
        ),
        (
            "SmolLM3",
            of("SmolLM3ForCausalLM", "smollm3", 5, [4, 2, 64], json!({})),
        ),
        (
            "Gemma 2",
            of(
                "Gemma2ForCausalLM",
                "gemma2",
                4,
                [4, 2, 256],
                json!({"sliding_window": WINDOW, "query_pre_attn_scalar": 224, "tie_word_embeddings": true}),
            ),
        ),
        (
            "Gemma 3",
            of(
                "Gemma3ForCausalLM",
                "gemma3_text",
                7,
                [4, 1, 256],
                json!({
                    "sliding_window": WINDOW, "query_pre_attn_scalar": 256, "rope_theta": 1e6,
                    "tie_word_embeddings": true,
                }),
            ),
        ),
        (
            "Granite",
            of(
                "GraniteForCausalLM",
                "granite",
                3,
                [4, 2, 64],
                json!({
                    "embedding_multiplier": 12.0, "attention_multiplier": 0.0625,
                    "residual_multiplier": 0.22, "logits_scaling": 0.25,
                }),
            ),
        ),
        (
            "OLMo 2",
            of("Olmo2ForCausalLM", "olmo2", 3, [4, 4, 64], json!({})),
        ),
        (
            "OLMo 3",
            of("Olmo3ForCausalLM", "olmo3", 5, [8, 2, 32], window),
        ),
    ]
}

/// A small model of each family, not quantized.
fn models() -> Vec<(String, Model)> {
    let made = |(name, config): (&str, Value)| (name.to_owned(), made(&config));
    ready(configs().into_iter().map(made).collect())
}

/// A small model of each family, made into something by `convert`.
fn converted(to: &str, convert: impl Fn(Model) -> Model) -> Vec<(String, Model)> {
    let made = |(name, config): (&str, Value)| (format!("{name} {to}"), convert(made(&config)));
    ready(configs().into_iter().map(made).collect())
}

/// Their kernels compiled, on all cores: engines compile one after the other.
fn ready(models: Vec<(String, Model)>) -> Vec<(String, Model)> {
    let mut needs: Vec<Need> = Vec::new();
    for (_, model) in &models {
        for need in kernels_of(&model.open(), None, SMS).unwrap() {
            if !needs.contains(&need) {
                needs.push(need);
            }
        }
    }
    needs.par_iter().for_each(|(file, defines)| {
        compile("sm_90a", file, defines).unwrap();
    });
    models
}

/// A checkpoint whose values depend on the tensors' names alone.
fn made(config: &Value) -> Model {
    let dir = tempfile::tempdir().unwrap();
    let json = config.to_string();
    let file = ConfigFile::from_json(json.as_bytes()).unwrap();
    let gemma = json.contains("\"model_type\":\"gemma");
    let (mut index, mut data) = (serde_json::Map::new(), Vec::new());
    for tensor in file.tensors() {
        let from = data.len();
        data.extend(values(&tensor.name, &tensor.shape, gemma));
        let entry =
            json!({"dtype": "BF16", "shape": tensor.shape, "data_offsets": [from, data.len()]});
        index.insert(tensor.name, entry);
    }
    let header = Value::Object(index).to_string();
    let length = (header.len() as u64).to_le_bytes();
    let all = [&length[..], header.as_bytes(), &data].concat();
    std::fs::write(dir.path().join("model.safetensors"), all).unwrap();
    std::fs::write(dir.path().join("config.json"), json).unwrap();
    Model::of(dir)
}

/// bf16 bytes: projections keep what goes through them of order one, biases and norms are large
/// enough that one left out shows.
fn values(name: &str, shape: &[usize], norms_add_one: bool) -> Vec<u8> {
    let start = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    let mix = |index: usize| {
        let z = start.wrapping_add((index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    // -1 to 1.
    let unit = |z: u64| (z >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
    let gain = 1.7 / (*shape.last().unwrap() as f32).sqrt();
    let value = |i: usize| match unit(mix(i)) {
        v if name.contains("norm") && norms_add_one => v / 4.0,
        v if name.contains("norm") => 1.0 + v / 4.0,
        v if name.ends_with(".bias") => v,
        v if name.contains("_proj") || name.contains("lm_head") => v * gain,
        v => v,
    };
    let all = (0..shape.iter().product()).map(|i| bf16::from_f32(value(i)).to_le_bytes());
    all.flatten().collect()
}

/// Prompts and steps, of which decode.cu makes those of every family but where the MLP or the
/// attention's output has biases, and of models with work for fewer blocks than the GPU has: then
/// the kernels of prompts do, a row at a time.
fn of_sequence(name: &str, model: &Model, widened: bool) -> Vec<String> {
    let tokens = sample_tokens(300 + STEPS);
    let source = model.open();
    let c = ModelConfig::of(&source).unwrap();
    let qkv = (c.heads + 2 * c.kv_heads) * c.head_dim;
    let small = (qkv / 8).max(c.intermediate / 4) < SMS;
    let by_rows = c.biases.o || c.biases.mlp || small;
    let decode = match (by_rows, widened) {
        (false, _) => Path::Decode,
        (true, false) => Path::Prompt,
        (true, true) => Path::WidenedPrompt,
    };
    let prompts = (&PROMPTS[..], STEPS);
    let mut failures = of_all(name, &source, None, &tokens, prompts, widened, decode);
    failures.extend(greedy(name, &mut CudaEngine::load(&source, None).unwrap()));
    failures
}

/// What is chosen ahead of the host is what the same engine's logits say, and the same again.
fn greedy(name: &str, engine: &mut CudaEngine) -> Vec<String> {
    let mut failures = Vec::new();
    for length in [1, 60] {
        let prompt = sample_tokens(length);
        let mut text = || {
            let mut tokens = Vec::new();
            let mut take = |token, _| {
                tokens.push(token);
                Ok(ControlFlow::Continue(()))
            };
            engine.start(length + GREEDY).unwrap();
            engine.greedy(&prompt, GREEDY, &mut take).unwrap();
            tokens
        };
        let tokens = text();
        if text() != tokens {
            failures.push(format!("{name}: other tokens the second time"));
        }
        engine.start(length + GREEDY).unwrap();
        let mut next = prompt.clone();
        for (i, token) in tokens.iter().enumerate() {
            let best = argmax(engine.extend(&next).unwrap().logits);
            if best != *token {
                failures.push(format!("{name}: token {i} is not the largest logit's"));
                break;
            }
            next = vec![*token];
        }
    }
    failures
}

pub(crate) fn unquantized() -> Outcome {
    let of = |(name, model): (String, Model)| of_sequence(&name, &model, false);
    none(models().into_iter().flat_map(of).collect())
}

pub(crate) fn int4() -> Outcome {
    let of = |(name, model): (String, Model)| of_sequence(&name, &model, true);
    let models = converted("int4", |model| model.quantized(E5M5, "all"));
    none(models.into_iter().flat_map(of).collect())
}

pub(crate) fn nf4() -> Outcome {
    let of = |(name, model): (String, Model)| of_sequence(&name, &model, true);
    let models = converted("NF4", |model| model.quantized_as(Method::Nf4, "all"));
    none(models.into_iter().flat_map(of).collect())
}

/// Each step's log-probabilities against the CPU.
pub(crate) fn batch_scores() -> Outcome {
    let int4 = converted("int4", |model| model.quantized(E5M5, "all"));
    of_each(models().into_iter().chain(int4), |model| {
        batch::scores(model, None, None)
    })
}

/// The same bits whatever is in a step beside a row.
pub(crate) fn batch_invariant() -> Outcome {
    of_each(models(), |model| batch::invariant(model, None, None))
}

/// A sequence alone by the kernel of one sequence; models that it does not compute are refused.
pub(crate) fn batch_fast() -> Outcome {
    let (refused, taken): (Vec<_>, Vec<_>) = models()
        .into_iter()
        .partition(|(name, _)| BY_PROMPTS.contains(&name.as_str()));
    of_each(refused, |model| {
        match batch::opened(&model.open(), true, None).map_err(|e| e.to_string()) {
            Err(error) if error.contains("leave out --fast-nondeterministic") => Ok(()),
            Err(error) => Err(error.into()),
            Ok(_) => Err("it was not refused".into()),
        }
    })?;
    of_each(taken, |model| batch::fast_alone(model, Some(VOCAB), None))
}

/// Packed sequences against each by itself.
pub(crate) fn continuations() -> Outcome {
    let of = |(name, model): (String, Model)| rows::continuations_of(&name, &model.open());
    none(models().into_iter().flat_map(of).collect())
}

/// A dynamic rotary embedding, within the length up to which it does not change.
pub(crate) fn dynamic_rope() -> Outcome {
    let mut config = models::llama();
    config["rope_scaling"] = json!({"type": "dynamic", "factor": 2.0});
    let model = Model::synthetic(&config);
    let (source, context) = (model.open(), 2048);
    if CudaEngine::load(&source, None).is_ok() {
        return none(vec!["a longer context is taken".into()]);
    }
    let tokens = any_tokens(300 + STEPS, 1000);
    // Too little work for each multiprocessor: the kernels of prompts make the steps.
    let (prompts, path) = ((&PROMPTS[..], STEPS), Path::Prompt);
    none(of_all(
        "dynamic",
        &source,
        Some(context),
        &tokens,
        prompts,
        false,
        path,
    ))
}

/// Every model's outcome, by its name.
fn of_each(
    models: impl IntoIterator<Item = (String, Model)>,
    test: impl Fn(&Model) -> Outcome,
) -> Outcome {
    let failure = |(name, model): (String, Model)| {
        let failed = test(&model).err()?;
        Some(format!("{name}: {}", failed.message().unwrap_or("failed")))
    };
    none(models.into_iter().filter_map(failure).collect())
}
