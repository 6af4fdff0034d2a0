//! The scheduler and its pages under random requests and cancellations, on the fake device.

use std::collections::HashMap;

use smq_engine::serve::{RequestId, Scheduler};

use super::common::{Output, Outputs, Random, run, step};
use super::drafts::Liar;
use super::fake::{Asked, Fake, VOCAB, alone, config};

/// A request whose prompt may begin as others do.
fn random_request(random: &mut Random, longest: usize) -> Asked {
    let len = 1 + random.within(0..longest).min(random.within(0..2 * longest));
    // Few tokens to choose from, so that prefixes come again.
    let family = random.within(0..3) as u64;
    let own = random.within(0..len + 1);
    let mut prompt: Vec<u32> = (0..len as u64)
        .map(|i| (Random(family * 1000 + i).next() % VOCAB as u64) as u32)
        .collect();
    for token in &mut prompt[own..] {
        *token = random.within(0..VOCAB) as u32;
    }
    let json = match random.within(0..5) {
        0 => r#"{"do_sample": true, "temperature": 1.3, "top_k": 9, "top_p": 0.9}"#,
        1 => r#"{"repetition_penalty": 1.2, "eos_token_id": [5, 6]}"#,
        2 => r#"{"eos_token_id": 9, "no_repeat_ngram_size": 2}"#,
        _ => "",
    };
    let mut asked = Asked {
        prompt,
        most: random.within(0..30),
        json: json.into(),
        seed: random.next(),
        ..Asked::default()
    };
    if random.one_in(4) {
        asked.stop_ids.push(random.within(0..VOCAB) as u32);
    }
    if random.one_in(4) {
        asked.adjustments.presence_penalty = 0.7;
        asked.adjustments.frequency_penalty = 1.1;
    }
    if random.one_in(3) {
        asked.log_probs = Some(random.within(0..4));
    }
    if random.one_in(4) {
        asked.prompt_log_probs = Some(random.within(0..3));
    }
    asked
}

/// Whether a text got as far as events said, and no further.
fn begins(whole: &Output, part: &Output) -> bool {
    whole.tokens.starts_with(&part.tokens)
        && whole.prompt.starts_with(&part.prompt)
        && whole.log_probs.starts_with(&part.log_probs)
}

#[test]
fn random_requests_have_what_each_has_alone_and_no_page_is_lost() {
    random_requests(false);
}

/// Some of the guesses come true, and others are wrong, no tokens, ends of the text, or too many.
#[test]
fn random_requests_have_what_each_has_alone_whatever_is_guessed() {
    random_requests(true);
}

fn random_requests(guessed: bool) {
    let mut total = HashMap::<&str, u64>::new();
    for seed in 0..120 {
        let mut random = Random(seed);
        let page_tokens = [1, 2, 4, 16][random.within(0..4)];
        let pages = random.within(3..40);
        let arena = pages * page_tokens;
        let longest = random.within(8..80);
        let config = config(longest, random.within(4..60));
        let mut fake = Fake::new(config.clone(), pages, page_tokens);
        fake.rows = random.within(1..9);
        fake.step_tokens = random.within(1..50);
        fake.draft_cost = [0.01, 0.1, 0.5][random.within(0..3)];
        let mut scheduler = Scheduler::new(fake).unwrap();
        if guessed {
            let most = random.within(1..12);
            scheduler.speculate(Liar::new(&config, seed), most);
        }
        let mut asked: Vec<(RequestId, Asked)> = Vec::new();
        let mut cancelled = Vec::new();
        let mut outputs = Outputs::new();
        for _ in 0..60 {
            for _ in 0..random.within(0..3) {
                let request = random_request(&mut random, longest);
                let fits = request.prompt.len() < longest + usize::from(request.most == 0)
                    && request.prompt.len() <= arena;
                match scheduler.submit(request.request()) {
                    Ok(id) if fits => asked.push((id, request)),
                    Err(error) if !fits => {
                        let message = error.to_string();
                        let count = request.prompt.len().to_string();
                        assert!(message.contains(&count), "{message}");
                        *total.entry("refused").or_default() += 1;
                    }
                    other => panic!("{other:?} of {} tokens", request.prompt.len()),
                }
            }
            if random.one_in(3) && !asked.is_empty() {
                // Old ones too: they may be over.
                let (id, _) = asked[random.within(asked.len().saturating_sub(12)..asked.len())];
                let is_over = outputs
                    .get(&id)
                    .is_some_and(|o| o.stop.is_some() || o.failed.is_some());
                let was_there = scheduler.cancel(id);
                assert_eq!(was_there, !is_over && !cancelled.contains(&id));
                scheduler.check().unwrap();
                if was_there {
                    cancelled.push(id);
                }
            }
            step(&mut scheduler, &mut outputs);
        }
        run(&mut scheduler, &mut outputs, 100_000);
        for (id, request) in &asked {
            let whole = alone(request, &config, arena);
            let part = outputs.remove(id).unwrap_or_default();
            if cancelled.contains(id) {
                assert!(begins(&whole, &part), "{part:?} of {whole:?}");
                continue;
            }
            // Scores that were computed together with a damaged one are lost with it.
            let lost = whole.failed.is_some() && begins(&whole, &part);
            let cached_tokens = part.cached_tokens;
            let whole = Output {
                cached_tokens,
                ..whole
            };
            assert!(
                part == whole || lost && part.failed == whole.failed,
                "seed {seed}, {request:?}: {part:?} instead of {whole:?}"
            );
            assert!(cached_tokens < request.prompt.len());
            *total.entry("failed").or_default() += u64::from(whole.failed.is_some());
            *total.entry("finished").or_default() += u64::from(whole.stop.is_some());
        }
        assert!(outputs.is_empty(), "events of nobody: {outputs:?}");
        let counters = scheduler.counters();
        assert!(counters.prefix_hits <= counters.prefix_queries);
        *total.entry("cancelled").or_default() += cancelled.len() as u64;
        *total.entry("preempted").or_default() += counters.preemptions;
        *total.entry("found").or_default() += counters.prefix_hits;
        *total.entry("steps").or_default() += counters.steps;
        let wrong = counters.draft_tokens - counters.accepted_tokens;
        *total.entry("accepted").or_default() += counters.accepted_tokens;
        *total.entry("wrong").or_default() += wrong;
        *total.entry("guess failed").or_default() += counters.draft_failures;
    }
    let drafts = match guessed {
        true => 1000,
        false => 0,
    };
    // What happened hardly ever was hardly tested.
    for (what, least) in [
        ("finished", 2000),
        ("failed", 20),
        ("refused", 100),
        ("cancelled", 500),
        ("preempted", 200),
        ("found", 5000),
        ("steps", 5000 - 2 * drafts),
        ("accepted", drafts),
        ("wrong", drafts),
        ("guess failed", drafts / 20),
    ] {
        let count = total.get(what).copied().unwrap_or(0);
        assert!(
            count >= least,
            "{what}: {count} of at least {least} ({total:?})"
        );
    }
}
