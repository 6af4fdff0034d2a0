//! The client's side of OpenAI's API: the models of a server, and one streamed completion.

use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use axum::http::{HeaderValue, Request, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::Deserialize;
use serde_json::{Value, json};

use super::prompts::Ask;
use super::sse::Events;

/// How long a server may take to answer what takes no computing.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// How much of a refusal is shown.
const SHOWN_CHARS: usize = 300;

/// Where a server is: the URL without `/v1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address(String);

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let uri: Uri = text.parse().map_err(|e| format!("is not a URL: {e}"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                return Err(
                    "https is not spoken here; put a proxy that ends TLS before the \
                            server, such as `socat` or `stunnel`, and give its http:// URL"
                        .into(),
                );
            }
            Some(_) | None => return Err("expected http://HOST:PORT".into()),
        }
        let text = text.trim_end_matches('/');
        Ok(Self(text.strip_suffix("/v1").unwrap_or(text).to_owned()))
    }
}

/// A client of one server; connections are kept and used again.
pub(crate) struct Client {
    address: Address,
    model: Option<String>,
    authorization: Option<HeaderValue>,
    http: hyper_util::client::legacy::Client<HttpConnector, Full<Bytes>>,
}

/// One request, as its client saw it.
#[derive(Debug, Clone)]
pub(super) struct Outcome {
    /// Time from the request to the first token.
    pub(super) ttft: Duration,
    /// Time from the request to the last token.
    pub(super) latency: Duration,
    /// Between tokens that came one after another.
    pub(super) gaps: Vec<Duration>,
    pub(super) input_tokens: usize,
    pub(super) output_tokens: usize,
}

/// What a chunk of the stream has that counts here.
#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    /// Its text does not matter: a token may complete no character.
    #[serde(rename = "text")]
    _text: String,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
}

impl Client {
    /// `key` is sent as a bearer token.
    pub(crate) fn new(
        address: Address,
        model: Option<String>,
        key: Option<&str>,
    ) -> anyhow::Result<Self> {
        let authorization = key.map(|key| -> anyhow::Result<HeaderValue> {
            let mut value = HeaderValue::from_str(&format!("Bearer {key}"))
                .context("the API key has characters that a header cannot have")?;
            value.set_sensitive(true);
            Ok(value)
        });
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .build(connector);
        Ok(Self {
            address,
            model,
            authorization: authorization.transpose()?,
            http,
        })
    }

    pub(crate) fn url(&self) -> String {
        self.address.0.clone()
    }

    fn request(&self, path: &str) -> hyper::http::request::Builder {
        let mut builder = Request::builder().uri(format!("{}{path}", self.address.0));
        if let Some(value) = &self.authorization {
            builder = builder.header(header::AUTHORIZATION, value.clone());
        }
        builder
    }

    /// The model to ask for: the one given, or the first that the server names.
    ///
    /// # Errors
    /// If the server does not answer, or names none.
    pub(super) async fn model(&self) -> anyhow::Result<String> {
        if let Some(model) = &self.model {
            return Ok(model.clone());
        }
        let read = async {
            let models: Value = serde_json::from_slice(&self.get("/v1/models").await?)?;
            let name = models["data"][0]["id"].as_str().map(str::to_owned);
            name.context("names no model; give --model")
        };
        let answered = read.await;
        answered.with_context(|| format!("cannot read {}/v1/models", self.address.0))
    }

    /// The body of a path that is read.
    ///
    /// # Errors
    /// If it is not answered with success within 30 seconds.
    pub(super) async fn get(&self, path: &str) -> anyhow::Result<Bytes> {
        let ask = async {
            let request = self.request(path).body(Full::default())?;
            let response = self.http.request(request).await?;
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            if !status.is_success() {
                bail!("answered {status}: {}", shown(&body));
            }
            Ok(body)
        };
        let answered = tokio::time::timeout(READ_TIMEOUT, ask).await;
        answered.unwrap_or_else(|_| bail!("does not answer within 30 seconds"))
    }

    /// Sends one request and reads its answer to the end.
    ///
    /// # Errors
    /// If it is refused, cut off or not answered within `timeout`.
    pub(super) async fn complete(
        &self,
        model: &str,
        ask: &Ask,
        ignore_eos: bool,
        timeout: Duration,
    ) -> anyhow::Result<Outcome> {
        let mut body = json!({
            "model": model,
            "prompt": ask.prompt,
            "max_tokens": ask.output_tokens,
            "temperature": 0.0,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        if ignore_eos {
            body["ignore_eos"] = true.into();
        }
        let request = self
            .request("/v1/completions")
            .method("POST")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::from(serde_json::to_vec(&body)?))?;
        let work = async {
            let start = Instant::now();
            let response = self.http.request(request).await?;
            let status = response.status();
            if !status.is_success() {
                let body = response.into_body().collect().await?.to_bytes();
                bail!("answered {status}: {}", shown(&body));
            }
            read(response.into_body(), start).await
        };
        match tokio::time::timeout(timeout, work).await {
            Ok(outcome) => outcome,
            Err(_) => bail!("not answered within {:?}", timeout),
        }
    }
}

/// Reads a stream to its `[DONE]`.
async fn read(mut body: Incoming, start: Instant) -> anyhow::Result<Outcome> {
    let mut events = Events::default();
    let mut first = None;
    let mut last = start;
    let mut gaps = Vec::new();
    let mut usage = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.context("the stream was cut off")?;
        let Some(piece) = frame.data_ref() else {
            continue;
        };
        let now = Instant::now();
        for event in events.push(piece) {
            if event == b"[DONE]" {
                // The connection can be used again once the body has ended.
                while let Some(frame) = body.frame().await {
                    frame?;
                }
                let first = first.context("the stream has no token")?;
                let counted = usage.unwrap_or(Usage {
                    prompt_tokens: 0,
                    completion_tokens: gaps.len() + 1,
                });
                return Ok(Outcome {
                    ttft: first,
                    latency: last - start,
                    gaps,
                    input_tokens: counted.prompt_tokens,
                    output_tokens: counted.completion_tokens,
                });
            }
            let chunk: Chunk = serde_json::from_slice(&event)
                .with_context(|| format!("not a chunk of a completion: {}", shown(&event)))?;
            if let Some(error) = chunk.error {
                bail!("the stream ends with an error: {error}");
            }
            if !chunk.choices.is_empty() {
                match first {
                    None => first = Some(now - start),
                    Some(_) => gaps.push(now - last),
                }
                last = now;
            }
            usage = chunk.usage.or(usage);
        }
    }
    bail!("the stream ended without [DONE]")
}

fn shown(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    text.chars().take(SHOWN_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::Address;

    #[test]
    fn an_address_is_with_or_without_v1() {
        let parsed = |text: &str| text.parse::<Address>().map(|a| a.0);
        for text in [
            "http://a:1",
            "http://a:1/",
            "http://a:1/v1",
            "http://a:1/v1/",
        ] {
            assert_eq!(parsed(text).unwrap(), "http://a:1");
        }
        assert_eq!(parsed("http://a/b/v1").unwrap(), "http://a/b");
        assert!(parsed("https://a").unwrap_err().contains("TLS"));
        assert!(parsed("a:1").is_err());
    }
}
