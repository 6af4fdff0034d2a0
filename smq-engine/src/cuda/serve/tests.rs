//! What a step of many sequences costs the host beside the GPU: the arrays that are copied there, and
//! what is asked for each row; and choices behind a draft. It needs no GPU.

use std::hint::black_box;
use std::time::Instant;

use smq_model::GenerationSettings;

use super::choose::Rows;
use super::inputs::{Inputs, Layout};
use super::{KEYS, bucket, sampler_at};
use crate::Summary;
use crate::sample::Sampler;
use crate::serve::Chunk;

const SEQUENCES: usize = 64;
const TOKENS: usize = 640;
const NEW_TOKENS: usize = 128;
const VOCAB: usize = 32_064;

/// Microseconds that `work` takes, often.
fn timed(name: &str, mut work: impl FnMut()) {
    let once = |_| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64() * 1e6
    };
    let times: Vec<f64> = (0..2000).map(once).collect();
    let Summary { mean, p50, p95 } = Summary::of(&times).unwrap();
    println!("{name}: {mean:.1} us, p50 {p50:.1}, p95 {p95:.1}");
}

#[test]
#[ignore = "it times the host: cargo test --release -p smq-engine --lib -- --ignored --nocapture of_the_host"]
fn a_step_takes_so_much_of_the_host() {
    let pages: Vec<u32> = (0..TOKENS.div_ceil(KEYS) as u32).collect();
    let mut staged = vec![0_u8; 1 << 20];
    timed("arrays of 64 single tokens behind 639", || {
        let mut inputs = Inputs::default();
        for _ in 0..SEQUENCES {
            let first = inputs.push(&Chunk {
                pages: &pages,
                past: TOKENS - 1,
                tokens: &[7],
                drafts: 0,
                long: false,
                scores: None,
                choice: None,
            });
            inputs.wanted.push(first as i32);
        }
        let rows = bucket(SEQUENCES);
        inputs.fill_up(rows, 0);
        let layout = Layout::new(rows, rows, rows).unwrap();
        black_box(layout.write(&inputs, &mut staged).unwrap());
    });
    let mut drawing = GenerationSettings::default();
    drawing.do_sample = true;
    drawing.sampling.top_p = 0.9;
    let mut penalized = drawing.clone();
    penalized.repetition_penalty = 1.1;
    let prompt: Vec<u32> = (0..(TOKENS - NEW_TOKENS) as u32).collect();
    for (name, settings) in [
        ("greedy", GenerationSettings::default()),
        ("drawn", drawing),
        ("drawn with a repetition penalty", penalized),
    ] {
        let sampler = |seed| {
            let sampler = Sampler::new(&settings, &prompt, NEW_TOKENS, VOCAB, seed);
            let mut sampler = sampler.unwrap();
            for id in 0..NEW_TOKENS as u32 {
                sampler.accept(1000 + id);
            }
            sampler
        };
        let mut samplers: Vec<Sampler> = (0..SEQUENCES as u64).map(sampler).collect();
        let mut rows = Rows::default();
        timed(&format!("choices of 64 tokens, {name}"), || {
            rows.clear();
            for sampler in &mut samplers {
                let plan = sampler.plan().unwrap();
                rows.choose(&plan, None, 0, VOCAB);
            }
            black_box(&rows);
        });
    }
}

/// What is planned behind a draft, from any token on, is what the sampler plans once it is there.
#[test]
fn choices_behind_a_draft_are_planned_as_if_it_came_true() {
    let draft = [5, 900, 5, 31_000, 7, 5];
    let mut settings = GenerationSettings::default();
    for (sample, penalty) in [(false, 1.2), (true, 1.0), (true, 1.2)] {
        settings.do_sample = sample;
        settings.repetition_penalty = penalty;
        let mut real = Sampler::new(&settings, &[5, 6, 7], NEW_TOKENS, VOCAB, 3).unwrap();
        let mut expected = Vec::new();
        let mut one_by_one = real.clone();
        for token in draft.iter().map(Some).chain([None]) {
            let mut rows = Rows::default();
            rows.choose(&one_by_one.plan().unwrap(), None, 0, VOCAB);
            expected.push(format!("{rows:?}"));
            token.into_iter().for_each(|t| one_by_one.accept(*t));
        }
        // Blocks of rows, as where logits do not fit at once; in between, tokens are chosen.
        for (done, end) in [(0, 3), (3, 4), (4, 7)] {
            let mut ahead = None;
            for (row, expected) in expected.iter().enumerate().take(end).skip(done) {
                let sampler = sampler_at(&mut real, &draft, (done, row), &mut ahead);
                let mut rows = Rows::default();
                rows.choose(&sampler.plan().unwrap(), None, 0, VOCAB);
                assert_eq!(&format!("{rows:?}"), expected, "row {row} behind {done}");
            }
            for token in &draft[done..end.min(draft.len())] {
                real.accept(*token);
            }
        }
    }
}
