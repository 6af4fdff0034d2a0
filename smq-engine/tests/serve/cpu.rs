//! The CPU engine under the scheduler, on the fixture.

use smq_engine::generate::{GenerateOptions, Stop, generate};
use smq_engine::sample::Sampler;
use smq_engine::serve::{
    BatchEngine, BatchOptions, Choice, Chunk, CpuBatch, Request, Scheduler, Scores,
};
use smq_engine::{CpuEngine, Device, Result, serve};

use super::common::{Outputs, fixture, run, small};
use super::fake::{Fake, config};

fn prompt(seed: u32, len: usize) -> Vec<u32> {
    (0..len as u32)
        .map(|i| 7 + (seed * 977 + i * 131) % 4089)
        .collect()
}

/// With too few pages for all of them, so that some lose theirs on the way.
#[test]
fn sequences_that_run_together_have_the_tokens_that_each_has_alone() {
    let source = fixture();
    let mut engine = CpuEngine::load(&source).unwrap();
    let mut scheduler = Scheduler::new(CpuBatch::load(&source, &small()).unwrap()).unwrap();
    let mut ids = Vec::new();
    for seed in 0..10 {
        let prompt = prompt(seed % 4, 1 + (seed as usize * 37) % 150);
        let id = scheduler.submit(Request::new(prompt.clone(), 60)).unwrap();
        ids.push((id, prompt));
    }
    let mut outputs = Outputs::new();
    run(&mut scheduler, &mut outputs, 10_000);
    for (id, prompt) in ids {
        let options = GenerateOptions {
            max_new_tokens: 60,
            ..Default::default()
        };
        let alone = generate(&mut engine, &prompt, &options, |_| Ok(())).unwrap();
        assert_eq!(outputs[&id].tokens, alone.ids);
        assert_eq!(outputs[&id].stop, Some(alone.stop));
    }
    let counters = scheduler.counters();
    assert!(counters.preemptions > 0, "{counters:?}");
}

/// What was computed before the first request leaves no trace in its tokens.
#[test]
fn a_device_that_was_warmed_up_computes_the_same() {
    let source = fixture();
    let mut tokens = Vec::new();
    for warmed in [false, true] {
        let mut engine = CpuBatch::load(&source, &small()).unwrap();
        if warmed {
            serve::warm_up(&mut engine).unwrap();
        }
        let mut scheduler = Scheduler::new(engine).unwrap();
        for seed in 0..4 {
            let request = Request::new(prompt(seed, 5 + 20 * seed as usize), 20);
            scheduler.submit(request).unwrap();
        }
        let mut outputs = Outputs::new();
        run(&mut scheduler, &mut outputs, 1000);
        let mut all: Vec<_> = outputs.into_iter().collect();
        all.sort_by_key(|(id, _)| *id);
        tokens.push(all.into_iter().map(|(_, o)| o.tokens).collect::<Vec<_>>());
    }
    assert_eq!(tokens[0], tokens[1]);
}

/// Every number of rows that a device tells apart comes twice, within its rows and pages, and so do
/// a draft and prompts up to the longest that a step takes.
#[test]
fn a_device_is_warmed_up_with_every_shape() {
    let warmed = |rows, pages, step_tokens| {
        let mut fake = Fake::new(config(512, 4096), pages, 16);
        (fake.rows, fake.step_tokens) = (rows, step_tokens);
        serve::warm_up(&mut fake).unwrap();
        assert!(fake.steps.chunks(2).all(|two| two[0] == two[1]));
        let shapes: Vec<_> = fake.steps.iter().step_by(2).copied().collect();
        shapes
    };
    let mut expected: Vec<_> = (1..=8)
        .chain([16, 24, 32, 40, 48, 56, 64, 96, 100])
        .map(|r| (r, r))
        .collect();
    expected.extend([2, 16, 32, 64, 128, 200].map(|tokens| (1, tokens)));
    assert_eq!(warmed(100, 128, 200), expected);
    // Three pages have room for three sequences, or one of 48 tokens.
    let few = [(1, 1), (2, 2), (3, 3), (1, 2), (1, 16), (1, 32), (1, 48)];
    assert_eq!(warmed(8, 3, 64), few);
}

/// A context of 48 tokens ends a text as it ends generate's.
#[test]
fn a_shorter_context_is_obeyed() {
    let source = fixture();
    let options = BatchOptions {
        max_tokens: Some(48),
        ..small()
    };
    let mut scheduler = Scheduler::new(CpuBatch::load(&source, &options).unwrap()).unwrap();
    let id = scheduler.submit(Request::new(prompt(1, 40), 60)).unwrap();
    let error = scheduler.submit(Request::new(prompt(1, 48), 1));
    let message = error.unwrap_err().to_string();
    assert!(message.contains("longest context is 48"), "{message}");
    let mut outputs = Outputs::new();
    run(&mut scheduler, &mut outputs, 100);
    assert_eq!(outputs[&id].tokens.len(), 9);
    assert_eq!(outputs[&id].stop, Some(Stop::ContextFull));
}

#[test]
fn chunks_that_do_not_fit_are_refused_by_name() {
    let source = fixture();
    let mut batch = CpuBatch::load(&source, &small()).unwrap();
    let mut step = |pages: &[u32], past, tokens: &[u32], targets: &[u32]| -> Result<()> {
        let scores = (!targets.is_empty()).then_some(Scores { targets, top: 0 });
        let chunk = Chunk {
            pages,
            past,
            tokens,
            drafts: 0,
            long: false,
            scores,
            choice: None,
        };
        batch.step(&mut [chunk]).map(|_| ())
    };
    step(&[3, 4], 0, &prompt(0, 32), &[1]).unwrap();
    for (result, expected) in [
        (step(&[0], 0, &[], &[]), "has 0 tokens"),
        (step(&[0], 15, &[1, 2], &[]), "pages for 16"),
        (step(&[20], 0, &[1], &[]), "page 20, the cache has 20"),
        (step(&[0], 0, &[1], &[1, 2]), "2 tokens to be scored"),
        (step(&[0], 0, &[4096], &[]), "vocabulary of 4096"),
        (step(&[0], 0, &[1], &[4096]), "vocabulary of 4096"),
    ] {
        let message = result.unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
    for options in [
        BatchOptions {
            kv_tokens: Some(15),
            ..small()
        },
        BatchOptions {
            page_tokens: 0,
            ..small()
        },
        BatchOptions {
            max_rows: 0,
            ..small()
        },
    ] {
        let error = CpuBatch::load(&source, &options).unwrap_err();
        assert!(error.to_string().contains("no room"), "{error}");
    }
    let fast = BatchOptions {
        fast_nondeterministic: true,
        ..small()
    };
    let error = CpuBatch::load(&source, &fast).unwrap_err().to_string();
    assert!(error.contains("nothing would be faster"), "{error}");
}

/// A row's tokens come from its own sampler, mask and log-probabilities included.
#[test]
fn a_chosen_token_is_told_with_its_log_probability() {
    let source = fixture();
    let mut batch = CpuBatch::load(&source, &small()).unwrap();
    let mut sampler = Sampler::greedy();
    let tokens = prompt(0, 20);
    let mut first = |allowed: Option<&[u32]>| {
        let chunk = Chunk {
            pages: &[1, 0],
            past: 0,
            tokens: &tokens,
            drafts: 0,
            long: false,
            scores: None,
            choice: Some(Choice {
                sampler: &mut sampler,
                allowed,
                top: Some(3),
            }),
        };
        let mut computed = batch.step(&mut [chunk]).unwrap().remove(0).unwrap();
        computed.chosen.remove(0)
    };
    let free = first(None);
    let probs = free.log_probs.unwrap();
    assert_eq!((free.token, probs.log_prob), probs.top[0]);
    let mut mask = vec![u32::MAX; 4096 / 32];
    mask[free.token as usize / 32] &= !(1 << (free.token % 32));
    let other = first(Some(&mask));
    assert_eq!(other.token, probs.top[1].0);
    // Of the logits as they are: the mask does not make it more likely.
    assert_eq!(other.log_probs.unwrap().log_prob, probs.top[1].1);
}

#[test]
fn a_device_is_chosen_by_name() {
    let source = fixture();
    let batch = serve::load_batch(&source, Device::Cpu, &small()).unwrap();
    assert_eq!((batch.device(), batch.pages()), ("cpu", 20));
    let error = serve::load_batch(&source, Device::Cuda, &small()).err();
    let message = error.unwrap().to_string();
    assert!(message.contains("--device cpu"), "{message}");
}
