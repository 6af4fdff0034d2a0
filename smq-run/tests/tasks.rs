//! The tasks against what lm-evaluation-harness itself scored (tests/fixtures/eval/golden.json, made by
//! tests/peers/lm_eval_peer.py) on a few items of our own, and the engine's scoring of continuations against its naive twins.
//!
//! # Tolerance
//! golden.rs derives 7e-4 for a logit or log-sum-exp of the fixture, taking every rounding to push the same way. A
//! continuation's log-likelihood adds up differences of the two over its tokens, whose errors are as often negative;
//! 1e-3 is asked of all of them (measured: up to 4e-5 here, 1.2e-4 over 1799 continuations), while a token too many or
//! a wrong space changes a log-likelihood by whole nats.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file

use std::path::{Path, PathBuf};

use serde_json::Value;
use smq_engine::TokenScore;
use smq_engine::{CpuEngine, Engine, Result};
use smq_model::{GenerationSettings, Source, Tokenizer};
use smq_run::eval::encode;
use smq_run::eval::task::{
    Item, Metric, Prompts, Request, Task, batches, encode_all, evaluate, scores,
};

const TOLERANCE_NATS: f64 = 1e-3;

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

fn fixture() -> Source {
    Source::open(&fixtures().join("phi3-tiny")).unwrap()
}

fn items(task: Task, limit: Option<usize>) -> (Vec<Request>, Vec<Item>) {
    let source = fixture();
    let tokenizer = Tokenizer::load(&source).unwrap();
    let eos_ids = GenerationSettings::plain(&source).unwrap().eos_ids;
    let mut engine = CpuEngine::load(&source).unwrap();
    let path = fixtures()
        .join("eval")
        .join(format!("{}.jsonl", task.name()));
    let requests = task.read(&path, limit).unwrap();
    let (prompts, positions) = (Prompts::default(), engine.config().max_positions);
    let encoded = encode_all(&tokenizer, prompts, positions, &requests).unwrap();
    // Runs of one item, as the engine asks, and longer ones: the same items.
    let mut of_runs = |tokens| -> Vec<Item> {
        batches(&encoded, tokens)
            .flat_map(|batch| evaluate(&mut engine, &tokenizer, &eos_ids, prompts, batch).unwrap())
            .collect()
    };
    let items = of_runs(1);
    assert_eq!(items, of_runs(500));
    (requests, items)
}

#[test]
fn every_item_is_scored_as_the_harness_scores_it() {
    let golden: Value =
        serde_json::from_slice(&std::fs::read(fixtures().join("eval/golden.json")).unwrap())
            .unwrap();
    for task in Task::ALL {
        let (requests, ours) = items(task, None);
        let theirs = golden[task.name()]["items"].as_array().unwrap();
        assert_eq!(ours.len(), theirs.len(), "{}", task.name());
        for ((request, our), their) in requests.iter().zip(&ours).zip(theirs) {
            let what = format!("{} {}", task.name(), our.index);
            match request {
                Request::Continuation { context, .. } | Request::Choice { context, .. } => {
                    assert_eq!(their["context"], **context, "{what}");
                    let lls = their["log_likelihoods"].as_array().unwrap();
                    assert_eq!(our.log_likelihoods.len(), lls.len(), "{what}");
                    for (our, their) in our.log_likelihoods.iter().zip(lls) {
                        let error = (our - their.as_f64().unwrap()).abs();
                        assert!(error < TOLERANCE_NATS, "{what}: off by {error}");
                    }
                }
                Request::Answer { prompt, .. } => {
                    assert!(
                        their["context"].as_str().unwrap().contains(prompt),
                        "{what}"
                    );
                    assert_eq!(
                        our.response.as_deref(),
                        their["response"].as_str(),
                        "{what}"
                    );
                    for (metric, filter) in FILTERS {
                        assert_eq!(
                            their["extracted"][filter], *our.extracted[&metric],
                            "{what}"
                        );
                    }
                }
            }
            for (metric, value) in &our.metrics {
                let name = FILTERS.iter().find(|(m, _)| m == metric);
                let name = name.map_or(metric.name(), |(_, filter)| filter);
                if *metric != Metric::Perplexity {
                    assert_eq!(
                        their["metrics"][name].as_f64(),
                        Some(*value),
                        "{what} {name}"
                    );
                }
            }
        }
        for (metric, score) in scores(task, &ours).unwrap() {
            let name = match FILTERS.iter().find(|(m, _)| *m == metric) {
                Some((_, filter)) => format!("exact_match,{filter}"),
                None => format!("{},none", metric.name()),
            };
            let results = &golden[task.name()]["results"];
            let (value, stderr) = (&results[&name], &results[name.replace(',', "_stderr,")]);
            // A perplexity of 3.5 moves by 3.5 times the tolerance at most; its bootstrap has random numbers of its own,
            // 1 % of which is what 100,000 resamples of six items leave.
            let (off, relative) = match metric.is_accuracy() {
                true => (1e-12, 1e-9),
                false => (4.0 * TOLERANCE_NATS, 0.02),
            };
            assert!(
                (score.value - value.as_f64().unwrap()).abs() <= off,
                "{name}"
            );
            let (ours, theirs) = (score.stderr.unwrap(), stderr.as_f64().unwrap());
            assert!(
                (ours - theirs).abs() <= relative * theirs,
                "{name}: {ours} and {theirs}"
            );
        }
    }
}

const FILTERS: [(Metric, &str); 2] = [
    (Metric::StrictMatch, "strict-match"),
    (Metric::FlexibleExtract, "flexible-extract"),
];

#[test]
fn a_limit_keeps_the_first_items() {
    let (_, all) = items(Task::Arc, None);
    let (_, two) = items(Task::Arc, Some(2));
    assert_eq!(two, all[..2]);
}

#[test]
fn bad_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("items.jsonl");
    let error = |text: &str| {
        std::fs::write(&path, text).unwrap();
        Task::Lambada.read(&path, None).unwrap_err().to_string()
    };
    assert!(error("{\"text\": \"a b\"}\n{\"txt\": 1}\n").contains("line 2 is no item of lambada"));
    assert!(error("\n\n").contains("holds no item"));
    let absent = Task::Arc.read(Path::new("absent.jsonl"), None).unwrap_err();
    assert!(absent.to_string().contains("absent.jsonl"));
    assert!(Task::Arc.read(dir.path(), None).is_err());
}

/// Context and continuation share a word, a space or nothing.
#[test]
fn pairs_are_split_where_the_context_ends() {
    let tokenizer = Tokenizer::load(&fixture()).unwrap();
    let encode = |text: &str| tokenizer.encode(text, true).unwrap();
    let pair = encode::pair(&tokenizer, "Once upon a", " time").unwrap();
    assert_eq!(pair.context, encode("Once upon a"));
    assert_eq!(
        [pair.context, pair.continuation].concat(),
        encode("Once upon a time")
    );
    // The space at the context's end goes to the word after it.
    let pair = encode::pair(&tokenizer, "Once upon a ", "time").unwrap();
    assert_eq!(pair.context, encode("Once upon a"));
    assert_eq!(
        [pair.context, pair.continuation].concat(),
        encode("Once upon a time")
    );
    let bos = tokenizer.token_id("<s>").unwrap();
    let mut alone = encode::pair(&tokenizer, "", " time").unwrap();
    assert_eq!(alone.context, [bos]);
    assert_eq!(
        alone.continuation,
        tokenizer.encode(" time", false).unwrap()
    );
    assert!(encode::pair(&tokenizer, "Once", "").is_err());
    // What is too long loses its start; the last token needs no place.
    alone.context = (10..20).collect();
    alone.continuation = vec![1, 2, 3];
    alone.truncate_left(6).unwrap();
    assert_eq!(
        (alone.context.as_slice(), alone.continuation.len()),
        (&[16, 17, 18, 19][..], 3)
    );
    assert!(alone.truncate_left(2).is_err());
}

/// Context and continuation together, each continuation anew.
fn naive_scores(
    engine: &mut CpuEngine<'_>,
    context: &[u32],
    continuation: &[u32],
) -> Vec<TokenScore> {
    let all = engine.scores(&[context, continuation].concat()).unwrap();
    all[context.len() - 1..].to_vec()
}

/// The last `keep - 1` tokens one at a time, within one set of LongRoPE's factors.
fn naive_rows(engine: &mut CpuEngine<'_>, tokens: &[u32], keep: usize) -> Vec<Vec<f32>> {
    let (first, rest) = tokens.split_at(tokens.len() + 1 - keep);
    engine.start(tokens.len()).unwrap();
    let mut rows = vec![engine.extend(first).unwrap().logits.to_vec()];
    for token in rest {
        let step = engine.extend(std::slice::from_ref(token)).unwrap();
        assert!(!step.rope_switched);
        rows.push(step.logits.to_vec());
    }
    rows
}

fn rows(engine: &mut CpuEngine<'_>, tokens: &[u32], keep: usize) -> Result<Vec<Vec<f32>>> {
    let mut rows = Vec::new();
    let vocab = engine.config().vocab;
    engine.logit_rows(tokens, keep, &mut |some| {
        rows.extend(some.chunks_exact(vocab).map(<[f32]>::to_vec));
        Ok(())
    })?;
    Ok(rows)
}

#[test]
fn shared_contexts_and_rows_equal_their_naive_twins() {
    let source = fixture();
    let mut engine = CpuEngine::load(&source).unwrap();
    let mut plain = CpuEngine::load(&source).unwrap();
    let vocab = engine.config().vocab as u32;
    let tokens: Vec<u32> = (0..560).map(|i| 7 + (i * 131) % (vocab - 7)).collect();
    // The second context's longest continuation reaches over the original context of 512, the next one returns.
    for (context, lengths) in [(1, [1, 3, 2]), (40, [5, 1, 17]), (500, [2, 40, 7])] {
        let continuations: Vec<Vec<u32>> = lengths
            .iter()
            .enumerate()
            .map(|(i, n)| tokens[i * 3..i * 3 + n].to_vec())
            .collect();
        let context = &tokens[..context];
        let shared = engine.continuation_scores(context, &continuations).unwrap();
        assert_eq!(shared.len(), continuations.len());
        for ((shared, continuation), n) in shared.iter().zip(&continuations).zip(lengths) {
            let naive = naive_scores(&mut plain, context, continuation);
            assert_eq!((shared.len(), naive.len()), (n, n));
            for (a, b) in shared.iter().zip(&naive) {
                let near = (a.log_prob - b.log_prob).abs() < TOLERANCE_NATS;
                assert!(near && a.is_top == b.is_top, "{a:?} and {b:?}");
            }
        }
    }
    for (len, keep) in [(1, 1), (30, 30), (300, 270), (512, 3)] {
        let ours = rows(&mut engine, &tokens[..len], keep).unwrap();
        let naive = naive_rows(&mut plain, &tokens[..len], keep);
        assert_eq!((ours.len(), naive.len()), (keep, keep));
        for (a, b) in ours.iter().flatten().zip(naive.iter().flatten()) {
            assert!((f64::from(*a) - f64::from(*b)).abs() < TOLERANCE_NATS);
        }
    }
    // Across the original context's end the whole sequence's length decides.
    assert_eq!(rows(&mut engine, &tokens[..520], 20).unwrap().len(), 20);
    assert!(rows(&mut engine, &tokens[..3], 0).is_err());
    assert!(rows(&mut engine, &tokens[..3], 4).is_err());
    assert!(engine.continuation_scores(&[], &[vec![1]]).is_err());
    assert!(engine.continuation_scores(&[9], &[vec![vocab]]).is_err());
}
