//! The scheduler's thread with an engine that fails.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use smq_engine::KvCacheFormat;
use smq_engine::serve::{BatchEngine, Chosen, Chunk, Computed, Request, Scheduler};
use smq_model::{ModelConfig, Source};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::metrics::Metrics;
use super::worker::{Update, Worker};

mod tools;

const PANIC: u32 = 7;
const FAIL: u32 = 8;

/// An engine that answers every token with the next one, and panics or fails at some.
struct Fake {
    config: ModelConfig,
    /// No step starts while a test holds it.
    gate: Arc<Mutex<()>>,
}

impl BatchEngine for Fake {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn device(&self) -> &'static str {
        "fake"
    }

    fn page_tokens(&self) -> usize {
        16
    }

    fn pages(&self) -> usize {
        64
    }

    fn kv_format(&self) -> KvCacheFormat {
        KvCacheFormat::F32
    }

    fn max_rows(&self) -> usize {
        8
    }

    fn step_tokens(&self) -> usize {
        64
    }

    fn draft_cost(&self) -> f64 {
        1.0
    }

    fn step(
        &mut self,
        chunks: &mut [Chunk<'_>],
    ) -> smq_engine::Result<Vec<smq_engine::Result<Computed>>> {
        // Let go of at once, so that a panic below does not poison it.
        drop(self.gate.lock().unwrap());
        let one = |chunk: &mut Chunk<'_>| {
            assert!(!chunk.tokens.contains(&PANIC), "a token that is not borne");
            if chunk.tokens.contains(&FAIL) {
                return Err(smq_engine::Error::Input("the token failed".into()));
            }
            let next = chunk.tokens.last().map_or(0, |last| last + 1);
            let chosen = chunk.choice.iter().map(|_| Chosen {
                token: next,
                log_probs: None,
            });
            Ok(Computed {
                scores: Vec::new(),
                chosen: chosen.collect(),
            })
        };
        Ok(chunks.iter_mut().map(one).collect())
    }
}

fn worker() -> Worker {
    worker_behind(Arc::default())
}

/// One whose engine waits while `gate` is held.
fn worker_behind(gate: Arc<Mutex<()>>) -> Worker {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/phi3-tiny");
    let source = Source::open(&fixture).unwrap();
    let config = ModelConfig::of(&source).unwrap();
    let engine = Fake { config, gate };
    let metrics = Arc::new(Metrics::new("fake", 0).unwrap());
    Worker::start(Scheduler::new(engine).unwrap(), metrics, true).unwrap()
}

type Receiver = UnboundedReceiver<(usize, Update)>;

fn submit(worker: &Worker, prompts: &[Vec<u32>], tokens: usize) -> Receiver {
    let requests = prompts
        .iter()
        .map(|prompt| Request::new(prompt.clone(), tokens));
    let (sender, receiver) = unbounded_channel();
    worker.submit(requests.collect(), Instant::now(), sender);
    receiver
}

/// The tokens of a request's only sequence, or why there are no more.
fn tokens(mut receiver: Receiver) -> Result<Vec<u32>, String> {
    let mut tokens = Vec::new();
    while let Some((_, update)) = receiver.blocking_recv() {
        match update {
            Update::Token(token, _) => tokens.push(token),
            Update::Finished { .. } => return Ok(tokens),
            Update::Refused(message) | Update::Failed(message) => return Err(message),
            Update::Prompt(_) => panic!("log-probabilities"),
        }
    }
    Err("no end".into())
}

#[test]
fn a_panic_fails_what_is_in_work_and_nothing_after_it() {
    let gate = Arc::new(Mutex::new(()));
    let worker = worker_behind(Arc::clone(&gate));
    assert_eq!(
        tokens(submit(&worker, &[vec![20]], 3)),
        Ok(vec![21, 22, 23])
    );
    // Both run until one comes to the token; neither may have ended before the other came.
    let held = gate.lock().unwrap();
    let beside = submit(&worker, &[vec![100]], 1000);
    let panics = submit(&worker, &[vec![1]], 1000);
    drop(held);
    let error = tokens(panics).unwrap_err();
    assert!(
        error.contains("panicked") && error.contains("not borne"),
        "{error}"
    );
    assert!(tokens(beside).unwrap_err().contains("panicked"));
    assert!(!worker.is_dead());
    assert_eq!(worker.waiting(), 0);
    let prompt: Vec<u32> = (30..90).collect();
    assert_eq!(tokens(submit(&worker, &[prompt], 2)), Ok(vec![90, 91]));
}

#[test]
fn an_error_of_one_sequence_is_no_other_ones() {
    let worker = worker();
    let beside = submit(&worker, &[vec![100]], 200);
    // The first token that it makes is the one before the one that fails.
    let error = tokens(submit(&worker, &[vec![FAIL]], 5)).unwrap_err();
    assert!(error.contains("the token failed"), "{error}");
    assert_eq!(tokens(beside).unwrap().len(), 200);
    // What cannot be taken is refused alone.
    assert!(tokens(submit(&worker, &[vec![]], 5)).is_err());
    assert_eq!(tokens(submit(&worker, &[vec![40]], 1)), Ok(vec![41]));
    assert_eq!(worker.waiting(), 0);
}
