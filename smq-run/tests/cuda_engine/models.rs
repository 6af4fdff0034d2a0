//! The models under test: the fixture, conversions of it, and small synthetic ones of other shapes.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use smq_convert::{
    Checkpoint, ConvertOptions, LevelChoice, Method, QuantizeOptions, ScaleChoice, ScaleRule,
    SynthOptions, convert, synth,
};
use smq_model::{Source, Tokenizer};
use tempfile::TempDir;

pub(crate) const E5M5: ScaleChoice = ScaleChoice::e5(5);
/// Every projection and the head.
pub(crate) const WITH_HEAD: &str = "_proj.weight|lm_head";

fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    std::env::var_os("SMQ_REPOSITORY").map_or(here, PathBuf::from)
}

/// A trained Phi-3 of 4 layers; LongRoPE switches after 512 tokens.
pub(crate) fn fixture() -> PathBuf {
    repository().join("tests/fixtures/phi3-tiny")
}

pub(crate) fn sample_text() -> String {
    std::fs::read_to_string(repository().join("tests/fixtures/sample.txt")).unwrap()
}

/// A text's first tokens.
pub(crate) fn sample_tokens(n: usize) -> Vec<u32> {
    sample_tokens_of(&Source::open(&fixture()).unwrap(), n)
}

/// Tokens of the sample text by another model's tokenizer.
pub(crate) fn sample_tokens_of(source: &Source, n: usize) -> Vec<u32> {
    let tokenizer = Tokenizer::load(source).unwrap();
    let ids = tokenizer.encode(&sample_text(), true).unwrap();
    ids.into_iter().cycle().take(n).collect()
}

/// golden.json's prompt of that name.
pub(crate) fn golden_prompt(name: &str) -> Vec<u32> {
    let golden = std::fs::read(fixture().join("golden.json")).unwrap();
    let golden: Value = serde_json::from_slice(&golden).unwrap();
    let prompts = golden["prompts"].as_array().unwrap();
    let prompt = prompts.iter().find(|p| p["name"] == name).unwrap();
    let ids = prompt["prompt_ids"].as_array().unwrap().iter();
    ids.map(|id| id.as_u64().unwrap() as u32).collect()
}

/// A model's place, and the folder that goes with it.
pub(crate) struct Model {
    pub path: PathBuf,
    _dir: Option<TempDir>,
}

impl Model {
    pub(crate) fn open(&self) -> Source {
        Source::open(&self.path).unwrap()
    }

    pub(crate) fn fixture() -> Self {
        Self {
            path: fixture(),
            _dir: None,
        }
    }

    pub(crate) fn at(path: &str) -> Self {
        Self {
            path: path.into(),
            _dir: None,
        }
    }

    /// A copy of the fixture, for a test to spoil.
    pub(crate) fn fixture_copy() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(fixture()).unwrap() {
            let from = entry.unwrap().path();
            std::fs::copy(&from, dir.path().join(from.file_name().unwrap())).unwrap();
        }
        Self::of(dir)
    }

    pub(crate) fn synthetic(config: &Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config_path = dir.path().join("made-from.json");
        std::fs::write(&config_path, config.to_string()).unwrap();
        let out = dir.path().join("checkpoint");
        synth(&SynthOptions::new(config_path, &out), &|_, _| ()).unwrap();
        Self {
            path: out,
            _dir: Some(dir),
        }
    }

    pub(crate) fn of(dir: TempDir) -> Self {
        Self {
            path: dir.path().to_owned(),
            _dir: Some(dir),
        }
    }

    pub(crate) fn quantized(&self, scales: ScaleChoice, target: &str) -> Self {
        self.quantized_in_groups(scales, target, 128)
    }

    pub(crate) fn quantized_in_groups(
        &self,
        scales: ScaleChoice,
        target: &str,
        group: usize,
    ) -> Self {
        let options = QuantizeOptions {
            group,
            scales,
            rule: ScaleRule::Reference,
        };
        self.quantized_as(Method::Int4(options), target)
    }

    pub(crate) fn quantized_as(&self, method: Method, target: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.smq");
        let options = ConvertOptions {
            target: target.parse().unwrap(),
            quantize: method,
            overwrite: false,
            jobs: 0,
        };
        let checkpoint = Checkpoint::open(&self.path).unwrap();
        convert(&checkpoint, &path, &options, &|_| true).unwrap();
        Self {
            path,
            _dir: Some(dir),
        }
    }

    /// Overwrites the first place that holds `bytes` by `byte`s.
    pub(crate) fn spoil(&self, bytes: &[u8], byte: u8) {
        let files = match self.path.is_dir() {
            false => vec![self.path.clone()],
            true => std::fs::read_dir(&self.path)
                .unwrap()
                .map(|e| e.unwrap().path())
                .collect(),
        };
        for file in files {
            let mut contents = std::fs::read(&file).unwrap();
            if let Some(at) = contents.windows(bytes.len()).position(|w| w == bytes) {
                contents[at..at + bytes.len()].fill(byte);
                // As a new file: the old one may be mapped.
                let new = file.with_extension("spoilt");
                std::fs::write(&new, contents).unwrap();
                std::fs::rename(&new, &file).unwrap();
                return;
            }
        }
        panic!("no file of {} holds those bytes", self.path.display());
    }
}

/// A code book for each tensor.
pub(crate) fn lut4_method(scales: ScaleChoice, group: usize, levels: LevelChoice) -> Method {
    let options = QuantizeOptions {
        group,
        scales,
        rule: ScaleRule::Nearest,
    };
    Method::Lut4 { options, levels }
}

/// Separate projections, three queries to a key, a tied head, and columns that end in half a group:
/// SmolLM2's.
pub(crate) fn llama() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
        "hidden_size": 576, "intermediate_size": 704, "num_hidden_layers": 2,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 1000,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 2048,
        "tie_word_embeddings": true,
    })
}

/// Fused projections with grouped queries.
pub(crate) fn phi(hidden: usize, heads: usize, kv_heads: usize) -> Value {
    json!({
        "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "torch_dtype": "bfloat16",
        "hidden_size": hidden, "intermediate_size": 704, "num_hidden_layers": 2,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": 1000,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 2048,
        "original_max_position_embeddings": 2048, "tie_word_embeddings": false,
    })
}

/// Token ids below `vocab`, anything but regular.
pub(crate) fn any_tokens(n: usize, vocab: u32) -> Vec<u32> {
    (0..n as u32)
        .map(|i| i.wrapping_mul(2_654_435_761) >> 7)
        .map(|v| v % vocab)
        .collect()
}
