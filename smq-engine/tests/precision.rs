//! The CPU reference with bf16 activations against itself in f32, along golden.json's greedy
//! continuations of the fixture.
//!
//! # Bound
//! From the embedding to a logit, activations are rounded 8 times a layer (normed x, qkv, rotated
//! queries and keys, attention weights, attention output, normed x, gate_up, activated product)
//! over 4 layers and once before the head: 33 roundings of at most `u = 2^-8` relative. Taking
//! each to perturb what follows by its full relative error, and the 33 as independent, logits up
//! to `s` in magnitude are off by about `sqrt(33) u s = 0.022 s`; measured: up to 0.43 of that.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file

use std::path::PathBuf;

use serde::Deserialize;
use smq_engine::model::Precision;
use smq_engine::{CpuEngine, Engine};
use smq_model::Source;

const ROUNDINGS: f32 = 33.0;
const UNIT_ROUNDOFF: f32 = 1.0 / 256.0;
/// What f32's own rounding explains (derived in golden.rs).
const F32_TOLERANCE: f32 = 1e-3;

#[derive(Deserialize)]
struct Golden {
    prompts: Vec<Prompt>,
}

#[derive(Deserialize)]
struct Prompt {
    name: String,
    prompt_ids: Vec<u32>,
    greedy_ids: Vec<u32>,
    /// Largest logit minus second largest at each step, of the f32 reference.
    greedy_margins: Vec<f32>,
}

fn fixture() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/phi3-tiny")
}

fn prompts() -> Vec<Prompt> {
    let bytes = std::fs::read(fixture().join("golden.json")).unwrap();
    serde_json::from_slice::<Golden>(&bytes).unwrap().prompts
}

/// Logits after the prompt and after each greedy token but the last, whatever the engine would
/// pick.
fn teacher_forced(engine: &mut dyn Engine, p: &Prompt) -> Vec<Vec<f32>> {
    engine
        .start(p.prompt_ids.len() + p.greedy_ids.len())
        .unwrap();
    let mut steps = vec![engine.extend(&p.prompt_ids).unwrap().logits.to_vec()];
    for id in &p.greedy_ids[..p.greedy_ids.len() - 1] {
        steps.push(engine.extend(&[*id]).unwrap().logits.to_vec());
    }
    steps
}

fn largest(values: impl Iterator<Item = f32>) -> f32 {
    values.map(f32::abs).fold(0.0, f32::max)
}

fn argmax(logits: &[f32]) -> usize {
    (0..logits.len())
        .max_by(|a, b| logits[*a].total_cmp(&logits[*b]))
        .unwrap()
}

#[test]
fn bf16_activations_stay_within_their_rounding() {
    let source = Source::open(&fixture()).unwrap();
    let mut exact = CpuEngine::load(&source).unwrap();
    let mut rounded = CpuEngine::load_with(&source, Precision::Bf16).unwrap();
    let (mut steps, mut decided) = (0, 0);
    for p in prompts() {
        let want = teacher_forced(&mut exact, &p);
        let got = teacher_forced(&mut rounded, &p);
        for (i, (want, got)) in want.iter().zip(&got).enumerate() {
            let difference = largest(want.iter().zip(got).map(|(a, b)| a - b));
            let bound = ROUNDINGS.sqrt() * UNIT_ROUNDOFF * largest(want.iter().copied());
            assert!(
                F32_TOLERANCE < difference && difference < bound,
                "{} step {i}: {difference}, bound {bound}",
                p.name
            );
            steps += 1;
            if p.greedy_margins[i] > 2.0 * (difference + F32_TOLERANCE) {
                decided += 1;
                assert_eq!(argmax(got), p.greedy_ids[i] as usize, "{} step {i}", p.name);
            }
        }
    }
    // 175 of 192 when this was written: the comparison of tokens is no empty one.
    assert!(
        steps == 4 * 48 && decided > steps * 3 / 4,
        "{decided} of {steps}"
    );
}

/// The default is f32, and loading with it is loading without.
#[test]
fn f32_is_the_default() {
    assert_eq!(Precision::default(), Precision::F32);
    let source = Source::open(&fixture()).unwrap();
    let p = &prompts()[0];
    let with = teacher_forced(
        &mut CpuEngine::load_with(&source, Precision::F32).unwrap(),
        p,
    );
    assert_eq!(
        with,
        teacher_forced(&mut CpuEngine::load(&source).unwrap(), p)
    );
}
