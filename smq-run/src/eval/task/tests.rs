//! The tasks against what lm-evaluation-harness itself scored (tests/fixtures/eval/golden.json,
//! made by tests/peers/lm_eval_peer.py) on a few items of our own.
//!
//! # Tolerance
//! tests/golden.rs derives 7e-4 for a logit or log-sum-exp of the fixture, taking every rounding to
//! push the same way. A continuation's log-likelihood adds up differences of the two over its
//! tokens, whose errors are as often negative; 1e-3 is asked of all of them (measured: up to 4e-5
//! here, 1.2e-4 over 1799 continuations), while a token too many or a wrong space changes a
//! log-likelihood by whole nats.

use std::path::PathBuf;

use serde_json::Value;
use smq_engine::{CpuEngine, Engine};
use smq_model::{GenerationSettings, Source, Tokenizer};

use super::*;

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
    for task in Task::ALL.into_iter().filter(|t| t.is_published()) {
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
            // A perplexity of 3.5 moves by 3.5 times the tolerance at most; its bootstrap has
            // random numbers of its own, 1 % of which is what 100,000 resamples of six items
            // leave.
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
