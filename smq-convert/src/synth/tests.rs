//! Whole checkpoints, small ones.

mod refusals;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use half::bf16;
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::config::{SynthConfig, size_bytes};
use super::{SynthError, SynthOptions, SynthSummary, synth};

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/phi3-tiny")
}

fn llama_config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": [2, 7],
        "head_dim": 16,
        "hidden_size": 72,
        "intermediate_size": 150,
        "num_attention_heads": 6,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "pad_token_id": null,
        "tie_word_embeddings": true,
        "torch_dtype": "float32",
        "vocab_size": 301,
    })
}

/// A directory with `config` in it.
fn config_dir(config: &Value) -> TempDir {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    dir
}

fn llama_options(dir: &TempDir) -> SynthOptions {
    SynthOptions::new(dir.path().join("config.json"), dir.path().join("a/b/out"))
}

fn run(options: &SynthOptions) -> Result<SynthSummary, SynthError> {
    synth(options, &|_, _| {})
}

fn read_tensors(shards: &[PathBuf]) -> Tensors {
    let mut tensors = Tensors::new();
    for shard in shards {
        let bytes = fs::read(shard).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let (header_len, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(header_len % 8, 0);
        assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
        for (name, view) in file.tensors() {
            assert_eq!(view.dtype(), Dtype::BF16);
            let elems = view.data().chunks_exact(2);
            let values = elems.map(|e| bf16::from_le_bytes([e[0], e[1]]).to_f32());
            let tensor = (view.shape().to_vec(), values.collect());
            assert!(tensors.insert(name, tensor).is_none());
        }
    }
    tensors
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read(entry.path()).unwrap())
        })
        .collect()
}

fn shapes(tensors: &Tensors) -> Vec<(String, Vec<usize>)> {
    let shapes = tensors.iter();
    shapes
        .map(|(name, (shape, _))| (name.clone(), shape.clone()))
        .collect()
}

#[test]
fn phi3_has_the_names_shapes_and_shards_of_the_trained_checkpoint() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out");
    let mut options = SynthOptions::new(fixture().join("config.json"), &out);
    options.tokenizer = Some(fixture());
    // The limit with which transformers saved the fixture.
    options.shard_bytes = 4_000_000;
    let calls = Mutex::new(Vec::new());
    let summary = synth(&options, &|done, total| {
        calls.lock().unwrap().push((done, total))
    })
    .unwrap();

    let index: Value =
        serde_json::from_slice(&fs::read(fixture().join("model.safetensors.index.json")).unwrap())
            .unwrap();
    let total = index["metadata"]["total_size"].as_u64().unwrap();
    let weight_map = index["weight_map"].as_object().unwrap();
    let mut real_files: Vec<_> = weight_map
        .values()
        .map(|file| file.as_str().unwrap().to_owned())
        .collect();
    real_files.sort();
    real_files.dedup();
    let real: Vec<PathBuf> = real_files.iter().map(|file| fixture().join(file)).collect();
    assert_eq!(
        shapes(&read_tensors(&summary.shards)),
        shapes(&read_tensors(&real))
    );
    assert_eq!(summary.total_size_bytes, total);
    assert_eq!(summary.parameters, total / 2);

    let made = files(&out);
    let made_index: Value = serde_json::from_slice(&made["model.safetensors.index.json"]).unwrap();
    assert_eq!(made_index["weight_map"], index["weight_map"]);
    assert_eq!(made_index["metadata"], json!({ "total_size": total }));
    // Shapes, order and header are the library's own, so the file sizes agree to the byte.
    for file in &real_files {
        let bytes = fs::metadata(fixture().join(file)).unwrap().len();
        assert_eq!(made[file].len() as u64, bytes, "{file}");
    }
    for file in [
        "config.json",
        "generation_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        assert_eq!(
            made[file],
            fs::read(fixture().join(file)).unwrap(),
            "{file}"
        );
    }
    assert_eq!(made.len(), 3 + 1 + 5);
    let written: Vec<_> = summary.shards.iter().chain(&summary.side_files).collect();
    assert_eq!(written.len(), made.len());
    assert!(written.iter().all(|path| path.is_file()));

    let calls = calls.into_inner().unwrap();
    assert_eq!(calls.first(), Some(&(0, total)));
    assert_eq!(calls.last(), Some(&(total, total)));
    assert!(calls.is_sorted());
}

#[test]
fn the_bytes_depend_on_the_seed_and_not_on_the_threads() {
    let dir = config_dir(&llama_config());
    let with = |name: &str, seed: u64, threads: usize| {
        let mut options = llama_options(&dir);
        options.out_dir = dir.path().join(name);
        options.config = fixture().join("config.json");
        options.seed = seed;
        options.shard_bytes = 3_000_000;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build().unwrap().install(|| run(&options)).unwrap();
        files(&options.out_dir)
    };
    let one = with("one", 7, 1);
    assert!(one == with("two", 7, 2));
    assert!(one == with("three", 7, 3));
    let other = with("other", 8, 2);
    assert_eq!(
        one["model.safetensors.index.json"],
        other["model.safetensors.index.json"]
    );
    for (name, bytes) in one
        .iter()
        .filter(|(name, _)| name.ends_with(".safetensors"))
    {
        assert!(*bytes != other[name], "{name}");
    }
}

/// Frozen on purpose: a changed value means other checkpoints for the same seed.
#[test]
fn the_bytes_are_pinned() {
    let dir = config_dir(&llama_config());
    let summary = run(&llama_options(&dir)).unwrap();
    let hash = blake3::hash(&fs::read(&summary.shards[0]).unwrap());
    assert_eq!(
        hash.to_hex().as_str(),
        "07f419eb81a08b3ea01e40afeb30201dd8b8012a599460662b24ba798f02010b"
    );
}

#[test]
fn llama_with_tied_head_and_grouped_query_attention() {
    let dir = config_dir(&llama_config());
    let options = llama_options(&dir);
    let summary = run(&options).unwrap();
    assert_eq!(summary.architecture, "LlamaForCausalLM");
    let mut expected = vec![
        ("model.embed_tokens.weight".to_owned(), vec![301, 72]),
        ("model.norm.weight".to_owned(), vec![72]),
    ];
    for layer in 0..2 {
        for (name, shape) in [
            ("input_layernorm", vec![72]),
            ("mlp.down_proj", vec![72, 150]),
            ("mlp.gate_proj", vec![150, 72]),
            ("mlp.up_proj", vec![150, 72]),
            ("post_attention_layernorm", vec![72]),
            ("self_attn.k_proj", vec![32, 72]),
            ("self_attn.o_proj", vec![72, 96]),
            ("self_attn.q_proj", vec![96, 72]),
            ("self_attn.v_proj", vec![32, 72]),
        ] {
            expected.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    expected.sort();
    assert_eq!(shapes(&read_tensors(&summary.shards)), expected);

    // One shard: no index. The dtype is what was written; the token ids come from the config.
    let made = files(&options.out_dir);
    let names: Vec<_> = made.keys().collect();
    assert_eq!(
        names,
        ["config.json", "generation_config.json", "model.safetensors"]
    );
    let config: Value = serde_json::from_slice(&made["config.json"]).unwrap();
    assert_eq!(config["torch_dtype"], "bfloat16");
    assert_eq!(config["head_dim"], 16);
    let generation: Value = serde_json::from_slice(&made["generation_config.json"]).unwrap();
    let ids = json!({ "_from_model_config": true, "bos_token_id": 1, "eos_token_id": [2, 7] });
    assert_eq!(generation, ids);
}

#[test]
fn biases_and_untied_head_where_the_config_asks_for_them() {
    let mut config = llama_config();
    config["attention_bias"] = true.into();
    config["mlp_bias"] = true.into();
    config["tie_word_embeddings"] = false.into();
    let dir = config_dir(&config);
    let mut options = llama_options(&dir);
    options.layers = Some(1);
    let summary = run(&options).unwrap();
    let tensors = read_tensors(&summary.shards);
    assert_eq!(tensors["model.layers.0.self_attn.k_proj.bias"].0, [32]);
    assert_eq!(tensors["model.layers.0.mlp.down_proj.bias"].0, [72]);
    assert_eq!(tensors["lm_head.weight"].0, [301, 72]);
    assert_eq!(tensors.len(), 1 + 7 * 2 + 2 + 2);
    let written = files(&options.out_dir);
    let config: Value = serde_json::from_slice(&written["config.json"]).unwrap();
    assert_eq!(config["num_hidden_layers"], 1);
}

#[test]
fn the_values_look_like_trained_weights() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out");
    let mut options = SynthOptions::new(fixture().join("config.json"), out);
    options.layers = Some(2);
    let tensors = read_tensors(&run(&options).unwrap().shards);
    for (name, (shape, values)) in &tensors {
        let count = values.len() as f64;
        let moment = |about: f64, power| {
            let terms = values.iter().map(|&w| (f64::from(w) - about).powi(power));
            terms.sum::<f64>() / count
        };
        let mean = moment(0.0, 1);
        let std = moment(mean, 2).sqrt();
        assert!(values.iter().all(|w| w.is_finite()), "{name}");
        if shape.len() == 1 {
            assert!(
                (mean - 1.0).abs() < 0.1 && std < 0.3,
                "{name}: {mean} +- {std}"
            );
            continue;
        }
        // Six standard errors of a mean.
        assert!(mean.abs() < 6.0 * std / count.sqrt(), "{name}: mean {mean}");
        // 0.8 to 1.2 is the range of gains, and e^(+-0.35) of the factor of the tensor; outliers
        // add a little.
        let gain = std * (shape[1] as f64).sqrt();
        assert!((0.5..2.0).contains(&gain), "{name}: {gain} / sqrt(in)");
        let kurtosis = moment(mean, 4) / std.powi(4);
        assert!(
            (3.5..20.0).contains(&kurtosis),
            "{name}: kurtosis {kurtosis}"
        );
    }
    // Rows are different, and so are tensors of one shape.
    let qkv = |layer| &tensors[&format!("model.layers.{layer}.self_attn.qkv_proj.weight")].1;
    assert!(qkv(0)[..256] != qkv(0)[256..512] && qkv(0) != qkv(1));
}

/// spec/models, by the numbers of parameters that the models have.
#[test]
fn configs_of_well_known_models_have_their_parameters() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../spec/models");
    let expected = [
        ("gemma-3-4b-text", 3_880_263_168),
        ("granite-3.3-2b", 2_533_539_840),
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.2-1b", 1_235_814_400),
        ("mistral-7b-v0.3", 7_248_023_552),
        ("olmo-2-7b", 7_298_617_344),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen3-4b", 4_022_468_096),
        ("smollm3-3b", 3_075_098_624),
    ];
    for (name, parameters) in expected {
        let path = folder.join(format!("{name}.json"));
        let config = SynthConfig::read(&path, None).unwrap();
        let bytes: u64 = config.tensors.iter().map(size_bytes).sum();
        assert_eq!(bytes / 2, parameters, "{name}");
        smq_model::ModelConfig::from_json(&fs::read(&path).unwrap()).unwrap();
    }
    let files = fs::read_dir(&folder).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let configs = names.filter(|name| name.ends_with(".json")).count();
    assert_eq!(configs, expected.len());
}

/// What such a norm multiplies with is around one, so its stored weight is around zero.
#[test]
fn norm_weights_that_one_is_added_to_are_around_zero() {
    let mut config = llama_config();
    config["architectures"] = json!(["Gemma2ForCausalLM"]);
    let dir = config_dir(&config);
    let tensors = read_tensors(&run(&llama_options(&dir)).unwrap().shards);
    let norms = tensors.iter().filter(|(_, (shape, _))| shape.len() == 1);
    let mut count = 0;
    for (name, (_, values)) in norms {
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        assert!(mean.abs() < 0.15, "{name}: {mean}");
        count += 1;
    }
    assert_eq!(count, 2 * 4 + 1);
}

/// The largest config that the limits accept is summed without overflow.
#[test]
fn sizes_at_the_limits_do_not_overflow() {
    let mut config = llama_config();
    for key in [
        "hidden_size",
        "intermediate_size",
        "vocab_size",
        "num_attention_heads",
    ] {
        config[key] = smq_model::MAX_DIM_ELEMS.into();
    }
    config["num_hidden_layers"] = smq_model::MAX_LAYERS.into();
    config["head_dim"] = 1.into();
    let dir = config_dir(&config);
    let config = SynthConfig::read(&dir.path().join("config.json"), None).unwrap();
    // Per layer: q, o, gate, up and down of 2^41 bytes, k and v of 2 x 2^21, two norms of 2^21.
    let layer = (5 << 41) + (2 << 22) + (2 << 21);
    let total: u64 = config.tensors.iter().map(size_bytes).sum();
    assert_eq!(total, 4096 * layer + (1 << 41) + (1 << 21));
}
