//! Log-probabilities and perplexity, with the tolerance of reference.rs.

use smq_engine::cuda::CudaEngine;
use smq_engine::model::Precision;
use smq_engine::{CpuEngine, Engine};
use smq_model::{Source, Tokenizer};
use smq_run::{PplOptions, perplexity};

use crate::models::{self, E5M5, Model, any_tokens, sample_text, sample_tokens};
use crate::{Outcome, none, same_bits};

pub(crate) fn unquantized() -> Outcome {
    none(of("C0", &Model::fixture().open(), 1.0))
}

/// The head too; many rows widen the weights, which rounds 12 times a layer and not 8.
pub(crate) fn int4() -> Outcome {
    let model = Model::fixture().quantized(E5M5, models::WITH_HEAD);
    let mut failures = of("int4", &model.open(), 1.5_f64.sqrt());
    let model = Model::synthetic(&models::llama()).quantized(E5M5, "all");
    let tokens = any_tokens(300, 1000);
    failures.extend(compare(
        "Llama int4",
        &model.open(),
        &tokens,
        &[300],
        1.5_f64.sqrt(),
    ));
    none(failures)
}

fn of(name: &str, source: &Source, more: f64) -> Vec<String> {
    // One target, rows of logits that end in a full and in a short block, and two chunks.
    compare(
        name,
        source,
        &sample_tokens(2300),
        &[2, 257, 300, 700, 1100, 2049, 2300],
        more,
    )
}

fn compare(
    name: &str,
    source: &Source,
    tokens: &[u32],
    lengths: &[usize],
    more: f64,
) -> Vec<String> {
    let mut engine = CudaEngine::load(source, None).unwrap();
    let mut exact = CpuEngine::load(source).unwrap();
    let mut rounded = CpuEngine::load_with(source, Precision::Bf16).unwrap();
    let mut failures = Vec::new();
    engine.start(16).unwrap();
    let logits = engine.extend(&tokens[..2]).unwrap().logits.to_vec();
    for &len in lengths {
        let tokens = &tokens[..len];
        let got = engine.log_probs(tokens).unwrap();
        let (want, twin) = (
            exact.log_probs(tokens).unwrap(),
            rounded.log_probs(tokens).unwrap(),
        );
        let rms = |a: &[f64]| {
            let squares = a.iter().zip(&want).map(|(a, b)| (a - b) * (a - b));
            (squares.sum::<f64>() / want.len() as f64).sqrt()
        };
        let mean = |a: &[f64]| a.iter().sum::<f64>() / a.len() as f64;
        let perplexity = (mean(&want) - mean(&got)).exp() - 1.0;
        let (gpu, twin) = (rms(&got), rms(&twin));
        let line = format!(
            "{name}, log-probabilities of {len}: rms {gpu:.5}, the bf16 twin's {twin:.5}, perplexity {:+.3} %",
            100.0 * perplexity
        );
        println!("{line}");
        // One target says nothing about a spread.
        let close = len < 16 || gpu <= 1.5 * more * twin + 1e-3 && perplexity.abs() < 0.005 * more;
        let near = got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 0.5);
        if got.len() != want.len() || !close || !near {
            failures.push(line);
        }
        if got != engine.log_probs(tokens).unwrap() {
            failures.push(format!("{name}, {len}: other bits the second time"));
        }
    }
    engine.start(16).unwrap();
    if !same_bits(&logits, engine.extend(&tokens[..2]).unwrap().logits) {
        failures.push(format!("{name}: other logits after log-probabilities"));
    }
    failures
}

pub(crate) fn perplexity_of_the_sample() -> Outcome {
    let source = Model::fixture().open();
    let tokenizer = Tokenizer::load(&source)?;
    let text = sample_text();
    let mut failures = Vec::new();
    for window in [128, 512] {
        let options = PplOptions {
            window,
            max_tokens: Some(2560),
        };
        let mut gpu = CudaEngine::load(&source, None)?;
        let mut cpu = CpuEngine::load(&source)?;
        let got = perplexity(&mut gpu, &tokenizer, &text, &options, |_, _, _| ())?;
        let want = perplexity(&mut cpu, &tokenizer, &text, &options, |_, _, _| ())?;
        let off = got.perplexity / want.perplexity - 1.0;
        let line = format!(
            "windows of {window}: perplexity {} instead of {}, {:+.3} %",
            got.perplexity,
            want.perplexity,
            100.0 * off
        );
        println!("{line}");
        if off.is_nan() || off.abs() > 0.005 || got.tokens_scored != want.tokens_scored {
            failures.push(line);
        }
    }
    none(failures)
}
