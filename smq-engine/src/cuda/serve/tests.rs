//! What a step of many sequences costs the host beside the GPU: the arrays that are copied there, and
//! what is asked for each row. It needs no GPU.

use std::hint::black_box;
use std::time::Instant;

use smq_model::GenerationSettings;

use super::choose::Rows;
use super::inputs::{Inputs, Layout};
use super::{KEYS, bucket};
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
