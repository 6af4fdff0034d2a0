//! Small checkpoints of every family, with random weights, biases and norms that matter; for the
//! tests of whatever computes families, here and in smq-run.

use half::bf16;
use serde_json::{Value, json};
use smq_model::ConfigFile;
use tempfile::TempDir;

/// Entries of the vocabularies.
pub(crate) const VOCAB: u32 = 4096;
/// Latest positions that a layer with a window sees: of prompts some are shorter.
const WINDOW: usize = 48;

/// Each family, some with what a config of it may turn on.
pub(crate) fn configs() -> Vec<(&'static str, Value)> {
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

/// A checkpoint whose values depend on the tensors' names alone.
pub(crate) fn made(config: &Value) -> TempDir {
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
    dir
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
