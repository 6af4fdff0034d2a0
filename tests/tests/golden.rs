//! The decoder against Hugging Face's own outputs on the bundled checkpoint (`golden.json`).
//!
//! Tolerance of a logit: both sides compute in f32 (unit roundoff u = 2^-24) in different orders. A product of
//! n terms then differs by about sqrt(n) u of the magnitude it sums up. The longest chain from embedding to
//! logit has 4 layers x 4 products and the head, 17 products of at most n = 768 terms, and the magnitudes are
//! those of the logits, at most 16 here: 17 * sqrt(768) * 2^-24 * 16 = 4.5e-4.

use serde_json::Value;
use smq_run::model::{Decoder, Sequence};
use smq_run::{CpuEngine, Engine, Source, Tokenizer};
use smq_tests::{json, phi3_tiny};

const TOLERANCE: f64 = 4.5e-4;

fn ids(value: &Value) -> Vec<u32> {
    let list = value.as_array().unwrap();
    list.iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

fn argmax(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.unwrap().0 as u32
}

fn check_close(ours: f64, theirs: f64, what: &str) {
    assert!(
        (ours - theirs).abs() <= TOLERANCE,
        "{what}: {ours}, Hugging Face has {theirs}"
    );
}

#[test]
fn prompts_logits_and_greedy_tokens() {
    let source = Source::open(&phi3_tiny()).unwrap();
    let tokenizer = Tokenizer::load(&source).unwrap();
    let mut engine = CpuEngine::load(&source).unwrap();
    let golden = json(&phi3_tiny().join("golden.json")).unwrap();
    let prompts = golden["prompts"].as_array().unwrap();
    assert_eq!(prompts.len(), 4);
    for case in prompts {
        let name = case["name"].as_str().unwrap();
        let prompt = ids(&case["prompt_ids"]);
        if let Some(text) = case["prompt"].as_str() {
            assert_eq!(tokenizer.encode(text, false).unwrap(), prompt, "{name}");
        }
        engine.start(prompt.len() + 48);
        let logits = engine.extend(&prompt).unwrap().logits;
        let top8 = ids(&case["top8_ids"]);
        for (id, theirs) in top8.iter().zip(case["top8_logits"].as_array().unwrap()) {
            let ours = f64::from(logits[*id as usize]);
            check_close(
                ours,
                theirs.as_f64().unwrap(),
                &format!("{name}, token {id}"),
            );
        }
        let ours = smq_run::engine::log_sum_exp(logits);
        check_close(ours, case["logsumexp"].as_f64().unwrap(), name);
        // Every margin is above twice the tolerance, so the tokens must be equal.
        assert!(case["greedy_min_margin"].as_f64().unwrap() > 2.0 * TOLERANCE);
        let mut next = argmax(logits);
        let mut greedy = vec![next];
        while greedy.len() < 48 {
            next = argmax(engine.extend(&[next]).unwrap().logits);
            greedy.push(next);
        }
        assert_eq!(greedy, ids(&case["greedy_ids"]), "{name}");
    }
}

/// A sequence that grows over the original context of 512 gives at each length what the whole of it gives at
/// once: the cache is dropped and recomputed with the long factors, once.
#[test]
fn growing_over_the_original_context() {
    let source = Source::open(&phi3_tiny()).unwrap();
    let golden = json(&phi3_tiny().join("golden.json")).unwrap();
    let tokens = ids(&golden["prompts"][3]["prompt_ids"])[..520].to_vec();
    let mut grown = CpuEngine::load(&source).unwrap();
    let mut whole = CpuEngine::load(&source).unwrap();
    grown.start(tokens.len());
    grown.extend(&tokens[..505]).unwrap();
    let mut switches = Vec::new();
    for len in 506..=tokens.len() {
        let step = grown.extend(&tokens[len - 1..len]).unwrap();
        if step.rope_switched {
            switches.push(len);
        }
        whole.start(len);
        let expected = whole.extend(&tokens[..len]).unwrap().logits;
        for (ours, theirs) in step.logits.iter().zip(expected) {
            check_close(
                f64::from(*ours),
                f64::from(*theirs),
                &format!("length {len}"),
            );
        }
    }
    assert_eq!(switches, [513]);
}

/// The whole of eval.json, and the switch of golden.json; both need the validation text.
#[test]
#[ignore = "needs SMQ_DATA_DIR with storybook_valid.txt, which is not part of the project"]
fn perplexity_and_switch_on_the_validation_text() {
    let dir = std::env::var_os("SMQ_DATA_DIR").expect("SMQ_DATA_DIR is not set");
    let text =
        std::fs::read_to_string(std::path::Path::new(&dir).join("storybook_valid.txt")).unwrap();
    let eval = json(&phi3_tiny().join("eval.json")).unwrap();
    let source = Source::open(&phi3_tiny()).unwrap();
    let tokenizer = Tokenizer::load(&source).unwrap();
    let mut engine = CpuEngine::load(&source).unwrap();

    // Position 511 sees the same 512 tokens, rotated with the short factors in a sequence of 512 tokens and
    // with the long ones in a sequence of 513.
    let golden = json(&phi3_tiny().join("golden.json")).unwrap();
    let tokens = tokenizer.encode(&text, false).unwrap();
    let decoder = Decoder::load(&source).unwrap();
    for (list, long) in [("len512_top8", false), ("len513_top8", true)] {
        let mut sequence = Sequence::new(decoder.config(), 512, long);
        let hidden = decoder.extend(&mut sequence, &tokens[..512], 1).unwrap();
        let logits = decoder.logits(&hidden).unwrap();
        for pair in golden["switch"][list].as_array().unwrap() {
            let id = pair[0].as_u64().unwrap();
            check_close(
                f64::from(logits[id as usize]),
                pair[1].as_f64().unwrap(),
                list,
            );
        }
    }

    let options = smq_run::eval::ppl::PplOptions::default();
    let report =
        smq_run::eval::ppl::perplexity(&mut engine, &tokenizer, &text, &options, |_, _| ())
            .unwrap();
    let theirs = eval["perplexity"].as_f64().unwrap();
    assert!((report.perplexity / theirs - 1.0).abs() <= 1e-3);
    assert_eq!(
        report.tokens_scored as u64,
        eval["tokens_scored"].as_u64().unwrap()
    );
    let windows = eval["first_windows_mean_nll"].as_array().unwrap();
    for (ours, theirs) in report.window_nll.iter().zip(windows) {
        assert!((ours - theirs.as_f64().unwrap()).abs() <= 1e-3);
    }
}
