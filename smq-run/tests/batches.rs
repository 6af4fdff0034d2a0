//! Sequences that run together on the CPU against each alone, bit for bit: tokens, and the
//! log-probabilities of tokens and prompts, in every scheme. What a sequence runs beside, how its
//! prompt is cut, which pages it lies in, what the cache had of it, and whether it lost its pages
//! on the way must not show.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use smq_convert::{
    Checkpoint, ConvertOptions, LevelChoice, Method, QuantizeOptions, ScaleChoice, ScaleRule,
    Target, convert,
};
use smq_engine::generate::{GenerateOptions, Stop, generate};
use smq_engine::sample::Sampler;
use smq_engine::serve::{
    Asked, BatchOptions, CpuBatch, Drafter, Event, LogProbs, Request, RequestId, Scheduler,
};
use smq_engine::{CpuEngine, Engine, KvCacheFormat, KvCode};
use smq_model::{GenerationSettings, Source};

fn fixture() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/phi3-tiny")
}

/// The fixture with every projection in another scheme.
fn quantized(method: Method, dir: &Path) -> PathBuf {
    let path = dir.join("model.smq");
    let options = ConvertOptions {
        target: Target::All,
        quantize: method,
        overwrite: true,
        jobs: 0,
    };
    let checkpoint = Checkpoint::open(&fixture()).unwrap();
    convert(&checkpoint, &path, &options, &|_| true).unwrap();
    path
}

/// Numbers that look random and are the same every time (splitmix64).
struct Random(u64);

impl Random {
    fn within(&mut self, range: std::ops::Range<usize>) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        range.start + ((z ^ (z >> 31)) % range.len() as u64) as usize
    }
}

/// What a sequence comes to.
#[derive(Debug, Clone, Default, PartialEq)]
struct Output {
    prompt: Vec<LogProbs>,
    tokens: Vec<u32>,
    log_probs: Vec<LogProbs>,
    stop: Option<Stop>,
}

/// A request that can be made again, and what it comes to alone.
struct Known {
    prompt: Vec<u32>,
    most: usize,
    settings: GenerationSettings,
    seed: u64,
    scored: bool,
    alone: Output,
}

impl Known {
    /// Computes it by the engine for one sequence, whose own loop has the same tokens.
    fn new(random: &mut Random, engine: &mut CpuEngine<'_>, len: usize, most: usize) -> Self {
        let family = random.within(0..3);
        let own = random.within(0..len + 1);
        let token = |i: usize| 7 + ((family * 977 + i * 131) % 4089) as u32;
        let mut prompt: Vec<u32> = (0..len).map(token).collect();
        for token in &mut prompt[own..] {
            *token = random.within(7..4096) as u32;
        }
        let json = match random.within(0..3) {
            0 => r#"{"eos_token_id": [3, 6]}"#,
            1 => r#"{"do_sample": true, "temperature": 0.8, "top_k": 40, "top_p": 0.95}"#,
            _ => r#"{"repetition_penalty": 1.1, "no_repeat_ngram_size": 3}"#,
        };
        let mut known = Self {
            prompt,
            most,
            settings: GenerationSettings::from_json(json.as_bytes()).unwrap(),
            seed: random.within(0..1 << 40) as u64,
            scored: random.within(0..3) == 0,
            alone: Output::default(),
        };
        known.alone = known.compute(engine);
        let options = GenerateOptions {
            max_new_tokens: most,
            settings: known.settings.clone(),
            tokenizer: None,
            seed: known.seed,
        };
        let generated = generate(engine, &known.prompt, &options, |_| Ok(())).unwrap();
        assert_eq!(generated.ids, known.alone.tokens);
        assert_eq!(Some(generated.stop), known.alone.stop);
        known
    }

    fn compute(&self, engine: &mut CpuEngine<'_>) -> Output {
        let (n, vocab) = (self.prompt.len(), engine.config().vocab);
        let mut output = Output::default();
        if self.scored && n > 1 {
            let mut targets = self.prompt[1..].iter();
            let mut on_rows = |rows: &[f32]| {
                for (logits, target) in rows.chunks_exact(vocab).zip(&mut targets) {
                    output.prompt.push(LogProbs::of(logits, *target, 2)?);
                }
                Ok(())
            };
            engine.logit_rows(&self.prompt, n, &mut on_rows).unwrap();
        }
        let mut sampler =
            Sampler::new(&self.settings, &self.prompt, self.most, vocab, self.seed).unwrap();
        engine.start(n + self.most).unwrap();
        let mut input = self.prompt.clone();
        for _ in 0..self.most {
            let logits = engine.extend(&input).unwrap().logits;
            let token = sampler.sample(logits).unwrap();
            if self.settings.eos_ids.contains(&token) {
                output.stop = Some(Stop::EndOfSequence);
                return output;
            }
            output
                .log_probs
                .push(LogProbs::of(logits, token, 2).unwrap());
            output.tokens.push(token);
            input = vec![token];
        }
        output.stop = Some(Stop::MaxNewTokens);
        output
    }

    fn request(&self) -> Request {
        let mut request = Request::new(self.prompt.clone(), self.most);
        request.settings = self.settings.clone();
        request.seed = self.seed;
        request.log_probs = Some(2);
        request.prompt_log_probs = self.scored.then_some(2);
        request
    }
}

/// Guesses what a known text goes on with, and now and then something else.
struct Liar {
    /// Prompts and what comes after them.
    texts: Vec<Vec<u32>>,
    random: Random,
}

impl Drafter for Liar {
    fn draft(&mut self, asked: &[Asked<'_>]) -> Vec<smq_engine::Result<Vec<u32>>> {
        let mut one = |asked: &Asked<'_>| {
            let known = self.texts.iter().find(|t| t.starts_with(asked.tokens));
            let rest = known.map_or(&[][..], |text| &text[asked.tokens.len()..]);
            let rest = rest.iter().copied().chain(std::iter::repeat(9));
            let count = self.random.within(0..asked.most + 2);
            let mut guess: Vec<u32> = rest.take(count).collect();
            if self.random.within(0..3) == 0 && count > 0 {
                let at = self.random.within(0..count);
                guess[at] = self.random.within(7..4096) as u32;
            }
            Ok(guess)
        };
        asked.iter().map(&mut one).collect()
    }

    fn forget(&mut self, _: RequestId) {}

    fn cost(&self) -> f64 {
        0.0
    }
}

/// Runs batches of requests that are drawn from `known`, each batch at a time into what the one
/// before it left in the cache; some requests are cancelled. Returns how many tokens the cache had
/// and how often a request lost its pages. With `guessed`, tokens are guessed and many of them
/// right.
fn check(
    source: &Source,
    options: &BatchOptions,
    known: &[Known],
    batches: usize,
    guessed: bool,
) -> (u64, u64) {
    let mut random = Random(options.kv_tokens.unwrap_or(0) as u64);
    let mut scheduler = Scheduler::new(CpuBatch::load(source, options).unwrap()).unwrap();
    if guessed {
        let texts = known
            .iter()
            .map(|k| [&k.prompt[..], &k.alone.tokens].concat());
        let liar = Liar {
            texts: texts.collect(),
            random: Random(batches as u64),
        };
        scheduler.speculate(liar, 7);
    }
    for batch in 0..batches {
        let mut ids: HashMap<RequestId, (&Known, Output)> = HashMap::new();
        let mut last = None;
        for _ in 0..random.within(1..7) {
            let known = &known[random.within(0..known.len())];
            let id = scheduler.submit(known.request()).unwrap();
            ids.insert(id, (known, Output::default()));
            last = Some(id);
            if random.within(0..2) == 0 {
                note(scheduler.step(), &mut ids);
            }
        }
        if let (Some(id), 0) = (last, random.within(0..4)) {
            scheduler.cancel(id);
            ids.remove(&id);
        }
        while !scheduler.is_idle() {
            note(scheduler.step(), &mut ids);
        }
        scheduler.check().unwrap();
        for (known, output) in ids.into_values() {
            let len = known.prompt.len();
            assert!(
                bits(&output) == bits(&known.alone),
                "batch {batch}, {options:?}, a prompt of {len}: {output:?} instead of {:?}",
                known.alone
            );
        }
    }
    let counters = scheduler.counters();
    if guessed {
        let (all, right) = (counters.draft_tokens, counters.accepted_tokens);
        assert!(right > all / 3 && right < all, "{counters:?}");
    }
    (counters.prefix_hits, counters.preemptions)
}

fn note(events: Vec<Event>, ids: &mut HashMap<RequestId, (&Known, Output)>) {
    for event in events {
        let (_, output) = ids.get_mut(&event.id()).unwrap();
        match event {
            Event::Prompt { log_probs, .. } => output.prompt.extend(log_probs),
            Event::Token {
                token, log_probs, ..
            } => {
                output.tokens.push(token);
                output.log_probs.extend(log_probs);
            }
            Event::Finished { stop, .. } => output.stop = Some(stop),
            Event::Failed { error, .. } => panic!("{error}"),
        }
    }
}

/// The bits of a token's log-probability and of those of the most likely ones.
type ProbBits = (u32, Vec<(u32, u32)>);

/// An output whose numbers compare by their bits.
fn bits(output: &Output) -> (Vec<ProbBits>, Vec<u32>, Option<Stop>) {
    let all = output.prompt.iter().chain(&output.log_probs);
    let one = |probs: &LogProbs| {
        let top = probs.top.iter().map(|(id, p)| (*id, p.to_bits()));
        (probs.log_prob.to_bits(), top.collect())
    };
    (all.map(one).collect(), output.tokens.clone(), output.stop)
}

fn options(page_tokens: usize, kv_tokens: usize, rows: usize, step_tokens: usize) -> BatchOptions {
    BatchOptions {
        page_tokens,
        kv_tokens: Some(kv_tokens),
        kv_cache: None,
        max_rows: rows,
        step_tokens,
        max_tokens: None,
        fast_nondeterministic: false,
    }
}

/// Batches with small pages and large ones, room for all and for hardly any, and steps of few
/// tokens and many.
fn check_all(source: &Source, cache: KvCacheFormat, each: usize, guessed: bool) {
    let mut random = Random(1);
    let mut engine = CpuEngine::load(source).unwrap().with_cache(cache);
    let known: Vec<_> = (0..24)
        .map(|i| {
            let len = random.within(1..[8, 30, 90][i % 3]);
            let most = random.within(1..[9, 40, 9][i % 3]);
            Known::new(&mut random, &mut engine, len, most)
        })
        .collect();
    let (mut hits, mut preemptions) = (0, 0);
    for options in [
        options(16, 112, 8, 512),
        options(32, 640, 3, 7),
        options(5, 100, 8, 20),
        options(64, 1024, 8, 64),
    ] {
        let options = BatchOptions {
            kv_cache: Some(cache),
            ..options
        };
        let (found, lost) = check(source, &options, &known, each, guessed);
        hits += found;
        preemptions += lost;
    }
    assert!(hits > 0 && preemptions > 0, "{hits} and {preemptions}");
}

#[test]
fn a_thousand_random_batches_are_their_sequences_alone() {
    let source = Source::open(&fixture()).unwrap();
    check_all(&source, KvCacheFormat::F32, 250, false);
}

/// So they are with some of their tokens guessed.
#[test]
fn random_batches_of_guessed_texts_are_their_sequences_alone() {
    let source = Source::open(&fixture()).unwrap();
    check_all(&source, KvCacheFormat::F32, 120, true);
}

#[test]
fn batches_of_quantized_models_are_their_sequences_alone() {
    let options = QuantizeOptions {
        group: 128,
        scales: ScaleChoice::e5(3),
        rule: ScaleRule::Nearest,
    };
    let levels = LevelChoice::Learned;
    for method in [
        Method::Int4(options),
        Method::Lut4 { options, levels },
        Method::Nf4,
        Method::Fp8,
    ] {
        let dir = tempfile::tempdir().unwrap();
        let source = Source::open(&quantized(method, dir.path())).unwrap();
        check_all(&source, KvCacheFormat::F32, 50, false);
        check_all(&source, KvCacheFormat::F32, 20, true);
    }
}

/// What is cached of a token follows from its keys and values alone.
#[test]
fn batches_with_every_cache_are_their_sequences_alone() {
    let source = Source::open(&fixture()).unwrap();
    for cache in &KvCacheFormat::ALL[1..] {
        check_all(&source, *cache, 25, false);
        check_all(&source, *cache, 20, true);
    }
}

/// The fixture's original context is 512 tokens: prompts below it, above it, and texts that grow
/// over it, whose keys are computed anew with LongRoPE's long factors, beside one another.
#[test]
fn sequences_of_both_ranges_run_together() {
    let source = Source::open(&fixture()).unwrap();
    for cache in [KvCacheFormat::F32, KvCacheFormat::Coded(KvCode::Int4)] {
        let mut random = Random(2);
        let mut engine = CpuEngine::load(&source).unwrap().with_cache(cache);
        let known: Vec<_> = [20, 505, 508, 512, 513, 530]
            .into_iter()
            .map(|len| Known::new(&mut random, &mut engine, len, 10))
            .collect();
        let options = |page_tokens, kv_tokens| BatchOptions {
            kv_cache: Some(cache),
            ..options(page_tokens, kv_tokens, 8, 256)
        };
        for guessed in [false, true] {
            let (hits, _) = check(&source, &options(16, 4096), &known, 12, guessed);
            let (_, preemptions) = check(&source, &options(4, 1036), &known, 12, guessed);
            assert!(hits > 0 && preemptions > 0, "{hits} and {preemptions}");
        }
    }
}
