//! Items through an engine.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::{Item, Metric, Request, gsm8k};
use crate::chat::Message;
use crate::engine::{Engine, log_sum_exp};
use crate::error::{Error, Result};
use crate::eval::encode;
use crate::tokenizer::Tokenizer;

/// How free answers are asked for.
#[derive(Debug, Clone, Copy)]
pub struct Prompts {
    /// Put questions through the chat template (only free answers; nothing happens without a template).
    pub chat: bool,
    /// Most new tokens.
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

/// Scores one item; the index is its place among those read.
///
/// # Errors
/// [`Error::Input`] naming the item if it does not fit the model or its logits are not finite; [`Error::Tokenizer`],
/// [`Error::Template`], [`Error::Cuda`].
pub fn evaluate(
    engine: &mut dyn Engine,
    tokenizer: &Tokenizer,
    prompts: Prompts,
    index: usize,
    request: &Request,
) -> Result<Item> {
    let named = |error| match error {
        Error::Input(message) => Error::Input(format!("item {index}: {message}")),
        other => other,
    };
    let mut item = match request {
        Request::Continuation {
            context,
            continuation,
        } => continuation_item(engine, tokenizer, context, continuation),
        Request::Choice {
            context,
            choices,
            gold,
        } => choice_item(engine, tokenizer, context, choices, *gold),
        Request::Answer { prompt, reference } => {
            answer_item(engine, tokenizer, prompts, prompt, reference)
        }
    }
    .map_err(named)?;
    if item.log_likelihoods.iter().any(|l| !l.is_finite()) {
        return Err(named(Error::Input(
            "the model produced a logit that is not finite: its weights are damaged".into(),
        )));
    }
    item.index = index;
    Ok(item)
}

fn item(metrics: impl IntoIterator<Item = (Metric, f64)>) -> Item {
    Item {
        index: 0,
        log_likelihoods: Vec::new(),
        response: None,
        extracted: BTreeMap::new(),
        metrics: metrics.into_iter().collect(),
    }
}

fn continuation_item(
    engine: &mut dyn Engine,
    tokenizer: &Tokenizer,
    context: &str,
    continuation: &str,
) -> Result<Item> {
    let mut pair = encode::pair(tokenizer, context, continuation)?;
    pair.truncate_left(engine.config().max_positions)?;
    let targets = &pair.continuation;
    let fed = [&pair.context, &targets[..targets.len() - 1]].concat();
    let (mut log_likelihood, mut greedy, mut row) = (0.0, true, 0);
    engine.logit_rows(&fed, targets.len(), &mut |logits| {
        let target = logits.get(targets[row] as usize).ok_or_else(|| {
            Error::Input(format!(
                "token id {} is outside the model's vocabulary",
                targets[row]
            ))
        })?;
        log_likelihood += f64::from(*target) - log_sum_exp(logits);
        greedy &= argmax(logits.iter().copied()) == targets[row] as usize;
        row += 1;
        Ok(())
    })?;
    let acc = f64::from(u8::from(greedy));
    let mut item = item([(Metric::Acc, acc), (Metric::Perplexity, log_likelihood)]);
    item.log_likelihoods = vec![log_likelihood];
    Ok(item)
}

fn choice_item(
    engine: &mut dyn Engine,
    tokenizer: &Tokenizer,
    context: &str,
    choices: &[String],
    gold: usize,
) -> Result<Item> {
    let positions = engine.config().max_positions;
    let mut pairs = Vec::with_capacity(choices.len());
    for choice in choices {
        let mut pair = encode::pair(tokenizer, context, &format!(" {choice}"))?;
        pair.truncate_left(positions)?;
        pairs.push(pair);
    }
    // Truncation may leave contexts of different lengths: only equal ones are computed together.
    let mut log_likelihoods = Vec::with_capacity(pairs.len());
    for same in pairs.chunk_by(|a, b| a.context == b.context) {
        let continuations: Vec<Vec<u32>> = same.iter().map(|p| p.continuation.clone()).collect();
        let scored = engine.continuation_log_probs(&same[0].context, &continuations)?;
        log_likelihoods.extend(scored.iter().map(|tokens| tokens.iter().sum::<f64>()));
    }
    let by_length = log_likelihoods
        .iter()
        .zip(choices)
        .map(|(l, choice)| l / choice.chars().count() as f64);
    let right = |index: usize| f64::from(u8::from(index == gold));
    let mut item = item([
        (Metric::Acc, right(argmax(log_likelihoods.iter().copied()))),
        (Metric::AccNorm, right(argmax(by_length))),
    ]);
    item.log_likelihoods = log_likelihoods;
    Ok(item)
}

fn answer_item(
    engine: &mut dyn Engine,
    tokenizer: &Tokenizer,
    prompts: Prompts,
    prompt: &str,
    reference: &str,
) -> Result<Item> {
    let text = match tokenizer.chat().filter(|_| prompts.chat) {
        Some(chat) => {
            let content = prompt.to_owned();
            chat.render(
                &[Message {
                    role: "user",
                    content,
                }],
                true,
            )?
        }
        None => prompt.to_owned(),
    };
    let response = respond(engine, tokenizer, &text, prompts.max_new_tokens)?;
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
    Ok(item)
}

/// Greedy text up to the first stop string.
fn respond(
    engine: &mut dyn Engine,
    tokenizer: &Tokenizer,
    text: &str,
    max_new_tokens: usize,
) -> Result<String> {
    let stops: Vec<&str> = gsm8k::STOPS
        .into_iter()
        .chain(tokenizer.eos_token())
        .collect();
    // A stop string that is one token ends the text even where it is a special token, which text leaves out.
    let stop_ids: Vec<u32> = stops
        .iter()
        .filter_map(|stop| tokenizer.token_id(stop))
        .chain(tokenizer.stop_ids().iter().copied())
        .collect();
    let positions = engine.config().max_positions;
    let Some(room) = positions.checked_sub(max_new_tokens).filter(|r| *r > 0) else {
        return Err(Error::Input(format!(
            "{max_new_tokens} new tokens leave no room for a prompt in the model's longest context of {positions}"
        )));
    };
    let ids = encode::prompt(tokenizer, text)?;
    let prompt = &ids[ids.len().saturating_sub(room)..];
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
