//! Responses as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, Response, header};
use futures_util::stream;
use serde_json::Value;

use super::answer::{Answer, Part};
use super::error::{ApiError, ApiResult};
use super::fields::Fields;

/// How one kind of completion writes the parts of its texts.
pub(super) trait Format: Send + 'static {
    /// Chunks of a part.
    fn part(&mut self, part: Part) -> Vec<Value>;

    /// A chunk without choices.
    fn empty(&self) -> Value;

    /// `usage`: the tokens so far.
    fn usage(&self, answer: &Answer) -> Value;
}

/// What `stream` and `stream_options` of a request ask for.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Streaming {
    pub(super) is_on: bool,
    usage: Usage,
}

/// Which chunks count tokens.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
enum Usage {
    #[default]
    None,
    /// One more at the end does; the others have null.
    Last,
    /// All, as vLLM has it.
    Each,
}

impl Streaming {
    pub(super) fn take(fields: &mut Fields) -> ApiResult<Self> {
        let is_on = fields.flag("stream")?.unwrap_or(false);
        let mut usage = Usage::None;
        if let Some(mut options) = fields.object("stream_options")? {
            if !is_on {
                let message = "stream_options is given without stream";
                return Err(ApiError::field("stream_options", message));
            }
            let include = options.flag("include_usage")?.unwrap_or(false);
            let each = options.flag("continuous_usage_stats")?.unwrap_or(false);
            usage = match (include, each) {
                (true, true) => Usage::Each,
                (true, false) => Usage::Last,
                (false, _) => Usage::None,
            };
            // Padding against eavesdroppers, which chunks here do not have.
            options.ignore(&["include_obfuscation"]);
            options.finish()?;
        }
        Ok(Self { is_on, usage })
    }
}

struct Events<F> {
    answer: Answer,
    format: F,
    usage: Usage,
    queued: VecDeque<Value>,
    stage: Stage,
}

enum Stage {
    Parts,
    Done,
    Ended,
}

/// The response to a request with `stream`.
pub(super) fn stream_response<F: Format>(
    answer: Answer,
    format: F,
    streaming: Streaming,
) -> Response<Body> {
    let events = Events {
        answer,
        format,
        usage: streaming.usage,
        queued: VecDeque::new(),
        stage: Stage::Parts,
    };
    let body = stream::unfold(events, |mut events| async {
        let piece = events.next().await?;
        Some((Ok::<_, Infallible>(piece), events))
    });
    let mut response = Response::new(Body::from_stream(body));
    let headers = response.headers_mut();
    let kind = HeaderValue::from_static("text/event-stream");
    headers.insert(header::CONTENT_TYPE, kind);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

impl<F: Format> Events<F> {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(value) = self.queued.pop_front() {
                return Some(event(&value.to_string()));
            }
            match self.stage {
                Stage::Parts => match self.answer.next().await {
                    Ok(Some(part)) => {
                        let mut chunks = self.format.part(part);
                        for chunk in &mut chunks {
                            match self.usage {
                                Usage::None => {}
                                Usage::Last => chunk["usage"] = Value::Null,
                                Usage::Each => chunk["usage"] = self.format.usage(&self.answer),
                            }
                        }
                        self.queued.extend(chunks);
                    }
                    Ok(None) => {
                        if self.usage != Usage::None {
                            let mut chunk = self.format.empty();
                            chunk["usage"] = self.format.usage(&self.answer);
                            self.queued.push_back(chunk);
                        }
                        self.stage = Stage::Done;
                    }
                    // The status has been sent: only the stream can say so.
                    Err(error) => {
                        self.queued.push_back(error.body());
                        self.stage = Stage::Ended;
                    }
                },
                Stage::Done => {
                    self.stage = Stage::Ended;
                    return Some(event("[DONE]"));
                }
                Stage::Ended => return None,
            }
        }
    }
}

fn event(data: &str) -> Bytes {
    Bytes::from(format!("data: {data}\n\n"))
}
