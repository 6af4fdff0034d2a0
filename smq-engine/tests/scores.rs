//! The engine's scoring of continuations and its rows of logits against their naive twins: every
//! continuation anew, and every row by itself.
//!
//! # Tolerance
//! smq-run's golden.rs derives 7e-4 for a logit or log-sum-exp of the fixture, taking every
//! rounding to push the same way; 1e-3 is asked of all of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file

use std::path::PathBuf;

use smq_engine::{CpuEngine, Engine, Result, TokenScore};
use smq_model::Source;

const TOLERANCE_NATS: f64 = 1e-3;

/// Context and continuation together, each continuation anew.
fn naive_scores(
    engine: &mut CpuEngine<'_>,
    context: &[u32],
    continuation: &[u32],
) -> Vec<TokenScore> {
    let all = engine.scores(&[context, continuation].concat()).unwrap();
    all[context.len() - 1..].to_vec()
}

/// The last `keep - 1` tokens one at a time, within one set of LongRoPE's factors.
fn naive_rows(engine: &mut CpuEngine<'_>, tokens: &[u32], keep: usize) -> Vec<Vec<f32>> {
    let (first, rest) = tokens.split_at(tokens.len() + 1 - keep);
    engine.start(tokens.len()).unwrap();
    let mut rows = vec![engine.extend(first).unwrap().logits.to_vec()];
    for token in rest {
        let step = engine.extend(std::slice::from_ref(token)).unwrap();
        assert!(!step.rope_switched);
        rows.push(step.logits.to_vec());
    }
    rows
}

fn rows(engine: &mut CpuEngine<'_>, tokens: &[u32], keep: usize) -> Result<Vec<Vec<f32>>> {
    let mut rows = Vec::new();
    let vocab = engine.config().vocab;
    engine.logit_rows(tokens, keep, &mut |some| {
        rows.extend(some.chunks_exact(vocab).map(<[f32]>::to_vec));
        Ok(())
    })?;
    Ok(rows)
}

#[test]
fn shared_contexts_and_rows_equal_their_naive_twins() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/phi3-tiny");
    let source = Source::open(&path).unwrap();
    let mut engine = CpuEngine::load(&source).unwrap();
    let mut plain = CpuEngine::load(&source).unwrap();
    let vocab = engine.config().vocab as u32;
    let tokens: Vec<u32> = (0..560).map(|i| 7 + (i * 131) % (vocab - 7)).collect();
    // The second context's longest continuation reaches over the original context of 512, the next
    // one returns.
    for (context, lengths) in [(1, [1, 3, 2]), (40, [5, 1, 17]), (500, [2, 40, 7])] {
        let continuations: Vec<Vec<u32>> = lengths
            .iter()
            .enumerate()
            .map(|(i, n)| tokens[i * 3..i * 3 + n].to_vec())
            .collect();
        let context = &tokens[..context];
        let shared = engine.continuation_scores(context, &continuations).unwrap();
        assert_eq!(shared.len(), continuations.len());
        for ((shared, continuation), n) in shared.iter().zip(&continuations).zip(lengths) {
            let naive = naive_scores(&mut plain, context, continuation);
            assert_eq!((shared.len(), naive.len()), (n, n));
            for (a, b) in shared.iter().zip(&naive) {
                let near = (a.log_prob - b.log_prob).abs() < TOLERANCE_NATS;
                assert!(near && a.is_top == b.is_top, "{a:?} and {b:?}");
            }
        }
    }
    for (len, keep) in [(1, 1), (30, 30), (300, 270), (512, 3)] {
        let ours = rows(&mut engine, &tokens[..len], keep).unwrap();
        let naive = naive_rows(&mut plain, &tokens[..len], keep);
        assert_eq!((ours.len(), naive.len()), (keep, keep));
        for (a, b) in ours.iter().flatten().zip(naive.iter().flatten()) {
            assert!((f64::from(*a) - f64::from(*b)).abs() < TOLERANCE_NATS);
        }
    }
    // Across the original context's end the whole sequence's length decides.
    assert_eq!(rows(&mut engine, &tokens[..520], 20).unwrap().len(), 20);
    assert!(rows(&mut engine, &tokens[..3], 0).is_err());
    assert!(rows(&mut engine, &tokens[..3], 4).is_err());
    assert!(engine.continuation_scores(&[], &[vec![1]]).is_err());
    assert!(engine.continuation_scores(&[9], &[vec![vocab]]).is_err());
}
