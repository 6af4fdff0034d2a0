//! Steps of one sequence with a guess: texts, and the bits of their log-probabilities, are those of
//! steps without, and greedy ones those of the engine of one sequence.

use std::ops::ControlFlow;

use smq_convert::{LevelChoice, Method};
use smq_engine::cuda::CudaEngine;
use smq_engine::serve::{
    BatchEngine, BatchOptions, Drafter, NgramDrafter, Request, Scheduler, load_guessing,
};
use smq_engine::{Device, Engine, KvCacheFormat, KvCode, LoadOptions};
use smq_model::{GenerationSettings, Source};

use crate::drafts::{self, Text};
use crate::families::{self, VOCAB};
use crate::kv_cache::{VOCAB as VOCAB_OF_SHAPES, models_of_shapes};
use crate::models::{E5M5, Model, WITH_HEAD, any_tokens, lut4_method};
use crate::{Outcome, none};

/// Tokens of a text of [`short_requests`].
const NEW: usize = 24;

/// Greedy texts and drawn ones behind prompts about the 1024 tokens from which on more blocks share
/// a head, and about a tile's and a window's end.
fn short_requests(vocab: u32) -> Vec<Request> {
    let tokens = any_tokens(1100, vocab);
    let drawn = r#"{"do_sample": true, "temperature": 0.9, "top_k": 50}"#;
    let request = |(i, len): (usize, usize)| {
        let mut request = Request::new(tokens[i..i + len].to_vec(), NEW);
        request.settings =
            GenerationSettings::from_json(if i % 2 == 0 { "{}" } else { drawn }.as_bytes())
                .unwrap();
        request.seed = i as u64;
        request.log_probs = [None, Some(4), Some(0)][i % 3];
        request
    };
    let lengths = [1, 7, 40, 62, 130, 1010, 1017];
    lengths.into_iter().enumerate().map(request).collect()
}

/// `None` for a model that has no steps with guesses.
fn scheduler<'s>(source: &'s Source, code: KvCode) -> Option<Scheduler<Box<dyn BatchEngine + 's>>> {
    let options = BatchOptions {
        kv_cache: Some(KvCacheFormat::Coded(code)),
        kv_tokens: Some(1400),
        max_rows: 1,
        ..BatchOptions::default()
    };
    let engine = load_guessing(source, Device::Cuda, &options).unwrap();
    (engine.most_drafts() == 1).then(|| Scheduler::new(engine).unwrap())
}

/// What the engine of one sequence chooses.
fn greedy(engine: &mut CudaEngine, request: &Request) -> Vec<u32> {
    let mut text = Vec::new();
    engine
        .start(request.prompt.len() + request.max_new_tokens)
        .unwrap();
    let mut take = |token, _| {
        text.push(token);
        Ok(ControlFlow::Continue(()))
    };
    engine
        .greedy(&request.prompt, request.max_new_tokens, &mut take)
        .unwrap();
    text
}

fn ids(text: &Text) -> Vec<u32> {
    text.iter().map(|(token, _)| *token).collect()
}

/// What is wrong with a model's texts; `None` for one that has no steps with guesses.
fn failures(
    name: &str,
    model: &Model,
    code: KvCode,
    requests: impl Fn() -> Vec<Request>,
) -> Option<Vec<String>> {
    let source = model.open();
    let mut alone = scheduler(&source, code)?;
    let plain = drafts::run(&mut alone, requests());
    drop(alone);
    let mut failures = Vec::new();
    let options = LoadOptions {
        kv_cache: Some(KvCacheFormat::Coded(code)),
        ..LoadOptions::default()
    };
    let mut engine = CudaEngine::load_with(&source, &options).unwrap();
    for (at, (request, text)) in requests().iter().zip(&plain).enumerate() {
        let is_greedy = request.settings == GenerationSettings::default();
        if is_greedy && request.constraint.is_none() && greedy(&mut engine, request) != ids(text) {
            failures.push(format!("{name}, request {at}: not the engine's text"));
        }
    }
    drop(engine);
    let known = drafts::known(requests(), &plain);
    let drafters: [Box<dyn Drafter>; 2] = [Box::new(NgramDrafter::default()), Box::new(known)];
    for (i, drafter) in drafters.into_iter().enumerate() {
        let mut guessing = scheduler(&source, code)?;
        guessing.speculate(drafter, 8);
        let guessed = drafts::run(&mut guessing, requests());
        for (at, (found, expected)) in guessed.iter().zip(&plain).enumerate() {
            if found != expected {
                failures.push(format!(
                    "{name}, drafter {i}, request {at}: {found:?}, without guesses {expected:?}"
                ));
            }
        }
        let c = guessing.counters();
        if i == 1 && (c.accepted_tokens < 20 || c.accepted_tokens == c.draft_tokens) {
            failures.push(format!("{name}, drafter {i} hardly guessed: {c:?}"));
        }
    }
    Some(failures)
}

/// Fails with all of them, and where other models than so many have no steps with guesses.
fn all_but(without: usize, results: Vec<Option<Vec<String>>>) -> Outcome {
    let found = results.iter().filter(|result| result.is_none()).count();
    let mut failures: Vec<String> = results.into_iter().flatten().flatten().collect();
    if found != without {
        failures.push(format!(
            "{found} models have no steps with guesses, not {without}"
        ));
    }
    none(failures)
}

/// Every way of storing weights, prompts that LongRoPE's switch follows, and texts chosen in every
/// way.
pub(crate) fn weights() -> Outcome {
    let model = Model::fixture();
    let lut4 = lut4_method(E5M5, 128, LevelChoice::Learned);
    let models = [
        ("int4", model.quantized(E5M5, WITH_HEAD)),
        ("int4 MLP", model.quantized(E5M5, "mlp")),
        (
            "int4 in groups of 64",
            model.quantized_in_groups(E5M5, "all", 64),
        ),
        (
            "int4 in groups of 32",
            model.quantized_in_groups(E5M5, "all", 32),
        ),
        ("NF4", model.quantized_as(Method::Nf4, "all")),
        ("lut4", model.quantized_as(lut4, "all")),
        ("FP8", model.quantized_as(Method::Fp8, "all")),
        ("bf16", model),
    ];
    let of = |(name, model): (&str, Model)| failures(name, &model, KvCode::Bf16, drafts::requests);
    all_but(0, models.into_iter().map(of).collect())
}

/// Heads of every size, shared or not, and windows, with each cache.
pub(crate) fn caches() -> Outcome {
    let mut results = Vec::new();
    for code in [KvCode::Bf16].into_iter().chain(KvCode::SMALLER) {
        for (name, model) in models_of_shapes() {
            let name = format!("{name}, {code:?} cache");
            results.push(failures(&name, &model, code, || {
                short_requests(VOCAB_OF_SHAPES)
            }));
        }
    }
    all_but(0, results)
}

/// Every family, of which `decode.cu` makes the steps of all but a few.
pub(crate) fn of_families() -> Outcome {
    let of = |(name, model): (String, Model)| {
        failures(&name, &model, KvCode::Bf16, || short_requests(VOCAB))
    };
    let models = families::models().into_iter();
    all_but(families::BY_PROMPTS.len(), models.map(of).collect())
}
