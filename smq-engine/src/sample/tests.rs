//! Processors against those of transformers 5.24.0, which tests/peers/gen_record.py recorded.

use serde::Deserialize;
use serde_json::{Value, json};
use smq_model::GenerationSettings;

use super::processors::processors;
use super::{Adjustments, Plan, Sampler, Selection, draw, most_likely, warpers};

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

/// What a plan says, done plainly.
fn execute(plan: &Plan<'_>, logits: &[f32]) -> u32 {
    let mut scores = logits.to_vec();
    for (id, bias) in &plan.bias {
        if let Some(score) = scores.get_mut(*id as usize) {
            *score += bias;
        }
    }
    if let Some(p) = plan.penalties {
        assert!(p.came.is_sorted_by(|a, b| a.id < b.id), "{:?}", p.came);
        for came in p.came {
            let score = &mut scores[came.id as usize];
            *score = match *score < 0.0 {
                true => *score * p.repetition,
                false => *score / p.repetition,
            };
            if came.chosen > 0 {
                *score -= p.presence + p.frequency * came.chosen as f32;
            }
        }
    }
    let Selection::Draw {
        temperature,
        top_k,
        top_p,
        min_p,
        at,
    } = plan.selection
    else {
        return most_likely(&scores).unwrap();
    };
    scores.iter_mut().for_each(|score| *score /= temperature);
    if top_k > 0 {
        warpers::top_k(top_k, &mut scores);
    }
    if top_p < 1.0 {
        warpers::top_p(top_p, &mut scores);
    }
    if min_p > 0.0 {
        warpers::min_p(f64::from(min_p), &mut scores);
    }
    draw(&scores, at).unwrap()
}

#[test]
fn a_plan_chooses_what_the_sampler_chooses() {
    let vocab = 24;
    let all = [
        json!({}),
        json!({"do_sample": true, "temperature": 1.7, "top_k": 5}),
        json!({"do_sample": true, "temperature": 0.7, "top_k": 0, "top_p": 0.8, "min_p": 0.05}),
        json!({"repetition_penalty": 1.3, "min_new_tokens": 4, "eos_token_id": [3, 4]}),
        json!({"do_sample": true, "repetition_penalty": 0.8, "bad_words_ids": [[5], [6]]}),
        json!({"suppress_tokens": [1, 2], "begin_suppress_tokens": [0, 99]}),
        json!({"sequence_bias": [[[7], 2.5], [[8], -3.0]]}),
    ];
    let adjusted = Adjustments {
        presence_penalty: 0.9,
        frequency_penalty: -0.4,
        logit_bias: vec![(9, 3.0), (7, -1.0), (3, 100.0)],
    };
    let mut forced = 0;
    for (i, json) in all.iter().enumerate() {
        for adjustments in [Adjustments::default(), adjusted.clone()] {
            let prompt = [1, 7, 7];
            let sampler = || {
                let settings = settings(json);
                let sampler = Sampler::new(&settings, &prompt, 30, vocab, 5).unwrap();
                sampler.adjusted(&adjustments, vocab).unwrap()
            };
            let (mut planned, mut plain) = (sampler(), sampler());
            for step in 0..30u64 {
                let logit = |id: u64| ((id * 7919 + step * 104_729 + i as u64) % 97) as f32 / 16.0;
                let logits: Vec<f32> = (0..vocab as u64).map(|id| logit(id) - 2.0).collect();
                // Asking twice draws once.
                planned.plan().unwrap();
                let chosen = execute(&planned.plan().unwrap(), &logits);
                planned.accept(chosen);
                assert_eq!(chosen, plain.sample(&logits).unwrap(), "{json} step {step}");
                forced += usize::from(chosen == 3 && adjustments != Adjustments::default());
            }
        }
    }
    assert!(forced > 90, "a bias of 100 is obeyed: {forced}");
}

/// What has no place in a plan needs the logits, and is not left out.
#[test]
fn what_a_plan_cannot_say_is_no_plan() {
    for other in [
        json!({"no_repeat_ngram_size": 2}),
        json!({"sequence_bias": [[[1, 2], 2.0]]}),
        json!({"encoder_repetition_penalty": 1.2}),
        json!({"forced_eos_token_id": 2}),
        json!({"remove_invalid_values": true}),
        json!({"do_sample": true, "typical_p": 0.5}),
        json!({"do_sample": true, "epsilon_cutoff": 0.1}),
        json!({"do_sample": true, "top_h": 0.5}),
        json!({"renormalize_logits": true}),
    ] {
        assert_eq!(sampler(&other, 0).plan(), None, "{other}");
    }
}

#[test]
fn penalties_count_what_was_generated_and_not_the_prompt() {
    let adjustments = Adjustments {
        presence_penalty: 1.0,
        frequency_penalty: 0.5,
        logit_bias: Vec::new(),
    };
    let settings = settings(&json!({}));
    let sampler = Sampler::new(&settings, &[2, 2, 2], 9, 4, 0).unwrap();
    let mut sampler = sampler.adjusted(&adjustments, 4).unwrap();
    let logits = [0.0, 3.0, 4.6, -9.0];
    let chosen: Vec<u32> = (0..4).map(|_| sampler.sample(&logits).unwrap()).collect();
    // Token 2 has 4.6, 3.1 once it has come and 2.6 after that; token 1 has 3, and then 1.5.
    assert_eq!(chosen, [2, 2, 1, 2]);
}

#[test]
fn only_allowed_tokens_are_chosen() {
    let logits = [1.0, 5.0, 3.0, 4.0];
    for json in [
        json!({}),
        json!({"do_sample": true}),
        json!({"do_sample": true, "top_k": 1}),
    ] {
        let mut sampler = sampler(&json, 3);
        for _ in 0..50 {
            let chosen = sampler.sample_allowed(&logits, Some(&[0b0101])).unwrap();
            assert!(
                chosen == 2 || chosen == 0 && json["top_k"].is_null(),
                "{chosen}"
            );
        }
        let error = sampler.sample_allowed(&logits, Some(&[0])).unwrap_err();
        assert!(error.to_string().contains("exclude every token"), "{error}");
        // A mask that is too short allows nothing more.
        assert!(sampler.sample_allowed(&logits, Some(&[])).is_err());
    }
}

#[test]
fn adjustments_out_of_range_are_refused_by_name() {
    let refusal = |adjustments: Adjustments| {
        let sampler = Sampler::new(&settings(&json!({})), &[0], 1, 4, 0).unwrap();
        sampler.adjusted(&adjustments, 4).err().unwrap().to_string()
    };
    let message = refusal(Adjustments {
        frequency_penalty: f64::INFINITY,
        ..Adjustments::default()
    });
    assert!(message.contains("frequency_penalty is inf"), "{message}");
    let message = refusal(Adjustments {
        logit_bias: vec![(4, 0.0)],
        ..Adjustments::default()
    });
    assert!(message.contains("token 4"), "{message}");
    let message = refusal(Adjustments {
        logit_bias: vec![(1, f32::NAN)],
        ..Adjustments::default()
    });
    assert!(message.contains("NaN"), "{message}");
}
