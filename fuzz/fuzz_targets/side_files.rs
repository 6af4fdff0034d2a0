//! Reads a config.json and the files beside it, all arbitrary: the model's numbers, its generation
//! settings, and what its tokenizer takes from them.
#![no_main]

use smq_fuzz::{Kind, Known, Parts, TOKENIZER, mutate_parts, scratch, weights, write_files};
use smq_model::{ConfigFile, GenerationSettings, ModelConfig, Source, Tokenizer};

const WORDS: &[&str] = &[
    "model_type",
    "architectures",
    "llama",
    "LlamaForCausalLM",
    "mistral",
    "MistralForCausalLM",
    "phi3",
    "Phi3ForCausalLM",
    "qwen2",
    "Qwen2ForCausalLM",
    "qwen3",
    "Qwen3ForCausalLM",
    "gemma",
    "gemma2",
    "gemma3_text",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "rms_norm_eps",
    "max_position_embeddings",
    "original_max_position_embeddings",
    "sliding_window",
    "use_sliding_window",
    "layer_types",
    "sliding_attention",
    "full_attention",
    "hidden_act",
    "silu",
    "gelu",
    "gelu_pytorch_tanh",
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "rope_type",
    "type",
    "default",
    "linear",
    "dynamic",
    "yarn",
    "longrope",
    "llama3",
    "factor",
    "short_factor",
    "long_factor",
    "low_freq_factor",
    "high_freq_factor",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "partial_rotary_factor",
    "torch_dtype",
    "dtype",
    "bfloat16",
    "quantization_config",
    "auto_map",
    "text_config",
    "transformers_weights",
    "max_window_layers",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "repetition_penalty",
    "do_sample",
    "no_repeat_ngram_size",
    "num_beams",
    "max_new_tokens",
    "max_length",
    "min_length",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "sequence_bias",
    "stop_strings",
    "eos_token_id",
    "bos_token_id",
    "pad_token_id",
    "tokenizer_class",
    "LlamaTokenizer",
    "PreTrainedTokenizerFast",
    "chat_template",
    "{{ x }}",
    "bos_token",
    "eos_token",
    "extra_special_tokens",
    "added_tokens_decoder",
    "add_bos_token",
    "a",
];
const KNOWN: Known = &[
    ("config.json", Kind::Json(WORDS)),
    ("generation_config.json", Kind::Json(WORDS)),
    ("tokenizer_config.json", Kind::Json(WORDS)),
    ("special_tokens_map.json", Kind::Json(WORDS)),
    ("added_tokens.json", Kind::Json(WORDS)),
];

smq_fuzz::target! {
    mutate: |input, limit, random, mutate| mutate_parts(KNOWN, input, limit, random, mutate),
    run: run,
}

fn run(data: &[u8]) {
    let parts = Parts::of(KNOWN, data);
    let config = parts.get("config.json").unwrap_or_default();
    // Without tensors first: what converting and making up a model read.
    if let Ok(file) = ConfigFile::from_json(config) {
        let _ = (file.defaults_in_words(), file.notes(), file.tensors().len());
        match file.runnable() {
            Ok(config) => assert_ne!(config.heads * config.head_dim, 0),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    let dir = scratch();
    // The first byte of the input decides whether embedding and head are two.
    let (embedding, head) = ("model.embed_tokens.weight", "lm_head.weight");
    let both = [(embedding, &[2usize, 4][..]), (head, &[2, 4][..])];
    let weights = weights(&both[..1 + data.len() % 2]);
    let others = [
        ("tokenizer.json", TOKENIZER.as_bytes()),
        ("model.safetensors", &weights[..]),
    ];
    write_files(dir.path(), &parts, &others);
    let Ok(source) = Source::open(dir.path()) else {
        return;
    };
    if let Err(error) = ModelConfig::of(&source) {
        assert!(!error.to_string().is_empty());
    }
    if let Ok(settings) = GenerationSettings::of(&source) {
        let _ = settings.new_tokens(3);
        assert!(settings.in_force().all(|(key, _)| !key.is_empty()));
    }
    let _ = GenerationSettings::plain(&source);
    if let Ok(tokenizer) = Tokenizer::load(&source) {
        let ids = tokenizer.encode("a b c", true);
        if let Ok(ids) = ids {
            let _ = tokenizer.decode(&ids);
        }
        let _ = (tokenizer.prefix_token(), tokenizer.eos_token());
    }
}
