//! Prompts in all the forms that requests have them, and the sequences that they become.

use serde_json::Value;
use smq_engine::serve::{Constraint, Request};

use super::answer::Asked;
use super::error::{ApiError, ApiResult};
use super::grammar::Schema;
use super::sampling::Sampling;
use super::state::{App, random};

/// The prompts of `prompt`: a text, a list of texts, token ids, or a list of lists of them. The
/// text of each comes with it where `echo` will give it back.
pub(super) fn prompts(
    app: &App,
    given: Value,
    special: bool,
    echo: bool,
) -> ApiResult<Vec<(Vec<u32>, Option<String>)>> {
    let wrong = || {
        let message = "prompt is neither a string, nor a list of strings, of token ids, or of \
                       lists of token ids";
        ApiError::field("prompt", message)
    };
    let items = match given {
        Value::String(text) => vec![Value::String(text)],
        Value::Array(items) => match items.first() {
            Some(Value::Number(_)) => vec![Value::Array(items)],
            Some(Value::String(_) | Value::Array(_)) => items,
            None | Some(Value::Null | Value::Bool(_) | Value::Object(_)) => return Err(wrong()),
        },
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => return Err(wrong()),
    };
    let one = |item: Value| match item {
        Value::String(text) => {
            let ids = encode(app, &text, special)?;
            Ok((ids, echo.then_some(text)))
        }
        Value::Array(list) => {
            let ids = token_ids(app, "prompt", &list)?;
            let text = echo.then(|| app.tokenizer.decode(&ids)).transpose();
            Ok((ids, text.map_err(|e| ApiError::internal(e.to_string()))?))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => Err(wrong()),
    };
    items.into_iter().map(one).collect()
}

/// Ids of a text.
pub(super) fn encode(app: &App, text: &str, special: bool) -> ApiResult<Vec<u32>> {
    let ids = app.tokenizer.encode(text, special);
    ids.map_err(|e| ApiError::field("prompt", e.to_string()))
}

/// Ids given as such.
pub(super) fn token_ids(app: &App, param: &str, list: &[Value]) -> ApiResult<Vec<u32>> {
    let id = |value: &Value| {
        let id = value.as_u64().filter(|id| *id < app.vocab as u64);
        id.map(|id| id as u32)
    };
    let ids: Option<Vec<u32>> = list.iter().map(id).collect();
    ids.ok_or_else(|| {
        let vocab = app.vocab;
        let message = format!("{param} has something other than token ids below {vocab}");
        ApiError::field(param, message)
    })
}

/// How many tokens a text may have where the request does not say.
pub(super) struct Limit {
    /// The field that a prompt comes from.
    pub(super) param: &'static str,
    /// Where the model does not say either; `None` for as many as there is room for.
    pub(super) default: Option<usize>,
}

/// The sequences of a request: each prompt in each of its samples. `set` says what else they have.
pub(super) fn requests(
    app: &App,
    prompts: &[&[u32]],
    sampling: &Sampling,
    limit: &Limit,
    schema: Option<Schema>,
    set: impl Fn(&mut Request),
) -> ApiResult<Vec<Asked>> {
    let count = prompts.len().saturating_mul(sampling.samples);
    // Before anything is made for each of them.
    if count > app.limits.queue {
        super::limits::check_queue(app, count)?;
    }
    if schema.is_some() && (sampling.ignore_eos || sampling.settings.eos_ids.is_empty()) {
        let message = "response_format needs an end of the text, which ignore_eos leaves out";
        return Err(ApiError::field("response_format", message));
    }
    let constraints = schema
        .map(|schema| schema.constraints(app, count))
        .transpose()?;
    let mut constraints = constraints.into_iter().flatten();
    let mut asked = Vec::with_capacity(count);
    for prompt in prompts {
        let max_new_tokens = new_tokens(app, prompt, sampling, limit)?;
        for sample in 0..sampling.samples {
            let constraint: Option<Box<dyn Constraint>> = constraints.next();
            let seed = match sampling.seed {
                Some(seed) => seed.wrapping_add(sample as u64),
                None => random(),
            };
            let mut request = Request {
                settings: sampling.settings.clone(),
                adjustments: sampling.adjustments.clone(),
                seed,
                stop_ids: sampling.stop_ids.clone(),
                ignore_eos: sampling.ignore_eos,
                constraint,
                ..Request::new(prompt.to_vec(), max_new_tokens)
            };
            set(&mut request);
            asked.push(Asked {
                request,
                stop: sampling.stop.clone(),
                shown: &[],
            });
        }
    }
    Ok(asked)
}

/// Most new tokens after a prompt, never more than the context has room for.
fn new_tokens(app: &App, prompt: &[u32], sampling: &Sampling, limit: &Limit) -> ApiResult<usize> {
    let (tokens, most) = (prompt.len(), app.max_positions);
    if tokens == 0 {
        return Err(ApiError::field(limit.param, "the prompt is empty"));
    }
    let is_scored_only = sampling.max_tokens == Some(0);
    if tokens > most || (tokens == most && !is_scored_only) {
        let message = format!(
            "the prompt has {tokens} tokens, the longest context is {most}, output included; \
             shorten the prompt"
        );
        return Err(ApiError::context_length(limit.param, message));
    }
    let of_model = || {
        let settings = &sampling.settings;
        let limit = settings.new_tokens(tokens);
        limit.map_err(|e| ApiError::field("max_tokens", e.to_string()))
    };
    let wanted = match sampling.max_tokens {
        Some(wanted) => Some(wanted),
        None => of_model()?.or(limit.default),
    };
    // The last token needs no place of its own.
    Ok(wanted.unwrap_or(usize::MAX).min(most - tokens + 1))
}
