//! Rows of logits and continuations: one pass, a shared context, and two engines on one GPU.

use smq_convert::Method;
use smq_engine::Engine;
use smq_engine::cuda::CudaEngine;
use smq_engine::{Continuations, KvCacheFormat, TokenScore};
use smq_model::Source;

use crate::models::{self, E5M5, Model, any_tokens, sample_tokens};
use crate::reference::{Case, Path, Reference, argmax};
use crate::{Outcome, none, same_bits};

/// LongRoPE's long factors begin after so many tokens of the fixture.
const ORIGINAL: usize = 512;
/// Rows of logits that the GPU holds at a time.
const BLOCK: usize = 256;
/// Positions of a pass.
const CHUNK: usize = 2048;

/// Sequences and the rows kept of them: one, a part of a block, a block and one, across chunks,
/// all.
const KEPT: [(usize, usize); 9] = [
    (1, 1),
    (5, 5),
    (130, 1),
    (130, 3),
    (300, 300),
    (ORIGINAL + 1, 20),
    (700, BLOCK + 1),
    (CHUNK + 100, 200),
    (CHUNK + 100, CHUNK + 100),
];

pub(crate) fn logit_rows() -> Outcome {
    let fixture = Model::fixture();
    let int4 = fixture.quantized(E5M5, "all");
    let head = fixture.quantized(E5M5, models::WITH_HEAD);
    let nf4 = fixture.quantized_as(Method::Nf4, "all");
    let fp8 = fixture.quantized_as(Method::Fp8, "all");
    let llama = Model::synthetic(&models::llama());
    let mut failures = Vec::new();
    for (name, model, kept, path) in [
        ("C0", &fixture, &KEPT[..], Path::Prompt),
        ("int4", &int4, &KEPT, Path::WidenedPrompt),
        ("int4 head", &head, &KEPT[..5], Path::WidenedPrompt),
        ("NF4", &nf4, &KEPT[..5], Path::WidenedPrompt),
        ("FP8", &fp8, &KEPT[..5], Path::Prompt),
        ("Llama", &llama, &KEPT[..5], Path::Prompt),
    ] {
        failures.extend(rows_of(name, &model.open(), kept, path));
    }
    none(failures)
}

fn rows(engine: &mut CudaEngine, tokens: &[u32], keep: usize) -> Vec<Vec<f32>> {
    let mut rows = Vec::new();
    let vocab = engine.config().vocab;
    let mut take = |some: &[f32]| {
        assert!(some.len().is_multiple_of(vocab) && some.len() <= BLOCK * vocab);
        rows.extend(some.chunks_exact(vocab).map(<[f32]>::to_vec));
        Ok(())
    };
    engine.logit_rows(tokens, keep, &mut take).unwrap();
    rows
}

fn rows_of(name: &str, source: &Source, kept: &[(usize, usize)], path: Path) -> Vec<String> {
    let mut engine = CudaEngine::load(source, None).unwrap();
    let vocab = engine.config().vocab as u32;
    let longest = kept.iter().map(|k| k.0).max().unwrap_or(0);
    let tokens = match vocab {
        4096 => sample_tokens(longest),
        vocab => any_tokens(longest, vocab),
    };
    let mut failures = Vec::new();
    for &(len, keep) in kept {
        let name = format!("{name}, {keep} rows of {len}");
        let tokens = &tokens[..len];
        let got = rows(&mut engine, tokens, keep);
        if got.len() != keep {
            failures.push(format!("{name}: {} rows", got.len()));
            continue;
        }
        // One pass, so the whole sequence's length decides the factors of every row.
        let lengths = len - keep + 1..=len;
        let reference = Reference::of_pass(source, tokens, lengths.clone(), KvCacheFormat::F32);
        let mut case = Case::new(name.clone(), &reference, path);
        for (len, row) in lengths.zip(&got) {
            case.add(len, row);
        }
        // Fewer rows say nothing about a spread, only about the bound.
        match keep {
            1 | 2 => failures.extend(beyond(&name, &reference, len, &got[keep - 1])),
            _ => failures.extend(case.failure()),
        }
        let again = rows(&mut engine, tokens, keep);
        if !got.iter().zip(&again).all(|(a, b)| same_bits(a, b)) {
            failures.push(format!("{name}: other bits the second time"));
        }
        if keep == len {
            let scores = engine.scores(tokens).unwrap();
            failures.extend(unlike_rows(&name, &scores, &got, &tokens[1..]));
        }
    }
    failures
}

/// A last row further from the exact one than twice a prompt's bound.
fn beyond(name: &str, reference: &Reference, len: usize, row: &[f32]) -> Option<String> {
    let bound = 2.0 * reference.bound(len, Path::WidenedPrompt);
    let far = |(a, b): (&f32, &f32)| (f64::from(a - b)).abs() > bound || a.is_nan();
    let any = row.iter().zip(reference.exact(len)).any(far);
    any.then(|| format!("{name}: a logit is off by more than {bound}"))
}

/// The same pass scored on the GPU: the same logits, so what separates the two is `expf`, off by 2
/// ulp (2.4e-7 of a term) at most, and the rounding of `logit - largest`, 6e-8 of it: of terms that
/// matter it is below 15, so 9e-7 of a term.
fn unlike_rows(
    name: &str,
    scores: &[TokenScore],
    rows: &[Vec<f32>],
    targets: &[u32],
) -> Option<String> {
    const TOLERANCE: f64 = 1.2e-6;
    let wrong = |((score, row), target): ((&TokenScore, &Vec<f32>), &u32)| {
        let largest = f64::from(row[argmax(row) as usize]);
        let sum: f64 = row.iter().map(|l| (f64::from(*l) - largest).exp()).sum();
        let log_prob = f64::from(row[*target as usize]) - largest - sum.ln();
        let off = (score.log_prob - log_prob).abs();
        off.is_nan() || off > TOLERANCE || score.is_top != (argmax(row) == *target)
    };
    let at = scores.iter().zip(rows).zip(targets).position(wrong);
    match at {
        Some(at) => Some(format!(
            "{name}: the score of token {} is not its row's",
            at + 1
        )),
        None if scores.len() != targets.len() => Some(format!("{name}: {} scores", scores.len())),
        None => None,
    }
}

/// Contexts, and the lengths of what follows them: the third one's longest reaches over the
/// original context, and the next returns; the fourth is over it already; the last is longer than a
/// pass.
const CONTEXTS: [(usize, [usize; 4]); 6] = [
    (1, [1, 3, 0, 2]),
    (64, [1, 17, 5, 1]),
    (500, [2, 40, 7, 13]),
    (600, [3, 1, 9, 1]),
    (ORIGINAL - 1, [1, 2, 3, 4]),
    (CHUNK + 7, [3, 30, 1, 2]),
];

pub(crate) fn continuations() -> Outcome {
    let fixture = Model::fixture();
    let int4 = fixture.quantized(E5M5, "all");
    let fp8 = fixture.quantized_as(Method::Fp8, "all");
    let mut failures = Vec::new();
    for (name, model) in [("C0", &fixture), ("int4", &int4), ("FP8", &fp8)] {
        failures.extend(continuations_of(name, &model.open()));
    }
    none(failures)
}

/// Packed together, and each context alone, against the whole sequence in one pass. Any of them is
/// as near to the exact scores as log_probs.rs asks of a pass, half a nat at most, so they are no
/// further apart than a nat; an rms of a quarter of one is still far less than what a wrong
/// position, factor or token costs.
pub(crate) fn continuations_of(name: &str, source: &Source) -> Vec<String> {
    let mut engine = CudaEngine::load(source, None).unwrap();
    let mut failures = Vec::new();
    let all = sample_tokens(CHUNK + 100);
    let given: Vec<(&[u32], Vec<Vec<u32>>)> = CONTEXTS
        .iter()
        .map(|(len, lengths)| {
            let continuation = |(i, n): (usize, &usize)| all[len + 7 * i..len + 7 * i + n].to_vec();
            (
                &all[..*len],
                lengths.iter().enumerate().map(continuation).collect(),
            )
        })
        .collect();
    let items: Vec<_> = given
        .iter()
        .map(|(context, continuations)| Continuations {
            context,
            continuations,
        })
        .collect();
    let packed = engine.batch_scores(&items).unwrap();
    if packed != engine.batch_scores(&items).unwrap() {
        failures.push(format!("{name}: other bits the second time"));
    }
    for ((context, continuations), packed) in given.iter().zip(&packed) {
        let name = format!("{name}, context {}", context.len());
        let alone = engine.continuation_scores(context, continuations).unwrap();
        // Without the last token, which is never fed: its length must not decide the factors.
        let mut whole = |continuation: &Vec<u32>| match continuation.len() {
            0 => Vec::new(),
            n => {
                let sequence = [context, &continuation[..n - 1]].concat();
                rows(&mut engine, &sequence, n)
            }
        };
        let want: Vec<Vec<Vec<f32>>> = continuations.iter().map(&mut whole).collect();
        for (how, got) in [("packed", packed), ("alone", &alone)] {
            let lengths = |of: &[Vec<TokenScore>]| of.iter().map(Vec::len).collect::<Vec<_>>();
            if lengths(got) != continuations.iter().map(Vec::len).collect::<Vec<_>>() {
                failures.push(format!("{name}, {how}: {:?} scores", lengths(got)));
            }
            let scores = got.iter().flatten();
            let rows = want.iter().flatten().zip(continuations.iter().flatten());
            let off = |(score, (row, target)): (&TokenScore, (&Vec<f32>, &u32))| {
                let off = (score.log_prob - log_prob(row, *target)).abs();
                if off.is_nan() { f64::INFINITY } else { off }
            };
            let off: Vec<f64> = scores.zip(rows).map(off).collect();
            let worst = off.iter().copied().fold(0.0, f64::max);
            let rms = (off.iter().map(|o| o * o).sum::<f64>() / off.len() as f64).sqrt();
            println!(
                "{name}, {how}: {} tokens, off by {rms:.5} rms and {worst:.5} at most",
                off.len()
            );
            if worst > 1.0 || rms > 0.25 {
                failures.push(format!("{name}, {how}: off by {rms} rms, {worst} at most"));
            }
        }
    }
    if engine.continuation_scores(&[], &[vec![1]]).is_ok()
        || engine.continuation_scores(&[9], &[vec![4096]]).is_ok()
        || engine.logit_rows(&all[..3], 0, &mut |_| Ok(())).is_ok()
        || engine.logit_rows(&all[..3], 4, &mut |_| Ok(())).is_ok()
    {
        failures.push(format!("{name}: bad requests are answered"));
    }
    failures
}

fn log_prob(row: &[f32], target: u32) -> f64 {
    f64::from(row[target as usize]) - smq_engine::log_sum_exp(row)
}

/// Two models in turns, as `eval kl` has them, give what each gives alone.
pub(crate) fn two_engines() -> Outcome {
    let fixture = Model::fixture();
    let int4 = fixture.quantized(E5M5, "all");
    let (a, b) = (fixture.open(), int4.open());
    let tokens = sample_tokens(300);
    let alone = [&a, &b].map(|source| work(&mut CudaEngine::load(source, None).unwrap(), &tokens));
    let mut engines = [&a, &b].map(|source| CudaEngine::load(source, None).unwrap());
    let mut failures = Vec::new();
    for round in 0..3 {
        for (i, (engine, alone)) in engines.iter_mut().zip(&alone).enumerate() {
            if work(engine, &tokens) != *alone {
                failures.push(format!(
                    "round {round}: other bits of engine {i} beside another"
                ));
            }
        }
    }
    // One that goes leaves the other as it was.
    let [first, mut second] = engines;
    drop(first);
    if work(&mut second, &tokens) != alone[1] {
        failures.push("other bits after another engine went".into());
    }
    none(failures)
}

/// Bits of a pass's rows and scores, of continuations, and of a prompt with steps.
fn work(engine: &mut CudaEngine, tokens: &[u32]) -> Vec<u64> {
    let wide = |v: &[f32]| v.iter().map(|l| u64::from(l.to_bits())).collect::<Vec<_>>();
    let mut bits: Vec<u64> = rows(engine, tokens, 3)
        .iter()
        .flat_map(|r| wide(r))
        .collect();
    let given = [tokens[..5].to_vec(), tokens[9..10].to_vec()];
    let continued = engine.continuation_scores(&tokens[..200], &given).unwrap();
    let scores = engine.scores(tokens).unwrap();
    let scores = continued.into_iter().flatten().chain(scores);
    bits.extend(scores.map(|s| s.log_prob.to_bits()));
    engine.start(tokens.len()).unwrap();
    for tokens in [&tokens[..100], &tokens[100..101], &tokens[101..140]] {
        bits.extend(wide(engine.extend(tokens).unwrap().logits));
    }
    bits
}
