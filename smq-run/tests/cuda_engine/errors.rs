//! What cannot be done is refused with a reason and a remedy, and the engine is usable afterwards.

use std::ops::ControlFlow;

use smq_convert::ScaleChoice;
use smq_engine::cuda::CudaEngine;
use smq_engine::{Engine, Error};
use smq_format::TensorData;
use smq_model::Source;

use crate::models::{self, E5M5, Model, golden_prompt, sample_tokens};
use crate::stale::embedding_row;
use crate::{Outcome, none, same_bits};

/// What is wrong with an error that should be of this kind and say these words.
fn unlike<T>(
    what: &str,
    result: Result<T, Error>,
    kind: fn(&Error) -> bool,
    words: &[&str],
) -> Option<String> {
    let error = match result {
        Ok(_) => return Some(format!("{what}: no error")),
        Err(error) => error,
    };
    let message = error.to_string();
    println!("{what}: {message}");
    let fine = kind(&error) && words.iter().all(|w| message.contains(w));
    (!fine).then(|| format!("{what}: {error:?}, expected {words:?}"))
}

fn input(error: &Error) -> bool {
    matches!(error, Error::Input(_))
}

fn tensor(error: &Error) -> bool {
    matches!(error, Error::Model(smq_model::Error::Tensor { .. }))
}

pub(crate) fn bad_requests() -> Outcome {
    let source = Model::fixture().open();
    let mut engine = CudaEngine::load(&source, Some(64))?;
    let tokens = sample_tokens(65);
    let mut failures = Vec::new();
    let mut check = |failure: Option<String>| failures.extend(failure);
    engine.start(65)?;
    let before = engine.extend(&tokens[..9])?.logits.to_vec();
    let outside = ["token id 4096", "vocabulary of 4096"];
    let long = ["65 tokens exceed", "64"];
    let mut nothing = |_, _| Ok(ControlFlow::Continue(()));
    for (what, tokens, words) in [
        ("no tokens", &[][..], &["no tokens given"][..]),
        ("a token outside", &[5, 4096], &outside),
        ("a far token", &[u32::MAX], &["4294967295"]),
        ("too many tokens", &tokens, &long),
    ] {
        engine.start(65)?;
        check(unlike(what, engine.extend(tokens), input, words));
        check(unlike(
            what,
            engine.greedy(tokens, 3, &mut nothing),
            input,
            words,
        ));
    }
    let words = ["65 tokens", "1 to 64"];
    check(unlike(
        "log-probabilities",
        engine.log_probs(&tokens),
        input,
        &words,
    ));
    let outside = engine.log_probs(&[1, 4096]);
    check(unlike(
        "a token outside",
        outside,
        input,
        &["token id 4096"],
    ));
    // The context is filled token by token.
    engine.start(65)?;
    engine.extend(&tokens[..63])?;
    engine.extend(&tokens[63..64])?;
    check(unlike(
        "one more",
        engine.extend(&tokens[64..]),
        input,
        &long,
    ));
    engine.start(65)?;
    if !same_bits(&before, engine.extend(&tokens[..9])?.logits) {
        failures.push("other logits after errors".into());
    }
    none(failures)
}

pub(crate) fn unsupported_models() -> Outcome {
    let load = |model: &Model| CudaEngine::load(&model.open(), None).map(drop);
    let mut failures = Vec::new();
    let mut check = |failure: Option<String>| failures.extend(failure);
    let fixture = Model::fixture();
    for group in [48, 256] {
        let groups = fixture.quantized_in_groups(E5M5, "mlp", group);
        let what = format!("groups of {group}");
        let words = ["model.layers.0.mlp.", &what, "--group-size 128"];
        check(unlike(&what, load(&groups), tensor, &words));
    }
    let embedding = fixture.quantized(E5M5, r"^model\.embed_tokens\.weight$");
    let words = ["model.embed_tokens.weight", "--device cpu"];
    check(unlike(
        "an int4 embedding",
        load(&embedding),
        tensor,
        &words,
    ));
    let llama = Model::synthetic(&models::llama());
    let mixed = llama.quantized(E5M5, "gate_proj");
    let words = ["mlp.up_proj", "mlp.gate_proj", "--device cpu"];
    check(unlike("gate and up unlike", load(&mixed), tensor, &words));
    let heads = Model::synthetic(&models::phi(320, 8, 8));
    let kind = |e: &Error| matches!(e, Error::Model(smq_model::Error::Config(_)));
    let words = ["heads of 40", "--device cuda"];
    check(unlike("heads of 40", load(&heads), kind, &words));
    none(failures)
}

/// NaN in a weight: the text ends with an error, and another one without the damaged weight does
/// not.
pub(crate) fn damaged_weights() -> Outcome {
    const DAMAGED: u32 = 4095;
    let mut failures = Vec::new();
    let mut check = |failure: Option<String>| failures.extend(failure);
    let words = ["not finite", "damaged"];
    let prompt = golden_prompt("chat");
    let mut nothing = |_, _| Ok(ControlFlow::Continue(()));
    for model in [
        Model::fixture_copy(),
        Model::fixture().quantized(E5M5, "all"),
    ] {
        let mut engine = CudaEngine::load(&model.open(), None)?;
        engine.start(100)?;
        let expected = engine.extend(&prompt)?.logits.to_vec();
        let source = model.open();
        model.spoil(&embedding_row(&source, DAMAGED), 0xff);
        let source = model.open();
        let mut engine = CudaEngine::load(&source, None)?;
        engine.start(100)?;
        let with = [&prompt[..], &[DAMAGED]].concat();
        check(unlike(
            "a damaged embedding",
            engine.greedy(&with, 9, &mut nothing),
            input,
            &words,
        ));
        // In a decode step.
        engine.start(100)?;
        engine.extend(&prompt)?;
        let result = engine.greedy(&[DAMAGED], 9, &mut nothing);
        check(unlike(
            "a damaged embedding, decoding",
            result,
            input,
            &words,
        ));
        engine.start(100)?;
        if !same_bits(&expected, engine.extend(&prompt)?.logits) {
            check(Some("other logits after a damaged token".into()));
        }
        // A norm, which every token meets.
        let norm = match source.stored("model.layers.1.post_attention_layernorm.weight", &[256])? {
            TensorData::Raw { bytes, .. } => bytes.to_vec(),
            _ => return Err("a quantized norm".into()),
        };
        model.spoil(&norm, 0xff);
        let mut engine = CudaEngine::load(&model.open(), None)?;
        engine.start(100)?;
        check(unlike(
            "a damaged norm",
            engine.greedy(&prompt, 9, &mut nothing),
            input,
            &words,
        ));
    }
    // A scale that is no number.
    let model = Model::fixture().quantized(ScaleChoice::F32, "mlp");
    let name = "model.layers.2.mlp.down_proj.weight";
    let stream = match model.open().stored(name, &[256, 768])? {
        TensorData::Int4 { scales, .. } => scales.stream.to_vec(),
        _ => return Err("a projection that is not int4".into()),
    };
    model.spoil(&stream[..256], 0xff);
    let loaded = CudaEngine::load(&model.open(), None).map(drop);
    check(unlike("a damaged scale", loaded, tensor, &[name]));
    none(failures)
}

pub(crate) fn a_cache_larger_than_the_card() -> Outcome {
    const POSITIONS: usize = 1 << 30;
    let model = Model::fixture_copy();
    let path = model.path.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    config["max_position_embeddings"] = POSITIONS.into();
    std::fs::write(&path, config.to_string())?;
    let source = Source::open(&model.path)?;
    let mut engine = CudaEngine::load(&source, None)?;
    let tokens = sample_tokens(12);
    engine.start(64)?;
    let before = engine.extend(&tokens)?.logits.to_vec();
    let mut failures = Vec::new();
    // 4 layers, keys and values, 8 heads of 32, 2 bytes each.
    let words = ["KV cache", "4398.05 GB", "free", "--context"];
    let kind = |e: &Error| matches!(e, Error::Cuda(_));
    failures.extend(unlike(
        "a huge cache",
        engine.start(POSITIONS),
        kind,
        &words,
    ));
    engine.start(64)?;
    if !same_bits(&before, engine.extend(&tokens)?.logits) {
        failures.push("other logits after a cache that did not fit".into());
    }
    none(failures)
}
