//! Many sequences at once on the CPU: the same tokens, to the last bit of their log-probabilities,
//! as each sequence has alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file

use std::collections::HashMap;
use std::path::PathBuf;

use smq_engine::CpuEngine;
use smq_engine::generate::{GenerateOptions, Stop, generate};
use smq_engine::serve::{
    BatchEngine, BatchOptions, CpuBatch, Event, LogProbs, Request, RequestId, Scheduler,
};
use smq_model::Source;

fn fixture() -> Source {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/phi3-tiny");
    Source::open(&path).unwrap()
}

/// What a request's events said.
#[derive(Debug, Default, Clone, PartialEq)]
struct Output {
    tokens: Vec<u32>,
    log_probs: Vec<LogProbs>,
    prompt: Vec<LogProbs>,
    stop: Option<Stop>,
    failed: Option<String>,
}

/// Runs until nothing is left, checking the pages after every step.
fn run<E: BatchEngine>(scheduler: &mut Scheduler<E>) -> HashMap<RequestId, Output> {
    let mut outputs: HashMap<RequestId, Output> = HashMap::new();
    while !scheduler.is_idle() {
        let events = scheduler.step();
        scheduler.check().unwrap();
        for event in events {
            let output = outputs.entry(event.id()).or_default();
            assert!(output.stop.is_none() && output.failed.is_none());
            match event {
                Event::Prompt { log_probs, .. } => output.prompt.extend(log_probs),
                Event::Token {
                    token, log_probs, ..
                } => {
                    output.tokens.push(token);
                    output.log_probs.extend(log_probs);
                }
                Event::Finished { stop, .. } => output.stop = Some(stop),
                Event::Failed { error, .. } => output.failed = Some(error.to_string()),
            }
        }
    }
    outputs
}

fn prompt(seed: u32, len: usize) -> Vec<u32> {
    (0..len as u32)
        .map(|i| 7 + (seed * 977 + i * 131) % 4089)
        .collect()
}

#[test]
fn sequences_that_run_together_have_the_tokens_that_each_has_alone() {
    let source = fixture();
    let mut engine = CpuEngine::load(&source).unwrap();
    let options = BatchOptions {
        page_tokens: 16,
        kv_tokens: 320,
        max_rows: 6,
        step_tokens: 40,
        max_tokens: None,
    };
    let mut scheduler = Scheduler::new(CpuBatch::load(&source, &options).unwrap()).unwrap();
    let mut ids = Vec::new();
    for seed in 0..10 {
        let prompt = prompt(seed % 4, 1 + (seed as usize * 37) % 150);
        let id = scheduler.submit(Request::new(prompt.clone(), 60)).unwrap();
        ids.push((id, prompt));
    }
    let outputs = run(&mut scheduler);
    for (id, prompt) in ids {
        let options = GenerateOptions {
            max_new_tokens: 60,
            ..Default::default()
        };
        let alone = generate(&mut engine, &prompt, &options, |_| Ok(())).unwrap();
        assert_eq!(outputs[&id].tokens, alone.ids);
        assert_eq!(outputs[&id].stop, Some(alone.stop));
    }
    assert!(
        scheduler.counters().preemptions > 0,
        "{:?}",
        scheduler.counters()
    );
    assert!(
        scheduler.counters().prefix_hits > 0,
        "{:?}",
        scheduler.counters()
    );
}
