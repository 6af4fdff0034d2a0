//! Answers `/v1/chat/completions`.

use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::http::{Response, StatusCode};
use serde_json::{Map, Value, json};
use smq_engine::serve::LogProbs;
use smq_model::Conversation;

use super::answer::{Answer, Part};
use super::completions::{counts, number};
use super::error::{ApiError, ApiResult, json_response};
use super::fields::Fields;
use super::grammar::Schema;
use super::limits::{Place, check_queue};
use super::messages::{messages, tools};
use super::prompt::{Limit, requests};
use super::sampling::{MOST_LOG_PROBS, Sampling};
use super::state::{App, blocking, now};
use super::stream::{Format, Streaming, stream_response};
use super::tool_calls::{self, Call, Parser};
use super::vocabulary::Vocabulary;

/// A request whose fields have been taken.
struct Chat {
    messages: Vec<Map<String, Value>>,
    tools: Option<Vec<Value>>,
    sampling: Sampling,
    streaming: Streaming,
    log_probs: Option<usize>,
    schema: Option<Schema>,
}

/// Answers a request, whole or as a stream.
pub(super) async fn answer(
    app: &'static App,
    body: Bytes,
    place: Place,
) -> ApiResult<Response<Body>> {
    let arrived = Instant::now();
    let prepare = move || {
        let mut chat = read(app, &body)?;
        let ids = encode(app, &chat.messages, chat.tools.as_deref(), true)?;
        let limit = Limit {
            param: "messages",
            default: None,
        };
        let schema = chat.schema.take();
        // An answer that keeps to a schema is no call, whatever it looks like.
        let calls = app.tool_calls.as_ref();
        let calls = calls.filter(|_| chat.tools.is_some() && schema.is_none());
        let log_probs = chat.log_probs;
        let set = |request: &mut smq_engine::serve::Request| request.log_probs = log_probs;
        let mut asked = requests(app, &[&ids], &chat.sampling, &limit, schema, set)?;
        for one in &mut asked {
            one.shown = calls.map_or(&[], |format| &format.shown);
        }
        Ok((chat, asked, ids.len(), calls))
    };
    let (chat, asked, prompt_tokens, calls) = blocking(prepare).await?;
    check_queue(app, asked.len())?;
    let samples = asked.len();
    let answer = Answer::begin(app, asked, arrived, place).await?;
    let writer = Writer {
        app,
        id: app.id("chatcmpl"),
        created: now(),
        wants_log_probs: chat.log_probs.is_some(),
        prompt_tokens,
        samples: (0..samples).map(|_| Sample::new(calls)).collect(),
    };
    match chat.streaming.is_on {
        true => Ok(stream_response(answer, writer, chat.streaming)),
        false => whole(answer, writer).await,
    }
}

fn read(app: &App, body: &[u8]) -> ApiResult<Chat> {
    let mut fields = Fields::parse(body)?;
    app.take_model(&mut fields)?;
    let mut sampling = Sampling::take(&mut fields, &app.settings, app.vocab)?;
    let old = fields.count("max_tokens", 1..=u32::MAX)?;
    let new = fields.count("max_completion_tokens", 1..=u32::MAX)?;
    sampling.max_tokens = new.or(old);
    let streaming = Streaming::take(&mut fields)?;
    let wants_log_probs = fields.flag("logprobs")?.unwrap_or(false);
    let top = fields.count("top_logprobs", 0..=MOST_LOG_PROBS)?;
    if top.is_some_and(|top| top > 0) && !wants_log_probs {
        let message = "top_logprobs is given without logprobs; set logprobs to true";
        return Err(ApiError::field("top_logprobs", message));
    }
    let schema = Schema::take(&mut fields)?;
    let tools = tools(app, &mut fields)?;
    let messages = messages(&mut fields)?;
    let text = json!(["text"]);
    fields.only("modalities", &[text], "answers are text")?;
    fields.only("store", &[json!(false)], "nothing is stored")?;
    let tier = [json!("auto"), json!("default")];
    fields.only("service_tier", &tier, "there is one tier")?;
    // They say nothing about the answer.
    fields.ignore(&["user", "metadata", "safety_identifier", "prompt_cache_key"]);
    fields.finish()?;
    Ok(Chat {
        messages,
        tools,
        sampling,
        streaming,
        log_probs: wants_log_probs.then(|| top.unwrap_or(0)),
        schema,
    })
}

/// Ids of a conversation by the model's own template.
pub(super) fn encode(
    app: &App,
    messages: &[Map<String, Value>],
    tools: Option<&[Value]>,
    add_generation_prompt: bool,
) -> ApiResult<Vec<u32>> {
    if app.tokenizer.chat().is_none() {
        let message = "the model has no chat template; use /v1/completions";
        return Err(ApiError::field("messages", message));
    }
    let conversation = Conversation {
        messages,
        tools,
        add_generation_prompt,
    };
    let ids = app.tokenizer.encode_conversation(&conversation);
    ids.map_err(|e| ApiError::field("messages", e.to_string()))
}

/// Writes a sample's text as a choice of the answer or of a chunk.
struct Writer {
    app: &'static App,
    id: String,
    created: u64,
    wants_log_probs: bool,
    prompt_tokens: usize,
    samples: Vec<Sample>,
}

/// What has been written of a sample.
struct Sample {
    /// Whether its role has been said.
    begun: bool,
    /// Where it may have calls.
    parser: Option<Parser>,
    calls: usize,
}

/// What a part adds to a sample.
struct Added {
    text: String,
    calls: Vec<Call>,
    finish: Option<&'static str>,
}

impl Sample {
    fn new(format: Option<&tool_calls::Format>) -> Self {
        Self {
            begun: false,
            parser: format.map(tool_calls::Format::parser),
            calls: 0,
        }
    }

    /// Takes the calls out of a part's text.
    fn add(&mut self, part: &Part) -> Added {
        let mut added = Added {
            text: part.text.clone(),
            calls: Vec::new(),
            finish: part.finish,
        };
        let Some(parser) = &mut self.parser else {
            return added;
        };
        (added.text, added.calls) = parser.push(&part.text);
        if part.finish.is_some() {
            let (text, calls) = parser.finish();
            added.text += &text;
            added.calls.extend(calls);
        }
        self.calls += added.calls.len();
        if self.calls > 0 && added.finish == Some("stop") {
            added.finish = Some("tool_calls");
        }
        added
    }
}

/// A token's entry of `logprobs`.
fn entry(vocabulary: &Vocabulary, id: u32, probs: &LogProbs) -> Value {
    let one = |id: u32, log_prob: f32| {
        json!({
            "token": vocabulary.text(id),
            "logprob": number(log_prob),
            "bytes": vocabulary.bytes(id),
        })
    };
    let mut entry = one(id, probs.log_prob);
    let top = probs.top.iter().map(|(id, log_prob)| one(*id, *log_prob));
    entry["top_logprobs"] = top.collect();
    entry
}

impl Writer {
    fn object(&self, kind: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.app.name,
            "choices": choices,
        })
    }

    fn entry(&self, part: &Part) -> Option<Value> {
        let (id, probs) = part.token.as_ref().filter(|_| self.wants_log_probs)?;
        Some(entry(&self.app.vocabulary, *id, probs.as_ref()?))
    }

    fn chunk(&self, choices: Vec<Value>) -> Value {
        self.object("chat.completion.chunk", choices)
    }
}

impl Format for Writer {
    fn part(&mut self, part: Part) -> Vec<Value> {
        let sample = &mut self.samples[part.index];
        let is_first = !std::mem::replace(&mut sample.begun, true);
        let (may_call, before) = (sample.parser.is_some(), sample.calls);
        let added = sample.add(&part);
        let choice = |delta: Value, log_probs: Option<Value>, finish: Option<&str>| {
            json!({
                "index": part.index,
                "delta": delta,
                "logprobs": log_probs.map(|entry| json!({"content": [entry]})),
                "finish_reason": finish,
            })
        };
        let mut chunks = Vec::new();
        if is_first {
            let role = json!({"role": "assistant", "content": ""});
            chunks.push(self.chunk(vec![choice(role, None, None)]));
        }
        let entry = self.entry(&part);
        // A token whose text is held back, as what may be a call, has no chunk.
        let shows = part.token.is_some() && !may_call;
        if shows || entry.is_some() || !added.text.is_empty() {
            let delta = json!({"content": added.text});
            chunks.push(self.chunk(vec![choice(delta, entry, None)]));
        }
        for (index, call) in added.calls.iter().enumerate() {
            let delta = json!({"tool_calls": [call.delta(before + index)]});
            chunks.push(self.chunk(vec![choice(delta, None, None)]));
        }
        if added.finish.is_some() {
            chunks.push(self.chunk(vec![choice(json!({}), None, added.finish)]));
        }
        chunks
    }

    fn empty(&self) -> Value {
        self.chunk(Vec::new())
    }

    fn usage(&self, answer: &Answer) -> Value {
        counts(self.prompt_tokens, answer)
    }
}

async fn whole(mut answer: Answer, mut writer: Writer) -> ApiResult<Response<Body>> {
    #[derive(Default)]
    struct Choice {
        text: String,
        entries: Vec<Value>,
        calls: Vec<Call>,
        finish: Option<&'static str>,
    }
    let count = writer.samples.len();
    let mut choices: Vec<Choice> = std::iter::repeat_with(Choice::default)
        .take(count)
        .collect();
    while let Some(part) = answer.next().await? {
        let choice = &mut choices[part.index];
        choice.entries.extend(writer.entry(&part));
        let added = writer.samples[part.index].add(&part);
        choice.text.push_str(&added.text);
        choice.calls.extend(added.calls);
        choice.finish = added.finish;
    }
    let choice = |(index, choice): (usize, Choice)| {
        let mut message = json!({"role": "assistant", "content": choice.text, "refusal": null});
        if !choice.calls.is_empty() {
            if choice.text.is_empty() {
                message["content"] = Value::Null;
            }
            message["tool_calls"] = choice.calls.iter().map(Call::value).collect();
        }
        json!({
            "index": index,
            "message": message,
            "logprobs": writer.wants_log_probs.then(|| json!({"content": choice.entries})),
            "finish_reason": choice.finish,
        })
    };
    let choices = choices.into_iter().enumerate().map(choice).collect();
    let mut object = writer.object("chat.completion", choices);
    object["usage"] = writer.usage(&answer);
    Ok(json_response(StatusCode::OK, &object))
}
