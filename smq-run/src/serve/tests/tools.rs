//! Calls in chats, by a model that writes what the test wants.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use http_body_util::BodyExt;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use smq_engine::KvCacheFormat;
use smq_engine::serve::{BatchEngine, Chosen, Chunk, Computed, Scheduler};
use smq_model::{GenerationSettings, ModelConfig, Source, Tokenizer};

use crate::serve::limits::{Keys, Limits};
use crate::serve::metrics::Metrics;
use crate::serve::routes::router;
use crate::serve::state::App;
use crate::serve::vocabulary::Vocabulary;
use crate::serve::worker::Worker;
use crate::serve::{Version, messages};

/// An engine that writes one text, and then its end.
struct Scripted {
    config: ModelConfig,
    script: std::vec::IntoIter<u32>,
    end: u32,
}

impl BatchEngine for Scripted {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn device(&self) -> &'static str {
        "scripted"
    }

    fn page_tokens(&self) -> usize {
        16
    }

    fn pages(&self) -> usize {
        256
    }

    fn kv_format(&self) -> KvCacheFormat {
        KvCacheFormat::F32
    }

    fn max_rows(&self) -> usize {
        1
    }

    fn step_tokens(&self) -> usize {
        512
    }

    fn draft_cost(&self) -> f64 {
        1.0
    }

    fn step(
        &mut self,
        chunks: &mut [Chunk<'_>],
    ) -> smq_engine::Result<Vec<smq_engine::Result<Computed>>> {
        let one = |chunk: &mut Chunk<'_>| {
            let chosen = chunk.choice.as_ref().map(|_| Chosen {
                token: self.script.next().unwrap_or(self.end),
                log_probs: None,
            });
            Ok(Computed {
                scores: Vec::new(),
                chosen: chosen.into_iter().collect(),
            })
        };
        Ok(chunks.iter_mut().map(one).collect())
    }
}

const MISTRAL: &str = "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}\
    {{ messages[0].content }}{{ '[TOOL_CALLS] [' }}";
const QWEN: &str = "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}\
    {{ messages[0].content }}{{ '<tool_call>\\n{\"name\": \"' }}";
const LLAMA: &str = "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}\
    {{ messages[0].content }}{{ '{\"name\": \"' + 'f' }}{{ '\"parameters\": ' }}";
const UNKNOWN: &str = "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}\
    {{ messages[0].content }}";

/// What a chat is answered with by a model of that template which writes `text`.
fn answered(template: &str, text: &str, more: &Value) -> String {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/phi3-tiny");
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture).unwrap() {
        let entry = entry.unwrap();
        let to = dir.path().join(entry.file_name());
        match std::fs::read_to_string(entry.path()) {
            // Mistral's marker is a special token.
            Ok(text) => std::fs::write(to, text.replace("</s>", "[TOOL_CALLS]")).unwrap(),
            Err(_) => drop(std::fs::copy(entry.path(), to).unwrap()),
        }
    }
    std::fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
    let source = Source::open(dir.path()).unwrap();
    let config = ModelConfig::of(&source).unwrap();
    let tokenizer = Tokenizer::load(&source).unwrap();
    let vocabulary = Vocabulary::of(&tokenizer, config.vocab).unwrap();
    let settings = GenerationSettings::of(&source).unwrap();
    let script = tokenizer.encode(text, false).unwrap();
    let engine = Scripted {
        config: config.clone(),
        script: script.into_iter(),
        end: settings.eos_ids[0],
    };
    let metrics = Arc::new(Metrics::new("scripted", 0).unwrap());
    let worker = Worker::start(Scheduler::new(engine).unwrap(), metrics.clone(), true).unwrap();
    let limits = Limits {
        body_bytes: 1 << 20,
        requests: 4,
        queue: 4,
        request_timeout: Duration::from_secs(60),
        write_timeout: Duration::from_secs(60),
    };
    let app = App::new(
        ("m".to_owned(), &config, settings, Version::default()),
        (tokenizer, vocabulary),
        (worker, metrics),
        (limits, Keys::default()),
    );
    let app: &'static App = Box::leak(Box::new(app));
    let mut body = json!({"messages": [{"role": "user", "content": "Rain?"}],
        "tools": [{"type": "function", "function": {"name": "weather"}}], "max_tokens": 200});
    let fields = body.as_object_mut().unwrap();
    fields.extend(more.as_object().unwrap().clone());
    let request = Request::post("/v1/chat/completions")
        .body(Body::from(body.to_string()))
        .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let service = TowerToHyperService::new(router(app));
        let response = service.call(request).await.unwrap();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(body.to_vec()).unwrap()
    })
}

fn choice(template: &str, text: &str, more: &Value) -> Value {
    let answer: Value = serde_json::from_str(&answered(template, text, more)).unwrap();
    assert!(answer["choices"].is_array(), "{answer}");
    answer["choices"][0].clone()
}

const CALL: &str = r#"{"name": "weather", "arguments": {"city": "Oslo", "at": "noon"}}"#;
const ARGUMENTS: &str = r#"{"city":"Oslo","at":"noon"}"#;

/// A template's calls: what the model writes, and how many they are.
fn written() -> [(&'static str, String, usize); 3] {
    let bare = CALL.replace("arguments", "parameters");
    [
        (
            QWEN,
            format!("<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{CALL}\n</tool_call>"),
            2,
        ),
        (MISTRAL, format!("[TOOL_CALLS] [{CALL}, {CALL}]"), 2),
        (LLAMA, bare, 1),
    ]
}

#[test]
fn calls_are_taken_out_of_the_text() {
    for (template, text, count) in written() {
        let choice = choice(template, &text, &json!({}));
        assert_eq!(choice["finish_reason"], "tool_calls", "{choice}");
        assert_eq!(choice["message"]["content"], Value::Null, "{choice}");
        let calls = choice["message"]["tool_calls"].as_array().unwrap();
        assert_eq!(calls.len(), count, "{choice}");
        for call in calls {
            assert_eq!(call["type"], "function");
            assert_eq!(call["function"]["name"], "weather");
            assert_eq!(call["function"]["arguments"], ARGUMENTS);
        }
        if count == 2 {
            assert_ne!(calls[0]["id"], calls[1]["id"]);
        }
        // What is answered can be sent back.
        let turns = json!([choice["message"], {"role": "tool", "content": "no",
            "tool_call_id": calls[0]["id"]}]);
        let body = json!({"messages": turns}).to_string();
        let mut fields = crate::serve::fields::Fields::parse(body.as_bytes()).unwrap();
        messages::messages(&mut fields).unwrap();
    }
}

#[test]
fn a_stream_has_the_same_calls() {
    for (template, text, count) in written() {
        let streamed = answered(template, &text, &json!({"stream": true}));
        let events = streamed.split_terminator("\n\n");
        let data = events.map(|event| event.strip_prefix("data: ").unwrap());
        let chunks = data.filter(|data| *data != "[DONE]");
        let choices: Vec<Value> = chunks
            .map(|data| serde_json::from_str::<Value>(data).unwrap()["choices"][0].clone())
            .collect();
        let deltas = choices.iter().map(|choice| &choice["delta"]);
        let contents = deltas.clone().filter_map(|delta| delta["content"].as_str());
        assert_eq!(contents.collect::<String>(), "", "{streamed}");
        let calls: Vec<&Value> = deltas
            .filter_map(|delta| delta["tool_calls"].as_array())
            .flatten()
            .collect();
        assert_eq!(calls.len(), count, "{streamed}");
        for (index, call) in calls.iter().enumerate() {
            assert_eq!(call["index"], index, "{streamed}");
            assert_eq!(call["function"]["arguments"], ARGUMENTS);
        }
        let last = choices.last().unwrap();
        assert_eq!(last["finish_reason"], "tool_calls", "{streamed}");
    }
}

#[test]
fn what_is_no_call_is_text() {
    let call = format!("<tool_call>\n{CALL}\n</tool_call>");
    for (template, text, more) in [
        (QWEN, "No rain < today.", json!({})),
        (QWEN, "<tool_call>\nweather\n</tool_call>", json!({})),
        (UNKNOWN, call.as_str(), json!({})),
        // Nobody asked for calls.
        (QWEN, &call, json!({"tool_choice": "none"})),
        (QWEN, &call, json!({"tools": null})),
    ] {
        let choice = choice(template, text, &more);
        assert_eq!(choice["message"]["content"], text);
        assert_eq!(choice["finish_reason"], "stop");
        assert!(choice["message"].get("tool_calls").is_none(), "{choice}");
    }
    // A text that is cut off is that first of all.
    let cut = choice(
        QWEN,
        &format!("{call} and more"),
        &json!({"max_tokens": call.len() / 4}),
    );
    assert_eq!(cut["finish_reason"], "length", "{cut}");
}

#[test]
fn a_choice_of_tools_that_is_not_served_is_refused() {
    let named = json!({"type": "function", "function": {"name": "weather"}});
    for choice in [json!("required"), named, json!(7)] {
        let answer = answered(QWEN, "", &json!({"tool_choice": choice}));
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["error"]["param"], "tool_choice", "{answer}");
    }
    let answer = answered(QWEN, "", &json!({"parallel_tool_calls": false}));
    assert!(answer.contains("parallel_tool_calls"), "{answer}");
    let auto = choice(QWEN, "Yes.", &json!({"tool_choice": "auto"}));
    assert_eq!(auto["message"]["content"], "Yes.");
}
