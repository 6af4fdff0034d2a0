//! What the tests of many sequences share.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use smq_engine::generate::Stop;
use smq_engine::serve::{BatchEngine, BatchOptions, Event, LogProbs, RequestId, Scheduler};
use smq_model::Source;

pub(crate) fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

pub(crate) fn open(path: &Path) -> Source {
    Source::open(path).unwrap()
}

pub(crate) fn fixture() -> Source {
    open(&fixtures().join("phi3-tiny"))
}

/// An engine with little room.
pub(crate) fn small() -> BatchOptions {
    BatchOptions {
        page_tokens: 16,
        kv_tokens: Some(320),
        kv_cache: None,
        max_rows: 6,
        step_tokens: 40,
        max_tokens: None,
        fast_nondeterministic: false,
    }
}

/// Numbers that look random and are the same every time (splitmix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// One of `range`.
    pub(crate) fn within(&mut self, range: std::ops::Range<usize>) -> usize {
        range.start + (self.next() % range.len() as u64) as usize
    }

    /// Whether one of `n` equally likely cases is there.
    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.within(0..n) == 0
    }
}

pub(crate) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What a request's events said.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Output {
    pub(crate) prompt: Vec<LogProbs>,
    pub(crate) tokens: Vec<u32>,
    pub(crate) log_probs: Vec<LogProbs>,
    pub(crate) stop: Option<Stop>,
    pub(crate) ended_by: Option<u32>,
    pub(crate) cached_tokens: usize,
    pub(crate) failed: Option<String>,
}

pub(crate) type Outputs = HashMap<RequestId, Output>;

/// Does a step, checks the pages, and notes what the events say.
pub(crate) fn step<E: BatchEngine>(scheduler: &mut Scheduler<E>, outputs: &mut Outputs) {
    let events = scheduler.step();
    scheduler.check().unwrap();
    for event in events {
        let output = outputs.entry(event.id()).or_default();
        let over = output.stop.is_some() || output.failed.is_some();
        assert!(!over, "an event behind the last one: {event:?}");
        match event {
            Event::Prompt { log_probs, .. } => {
                assert!(output.tokens.is_empty(), "the prompt comes first");
                output.prompt.extend(log_probs);
            }
            Event::Token {
                token, log_probs, ..
            } => {
                output.tokens.push(token);
                output.log_probs.extend(log_probs);
            }
            Event::Finished {
                stop,
                ended_by,
                cached_tokens,
                ..
            } => {
                output.stop = Some(stop);
                output.ended_by = ended_by;
                output.cached_tokens = cached_tokens;
            }
            Event::Failed { error, .. } => output.failed = Some(error.to_string()),
        }
    }
}

/// Steps until nothing is left, which takes at most `most` steps.
pub(crate) fn run<E: BatchEngine>(
    scheduler: &mut Scheduler<E>,
    outputs: &mut Outputs,
    most: usize,
) -> usize {
    for steps in 0..most {
        if scheduler.is_idle() {
            let counters = scheduler.counters();
            assert_eq!(counters.pages_held, 0, "pages leaked");
            return steps;
        }
        step(scheduler, outputs);
    }
    panic!(
        "requests are left after {most} steps: {:?}",
        scheduler.counters()
    );
}
