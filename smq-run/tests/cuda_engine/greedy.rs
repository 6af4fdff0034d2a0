//! Greedy text: steps that run ahead of the host, each fed by the one before.

use std::ops::ControlFlow;

use smq_convert::LevelChoice;
use smq_engine::cuda::CudaEngine;
use smq_engine::generate::{GenerateOptions, Stop, generate};
use smq_engine::{Engine, Error};
use smq_model::Source;

use crate::models::{E5M5, Model, golden_prompt, lut4_method, sample_tokens};
use crate::reference::{Path, Reference, argmax, margin};
use crate::{Outcome, none, same_bits};

const NEW: usize = 64;
const ORIGINAL: usize = 512;

pub(crate) fn unquantized() -> Outcome {
    none(of("C0", &Model::fixture().open()))
}

pub(crate) fn int4() -> Outcome {
    let model = Model::fixture().quantized(E5M5, "all");
    none(of("int4", &model.open()))
}

pub(crate) fn lut4() -> Outcome {
    let model = Model::fixture().quantized_as(lut4_method(E5M5, 128, LevelChoice::Learned), "all");
    none(of("lut4", &model.open()))
}

pub(crate) fn groups_of_64() -> Outcome {
    let model = Model::fixture().quantized_in_groups(E5M5, "all", 64);
    none(of("groups of 64", &model.open()))
}

/// Tokens, and where the factors switched.
fn greedy(engine: &mut CudaEngine, prompt: &[u32], limit: usize) -> (Vec<u32>, Vec<usize>) {
    let (mut tokens, mut switches) = (Vec::new(), Vec::new());
    engine.start(prompt.len() + limit).unwrap();
    let mut take = |token, switched| {
        if switched {
            switches.push(tokens.len());
        }
        tokens.push(token);
        Ok(ControlFlow::Continue(()))
    };
    engine.greedy(prompt, limit, &mut take).unwrap();
    (tokens, switches)
}

/// Logits after the prompt and after each of `tokens` but the last, which are given.
fn forced(engine: &mut CudaEngine, prompt: &[u32], tokens: &[u32]) -> Vec<Vec<f32>> {
    engine.start(prompt.len() + tokens.len()).unwrap();
    let mut logits = vec![engine.extend(prompt).unwrap().logits.to_vec()];
    for token in &tokens[..tokens.len() - 1] {
        logits.push(engine.extend(&[*token]).unwrap().logits.to_vec());
    }
    logits
}

fn of(name: &str, source: &Source) -> Vec<String> {
    let mut engine = CudaEngine::load(source, None).unwrap();
    let mut failures = Vec::new();
    for (what, prompt) in [
        ("one token", sample_tokens(1)),
        ("a short prompt", golden_prompt("fairy-tale")),
        ("across the switch", sample_tokens(ORIGINAL - 20)),
        ("a long prompt", golden_prompt("long")),
    ] {
        let name = format!("{name}, {what}");
        let (tokens, switches) = greedy(&mut engine, &prompt, NEW);
        let mut wrong = |message: String| failures.push(format!("{name}: {message}"));
        if tokens.len() != NEW {
            wrong(format!("{} tokens instead of {NEW}", tokens.len()));
            continue;
        }
        // Token i was chosen after prompt + i tokens.
        let crosses = prompt.len() <= ORIGINAL && prompt.len() + NEW > ORIGINAL + 1;
        let expected: Vec<usize> = crosses
            .then(|| ORIGINAL + 1 - prompt.len())
            .into_iter()
            .collect();
        if switches != expected {
            wrong(format!(
                "factors switched at tokens {switches:?}, not {expected:?}"
            ));
        }
        for _ in 0..3 {
            let again = greedy(&mut engine, &prompt, NEW);
            if again.0 != tokens {
                let at = again.0.iter().zip(&tokens).position(|(a, b)| a != b);
                wrong(format!("run again, other tokens from {at:?} on"));
            }
        }
        let logits = forced(&mut engine, &prompt, &tokens);
        let again = forced(&mut engine, &prompt, &tokens);
        let differ = |(a, b): (&Vec<f32>, &Vec<f32>)| !same_bits(a, b);
        if let Some(i) = logits.iter().zip(&again).position(differ) {
            wrong(format!("run again, other logits at token {i}"));
        }
        // What was chosen is what the same engine's logits say, without any tolerance.
        if let Some(i) = (0..NEW).find(|i| argmax(&logits[*i]) != tokens[*i]) {
            wrong(format!("token {i} is not the largest logit's"));
        }
        // And what the reference says, where it is clear.
        let all = [&prompt[..], &tokens].concat();
        let lengths = prompt.len()..prompt.len() + NEW;
        let reference = Reference::new(source, &all, lengths.clone());
        let mut decided = 0;
        for (token, len) in tokens.iter().zip(lengths) {
            let exact = reference.exact(len);
            if margin(exact) > 2.0 * reference.bound(len, Path::Prompt) {
                decided += 1;
                if argmax(exact) != *token {
                    wrong(format!("the token after {len} is not the reference's"));
                }
            }
        }
        println!("{name}: {decided} of {NEW} tokens are beyond doubt");
        if decided < NEW / 4 {
            wrong(format!(
                "only {decided} tokens are beyond doubt, which tests little"
            ));
        }
    }
    failures
}

pub(crate) fn stops_where_asked() -> Outcome {
    let source = Model::fixture().open();
    let mut engine = CudaEngine::load(&source, None).unwrap();
    let prompt = golden_prompt("dialogue");
    let (all, _) = greedy(&mut engine, &prompt, NEW);
    let mut failures = Vec::new();
    for limit in [0, 1, 2, 5, 6] {
        let (tokens, _) = greedy(&mut engine, &prompt, limit);
        if tokens != all[..limit] {
            failures.push(format!("limit {limit} gives {} tokens", tokens.len()));
        }
    }
    // Broken off, and failed, in mid-text; then used again, for text and for logits.
    let logits = forced(&mut engine, &prompt, &all[..3]);
    for fails in [false, true] {
        engine.start(prompt.len() + NEW).unwrap();
        let mut seen = Vec::new();
        let mut take = |token, _| {
            seen.push(token);
            match (seen.len() == 7, fails) {
                (false, _) => Ok(ControlFlow::Continue(())),
                (true, false) => Ok(ControlFlow::Break(())),
                (true, true) => Err(Error::Input("enough".into())),
            }
        };
        let result = engine.greedy(&prompt, NEW, &mut take);
        if seen != all[..7] || result.is_err() != fails {
            failures.push(format!(
                "broken off: {result:?} after {} tokens",
                seen.len()
            ));
        }
        if greedy(&mut engine, &prompt, NEW).0 != all {
            failures.push("other tokens after a text that was broken off".into());
        }
    }
    let again = forced(&mut engine, &prompt, &all[..3]);
    if !logits.iter().zip(&again).all(|(a, b)| same_bits(a, b)) {
        failures.push("other logits after a text that was broken off".into());
    }
    none(failures)
}

pub(crate) fn ends_with_the_context() -> Outcome {
    let source = Model::fixture().open();
    let mut engine = CudaEngine::load(&source, Some(64)).unwrap();
    let prompt = sample_tokens(60);
    let options = GenerateOptions {
        max_new_tokens: 100,
        ..Default::default()
    };
    let generation = generate(&mut engine, &prompt, &options, |_| Ok(()))?;
    let mut failures = Vec::new();
    // Four tokens have a place, a fifth comes from the last of them.
    if generation.ids.len() != 5 || generation.stop != Stop::ContextFull {
        failures.push(format!(
            "{:?}, {} tokens",
            generation.stop,
            generation.ids.len()
        ));
    }
    let mut unlimited = CudaEngine::load(&source, None).unwrap();
    if greedy(&mut unlimited, &prompt, 5).0 != generation.ids {
        failures.push("the limit changes the tokens".into());
    }
    none(failures)
}

/// A start that asked for too little only costs time. What a cache has to be recomputed for then
/// comes from a prompt's pass, so bits may differ, but what is clear stays.
pub(crate) fn grows_its_cache() -> Outcome {
    let source = Model::fixture().open();
    let mut engine = CudaEngine::load(&source, None).unwrap();
    let prompt = sample_tokens(240);
    let mut tokens = Vec::new();
    engine.start(0).unwrap();
    let mut take = |token, _| {
        tokens.push(token);
        Ok(ControlFlow::Continue(()))
    };
    engine.greedy(&prompt, NEW, &mut take)?;
    let all = [&prompt[..], &tokens].concat();
    let lengths = prompt.len()..prompt.len() + NEW;
    let reference = Reference::new(&source, &all, lengths.clone());
    let mut failures = Vec::new();
    if tokens.len() != NEW {
        failures.push(format!("{} tokens instead of {NEW}", tokens.len()));
    }
    for (token, len) in tokens.iter().zip(lengths) {
        let exact = reference.exact(len);
        let clear = margin(exact) > 2.0 * reference.bound(len, Path::Prompt);
        if clear && argmax(exact) != *token {
            failures.push(format!("the token after {len} is not the reference's"));
        }
    }
    none(failures)
}
