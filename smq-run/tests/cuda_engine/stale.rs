//! Nothing that an earlier sequence left behind counts: every kernel writes all of what the next
//! one reads.

use smq_engine::Engine;
use smq_engine::cuda::CudaEngine;
use smq_format::TensorData;
use smq_model::Source;

use crate::models::{E5M5, Model, sample_tokens};
use crate::{Outcome, none, same_bits};

/// A token of no text.
const POISON: u32 = 4095;

pub(crate) fn unquantized() -> Outcome {
    of("C0", &Model::fixture_copy())
}

pub(crate) fn int4() -> Outcome {
    of("int4", &Model::fixture().quantized(E5M5, "all"))
}

/// The embedding of a token, as the file has it.
pub(crate) fn embedding_row(source: &Source, token: u32) -> Vec<u8> {
    match source.stored("model.embed_tokens.weight", &[4096, 256]) {
        Ok(TensorData::Raw { bytes, .. }) => {
            bytes.chunks(512).nth(token as usize).unwrap().to_vec()
        }
        other => panic!("{:?}", other.err()),
    }
}

/// Logits of a few prompts and steps, and log-probabilities.
fn work(engine: &mut CudaEngine, tokens: &[u32]) -> Vec<Vec<f32>> {
    let mut all = Vec::new();
    for prompt in [129, 5, 1030] {
        engine.start(prompt + 2).unwrap();
        all.push(engine.extend(&tokens[..prompt]).unwrap().logits.to_vec());
        for i in 0..2 {
            let next = &tokens[prompt + i..=prompt + i];
            all.push(engine.extend(next).unwrap().logits.to_vec());
        }
    }
    let log_probs = engine.log_probs(&tokens[..300]).unwrap();
    all.push(log_probs.into_iter().map(|p| p as f32).collect());
    all
}

fn of(name: &str, model: &Model) -> Outcome {
    none(failures(name, model, |source| {
        CudaEngine::load(source, None).unwrap()
    }))
}

/// A token whose embedding is NaN makes NaN of every buffer that it passes through.
pub(crate) fn failures(
    name: &str,
    model: &Model,
    load: impl Fn(&Source) -> CudaEngine,
) -> Vec<String> {
    model.spoil(&embedding_row(&model.open(), POISON), 0xff);
    let source = model.open();
    let tokens = sample_tokens(1032);
    assert!(!tokens.contains(&POISON));
    let mut engine = load(&source);
    let clean = work(&mut engine, &tokens);
    let finite = |l: &Vec<f32>| l.iter().all(|v| v.is_finite());
    let mut failures = Vec::new();
    if !clean.iter().all(finite) {
        failures.push(format!("{name}: NaN before anything was poisoned"));
    }
    let poison = [POISON; 1200];
    let poisoned = |engine: &mut CudaEngine| {
        // Log-probabilities first: what follows keeps their buffers, larger ones.
        let log_probs = engine.log_probs(&poison).unwrap();
        engine.start(1300).unwrap();
        let prompt = engine.extend(&poison).unwrap().logits.to_vec();
        let step = engine.extend(&[POISON]).unwrap().logits.to_vec();
        log_probs.iter().all(|p| p.is_nan()) && [prompt, step].iter().flatten().all(|v| v.is_nan())
    };
    // One that has only ever seen NaN, and one that has worked before.
    let mut fresh = load(&source);
    for (what, engine) in [
        ("a fresh engine", &mut fresh),
        ("a used engine", &mut engine),
    ] {
        if !poisoned(engine) {
            failures.push(format!(
                "{name}, {what}: the poison does not reach every logit"
            ));
        }
        let after = work(engine, &tokens);
        for (i, (a, b)) in clean.iter().zip(&after).enumerate() {
            if !same_bits(a, b) {
                failures.push(format!(
                    "{name}, {what}: other bits after the poison, result {i}"
                ));
            }
        }
    }
    failures
}
