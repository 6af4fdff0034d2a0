//! Processors against those of transformers 5.24.0, which tests/peers/gen_record.py recorded.

use serde::Deserialize;
use serde_json::{Value, json};
use smq_model::GenerationSettings;

use super::Sampler;
use super::processors::processors;

#[derive(Deserialize)]
struct Case {
    name: String,
    settings: Value,
    prompt: Vec<u32>,
    new: Vec<u32>,
    max_new_tokens: usize,
    logits: Vec<f32>,
    expected: Vec<Option<f32>>,
}

fn settings(json: &Value) -> GenerationSettings {
    GenerationSettings::from_json(json.to_string().as_bytes()).unwrap()
}

/// Seven digits were recorded, and torch rounds its exponentials and logarithms in another way.
const TOLERANCE: f32 = 2e-6;

#[test]
fn logits_are_processed_as_hugging_face_does() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/fixtures/hf/gen-processors.json"
    );
    let cases: Vec<Case> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert!(cases.len() > 150, "{} cases", cases.len());
    for case in cases {
        let settings = settings(&case.settings);
        settings.check(case.logits.len()).unwrap();
        let mut scores = case.logits.clone();
        let ids = [case.prompt.clone(), case.new].concat();
        for processor in processors(&settings, case.prompt.len(), case.max_new_tokens) {
            processor.apply(&ids, &mut scores);
        }
        let expected = case.expected.iter();
        let mut expected: Vec<f32> = expected.map(|e| e.unwrap_or(f32::NEG_INFINITY)).collect();
        // Which of equally likely tokens are left out is up to torch's sort, which is not stable.
        let is_sorted = ["top_p", "top_h"]
            .iter()
            .any(|key| case.name.starts_with(key));
        if is_sorted
            && [" of ties", " of equals"]
                .iter()
                .any(|of| case.name.ends_with(of))
        {
            scores.sort_by(f32::total_cmp);
            expected.sort_by(f32::total_cmp);
        }
        for (id, (score, expected)) in scores.iter().zip(&expected).enumerate() {
            let expected = *expected;
            let is_near = (score - expected).abs() <= TOLERANCE * expected.abs().max(1.0);
            assert!(
                *score == expected || is_near,
                "{}: logit {id} is {score}, expected {expected}",
                case.name
            );
        }
    }
}

fn sampler(json: &Value, seed: u64) -> Sampler {
    Sampler::new(&settings(json), &[0], 100, 4, seed).unwrap()
}

#[test]
fn the_first_of_the_largest_logits_is_taken() {
    assert_eq!(Sampler::greedy().sample(&[0.0, 1.0, 3.0, 3.0]).unwrap(), 2);
    assert_eq!(Sampler::greedy().sample(&[f32::MIN; 2]).unwrap(), 0);
}

#[test]
fn only_what_changes_the_choice_leaves_greedy() {
    for neutral in [
        json!({}),
        json!({"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0}),
        json!({"do_sample": false, "temperature": 0.2, "top_k": 50, "top_p": 0.9}),
        json!({"min_new_tokens": 5}),
        json!({"bad_words_ids": [[2]], "eos_token_id": 2}),
    ] {
        assert!(sampler(&neutral, 0).is_greedy(), "{neutral}");
    }
    for other in [
        json!({"repetition_penalty": 1.1}),
        json!({"do_sample": true}),
        json!({"min_new_tokens": 5, "eos_token_id": 2}),
    ] {
        assert!(!sampler(&other, 0).is_greedy(), "{other}");
    }
}

#[test]
fn draws_follow_the_distribution_and_seeds_repeat() {
    let options = json!({"do_sample": true, "top_p": 0.9});
    let logits: Vec<f32> = [0.02f32, 0.08, 0.6, 0.3].iter().map(|p| p.ln()).collect();
    let draw = |seed| {
        let mut sampler = sampler(&options, seed);
        let ids = (0..2000).map(|_| sampler.sample(&logits).unwrap());
        ids.collect::<Vec<_>>()
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
    let count = |id| draw(3).iter().filter(|other| **other == id).count();
    // Tokens 2 and 3 have 0.9 of the mass, so that the others never pass. Of 2000 draws two thirds
    // are token 2: 1333, give or take 4 standard deviations of 21.
    assert_eq!(count(2) + count(3), 2000);
    assert!((1248..1418).contains(&count(2)), "{}", count(2));
}

#[test]
fn what_was_chosen_counts_as_text() {
    let mut sampler = sampler(&json!({"no_repeat_ngram_size": 1}), 0);
    let chosen: Vec<u32> = (0..3)
        .map(|_| sampler.sample(&[9.0, 1.0, 2.0, 3.0]).unwrap())
        .collect();
    assert_eq!(chosen, [3, 2, 1]);
    // The prompt's token and these are all there are.
    let error = sampler.sample(&[9.0, 1.0, 2.0, 3.0]).unwrap_err();
    assert!(error.to_string().contains("exclude every token"), "{error}");
}

#[test]
fn logits_that_are_not_finite_are_refused_or_removed() {
    let bad = [0.0, f32::NAN, -1.0, f32::INFINITY];
    for settings in [
        json!({}),
        json!({"repetition_penalty": 1.1}),
        json!({"do_sample": true}),
    ] {
        let error = sampler(&settings, 0).sample(&bad).unwrap_err();
        assert!(error.to_string().contains("not finite"), "{error}");
    }
    let mut removing = sampler(&json!({"remove_invalid_values": true}), 0);
    assert_eq!(removing.sample(&bad).unwrap(), 3);
}
