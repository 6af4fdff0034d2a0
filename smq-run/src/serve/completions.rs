//! Answers `/v1/completions`.

use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::http::{Response, StatusCode};
use serde_json::{Map, Value, json};
use smq_engine::serve::{LogProbs, Request};

use super::answer::{Answer, Asked, Part};
use super::error::{ApiError, ApiResult, json_response};
use super::fields::Fields;
use super::grammar::Schema;
use super::limits::{Place, check_queue};
use super::prompt::{Limit, prompts, requests};
use super::sampling::{MOST_LOG_PROBS, Sampling};
use super::state::{App, blocking, now};
use super::stream::{Format, Streaming, stream_response};
use super::vocabulary::Vocabulary;

/// Tokens where neither the request nor the model limits them, as OpenAI has it.
const DEFAULT_MAX_TOKENS: usize = 16;

/// A request whose fields have been taken.
struct Completion {
    prompts: Vec<Prompt>,
    sampling: Sampling,
    streaming: Streaming,
    echo: bool,
    log_probs: Option<usize>,
    schema: Option<Schema>,
}

/// A prompt's tokens, and its text as `echo` gives it back.
struct Prompt {
    ids: Vec<u32>,
    text: Option<String>,
}

/// Answers a request, whole or as a stream.
pub(super) async fn answer(
    app: &'static App,
    body: Bytes,
    place: Place,
) -> ApiResult<Response<Body>> {
    let arrived = Instant::now();
    let (completion, asked) = blocking(move || {
        let mut completion = read(app, &body)?;
        let asked = ask(app, &mut completion)?;
        Ok((completion, asked))
    })
    .await?;
    check_queue(app, asked.len())?;
    let answer = Answer::begin(app, asked, arrived, place).await?;
    let writer = Writer::new(app, &completion);
    match completion.streaming.is_on {
        true => Ok(stream_response(answer, writer, completion.streaming)),
        false => whole(answer, writer).await,
    }
}

fn read(app: &App, body: &[u8]) -> ApiResult<Completion> {
    let mut fields = Fields::parse(body)?;
    app.take_model(&mut fields)?;
    let mut sampling = Sampling::take(&mut fields, &app.settings, app.vocab)?;
    sampling.max_tokens = fields.count("max_tokens", 0..=u32::MAX)?;
    let streaming = Streaming::take(&mut fields)?;
    let echo = fields.flag("echo")?.unwrap_or(false);
    let log_probs = fields.count("logprobs", 0..=MOST_LOG_PROBS)?;
    let schema = Schema::take(&mut fields)?;
    let special = fields.flag("add_special_tokens")?.unwrap_or(true);
    let prompt = fields.take("prompt");
    fields.only("suffix", &[json!("")], "text is continued, not filled in")?;
    fields.ignore(&["user"]);
    fields.finish()?;
    let prompt = prompt.ok_or_else(|| ApiError::field("prompt", "the request has no prompt"))?;
    if sampling.max_tokens == Some(0) && !echo {
        let message = "max_tokens is 0, which leaves nothing to answer; add echo to have the \
                       prompt back";
        return Err(ApiError::field("max_tokens", message));
    }
    let prompts = prompts(app, prompt, special, echo)?;
    let prompts = prompts.into_iter().map(|(ids, text)| Prompt { ids, text });
    Ok(Completion {
        prompts: prompts.collect(),
        sampling,
        streaming,
        echo,
        log_probs,
        schema,
    })
}

fn ask(app: &App, completion: &mut Completion) -> ApiResult<Vec<Asked>> {
    let ids: Vec<&[u32]> = completion.prompts.iter().map(|p| &p.ids[..]).collect();
    let limit = Limit {
        param: "prompt",
        default: Some(DEFAULT_MAX_TOKENS),
    };
    let schema = completion.schema.take();
    let (log_probs, echo) = (completion.log_probs, completion.echo);
    let set = |request: &mut Request| {
        request.log_probs = log_probs;
        request.prompt_log_probs = log_probs.filter(|_| echo);
    };
    requests(app, &ids, &completion.sampling, &limit, schema, set)
}

/// Log-probabilities as completions have them: four lists of one entry a token.
#[derive(Default)]
struct LogProbLists {
    tokens: Vec<Value>,
    token_logprobs: Vec<Value>,
    top_logprobs: Vec<Value>,
    text_offset: Vec<Value>,
}

impl LogProbLists {
    /// Adds a token that begins at `offset`, in characters, and moves it on.
    fn push(
        &mut self,
        vocabulary: &Vocabulary,
        id: u32,
        probs: Option<&LogProbs>,
        offset: &mut usize,
    ) {
        let text = vocabulary.text(id);
        let length = text.chars().count();
        let top = probs.map(|probs| {
            let mut top = Map::new();
            // The token itself comes last and in place of one that looks alike, unless that is
            // more likely.
            for (id, log_prob) in &probs.top {
                top.entry(vocabulary.text(*id))
                    .or_insert_with(|| number(*log_prob));
            }
            top.entry(text.clone())
                .or_insert_with(|| number(probs.log_prob));
            Value::Object(top)
        });
        self.tokens.push(text.into());
        self.token_logprobs
            .push(probs.map_or(Value::Null, |probs| number(probs.log_prob)));
        self.top_logprobs.push(top.unwrap_or(Value::Null));
        self.text_offset.push((*offset).into());
        *offset += length;
    }

    fn extend(&mut self, more: Self) {
        self.tokens.extend(more.tokens);
        self.token_logprobs.extend(more.token_logprobs);
        self.top_logprobs.extend(more.top_logprobs);
        self.text_offset.extend(more.text_offset);
    }

    fn value(self) -> Value {
        json!({
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs,
            "text_offset": self.text_offset,
        })
    }
}

/// A log-probability with the digits that an f32 has, and no more.
pub(super) fn number(log_prob: f32) -> Value {
    let text = log_prob.to_string();
    text.parse::<f64>().map_or(Value::Null, Value::from)
}

/// Writes a sequence's text as a choice of the answer or of a chunk.
struct Writer {
    app: &'static App,
    id: String,
    created: u64,
    wants_log_probs: bool,
    samples: usize,
    prompts: Vec<Prompt>,
    echo: bool,
    /// Where the next token of each sequence begins; `None` before its first part.
    offsets: Vec<Option<usize>>,
}

impl Writer {
    fn new(app: &'static App, completion: &Completion) -> Self {
        let prompt = |prompt: &Prompt| Prompt {
            ids: prompt.ids.clone(),
            text: prompt.text.clone(),
        };
        let samples = completion.sampling.samples;
        Self {
            app,
            id: app.id("cmpl"),
            created: now(),
            wants_log_probs: completion.log_probs.is_some(),
            samples,
            prompts: completion.prompts.iter().map(prompt).collect(),
            echo: completion.echo,
            offsets: vec![None; completion.prompts.len() * samples],
        }
    }

    /// The text of a part and the log-probabilities of its tokens, those of an echoed prompt
    /// included.
    fn text(&mut self, part: &mut Part) -> (String, LogProbLists) {
        let mut text = String::new();
        let mut lists = LogProbLists::default();
        let vocabulary = &self.app.vocabulary;
        let is_first = self.offsets[part.index].is_none();
        let offset = self.offsets[part.index].get_or_insert(0);
        if is_first && self.echo {
            let prompt = &self.prompts[part.index / self.samples];
            text.push_str(prompt.text.as_deref().unwrap_or_default());
            if self.wants_log_probs {
                let mut probs = part.prompt.iter();
                for (place, id) in prompt.ids.iter().enumerate() {
                    // Nothing comes before the first token.
                    let probs = (place > 0).then(|| probs.next()).flatten();
                    lists.push(vocabulary, *id, probs, offset);
                }
            }
        }
        if self.wants_log_probs
            && let Some((id, probs)) = &part.token
        {
            lists.push(vocabulary, *id, probs.as_ref(), offset);
        }
        text.push_str(&part.text);
        (text, lists)
    }

    fn object(&self, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.app.name,
            "choices": choices,
        })
    }
}

/// What `usage` says: the tokens of the prompt and of the answer.
pub(super) fn counts(prompt: usize, answer: &Answer) -> Value {
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": answer.generated_tokens,
        "total_tokens": prompt + answer.generated_tokens,
        // Several samples of a prompt find each other's.
        "prompt_tokens_details": {"cached_tokens": answer.cached_tokens.min(prompt)},
    })
}

impl Format for Writer {
    fn part(&mut self, mut part: Part) -> Vec<Value> {
        let (text, lists) = self.text(&mut part);
        let choice = json!({
            "index": part.index,
            "text": text,
            "logprobs": self.wants_log_probs.then(|| lists.value()),
            "finish_reason": part.finish,
        });
        vec![self.object(vec![choice])]
    }

    fn empty(&self) -> Value {
        self.object(Vec::new())
    }

    fn usage(&self, answer: &Answer) -> Value {
        let prompt: usize = self.prompts.iter().map(|prompt| prompt.ids.len()).sum();
        counts(prompt, answer)
    }
}

async fn whole(mut answer: Answer, mut writer: Writer) -> ApiResult<Response<Body>> {
    #[derive(Default)]
    struct Choice {
        text: String,
        lists: LogProbLists,
        finish: Option<&'static str>,
    }
    let count = writer.offsets.len();
    let mut choices: Vec<Choice> = std::iter::repeat_with(Choice::default)
        .take(count)
        .collect();
    while let Some(mut part) = answer.next().await? {
        let (text, lists) = writer.text(&mut part);
        let choice = &mut choices[part.index];
        choice.text.push_str(&text);
        choice.lists.extend(lists);
        choice.finish = part.finish;
    }
    let wants_log_probs = writer.wants_log_probs;
    let choice = |(index, choice): (usize, Choice)| {
        json!({
            "index": index,
            "text": choice.text,
            "logprobs": wants_log_probs.then(|| choice.lists.value()),
            "finish_reason": choice.finish,
        })
    };
    let mut object = writer.object(choices.into_iter().enumerate().map(choice).collect());
    object["usage"] = writer.usage(&answer);
    Ok(json_response(StatusCode::OK, &object))
}
