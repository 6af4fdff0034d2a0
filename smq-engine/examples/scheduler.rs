//! Times what the scheduler itself does in a step, on a device that computes nothing:
//! `cargo run --release -p smq-engine --example scheduler`.
//!
//! 64 sequences of 512 and more tokens in pages of 16, with hashes, stop ids and events. The time
//! that the device's step takes is left out; so is the client's, which does nothing with events.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use smq_engine::serve::{BatchEngine, Chosen, Chunk, Computed, Request, Scheduler};
use smq_engine::{KvCacheFormat, Result, Summary};
use smq_model::{ModelConfig, Source};

const SEQUENCES: u32 = 64;
const PROMPT_TOKENS: u32 = 512;
const NEW_TOKENS: usize = 256;

/// Chooses token 7 every time.
struct Nothing {
    config: ModelConfig,
    /// Nanoseconds spent in here.
    spent: Arc<AtomicU64>,
}

impl BatchEngine for Nothing {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn device(&self) -> &'static str {
        "nothing"
    }

    fn page_tokens(&self) -> usize {
        16
    }

    fn pages(&self) -> usize {
        8192
    }

    fn kv_format(&self) -> KvCacheFormat {
        KvCacheFormat::F32
    }

    fn max_rows(&self) -> usize {
        64
    }

    fn step_tokens(&self) -> usize {
        2048
    }

    fn draft_cost(&self) -> f64 {
        1.0
    }

    fn step(&mut self, chunks: &mut [Chunk<'_>]) -> Result<Vec<Result<Computed>>> {
        let start = Instant::now();
        let compute = |chunk: &mut Chunk<'_>| {
            let chosen = chunk.choice.as_mut().map(|choice| {
                choice.sampler.accept(7);
                Chosen {
                    token: 7,
                    log_probs: None,
                }
            });
            Ok(Computed {
                scores: Vec::new(),
                chosen: chosen.into_iter().collect(),
            })
        };
        let results = chunks.iter_mut().map(compute).collect();
        let spent = start.elapsed().as_nanos() as u64;
        self.spent.fetch_add(spent, Ordering::Relaxed);
        Ok(results)
    }
}

fn main() -> Result<()> {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/phi3-tiny");
    let mut config = ModelConfig::of(&Source::open(&fixture)?)?;
    config.rope.scaling = smq_model::RopeScaling::None;
    let spent = Arc::new(AtomicU64::new(0));
    let mut scheduler = Scheduler::new(Nothing {
        config,
        spent: Arc::clone(&spent),
    })?;
    for i in 0..SEQUENCES {
        let prompt = (0..PROMPT_TOKENS)
            .map(|k| (i * 61 + k * 7) % 4096)
            .collect();
        let mut request = Request::new(prompt, NEW_TOKENS);
        request.stop_ids = vec![1, 2, 3];
        scheduler.submit(request)?;
    }
    let (mut prompts, mut decode) = (Vec::new(), Vec::new());
    while !scheduler.is_idle() {
        let before = scheduler.counters();
        spent.store(0, Ordering::Relaxed);
        let start = Instant::now();
        let events = scheduler.step();
        let took = start.elapsed() - Duration::from_nanos(spent.load(Ordering::Relaxed));
        drop(events);
        let computed = scheduler.counters().computed_tokens - before.computed_tokens;
        let of = match computed == u64::from(SEQUENCES) {
            true => &mut decode,
            false => &mut prompts,
        };
        of.push(took.as_secs_f64() * 1e6);
    }
    for (name, times) in [("prompts", prompts), ("decode", decode)] {
        if let Some(Summary { mean, p50, p95 }) = Summary::of(&times) {
            println!(
                "{name}: {} steps, {mean:.1} us each, p50 {p50:.1}, p95 {p95:.1}",
                times.len()
            );
        }
    }
    Ok(())
}
