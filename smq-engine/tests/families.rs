//! Every family against Hugging Face transformers: small random models, whose losses and greedy
//! tokens tests/fixtures/hf/families.json holds (made by `tests/peers/hf/record_families.py`).
//!
//! # Tolerance
//! Losses of some 9 nats come from logits of up to 20. The longest chain of products has 29 of at
//! most 128 terms, each off by `sqrt(2 n) u` relative, `u = 2^-24`: 3e-5 of a logit at worst. The
//! mean over a window of 12 tokens and more stays below 1e-5. A greedy token leads by 1e-3 or more.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use smq_engine::model::{Decoder, Sequence, Stage};
use smq_engine::{CpuEngine, Engine};
use smq_model::{ConfigFile, Source};

const TOLERANCE_NATS: f64 = 1e-5;

struct Fixture(Value);

impl Fixture {
    fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/hf/families.json");
        Self(serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap())
    }

    fn cases(&self) -> &[Value] {
        self.0["cases"].as_array().unwrap()
    }

    /// The tokens that every model is asked about.
    fn ids(&self) -> Vec<u32> {
        serde_json::from_value(self.0["ids"].clone()).unwrap()
    }

    fn config(&self, case: &Value) -> Value {
        let mut config = self.0["common"].clone();
        let keys = config.as_object_mut().unwrap();
        for absent in case["absent"].as_array().into_iter().flatten() {
            keys.remove(absent.as_str().unwrap());
        }
        keys.extend(case["config"].as_object().unwrap().clone());
        config
    }

    /// The case's checkpoint, in `dir`.
    fn write(&self, case: &Value, dir: &Path) {
        let json = self.config(case).to_string();
        let file = ConfigFile::from_json(json.as_bytes()).unwrap();
        let norms_add_one = json.contains("\"model_type\":\"gemma");
        let tensors: HashMap<String, Tensor> = file
            .tensors()
            .into_iter()
            .map(|t| {
                let values = values(&t.name, &t.shape, norms_add_one);
                let tensor = Tensor::from_vec(values, t.shape, &Device::Cpu).unwrap();
                (t.name, tensor.to_dtype(DType::BF16).unwrap())
            })
            .collect();
        candle_core::safetensors::save(&tensors, dir.join("model.safetensors")).unwrap();
        std::fs::write(dir.join("config.json"), json).unwrap();
    }
}

/// As `values` of tests/peers/hf/cases/families.py.
fn values(name: &str, shape: &[usize], norms_add_one: bool) -> Vec<f32> {
    let start = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    let mix = |index: usize| {
        let z = start.wrapping_add((index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let eight_bits = |z: u64| (z >> 56) as f32 / 128.0 - 1.0;
    let module = name.rsplit('.').nth(1).unwrap();
    let columns = *shape.last().unwrap();
    (0..shape.iter().product())
        .map(|i| match mix(i) {
            z if module.contains("norm") => {
                let mean = if norms_add_one { 0.0 } else { 1.0 };
                ((z >> 60) as f32 / 8.0 - 1.0) / 4.0 + mean
            }
            _ if module.ends_with("_proj")
                && name.ends_with(".weight")
                && (i % columns).is_multiple_of(32) =>
            {
                7.0 / 32.0
            }
            z if module.ends_with("_proj") && name.ends_with(".weight") => {
                ((z % 15) as f32 - 7.0) / 32.0
            }
            z => eight_bits(z) / 2.0,
        })
        .collect()
}

/// Runs `check` on every case; what it returns is what is wrong. All of it is shown at the end.
fn for_all(check: impl Fn(&Fixture, &Value, &Path) -> Result<(), String>) {
    let fixture = Fixture::read();
    let mut wrong = Vec::new();
    for case in fixture.cases() {
        let dir = tempfile::tempdir().unwrap();
        fixture.write(case, dir.path());
        if let Err(what) = check(&fixture, case, dir.path()) {
            wrong.push(format!("{}: {what}", case["name"].as_str().unwrap()));
        }
    }
    let count = fixture.cases().len();
    assert!(count > 100, "only {count} cases");
    assert!(
        wrong.is_empty(),
        "{} of {count}:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn losses_are_those_of_transformers() {
    for_all(|fixture, case, dir| {
        let source = Source::open(dir).map_err(|e| e.to_string())?;
        let mut engine = CpuEngine::load(&source).map_err(|e| e.to_string())?;
        let ids = fixture.ids();
        let lengths = fixture.0["lengths"].as_array().unwrap();
        for (length, loss) in lengths.iter().zip(case["losses"].as_array().unwrap()) {
            let length = length.as_u64().unwrap() as usize;
            let scores = engine.scores(&ids[..length]).map_err(|e| e.to_string())?;
            let sum: f64 = scores.iter().map(|score| -score.log_prob).sum();
            let (found, expected) = (sum / scores.len() as f64, loss.as_f64().unwrap());
            if (found - expected).abs() > TOLERANCE_NATS {
                return Err(format!(
                    "{length} tokens: {found}, transformers has {expected}"
                ));
            }
        }
        Ok(())
    });
}

#[test]
fn greedy_tokens_are_those_of_transformers() {
    for_all(|fixture, case, dir| {
        let Some(expected) = case["greedy"].as_array() else {
            return Ok(());
        };
        let source = Source::open(dir).map_err(|e| e.to_string())?;
        let mut engine = CpuEngine::load(&source).map_err(|e| e.to_string())?;
        let prompt = fixture.0["prompt"].as_u64().unwrap() as usize;
        let mut next = fixture.ids()[..prompt].to_vec();
        engine.start(prompt).unwrap();
        let mut found = Vec::new();
        for _ in expected {
            let logits = engine.extend(&next).map_err(|e| e.to_string())?.logits;
            let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
            next = vec![best.unwrap() as u32];
            found.push(Value::from(next[0]));
        }
        match found == *expected {
            true => Ok(()),
            false => Err(format!("{found:?}, transformers has {expected:?}")),
        }
    });
}

/// A layer taken apart at its products computes what it computes in one go.
#[test]
fn stages_are_the_layers_own_steps() {
    for_all(|fixture, _, dir| {
        let source = Source::open(dir).map_err(|e| e.to_string())?;
        let decoder = Decoder::load(&source).map_err(|e| e.to_string())?;
        let ids = &fixture.ids()[..40];
        let mut windows = [decoder.window(ids).map_err(|e| e.to_string())?];
        for layer in 0..decoder.layer_count() {
            decoder.enter_layer(layer, &mut windows[0]);
            for stage in Stage::ALL {
                let matrices = decoder.stage_matrices(layer, stage);
                decoder.pass(layer, stage, matrices, &mut windows);
            }
        }
        let mut sequence = Sequence::new(decoder.config(), ids.len(), false);
        let hidden = decoder
            .extend(&mut sequence, ids, ids.len())
            .map_err(|e| e.to_string())?;
        match decoder.head_input(&windows[0]) == hidden {
            true => Ok(()),
            false => Err("the hidden states differ".to_owned()),
        }
    });
}

/// Names, shapes and order are those of the `state_dict()`.
#[test]
fn tensors_are_those_of_transformers() {
    let fixture = Fixture::read();
    let mut families = 0;
    for case in fixture
        .cases()
        .iter()
        .filter(|case| !case["tensors"].is_null())
    {
        let json = fixture.config(case).to_string();
        let file = ConfigFile::from_json(json.as_bytes()).unwrap();
        let found: Vec<(String, Vec<usize>)> = file
            .tensors()
            .into_iter()
            .map(|t| (t.name, t.shape))
            .collect();
        let expected: Vec<(String, Vec<usize>)> =
            serde_json::from_value(case["tensors"].clone()).unwrap();
        assert_eq!(found, expected, "{}", case["name"]);
        families += 1;
    }
    assert_eq!(families, smq_model::architecture::ARCHITECTURES.len());
}
