//! Many sequences in one step: against the CPU, against each sequence alone, and the GPU's choice
//! of tokens against the host's.

use rand::rngs::Xoshiro256PlusPlus as StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use smq_convert::{LevelChoice, Method, ScaleChoice};
use smq_engine::cuda::CudaBatch;
use smq_engine::sample::{Adjustments, Sampler};
use smq_engine::serve::{BatchEngine, BatchOptions, Choice, Chosen, Chunk, Computed, Scores};
use smq_engine::{CpuEngine, Engine, KvCacheFormat, KvCode};
use smq_model::{GenerationSettings, Source};

use crate::Outcome;
use crate::models::{E5M5, Model, WITH_HEAD, any_tokens, llama, lut4_method, sample_tokens};
use crate::reference::{Path, Reference};

/// Tokens of the cache: enough for every test here.
const KV_TOKENS: usize = 65_536;

fn engine(source: &Source, cache: Cache) -> CudaBatch {
    opened(source, false, cache).unwrap()
}

/// How keys and values are held, where that is not as the GPU computes them.
pub(crate) type Cache = Option<KvCode>;

pub(crate) fn opened(
    source: &Source,
    fast_nondeterministic: bool,
    cache: Cache,
) -> smq_engine::Result<CudaBatch> {
    let options = BatchOptions {
        fast_nondeterministic,
        kv_cache: cache.map(KvCacheFormat::Coded),
        kv_tokens: Some(KV_TOKENS),
        max_rows: 64,
        ..BatchOptions::default()
    };
    CudaBatch::load(source, &options)
}

/// A sequence under test and where its keys and values are.
struct Sequence {
    tokens: Vec<u32>,
    /// How many of them are in the cache.
    past: usize,
    pages: Vec<u32>,
    long: bool,
}

/// Pages in any order.
struct Free(Vec<u32>);

impl Free {
    fn of(engine: &CudaBatch, random: &mut StdRng) -> Self {
        let mut all: Vec<u32> = (0..engine.pages() as u32).collect();
        all.shuffle(random);
        Self(all)
    }

    fn take(&mut self, tokens: usize, page: usize) -> Vec<u32> {
        self.0.split_off(self.0.len() - tokens.div_ceil(page))
    }
}

impl Sequence {
    fn new(tokens: &[u32], more: usize, engine: &CudaBatch, free: &mut Free) -> Self {
        let len = tokens.len() + more;
        Self {
            tokens: tokens.to_vec(),
            past: 0,
            pages: free.take(len, engine.page_tokens()),
            // As if it ended there; the test's sequences stay on one side.
            long: engine.config().rope.is_long(len),
        }
    }
}

fn computed(engine: &mut CudaBatch, mut chunks: Vec<Chunk<'_>>) -> Vec<Computed> {
    let done = engine.step(&mut chunks).unwrap();
    done.into_iter().map(Result::unwrap).collect()
}

/// Each token's log-probability in one step over prompts on both sides of a page's end and of
/// LongRoPE's switch, against the CPU with the same cache.
pub(crate) fn scores(model: &Model, vocab: Option<u32>, cache: Cache) -> Outcome {
    let source = model.open();
    let mut engine = engine(&source, cache);
    let mut random = StdRng::seed_from_u64(1);
    let mut free = Free::of(&engine, &mut random);
    let lengths = [2, 63, 64, 65, 200, 700];
    let tokens = |n| tokens_of(vocab, n);
    let sequences: Vec<Sequence> = lengths
        .iter()
        .map(|n| Sequence::new(&tokens(*n), 0, &engine, &mut free))
        .collect();
    let chunks = sequences.iter().map(|s| Chunk {
        pages: &s.pages,
        past: 0,
        tokens: &s.tokens,
        drafts: 0,
        long: s.long,
        scores: Some(Scores {
            targets: &s.tokens[1..],
            top: 3,
        }),
        choice: None,
    });
    let found = computed(&mut engine, chunks.collect());
    let mut cpu = CpuEngine::load(&source).unwrap().with_cache(twin(cache));
    for (sequence, found) in sequences.iter().zip(found) {
        let len = sequence.tokens.len();
        let expected = cpu.scores(&sequence.tokens).unwrap();
        // The largest logit of one position stands for all; both the token's logit and the
        // logarithm of the sum may be off.
        let bound = 3.0 * bound(&source, &sequence.tokens, cache);
        assert_eq!(found.scores.len(), len - 1);
        for (at, (found, expected)) in found.scores.iter().zip(&expected).enumerate() {
            let off = (f64::from(found.log_prob) - expected.log_prob).abs();
            if off.is_nan() || off > bound {
                return Err(format!(
                    "token {at} of {len}: {} where the CPU has {}, {bound} allowed",
                    found.log_prob, expected.log_prob
                )
                .into());
            }
            assert_eq!(found.top.len(), 3);
            assert!(found.top[0].1 >= found.top[1].1 && found.top[1].1 >= found.top[2].1);
            assert!(found.top[0].1 >= found.log_prob);
        }
    }
    Ok(())
}

/// A text, or of other vocabularies any tokens.
fn tokens_of(vocab: Option<u32>, n: usize) -> Vec<u32> {
    match vocab {
        None => sample_tokens(n),
        Some(vocab) => any_tokens(n, vocab),
    }
}

/// The CPU's cache that says what the GPU should.
fn twin(cache: Cache) -> KvCacheFormat {
    cache.map_or(KvCacheFormat::F32, KvCacheFormat::Coded)
}

/// How far the logits behind `tokens` may be off.
fn bound(source: &Source, tokens: &[u32], cache: Cache) -> f64 {
    let len = tokens.len();
    // With fewer bits every position says how far a tie may lead.
    let lengths = if cache.is_some() { 1..=len } else { len..=len };
    let reference = Reference::of_pass(source, tokens, lengths, twin(cache));
    let path = Path::WidenedPrompt;
    reference.bound(len, path) * reference.allowance(path)
}

pub(crate) fn scores_c0() -> Outcome {
    scores(&Model::fixture(), None, None)
}

pub(crate) fn scores_int4() -> Outcome {
    scores(&Model::fixture().quantized(E5M5, "all"), None, None)
}

pub(crate) fn scores_lut4() -> Outcome {
    let method = lut4_method(ScaleChoice::e5(3), 128, LevelChoice::Learned);
    scores(&Model::fixture().quantized_as(method, "all"), None, None)
}

pub(crate) fn scores_nf4() -> Outcome {
    scores(
        &Model::fixture().quantized_as(Method::Nf4, "all"),
        None,
        None,
    )
}

/// Projections apart, queries in groups, groups of 64.
pub(crate) fn scores_llama_int4() -> Outcome {
    let model = Model::synthetic(&llama()).quantized_in_groups(E5M5, "all", 64);
    scores(&model, Some(1000), None)
}

/// The next tokens of `sequence` with their log-probabilities' bits.
type Text = Vec<(u32, u32)>;

fn bits(chosen: Chosen) -> (u32, u32) {
    (chosen.token, chosen.log_probs.unwrap().log_prob.to_bits())
}

fn greedy<'a>(sampler: &'a mut Sampler) -> Option<Choice<'a>> {
    Some(Choice {
        sampler,
        allowed: None,
        top: Some(0),
    })
}

const NEW: usize = 10;

/// A prompt in one chunk, then one token after the other, with nothing else in a step.
fn alone(engine: &mut CudaBatch, prompt: &[u32], free: &mut Free) -> Text {
    let mut sequence = Sequence::new(prompt, NEW, engine, free);
    let mut text = Text::new();
    let mut input = prompt.to_vec();
    for _ in 0..NEW {
        let mut sampler = Sampler::greedy();
        let chunk = Chunk {
            pages: &sequence.pages,
            past: sequence.past,
            tokens: &input,
            drafts: 0,
            long: sequence.long,
            scores: None,
            choice: greedy(&mut sampler),
        };
        let chosen = computed(engine, vec![chunk]).remove(0).chosen.remove(0);
        sequence.past += input.len();
        input = vec![chosen.token];
        text.push(bits(chosen));
    }
    text
}

/// The same tokens and the same bits of their log-probabilities whatever is in a step beside them,
/// however prompts are cut, wherever the pages are.
pub(crate) fn invariant(model: &Model, vocab: Option<u32>, cache: Cache) -> Outcome {
    let source = model.open();
    let mut engine = engine(&source, cache);
    let mut random = StdRng::seed_from_u64(2);
    let long = tokens_of(vocab, 4096);
    let prompts: Vec<&[u32]> = (0..40)
        .map(|i| {
            let len = match i % 8 {
                0 => random.random_range(540..900),
                1 => 64,
                2 => 1,
                _ => random.random_range(2..300),
            };
            let from = random.random_range(0..3000);
            &long[from..from + len]
        })
        .collect();
    let mut free = Free::of(&engine, &mut random);
    let expected: Vec<Text> = prompts
        .iter()
        .map(|prompt| alone(&mut engine, prompt, &mut free))
        .collect();
    for round in 0..4 {
        let mut free = Free::of(&engine, &mut random);
        let mut texts = vec![Text::new(); prompts.len()];
        let mut sequences: Vec<Sequence> = prompts
            .iter()
            .map(|p| Sequence::new(p, NEW, &engine, &mut free))
            .collect();
        while texts.iter().any(|t| t.len() < NEW) {
            let mut unfinished: Vec<usize> = (0..prompts.len())
                .filter(|i| texts[*i].len() < NEW)
                .collect();
            unfinished.shuffle(&mut random);
            // Now and then single tokens alone, which is what is recorded.
            let only_single = random.random_bool(0.5);
            let most = random.random_range(1..=unfinished.len());
            let mut room = engine.step_tokens();
            let mut taken = Vec::new();
            for index in unfinished {
                let sequence = &sequences[index];
                let left = sequence.tokens.len() - sequence.past;
                if taken.len() == most || (only_single && left > 1) {
                    continue;
                }
                let part = random.random_range(1..=left).min(room);
                if part > 0 {
                    taken.push((index, part));
                    room -= part;
                }
            }
            let mut samplers: Vec<Sampler> = taken.iter().map(|_| Sampler::greedy()).collect();
            let chunks = taken
                .iter()
                .zip(&mut samplers)
                .map(|(&(index, part), sampler)| {
                    let s = &sequences[index];
                    let ends = s.past + part == s.tokens.len();
                    Chunk {
                        pages: &s.pages,
                        past: s.past,
                        tokens: &s.tokens[s.past..s.past + part],
                        drafts: 0,
                        long: s.long,
                        scores: None,
                        choice: if ends { greedy(sampler) } else { None },
                    }
                });
            let found = match taken.len() {
                0 => Vec::new(),
                _ => computed(&mut engine, chunks.collect()),
            };
            for (&(index, part), found) in taken.iter().zip(found) {
                let sequence = &mut sequences[index];
                sequence.past += part;
                for chosen in found.chosen {
                    sequence.tokens.push(chosen.token);
                    texts[index].push(bits(chosen));
                }
            }
        }
        for (index, (found, expected)) in texts.iter().zip(&expected).enumerate() {
            if found != expected {
                let len = prompts[index].len();
                return Err(format!(
                    "round {round}, prompt {index} of {len} tokens: {found:?}, alone {expected:?}"
                )
                .into());
            }
        }
    }
    Ok(())
}

pub(crate) fn invariant_c0() -> Outcome {
    invariant(&Model::fixture(), None, None)
}

/// With a head in bf16, and in int4.
pub(crate) fn invariant_int4() -> Outcome {
    invariant(&Model::fixture().quantized(E5M5, "all"), None, None)?;
    invariant(&Model::fixture().quantized(E5M5, WITH_HEAD), None, None)
}

/// With int4 in the MLP alone.
pub(crate) fn invariant_c4() -> Outcome {
    invariant(&Model::fixture().quantized(E5M5, "mlp"), None, None)
}

/// A sequence alone by the kernel of one sequence, its pages in any order, on both sides of a
/// page's end and of LongRoPE's switch: the log-probabilities of its tokens against the CPU's.
pub(crate) fn fast_alone(model: &Model, vocab: Option<u32>, cache: Cache) -> Outcome {
    let source = model.open();
    let mut engine = opened(&source, true, cache).unwrap();
    let mut cpu = CpuEngine::load(&source).unwrap().with_cache(twin(cache));
    let mut random = StdRng::seed_from_u64(4);
    for len in [1, 55, 63, 64, 130, 700] {
        let mut free = Free::of(&engine, &mut random);
        let mut tokens = tokens_of(vocab, len);
        let text = alone(&mut engine, &tokens, &mut free);
        tokens.extend(text.iter().map(|(token, _)| *token));
        let expected = cpu.scores(&tokens).unwrap();
        let bound = 3.0 * bound(&source, &tokens, cache);
        for (at, ((_, found), expected)) in text.iter().zip(&expected[len - 1..]).enumerate() {
            let off = (f64::from(f32::from_bits(*found)) - expected.log_prob).abs();
            if off.is_nan() || off > bound {
                return Err(
                    format!("token {at} behind {len}: off by {off}, {bound} allowed").into(),
                );
            }
        }
    }
    Ok(())
}

pub(crate) fn fast_c0() -> Outcome {
    fast_alone(&Model::fixture(), None, None)
}

pub(crate) fn fast_int4() -> Outcome {
    fast_alone(&Model::fixture().quantized(E5M5, WITH_HEAD), None, None)
}

/// Projections apart, queries in groups.
pub(crate) fn fast_llama_int4() -> Outcome {
    let model = Model::synthetic(&llama()).quantized_in_groups(E5M5, "all", 64);
    fast_alone(&model, Some(1000), None)
}

pub(crate) fn invariant_lut4() -> Outcome {
    let method = lut4_method(ScaleChoice::e5(3), 128, LevelChoice::Learned);
    let model = Model::fixture().quantized_as(method, WITH_HEAD);
    invariant(&model, None, None)
}

pub(crate) fn scores_fp8() -> Outcome {
    scores(
        &Model::fixture().quantized_as(Method::Fp8, "all"),
        None,
        None,
    )
}

/// By cuBLASLt, whose algorithm is one for all steps.
pub(crate) fn invariant_fp8() -> Outcome {
    for target in ["mlp", "all"] {
        let model = Model::fixture().quantized_as(Method::Fp8, target);
        invariant(&model, None, None)?;
    }
    Ok(())
}

/// The GPU draws what the host draws from the same logits, but for numbers that fall between two
/// ways of rounding a sum.
pub(crate) fn choices() -> Outcome {
    const DRAWS: usize = 400;
    let model = Model::fixture().quantized(E5M5, "all");
    let source = model.open();
    let mut engine = engine(&source, None);
    let vocab = engine.config().vocab;
    let mut random = StdRng::seed_from_u64(3);
    let mut free = Free::of(&engine, &mut random);
    let prompt = sample_tokens(90);
    let pages = free.take(prompt.len(), engine.page_tokens());
    let (mut differ, mut distinct) = (Vec::new(), std::collections::BTreeSet::new());
    for draw in 0..DRAWS {
        let mut settings = GenerationSettings::default();
        settings.do_sample = draw % 5 != 4;
        settings.sampling.temperature = [0.3, 1.0, 1.0, 2.5][draw % 4];
        settings.sampling.top_k = [0, 1, 7, 50][draw / 3 % 4];
        settings.sampling.top_p = [1.0, 0.1, 0.7, 0.95][draw / 7 % 4];
        settings.sampling.min_p = [None, Some(0.02), Some(0.3)][draw / 11 % 3];
        settings.repetition_penalty = [1.0, 1.3][draw / 13 % 2];
        let adjustments = match draw / 17 % 3 {
            0 => Adjustments::default(),
            1 => Adjustments {
                presence_penalty: 0.5,
                frequency_penalty: 0.25,
                logit_bias: Vec::new(),
            },
            _ => Adjustments {
                presence_penalty: 0.0,
                frequency_penalty: 0.0,
                logit_bias: vec![(random.random_range(0..vocab as u32), 4.0)],
            },
        };
        let mask: Vec<u32> = (0..vocab.div_ceil(32)).map(|_| random.random()).collect();
        let allowed = (draw % 6 == 0).then_some(&mask[..]);
        let mut run = |on_host: bool| {
            let mut settings = settings.clone();
            settings.remove_invalid_values = on_host;
            let sampler = Sampler::new(&settings, &prompt[..60], 40, vocab, draw as u64);
            let mut sampler = sampler.unwrap().adjusted(&adjustments, vocab).unwrap();
            // Some were generated already.
            for id in &prompt[60..] {
                sampler.accept(*id);
            }
            let chunk = Chunk {
                pages: &pages,
                past: 0,
                tokens: &prompt,
                drafts: 0,
                long: false,
                scores: None,
                choice: Some(Choice {
                    sampler: &mut sampler,
                    allowed,
                    top: Some(2),
                }),
            };
            computed(&mut engine, vec![chunk])
                .remove(0)
                .chosen
                .remove(0)
        };
        let (gpu, host) = (run(false), run(true));
        distinct.insert(gpu.token);
        if gpu.token != host.token {
            differ.push((draw, gpu.token, host.token));
            continue;
        }
        let (gpu, host) = (gpu.log_probs.unwrap(), host.log_probs.unwrap());
        // Sums of exponentials in f32 and f64.
        assert!(
            (gpu.log_prob - host.log_prob).abs() < 1e-4,
            "{gpu:?} {host:?}"
        );
        let ids = |top: &[(u32, f32)]| top.iter().map(|t| t.0).collect::<Vec<_>>();
        assert_eq!(ids(&gpu.top), ids(&host.top));
    }
    println!(
        "{} of {DRAWS} draws differ, {} distinct tokens",
        differ.len(),
        distinct.len()
    );
    assert!(distinct.len() > 20, "draws all fall on the same tokens");
    match differ.len() > DRAWS / 200 {
        true => Err(format!("{differ:?}").into()),
        false => Ok(()),
    }
}
