//! Items through an engine.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use rayon::prelude::*;

use super::{Item, Metric, Request, gsm8k};
use crate::eval::encode::{self, Pair};
use smq_engine::{Continuations, Engine, TokenScore};
use smq_engine::{Error, Result};
use smq_model::Message;
use smq_model::Tokenizer;

/// How free answers are asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Prompts {
    /// Put questions through the chat template (only free answers; nothing happens without a
    /// template).
    pub chat: bool,
    /// Most new tokens of an answer.
    pub max_new_tokens: usize,
}

impl Default for Prompts {
    fn default() -> Self {
        Self {
            chat: true,
            max_new_tokens: gsm8k::MAX_NEW_TOKENS,
        }
    }
}

/// A request in tokens: the same for every model of one tokenizer and one longest context.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Encoded {
    /// Place of the item among those read, from 0.
    index: usize,
    /// Tokens of filler before the question, as [`Item::distance`].
    distance: Option<usize>,
    body: Body,
}

#[derive(Debug, Clone, PartialEq)]
enum Body {
    Continuation(Pair),
    Choice {
        /// Neighbours of one context together.
        groups: Vec<(Vec<u32>, Vec<Vec<u32>>)>,
        /// Characters of each choice.
        lengths: Vec<usize>,
        gold: usize,
    },
    Answer {
        prompt: Vec<u32>,
        reference: String,
    },
}

/// Encodes requests for a model of `positions`, in their order.
///
/// # Errors
/// [`Error::Input`] naming the item if it does not fit the model;
/// [`Error::Tokenizer`](smq_model::Error::Tokenizer),
/// [`Error::Template`](smq_model::Error::Template).
pub(crate) fn encode_all(
    tokenizer: &Tokenizer,
    prompts: Prompts,
    positions: usize,
    requests: &[Request],
) -> Result<Vec<Encoded>> {
    let encoded = |(index, request): (usize, &Request)| {
        let body = body(tokenizer, prompts, positions, request).map_err(|e| named(index, e))?;
        let distance = match request {
            Request::Continuation { distance, .. } => *distance,
            Request::Choice { .. } | Request::Answer { .. } => None,
        };
        Ok(Encoded {
            index,
            distance,
            body,
        })
    };
    requests.par_iter().enumerate().map(encoded).collect()
}

fn named(index: usize, error: Error) -> Error {
    match error {
        Error::Input(message) => Error::Input(format!("item {index}: {message}")),
        other => other,
    }
}

fn body(
    tokenizer: &Tokenizer,
    prompts: Prompts,
    positions: usize,
    request: &Request,
) -> Result<Body> {
    let fitting = |context: &str, continuation: &str| {
        let mut pair = encode::pair(tokenizer, context, continuation)?;
        pair.truncate_left(positions)?;
        Ok(pair)
    };
    Ok(match request {
        Request::Continuation {
            context,
            continuation,
            distance: _,
        } => Body::Continuation(fitting(context, continuation)?),
        Request::Choice {
            context,
            choices,
            gold,
        } => {
            let pair = |choice: &String| fitting(context, &format!(" {choice}"));
            let pairs = choices.iter().map(pair).collect::<Result<Vec<Pair>>>()?;
            // Truncation may leave contexts of different lengths: only equal ones are computed
            // together.
            let same = pairs.chunk_by(|a, b| a.context == b.context);
            let group = |same: &[Pair]| {
                let continuations = same.iter().map(|p| p.continuation.clone());
                (same[0].context.clone(), continuations.collect())
            };
            Body::Choice {
                groups: same.map(group).collect(),
                lengths: choices.iter().map(|c| c.chars().count()).collect(),
                gold: *gold,
            }
        }
        Request::Answer { prompt, reference } => Body::Answer {
            prompt: question(tokenizer, prompts, positions, prompt)?,
            reference: reference.clone(),
        },
    })
}

/// The tokens of a question, its start left out where it leaves no room for the answer.
fn question(
    tokenizer: &Tokenizer,
    prompts: Prompts,
    positions: usize,
    prompt: &str,
) -> Result<Vec<u32>> {
    let content = prompt.to_owned();
    let role = "user".to_owned();
    let text = match tokenizer.chat().filter(|_| prompts.chat) {
        Some(chat) => chat.render(&[Message { role, content }], true)?,
        None => content,
    };
    let max_new_tokens = prompts.max_new_tokens;
    let Some(room) = positions.checked_sub(max_new_tokens).filter(|r| *r > 0) else {
        return Err(Error::Input(format!(
            "{max_new_tokens} new tokens leave no room for a prompt in the model's longest context \
             of {positions}"
        )));
    };
    let mut ids = encode::prompt(tokenizer, &text)?;
    ids.drain(..ids.len().saturating_sub(room));
    Ok(ids)
}

/// Cuts `encoded` into runs that [`evaluate`] is best given together: about `tokens` of them each
/// ([`Engine::pass_tokens`]), at least one item; free answers are one a run.
pub(crate) fn batches(encoded: &[Encoded], tokens: usize) -> impl Iterator<Item = &[Encoded]> {
    let mut rest = encoded;
    std::iter::from_fn(move || {
        let mut sum = 0;
        let fits = |e: &&Encoded| match e.tokens() {
            Some(n) => {
                sum += n;
                sum <= tokens
            }
            None => false,
        };
        let len = rest.iter().take_while(fits).count().max(1);
        let (batch, later) = rest.split_at_checked(len)?;
        rest = later;
        Some(batch)
    })
}

impl Encoded {
    /// That are scored or give context; none of a free answer.
    fn tokens(&self) -> Option<usize> {
        let of = |c: Continuations<'_>| {
            c.context.len() + c.continuations.iter().map(Vec::len).sum::<usize>()
        };
        match self.body {
            Body::Answer { .. } => None,
            Body::Continuation(_) | Body::Choice { .. } => Some(self.scored().map(of).sum()),
        }
    }

    /// What is to be scored.
    fn scored(&self) -> impl Iterator<Item = Continuations<'_>> {
        let (one, groups) = match &self.body {
            Body::Continuation(pair) => (Some(pair), &[][..]),
            Body::Choice { groups, .. } => (None, &groups[..]),
            Body::Answer { .. } => (None, &[][..]),
        };
        let one = one.map(|pair| Continuations {
            context: &pair.context,
            continuations: std::slice::from_ref(&pair.continuation),
        });
        one.into_iter()
            .chain(groups.iter().map(|group| Continuations {
                context: &group.0,
                continuations: &group.1,
            }))
    }
}

/// Scores items: one figure a request, in their order. What is scored goes to the engine together.
/// `eos_ids` end a free answer.
///
/// # Errors
/// [`Error::Input`] if an item does not fit the model or its logits are not finite, which names it;
/// [`Error::Tokenizer`](smq_model::Error::Tokenizer), [`Error::Cuda`].
pub(crate) fn evaluate(
    engine: &mut dyn Engine,
    tokenizer: &Tokenizer,
    eos_ids: &[u32],
    prompts: Prompts,
    encoded: &[Encoded],
) -> Result<Vec<Item>> {
    let scored: Vec<Continuations<'_>> = encoded.iter().flat_map(Encoded::scored).collect();
    let mut scores = engine.batch_scores(&scored)?.into_iter();
    let mut items = Vec::with_capacity(encoded.len());
    for one in encoded {
        // Those of one item follow one another.
        let scores: Vec<Vec<TokenScore>> = (0..one.scored().count())
            .flat_map(|_| scores.next())
            .flatten()
            .collect();
        let mut item = match &one.body {
            Body::Continuation(_) => continuation_item(&scores),
            Body::Choice { lengths, gold, .. } => choice_item(&scores, lengths, *gold),
            Body::Answer { prompt, reference } => {
                let most = prompts.max_new_tokens;
                let answer = respond(engine, tokenizer, eos_ids, prompt, most);
                answer_item(answer.map_err(|e| named(one.index, e))?, reference)
            }
        };
        if item.log_likelihoods.iter().any(|l| !l.is_finite()) {
            let message = "the model produced a logit that is not finite: its weights are damaged";
            return Err(named(one.index, Error::Input(message.into())));
        }
        item.index = one.index;
        item.distance = one.distance;
        items.push(item);
    }
    Ok(items)
}

fn item(metrics: impl IntoIterator<Item = (Metric, f64)>) -> Item {
    Item {
        index: 0,
        distance: None,
        log_likelihoods: Vec::new(),
        response: None,
        extracted: BTreeMap::new(),
        metrics: metrics.into_iter().collect(),
    }
}

fn continuation_item(scores: &[Vec<TokenScore>]) -> Item {
    let scores = || scores.iter().flatten();
    let log_likelihood = scores().map(|s| s.log_prob).sum();
    let acc = f64::from(u8::from(scores().all(|s| s.is_top)));
    let mut item = item([(Metric::Acc, acc), (Metric::Perplexity, log_likelihood)]);
    item.log_likelihoods = vec![log_likelihood];
    item
}

fn choice_item(scores: &[Vec<TokenScore>], lengths: &[usize], gold: usize) -> Item {
    let sum = |scores: &Vec<TokenScore>| scores.iter().map(|s| s.log_prob).sum::<f64>();
    let log_likelihoods: Vec<f64> = scores.iter().map(sum).collect();
    let by_length = log_likelihoods
        .iter()
        .zip(lengths)
        .map(|(l, length)| l / *length as f64);
    let right = |index: usize| f64::from(u8::from(index == gold));
    let mut item = item([
        (Metric::Acc, right(argmax(log_likelihoods.iter().copied()))),
        (Metric::AccNorm, right(argmax(by_length))),
    ]);
    item.log_likelihoods = log_likelihoods;
    item
}

fn answer_item(response: String, reference: &str) -> Item {
    let extracted = BTreeMap::from([
        (Metric::StrictMatch, gsm8k::strict(&response)),
        (Metric::FlexibleExtract, gsm8k::flexible(&response)),
    ]);
    let matched = |text: &String| f64::from(u8::from(gsm8k::exact_match(text, reference)));
    let mut item = item(
        extracted
            .iter()
            .map(|(metric, text)| (*metric, matched(text))),
    );
    item.extracted = extracted;
    item.response = Some(response);
    item
}

/// Greedy text up to the first stop string.
fn respond(
    engine: &mut dyn Engine,
    tokenizer: &Tokenizer,
    eos_ids: &[u32],
    prompt: &[u32],
    max_new_tokens: usize,
) -> Result<String> {
    let stops: Vec<&str> = gsm8k::STOPS
        .into_iter()
        .chain(tokenizer.eos_token())
        .collect();
    // A stop string that is one token ends the text even where it is a special token, which text
    // leaves out.
    let stop_ids: Vec<u32> = stops
        .iter()
        .filter_map(|stop| tokenizer.token_id(stop))
        .chain(eos_ids.iter().copied())
        .collect();
    let mut stream = tokenizer.stream();
    let mut shown = String::new();
    engine.start(prompt.len() + max_new_tokens)?;
    engine.greedy(prompt, max_new_tokens, &mut |id, _| {
        if stop_ids.contains(&id) {
            return Ok(ControlFlow::Break(()));
        }
        shown += &stream.push(id)?;
        Ok(match stops.iter().any(|stop| shown.contains(stop)) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        })
    })?;
    let (_, mut whole) = stream.finish()?;
    for stop in stops {
        if let Some(at) = whole.find(stop) {
            whole.truncate(at);
        }
    }
    Ok(whole)
}

/// Index of the first largest value, as NumPy and PyTorch choose it.
fn argmax<T: PartialOrd + Copy>(values: impl IntoIterator<Item = T>) -> usize {
    let mut best: Option<(usize, T)> = None;
    for (index, value) in values.into_iter().enumerate() {
        if best.is_none_or(|(_, largest)| value > largest) {
            best = Some((index, value));
        }
    }
    best.map_or(0, |(index, _)| index)
}
