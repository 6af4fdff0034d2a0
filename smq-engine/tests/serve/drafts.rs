//! Guessed tokens: texts are what they are without.

use std::sync::{Arc, Mutex};

use smq_engine::serve::{
    self, BatchOptions, Constraint, CpuBatch, Drafter, ModelDrafter, NgramDrafter, Request,
    RequestId, Scheduler,
};
use smq_engine::{Error, Result};
use smq_model::{GenerationSettings, ModelConfig};

use super::common::{Output, Outputs, Random, fixture, run, small, step};
use super::fake::{Asked, Fake, VOCAB, config, logits, state_of};

/// Guesses the fake's most likely tokens, and now and then something else.
pub(crate) struct Liar {
    config: ModelConfig,
    random: Random,
}

impl Liar {
    pub(crate) fn new(config: &ModelConfig, seed: u64) -> Self {
        Self {
            config: config.clone(),
            random: Random(seed),
        }
    }

    fn guess(&mut self, asked: &serve::Asked<'_>) -> Result<Vec<u32>> {
        assert!(asked.most > 0);
        if self.random.one_in(20) {
            return Err(Error::Input("nothing comes to mind".into()));
        }
        let mut tokens = asked.tokens.to_vec();
        for _ in 0..self.random.within(0..asked.most + 3) {
            let state = state_of(&tokens, self.config.rope.is_long(tokens.len()));
            let logits = logits(state);
            let order = |a: &usize, b: &usize| logits[*a].total_cmp(&logits[*b]);
            let likely = (0..VOCAB).max_by(order).unwrap_or(0);
            let token = match self.random.one_in(6) {
                true => self.random.within(0..VOCAB + 3),
                false => likely,
            };
            tokens.push(token as u32);
        }
        Ok(tokens.split_off(asked.tokens.len()))
    }
}

impl Drafter for Liar {
    fn draft(&mut self, asked: &[serve::Asked<'_>]) -> Vec<Result<Vec<u32>>> {
        asked.iter().map(|asked| self.guess(asked)).collect()
    }

    fn forget(&mut self, _: RequestId) {}

    fn cost(&self) -> f64 {
        0.0
    }
}

/// Allows three of four tokens, others after every text.
#[derive(Clone)]
struct Some3 {
    state: u64,
    /// Tokens that came, in the text and in its forks.
    seen: Arc<Mutex<[usize; 2]>>,
    is_fork: bool,
}

impl Some3 {
    fn allows(&self, id: u64) -> bool {
        !self.state.wrapping_add(id).is_multiple_of(4)
    }
}

impl Constraint for Some3 {
    fn allowed(&mut self, mask: &mut [u32]) -> Result<()> {
        assert!(mask.iter().all(|word| *word == 0));
        for id in (0..VOCAB).filter(|id| self.allows(*id as u64)) {
            mask[id / 32] |= 1 << (id % 32);
        }
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<()> {
        assert!(self.allows(u64::from(token)), "it was not allowed");
        self.seen.lock().unwrap()[usize::from(self.is_fork)] += 1;
        self.state = self.state.wrapping_mul(31).wrapping_add(token.into());
        Ok(())
    }

    fn fork(&self) -> Option<Box<dyn Constraint>> {
        let mut fork = self.clone();
        fork.is_fork = true;
        Some(Box::new(fork))
    }
}

#[test]
fn a_constraint_is_asked_behind_every_guess() {
    let seen = Arc::new(Mutex::new([0, 0]));
    let texts = |drafter: Option<Liar>| {
        let fake = Fake::new(config(1000, 60), 40, 4);
        let mut scheduler = Scheduler::new(fake).unwrap();
        if let Some(drafter) = drafter {
            scheduler.speculate(drafter, 6);
        }
        let mut ids = Vec::new();
        for seed in 0..40 {
            let mut asked = Asked {
                prompt: vec![seed % 7, seed % 5, seed],
                most: 20,
                log_probs: Some(2),
                seed: seed.into(),
                ..Asked::default()
            };
            if seed % 2 == 0 {
                asked.json = r#"{"do_sample": true, "top_k": 4}"#.into();
            }
            let mut request = asked.request();
            request.constraint = Some(Box::new(Some3 {
                state: seed.into(),
                seen: seen.clone(),
                is_fork: false,
            }));
            ids.push(scheduler.submit(request).unwrap());
        }
        let mut outputs = Outputs::new();
        run(&mut scheduler, &mut outputs, 10_000);
        let texts: Vec<Output> = ids.iter().map(|id| outputs[id].clone()).collect();
        (texts, scheduler.counters())
    };
    let (plain, _) = texts(None);
    assert_eq!(seen.lock().unwrap()[1], 0);
    let (guessed, counters) = texts(Some(Liar::new(&config(1000, 60), 5)));
    assert_eq!(guessed, plain);
    assert!(counters.accepted_tokens > 50, "{counters:?}");
    let [own, forks] = *seen.lock().unwrap();
    assert!(forks > 100 && own > forks, "{own} and {forks}");
}

/// A constraint that cannot be asked ahead is never guessed beyond.
#[test]
fn a_constraint_without_a_fork_has_no_guesses() {
    struct Any;
    impl Constraint for Any {
        fn allowed(&mut self, mask: &mut [u32]) -> Result<()> {
            mask.fill(u32::MAX);
            Ok(())
        }
        fn accept(&mut self, _: u32) -> Result<()> {
            Ok(())
        }
    }
    let fake = Fake::new(config(1000, 900), 40, 4);
    let mut scheduler = Scheduler::new(fake).unwrap();
    scheduler.speculate(Liar::new(&config(1000, 900), 0), 6);
    let mut request = Request::new(vec![1, 2, 3], 30);
    request.constraint = Some(Box::new(Any));
    scheduler.submit(request).unwrap();
    run(&mut scheduler, &mut Outputs::new(), 1000);
    let counters = scheduler.counters();
    assert_eq!((counters.drafts, counters.draft_tokens), (0, 0));
}

/// What is guessed never takes a page from a sequence, and a full arena ends texts where it would.
#[test]
fn guesses_take_only_pages_that_are_left() {
    let fake = Fake::new(config(1000, 900), 5, 4);
    let mut scheduler = Scheduler::new(fake).unwrap();
    scheduler.speculate(Liar::new(&config(1000, 900), 3), 8);
    let mut outputs = Outputs::new();
    for prompt in [vec![1, 2, 3], vec![4, 5, 6, 7, 8]] {
        scheduler.submit(Request::new(prompt, 100)).unwrap();
    }
    run(&mut scheduler, &mut outputs, 1000);
    let mut lens: Vec<usize> = outputs.values().map(|o| o.tokens.len()).collect();
    lens.sort_unstable();
    assert_eq!(lens, [16, 18]);
}

/// Texts that repeat themselves: steps are fewer than tokens.
fn repeating(seed: u32, len: usize) -> Vec<u32> {
    (0..len as u32)
        .map(|i| 7 + (seed * 977 + i % 9 * 131) % 4089)
        .collect()
}

fn requests(longest: usize) -> Vec<Request> {
    let jsons = [
        "{}",
        r#"{"do_sample": true, "temperature": 0.5, "top_k": 5}"#,
        r#"{"repetition_penalty": 1.05}"#,
        r#"{"do_sample": true, "temperature": 0.4, "top_p": 0.9, "no_repeat_ngram_size": 6}"#,
    ];
    let request = |seed: usize| {
        let prompt = repeating(seed as u32 % 4, 1 + seed * 37 % longest);
        let mut request = Request::new(prompt, 60);
        request.settings = GenerationSettings::from_json(jsons[seed % 4].as_bytes()).unwrap();
        request.adjustments.frequency_penalty = [0.0, 0.1][seed / 4 % 2];
        request.seed = seed as u64;
        request.log_probs = [None, Some(2)][seed % 2];
        request.prompt_log_probs = [None, None, Some(1)][seed % 3];
        request
    };
    (0..12).map(request).collect()
}

fn texts(
    options: &BatchOptions,
    drafter: Option<Box<dyn Drafter>>,
    longest: usize,
) -> (Vec<Output>, serve::Counters) {
    let source = fixture();
    let mut scheduler = Scheduler::new(CpuBatch::load(&source, options).unwrap()).unwrap();
    if let Some(drafter) = drafter {
        scheduler.speculate(drafter, 8);
    }
    let mut outputs = Outputs::new();
    let mut ids = Vec::new();
    for request in requests(longest) {
        ids.push(scheduler.submit(request).unwrap());
        step(&mut scheduler, &mut outputs);
    }
    run(&mut scheduler, &mut outputs, 10_000);
    let texts = ids.iter().map(|id| {
        let text = outputs[id].clone();
        assert_eq!(text.failed, None);
        Output {
            cached_tokens: 0,
            ..text
        }
    });
    (texts.collect(), scheduler.counters())
}

/// With too few pages for all, so that some sequences lose theirs on the way, and steps that are
/// too short for every guess.
#[test]
fn texts_of_a_model_are_those_without_guesses() {
    let (plain, before) = texts(&small(), None, 150);
    let (guessed, counters) = texts(&small(), Some(Box::new(NgramDrafter::default())), 150);
    assert_eq!(guessed, plain);
    assert!(before.preemptions > 0 && counters.preemptions > 0);
    let c = counters;
    assert!(c.accepted_tokens > 20, "{c:?}");
    assert!(c.draft_tokens > c.accepted_tokens, "{c:?}");
    assert!(c.steps < before.steps, "{c:?} and {before:?}");
    assert_eq!(c.generated_tokens, before.generated_tokens);
}

/// The model itself as its draft: greedy texts come true to the last token.
#[test]
fn texts_guessed_by_a_model_are_those_without() {
    let source: &'static _ = Box::leak(Box::new(fixture()));
    let engine = CpuBatch::load(source, &small()).unwrap();
    let vocab = ModelConfig::of(source).unwrap().vocab;
    let drafter = ModelDrafter::new(engine, vocab, 0.0).unwrap();
    let (plain, before) = texts(&small(), None, 150);
    let (guessed, c) = texts(&small(), Some(Box::new(drafter)), 150);
    assert_eq!(guessed, plain);
    assert!(c.accepted_tokens > 100 && c.draft_failures == 0, "{c:?}");
    assert!(4 * c.steps < 3 * before.steps, "{c:?} and {before:?}");
}

/// The fixture's factors change behind 512 tokens, in the middle of what would be guessed.
#[test]
fn a_text_that_outgrows_the_original_context_is_the_same() {
    let options = BatchOptions {
        kv_tokens: Some(4096),
        step_tokens: 512,
        ..small()
    };
    for from in [470, 505, 511, 512] {
        let texts = |guessed: bool| {
            let source = fixture();
            let mut scheduler = Scheduler::new(CpuBatch::load(&source, &options).unwrap()).unwrap();
            if guessed {
                scheduler.speculate(NgramDrafter::default(), 8);
            }
            let mut outputs = Outputs::new();
            let mut request = Request::new(repeating(2, from), 60);
            request.log_probs = Some(1);
            let id = scheduler.submit(request).unwrap();
            run(&mut scheduler, &mut outputs, 1000);
            (outputs[&id].clone(), scheduler.counters())
        };
        let (plain, _) = texts(false);
        let (guessed, counters) = texts(true);
        assert_eq!(guessed, plain);
        assert!(counters.accepted_tokens > 10, "{from}: {counters:?}");
    }
}

#[test]
fn a_draft_model_of_another_vocabulary_is_refused() {
    let engine = Fake::new(config(100, 50), 4, 4);
    let error = ModelDrafter::new(engine, VOCAB + 1, 0.1).err().unwrap();
    let message = error.to_string();
    let expected = "the draft model has 40 tokens and the model 41";
    assert!(message.contains(expected), "{message}");
}
