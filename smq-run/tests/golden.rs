//! The fixture against Hugging Face's f32 outputs (golden.json) on the CPU reference.
//!
//! # Tolerance
//! A dot product of `n` terms in f32 has a rounding error of about `sqrt(n) u |w| |x|` (independent
//! roundings, `u = 2^-24`), and so has the reference we compare with, whence a factor of sqrt(2).
//! From the embedding to a logit, the fixture chains 4 products a layer over 4 layers and the
//! head, 17 in all, none longer than 768; taking each to perturb what follows by its full relative
//! error, a logit of magnitude `s` is off by about `17 sqrt(2 * 768) u s = 4e-5 s`. Logits and
//! log-sum-exp here stay below 17: 7e-4, plus 1e-6 for golden.json's rounding. Over 512 tokens the
//! angle's own rounding adds `512 u = 3e-5` relative. 1e-3 covers all, and lies below the smallest
//! greedy margin, 1.8e-3.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file

use std::path::PathBuf;

use serde::Deserialize;
use smq_engine::generate::{GenerateOptions, generate};
use smq_engine::log_sum_exp;
use smq_engine::model::{Decoder, Sequence};
use smq_engine::{CpuEngine, Engine};
use smq_model::{GenerationSettings, Source, Tokenizer};
use smq_run::{PplOptions, perplexity};

const LOGIT_TOLERANCE: f64 = 1e-3;

#[derive(Deserialize)]
struct Golden {
    attention_factor: f32,
    original_max_position_embeddings: usize,
    prompts: Vec<Prompt>,
}

#[derive(Deserialize)]
struct Prompt {
    name: String,
    prompt: Option<String>,
    prompt_ids: Vec<u32>,
    top8_ids: Vec<usize>,
    top8_logits: Vec<f64>,
    logsumexp: f64,
    greedy_ids: Vec<u32>,
    greedy_text: String,
}

fn fixture() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/phi3-tiny")
}

fn golden() -> Golden {
    serde_json::from_slice(&std::fs::read(fixture().join("golden.json")).unwrap()).unwrap()
}

fn prompt(name: &str) -> Prompt {
    golden()
        .prompts
        .into_iter()
        .find(|p| p.name == name)
        .unwrap()
}

fn greedy(max_new_tokens: usize) -> GenerateOptions<'static> {
    GenerateOptions {
        max_new_tokens,
        ..Default::default()
    }
}

/// Logits after `tokens`, fed as one new sequence.
fn logits(engine: &mut CpuEngine<'_>, tokens: &[u32]) -> Vec<f32> {
    engine.start(tokens.len()).unwrap();
    engine.extend(tokens).unwrap().logits.to_vec()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(a, b)| f64::from((a - b).abs()))
        .fold(0.0, f64::max)
}

#[test]
fn prompts_tokenize_as_hugging_face_does() {
    let source = Source::open(&fixture()).unwrap();
    let tokenizer = Tokenizer::load(&source).unwrap();
    let mut compared = 0;
    for p in golden().prompts {
        if let Some(text) = p.prompt.filter(|t| !t.is_empty()) {
            assert_eq!(
                tokenizer.encode(&text, true).unwrap(),
                p.prompt_ids,
                "{}",
                p.name
            );
            compared += 1;
        }
        assert_eq!(
            tokenizer.decode(&p.greedy_ids).unwrap(),
            p.greedy_text,
            "{}",
            p.name
        );
    }
    assert_eq!(compared, 3, "prompts given as text");
    let settings = GenerationSettings::of(&source).unwrap();
    assert_eq!(settings.eos_ids, [3, 6]);
}

#[test]
fn logits_and_greedy_tokens_equal_hugging_face() {
    let source = Source::open(&fixture()).unwrap();
    let mut engine = CpuEngine::load(&source).unwrap();
    let golden = golden();
    assert_eq!(golden.prompts.len(), 4);
    assert!(
        golden
            .prompts
            .iter()
            .any(|p| p.prompt_ids.len() > golden.original_max_position_embeddings)
    );
    let factor = engine.config().rope.attention_factor();
    assert!((factor - golden.attention_factor).abs() < 1e-6, "{factor}");
    for p in golden.prompts {
        let last = logits(&mut engine, &p.prompt_ids);
        let mut order: Vec<usize> = (0..last.len()).collect();
        order.sort_by(|a, b| last[*b].total_cmp(&last[*a]));
        assert_eq!(order[..8], p.top8_ids, "{}", p.name);
        for (id, want) in p.top8_ids.iter().zip(&p.top8_logits) {
            let error = (f64::from(last[*id]) - want).abs();
            assert!(
                error < LOGIT_TOLERANCE,
                "{}: logit {id} differs by {error}",
                p.name
            );
        }
        let error = (log_sum_exp(&last) - p.logsumexp).abs();
        assert!(
            error < LOGIT_TOLERANCE,
            "{}: log-sum-exp differs by {error}",
            p.name
        );
        let generation = generate(&mut engine, &p.prompt_ids, &greedy(48), |_| Ok(())).unwrap();
        assert_eq!(generation.ids, p.greedy_ids, "{}", p.name);
    }
}

/// Decoding with a cache, one token or several at a time, is what one pass over everything gives.
#[test]
fn cached_decode_equals_full_forward() {
    let source = Source::open(&fixture()).unwrap();
    let mut engine = CpuEngine::load(&source).unwrap();
    let tokens = &prompt("long").prompt_ids[..60];
    for split in [[1, 1, 58], [17, 1, 42], [20, 30, 10], [59, 1, 0]] {
        engine.start(8).unwrap();
        let mut rest = tokens;
        for n in split.into_iter().filter(|n| *n > 0) {
            let (now, later) = rest.split_at(n);
            engine.extend(now).unwrap();
            rest = later;
        }
        let continued = engine.extend(&[5]).unwrap().logits.to_vec();
        let whole = logits(&mut engine, &[tokens, &[5]].concat());
        let difference = largest_difference(&continued, &whole);
        assert!(
            difference < LOGIT_TOLERANCE,
            "split {split:?}: {difference}"
        );
    }
}

/// Growing past the original context recomputes everything with the long factors, once.
#[test]
fn a_growing_sequence_switches_to_the_long_factors() {
    let source = Source::open(&fixture()).unwrap();
    let mut engine = CpuEngine::load(&source).unwrap();
    let original = golden().original_max_position_embeddings;
    let tokens = &prompt("long").prompt_ids[..original + 8];
    engine.start(0).unwrap();
    engine.extend(&tokens[..original - 7]).unwrap();
    for len in original - 6..=original + 8 {
        let step = engine.extend(&tokens[len - 1..len]).unwrap();
        assert_eq!(step.rope_switched, len == original + 1, "at {len} tokens");
        let cached = step.logits.to_vec();
        let mut fresh = CpuEngine::load(&source).unwrap();
        let difference = largest_difference(&cached, &logits(&mut fresh, &tokens[..len]));
        assert!(
            difference < LOGIT_TOLERANCE,
            "at {len} tokens: {difference}"
        );
    }
    // The factors matter far more than the tolerance, so the test would notice the wrong ones.
    let short = logits(&mut engine, &tokens[..original]);
    let long = logits(&mut engine, &tokens[..original + 1]);
    assert!(largest_difference(&short, &long) > 100.0 * LOGIT_TOLERANCE);
}

/// `generate` reports the switch's time apart and goes on with the right tokens.
#[test]
fn generation_across_the_switch() {
    let source = Source::open(&fixture()).unwrap();
    let mut engine = CpuEngine::load(&source).unwrap();
    let original = golden().original_max_position_embeddings;
    let tokens = &prompt("long").prompt_ids[..original - 3];
    let generation = generate(&mut engine, tokens, &greedy(10), |_| Ok(())).unwrap();
    assert!(generation.timing.rope_switch.is_some());
    assert_eq!(
        generation.timing.decode.len(),
        8,
        "ten tokens: the first, the switch, eight others"
    );
    // Each token is the argmax of a whole pass over what precedes it.
    let mut sequence = tokens.to_vec();
    for id in generation.ids {
        let all = logits(&mut engine, &sequence);
        let best = (0..all.len())
            .max_by(|a, b| all[*a].total_cmp(&all[*b]))
            .unwrap();
        assert_eq!(id as usize, best, "at {} tokens", sequence.len());
        sequence.push(id);
    }
}

/// The first windows of the validation text, whose losses eval.json lists.
#[test]
#[ignore = "needs SMQ_DATA_DIR, a directory with storybook_valid.txt"]
fn perplexity_windows_equal_hugging_face() {
    #[derive(Deserialize)]
    struct Eval {
        first_windows_mean_nll: Vec<f64>,
    }
    let data = std::env::var("SMQ_DATA_DIR").expect("SMQ_DATA_DIR is not set");
    let text = std::fs::read_to_string(PathBuf::from(data).join("storybook_valid.txt")).unwrap();
    let eval: Eval =
        serde_json::from_slice(&std::fs::read(fixture().join("eval.json")).unwrap()).unwrap();
    let source = Source::open(&fixture()).unwrap();
    let tokenizer = Tokenizer::load(&source).unwrap();
    let mut engine = CpuEngine::load(&source).unwrap();
    let options = PplOptions {
        window: 512,
        max_tokens: Some(512 * eval.first_windows_mean_nll.len()),
    };
    let report = perplexity(&mut engine, &tokenizer, &text, &options, |_, _, _| ()).unwrap();
    assert_eq!(report.window_nll.len(), eval.first_windows_mean_nll.len());
    for (i, (got, want)) in report
        .window_nll
        .iter()
        .zip(&eval.first_windows_mean_nll)
        .enumerate()
    {
        assert!(
            (got - want).abs() < LOGIT_TOLERANCE,
            "window {i}: {got} instead of {want}"
        );
    }
}

/// The same 512 tokens, rotated with the short factors in a sequence of 512 and with the long ones
/// in a sequence of 513: golden.json's `switch`.
#[test]
#[ignore = "needs SMQ_DATA_DIR, a directory with storybook_valid.txt"]
fn factors_follow_the_length_of_the_whole_sequence() {
    let data = std::env::var("SMQ_DATA_DIR").expect("SMQ_DATA_DIR is not set");
    let text = std::fs::read_to_string(PathBuf::from(data).join("storybook_valid.txt")).unwrap();
    let golden: serde_json::Value =
        serde_json::from_slice(&std::fs::read(fixture().join("golden.json")).unwrap()).unwrap();
    let source = Source::open(&fixture()).unwrap();
    let tokens = Tokenizer::load(&source)
        .unwrap()
        .encode(&text, false)
        .unwrap();
    let decoder = Decoder::load(&source).unwrap();
    for (list, long) in [("len512_top8", false), ("len513_top8", true)] {
        let mut sequence = Sequence::new(decoder.config(), 512, long);
        let hidden = decoder.extend(&mut sequence, &tokens[..512], 1).unwrap();
        let logits = decoder.logits(&hidden);
        for pair in golden["switch"][list].as_array().unwrap() {
            let (id, want) = (pair[0].as_u64().unwrap(), pair[1].as_f64().unwrap());
            let got = f64::from(logits[id as usize]);
            assert!(
                (got - want).abs() < LOGIT_TOLERANCE,
                "{list} {id}: {got} instead of {want}"
            );
        }
    }
}
