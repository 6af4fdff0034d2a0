//! Single situations of the scheduler, on the fake device.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use smq_engine::generate::Stop;
use smq_engine::serve::{Constraint, Request, Scheduler};
use smq_engine::{Error, Result};

use super::common::{Outputs, run, step};
use super::fake::{Asked, Fake, VOCAB, alone, config};

fn scheduler(pages: usize, page_tokens: usize) -> Scheduler<Fake> {
    Scheduler::new(Fake::new(config(1000, 900), pages, page_tokens)).unwrap()
}

/// A prompt behind which the fake has nothing damaged for `new` tokens.
fn sound(len: usize, new: usize) -> Asked {
    for first in 0..VOCAB as u32 {
        let asked = Asked {
            prompt: (0..len as u32)
                .map(|i| (first + 3 * i) % VOCAB as u32)
                .collect(),
            most: new,
            ..Asked::default()
        };
        if alone(&asked, &config(1000, 900), 1000).failed.is_none() {
            return asked;
        }
    }
    panic!("every text of {len} and {new} tokens is damaged");
}

#[test]
fn a_prompt_may_fill_the_arena_and_not_one_token_more() {
    let mut scheduler = scheduler(5, 4);
    let asked = sound(20, 10);
    let id = scheduler.submit(asked.request()).unwrap();
    let mut outputs = Outputs::new();
    run(&mut scheduler, &mut outputs, 10);
    let output = &outputs[&id];
    assert_eq!(output.tokens.len(), 1);
    assert_eq!(output.stop, Some(Stop::ContextFull));
    let error = scheduler.submit(sound(21, 10).request()).unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("21 tokens") && message.contains("room for 20"),
        "{message}"
    );
    // One token fewer leaves room for one token more.
    let id = scheduler.submit(sound(19, 10).request()).unwrap();
    run(&mut scheduler, &mut outputs, 10);
    assert_eq!(outputs[&id].tokens.len(), 2);
    assert_eq!(outputs[&id].stop, Some(Stop::ContextFull));
}

#[test]
fn what_can_never_be_done_is_refused_at_once() {
    let mut scheduler = scheduler(5, 4);
    let mut refusal = |change: fn(&mut Request)| {
        let mut request = Request::new(vec![1, 2], 4);
        change(&mut request);
        scheduler.submit(request).unwrap_err().to_string()
    };
    let message = refusal(|r| r.prompt.clear());
    assert!(message.contains("the prompt is empty"), "{message}");
    let message = refusal(|r| r.prompt.push(VOCAB as u32));
    assert!(message.contains("token id 40"), "{message}");
    let message = refusal(|r| r.settings.repetition_penalty = -1.0);
    assert!(message.contains("repetition_penalty is -1"), "{message}");
    let message = refusal(|r| r.adjustments.presence_penalty = f64::NAN);
    assert!(message.contains("presence_penalty is NaN"), "{message}");
    let message = refusal(|r| r.adjustments.logit_bias.push((99, 1.0)));
    assert!(message.contains("logit_bias names token 99"), "{message}");
    assert!(scheduler.is_idle());
    assert!(scheduler.step().is_empty());
}

/// Short requests keep coming; one that needs the whole arena gets it all the same.
#[test]
fn a_large_request_is_not_starved_by_small_ones() {
    let mut scheduler = scheduler(16, 4);
    let mut outputs = Outputs::new();
    for i in 0..8 {
        scheduler.submit(Request::new(vec![i, i + 1], 6)).unwrap();
    }
    let large = sound(60, 4);
    let id = scheduler.submit(large.request()).unwrap();
    for i in 0..60 {
        for k in 0..3 {
            scheduler.submit(Request::new(vec![i % 40, k], 6)).unwrap();
        }
        step(&mut scheduler, &mut outputs);
    }
    assert_eq!(
        outputs[&id].tokens,
        alone(&large, &config(1000, 900), 64).tokens
    );
    run(&mut scheduler, &mut outputs, 10_000);
}

/// Eight samples of one prompt compute it once: all but its last page, which each writes on in.
#[test]
fn samples_of_one_prompt_share_its_pages() {
    let mut scheduler = scheduler(100, 4);
    let asked = sound(41, 2);
    for seed in 0..8 {
        let asked = Asked {
            seed,
            ..asked.clone()
        };
        scheduler.submit(asked.request()).unwrap();
    }
    let mut outputs = Outputs::new();
    run(&mut scheduler, &mut outputs, 100);
    let counters = scheduler.counters();
    assert_eq!(counters.prefix_hits, 7 * 40);
    assert_eq!(counters.prefix_queries, 8 * 41);
    // 40 tokens once, the 41st of each, and one new token of each.
    assert_eq!(counters.computed_tokens, 40 + 8 + 8);
    assert_eq!(
        (counters.prompt_tokens, counters.generated_tokens),
        (8 * 41, 16)
    );
    // A later one finds all of it too.
    scheduler.submit(asked.request()).unwrap();
    run(&mut scheduler, &mut outputs, 100);
    assert_eq!(scheduler.counters().prefix_hits, 8 * 40);
    assert_eq!(
        outputs.values().filter(|o| o.cached_tokens == 40).count(),
        8
    );
}

/// What the host is to do meanwhile is done once a step, also where there is nothing to compute.
#[test]
fn the_host_is_given_its_time_once() {
    let mut scheduler = scheduler(100, 4);
    for tokens in [0, 1, 2] {
        if tokens > 0 {
            scheduler.submit(sound(10, tokens).request()).unwrap();
        }
        let mut steps = 0;
        while steps == 0 || !scheduler.is_idle() {
            let mut times = 0;
            scheduler.step_while(|| times += 1);
            assert_eq!(times, 1);
            steps += 1;
        }
    }
    assert!(scheduler.counters().engine_nanos > 0);
}

/// Scores need every position's logits, so that nothing is taken from the cache for them.
#[test]
fn a_prompt_is_scored_whole_though_the_cache_has_it() {
    let mut scheduler = scheduler(100, 4);
    let mut asked = sound(41, 1);
    let mut outputs = Outputs::new();
    scheduler.submit(asked.request()).unwrap();
    run(&mut scheduler, &mut outputs, 100);
    for most in [0, 1] {
        asked.most = most;
        asked.prompt_log_probs = Some(2);
        let id = scheduler.submit(asked.request()).unwrap();
        run(&mut scheduler, &mut outputs, 100);
        let whole = alone(&asked, &config(1000, 900), 400);
        assert_eq!(whole.prompt.len(), 40);
        assert_eq!(outputs[&id], whole);
    }
    // The generated token of each, and nothing behind a prompt that is only scored.
    assert_eq!(scheduler.counters().generated_tokens, 2);
    assert_eq!(scheduler.counters().prefix_hits, 0);
}

/// Prompts get on however many sequences generate, and generating goes on beside prompts.
#[test]
fn prompts_and_generation_share_steps() {
    let mut fake = Fake::new(config(1000, 900), 100, 4);
    (fake.rows, fake.step_tokens) = (6, 6);
    let mut scheduler = Scheduler::new(fake).unwrap();
    let mut outputs = Outputs::new();
    let talkers: Vec<_> = (0..5)
        .map(|i| scheduler.submit(Request::new(vec![i], 50)).unwrap())
        .collect();
    step(&mut scheduler, &mut outputs);
    let long = scheduler.submit(sound(40, 1).request()).unwrap();
    for _ in 0..10 {
        let before: Vec<usize> = talkers.iter().map(|id| outputs[id].tokens.len()).collect();
        step(&mut scheduler, &mut outputs);
        for (id, before) in talkers.iter().zip(before) {
            let output = &outputs[id];
            assert!(output.failed.is_some() || output.tokens.len() == before + 1);
        }
    }
    assert_eq!(outputs[&long].tokens.len(), 1);
    run(&mut scheduler, &mut outputs, 1000);
}

#[test]
fn a_device_that_fails_takes_its_step_along_and_nothing_else() {
    let mut fake = Fake::new(config(1000, 900), 100, 4);
    fake.rows = 2;
    let broken = Arc::clone(&fake.broken);
    let mut scheduler = Scheduler::new(fake).unwrap();
    let asked = sound(20, 3);
    let ids: Vec<_> = (0..3)
        .map(|_| scheduler.submit(asked.request()).unwrap())
        .collect();
    let mut outputs = Outputs::new();
    step(&mut scheduler, &mut outputs);
    broken.store(true, Ordering::Relaxed);
    step(&mut scheduler, &mut outputs);
    for id in &ids[..2] {
        let message = outputs[id].failed.as_deref().unwrap();
        assert!(message.contains("fell off the bus"), "{message}");
    }
    assert!(!outputs.contains_key(&ids[2]));
    broken.store(false, Ordering::Relaxed);
    run(&mut scheduler, &mut outputs, 100);
    let whole = alone(&asked, &config(1000, 900), 400);
    assert_eq!(outputs[&ids[2]], whole);
}

/// Allows tokens of one remainder, takes so many, and notes them.
struct Every {
    remainder: u32,
    left: usize,
    taken: Arc<Mutex<Vec<u32>>>,
}

impl Constraint for Every {
    fn allowed(&mut self, mask: &mut [u32]) -> Result<()> {
        if self.left == 0 {
            return Err(Error::Input("the grammar is at its end".into()));
        }
        assert!(mask.iter().all(|word| *word == 0));
        for id in (0..VOCAB as u32).filter(|id| id % 7 == self.remainder) {
            mask[id as usize / 32] |= 1 << (id % 32);
        }
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<()> {
        self.left -= 1;
        self.taken.lock().unwrap().push(token);
        Ok(())
    }
}

#[test]
fn a_constraint_is_obeyed_and_its_error_ends_its_request_alone() {
    let mut scheduler = scheduler(100, 4);
    let taken = Arc::new(Mutex::new(Vec::new()));
    let mut submit = |prompt: u32, remainder, left, most| {
        let mut request = Request::new(vec![prompt], most);
        request.constraint = Some(Box::new(Every {
            remainder,
            left,
            taken: Arc::clone(&taken),
        }));
        scheduler.submit(request).unwrap()
    };
    let ids = [submit(1, 2, 10, 5), submit(2, 3, 3, 9), submit(3, 8, 9, 9)];
    let mut outputs = Outputs::new();
    run(&mut scheduler, &mut outputs, 100);
    assert_eq!(outputs[&ids[0]].stop, Some(Stop::MaxNewTokens));
    assert_eq!(outputs[&ids[0]].tokens.len(), 5);
    assert!(outputs[&ids[0]].tokens.iter().all(|id| id % 7 == 2));
    assert_eq!(outputs[&ids[1]].tokens.len(), 3);
    let message = outputs[&ids[1]].failed.as_deref().unwrap();
    assert!(message.contains("at its end"), "{message}");
    // Nothing is allowed, which is an error of the sampler.
    let message = outputs[&ids[2]].failed.as_deref().unwrap();
    assert!(message.contains("exclude every token"), "{message}");
    assert_eq!(taken.lock().unwrap().len(), 8);
}
