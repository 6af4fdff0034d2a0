//! Guessed tokens on the GPU: texts and the bits of their log-probabilities are those without.

use smq_convert::Method;
use smq_engine::cuda::CudaBatch;
use smq_engine::serve::{
    Asked, BatchEngine, BatchOptions, Constraint, Drafter, Event, NgramDrafter, Request, RequestId,
    Scheduler,
};
use smq_engine::{KvCacheFormat, KvCode};
use smq_model::GenerationSettings;

use crate::Outcome;
use crate::models::{E5M5, Model, WITH_HEAD, sample_tokens};

const NEW: usize = 80;

/// What a request comes to: tokens with the bits of their log-probabilities and of the likeliest.
pub(crate) type Text = Vec<(u32, Option<(u32, Vec<u32>)>)>;

/// Guesses a text that is known, and something else at every seventh place.
pub(crate) struct Known(pub(crate) Vec<Vec<u32>>);

impl Drafter for Known {
    fn draft(&mut self, asked: &[Asked<'_>]) -> Vec<smq_engine::Result<Vec<u32>>> {
        let one = |asked: &Asked<'_>| {
            let known = self.0.iter().find(|text| text.starts_with(asked.tokens));
            let from = asked.tokens.len();
            let rest = known.map_or(&[][..], |text| &text[from..]);
            let tokens = rest.iter().take(asked.most).enumerate();
            let wrong = |at: usize| (from + at).is_multiple_of(7);
            Ok(tokens
                .map(|(at, token)| if wrong(at) { 9 } else { *token })
                .collect())
        };
        asked.iter().map(one).collect()
    }

    fn forget(&mut self, _: RequestId) {}

    fn cost(&self) -> f64 {
        0.0
    }
}

/// Allows half of the tokens, others after each.
#[derive(Clone)]
struct Half(u32);

impl Constraint for Half {
    fn allowed(&mut self, mask: &mut [u32]) -> smq_engine::Result<()> {
        mask.fill(if self.0.is_multiple_of(2) {
            0x5555_5555
        } else {
            0x3333_3333
        });
        Ok(())
    }

    fn accept(&mut self, token: u32) -> smq_engine::Result<()> {
        self.0 = self.0.wrapping_add(token);
        Ok(())
    }

    fn fork(&self) -> Option<Box<dyn Constraint>> {
        Some(Box::new(self.clone()))
    }
}

/// Prompts about the ends of pages and LongRoPE's switch, chosen from in every way: greedy and
/// drawn on the GPU, with penalties, and (without a plan) on the host.
pub(crate) fn requests() -> Vec<Request> {
    let tokens = sample_tokens(2048);
    let jsons = [
        "{}",
        r#"{"do_sample": true, "temperature": 0.7, "top_k": 20, "top_p": 0.9}"#,
        r#"{"repetition_penalty": 1.1}"#,
        r#"{"no_repeat_ngram_size": 4}"#,
    ];
    let lengths = [1, 20, 55, 63, 64, 100, 120, 200, 430, 470, 505, 540];
    let request = |(i, len): (usize, &usize)| {
        let mut prompt = tokens[i * 100..i * 100 + len].to_vec();
        // So that there is something to repeat.
        if i % 2 == 0 && *len > 20 {
            prompt.copy_within(0..len / 2, len - len / 2);
        }
        let mut request = Request::new(prompt, NEW);
        request.settings = GenerationSettings::from_json(jsons[i % 4].as_bytes()).unwrap();
        request.seed = i as u64;
        request.log_probs = [Some(2), None, Some(0)][i % 3];
        if i % 5 == 4 {
            request.constraint = Some(Box::new(Half(i as u32)));
        }
        request
    };
    lengths.iter().enumerate().map(request).collect()
}

pub(crate) fn run<E: BatchEngine>(
    scheduler: &mut Scheduler<E>,
    requests: Vec<Request>,
) -> Vec<Text> {
    let mut texts = Vec::new();
    let mut ids = Vec::new();
    for request in requests {
        ids.push(scheduler.submit(request).unwrap());
        texts.push(Text::new());
    }
    while !scheduler.is_idle() {
        for event in scheduler.step() {
            let at = ids.iter().position(|id| *id == event.id()).unwrap();
            match event {
                Event::Token {
                    token, log_probs, ..
                } => {
                    let bits = log_probs.map(|probs| {
                        let top = probs.top.iter().map(|(_, p)| p.to_bits());
                        (probs.log_prob.to_bits(), top.collect())
                    });
                    texts[at].push((token, bits));
                }
                Event::Failed { error, .. } => panic!("{error}"),
                Event::Prompt { .. } | Event::Finished { .. } => {}
            }
        }
        scheduler.check().unwrap();
    }
    texts
}

/// What guesses these texts.
pub(crate) fn known(requests: Vec<Request>, texts: &[Text]) -> Known {
    let known = requests.into_iter().zip(texts).map(|(request, text)| {
        let new = text.iter().map(|(token, _)| *token);
        request.prompt.into_iter().chain(new).collect()
    });
    Known(known.collect())
}

pub(crate) fn drafts(model: &Model, cache: Option<KvCode>) -> Outcome {
    let source = model.open();
    let options = BatchOptions {
        kv_cache: cache.map(KvCacheFormat::Coded),
        kv_tokens: Some(16_384),
        max_rows: 64,
        ..BatchOptions::default()
    };
    let scheduler = || Scheduler::new(CudaBatch::load(&source, &options).unwrap()).unwrap();
    let plain = run(&mut scheduler(), requests());
    let known = known(requests(), &plain);
    let drafters: [Box<dyn Drafter>; 2] = [Box::new(NgramDrafter::default()), Box::new(known)];
    for (i, drafter) in drafters.into_iter().enumerate() {
        let mut scheduler = scheduler();
        scheduler.speculate(drafter, 12);
        let guessed = run(&mut scheduler, requests());
        for (at, (found, expected)) in guessed.iter().zip(&plain).enumerate() {
            if found != expected {
                return Err(format!(
                    "drafter {i}, request {at}: {found:?}, without guesses {expected:?}"
                )
                .into());
            }
        }
        let c = scheduler.counters();
        let least = [10, 300][i];
        if c.accepted_tokens < least || c.accepted_tokens == c.draft_tokens {
            return Err(format!("drafter {i} hardly guessed: {c:?}").into());
        }
    }
    Ok(())
}

pub(crate) fn c0() -> Outcome {
    drafts(&Model::fixture(), None)
}

pub(crate) fn int4() -> Outcome {
    drafts(&Model::fixture().quantized(E5M5, WITH_HEAD), None)
}

pub(crate) fn fp8() -> Outcome {
    drafts(&Model::fixture().quantized_as(Method::Fp8, "all"), None)
}
