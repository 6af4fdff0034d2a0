//! What `/v1/chat/completions` and the small paths answer.

use serde_json::{Value, json};

use crate::client::{Server, fixture};
use crate::completions::generated;

const PATH: &str = "/v1/chat/completions";

fn hello() -> Value {
    json!([{"role": "user", "content": "Tell me a story."}])
}

#[test]
fn a_chat_is_what_generate_says() {
    let server = Server::start(&["--name", "tiny"]);
    let expected = generated("Tell me a story.", &["-n", "20"]);
    let body = json!({"model": "tiny", "messages": hello(), "max_completion_tokens": 20});
    let answer = server.ok(PATH, &body);
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"]["content"], expected["text"]);
    assert_eq!(choice["message"]["role"], "assistant");
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["usage"]["prompt_tokens"], expected["prompt_tokens"]);
    let parts =
        json!([{"role": "user", "content": [{"type": "text", "text": "Tell me a story."}]}]);
    let by_parts = server.ok(PATH, &json!({"messages": parts, "max_tokens": 20}));
    assert_eq!(by_parts["choices"], answer["choices"]);

    let mut body = body;
    body["stream_options"] = json!({"include_usage": true});
    let mut chunks = server.stream(PATH, &body);
    assert_eq!(chunks.pop().unwrap()["usage"], answer["usage"]);
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(chunks[0]["object"], "chat.completion.chunk");
    let contents = chunks
        .iter()
        .filter_map(|c| c["choices"][0]["delta"]["content"].as_str());
    assert_eq!(
        contents.collect::<String>(),
        expected["text"].as_str().unwrap()
    );
    let last = chunks.last().unwrap();
    assert_eq!(last["choices"][0]["delta"], json!({}));
    assert_eq!(last["choices"][0]["finish_reason"], choice["finish_reason"]);
}

#[test]
fn log_probabilities_have_tokens_and_bytes() {
    let server = Server::start(&[]);
    let body = json!({"messages": hello(), "max_tokens": 8, "logprobs": true, "top_logprobs": 2});
    let answer = server.ok(PATH, &body);
    let entries = answer["choices"][0]["logprobs"]["content"]
        .as_array()
        .unwrap();
    assert_eq!(
        entries.len() as u64,
        answer["usage"]["completion_tokens"].as_u64().unwrap()
    );
    let mut bytes = Vec::new();
    for entry in entries {
        let top = entry["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 2);
        // Greedy.
        assert_eq!(top[0]["token"], entry["token"]);
        assert_eq!(top[0]["logprob"], entry["logprob"]);
        bytes.extend(
            entry["bytes"]
                .as_array()
                .unwrap()
                .iter()
                .map(|b| b.as_u64().unwrap() as u8),
        );
    }
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
    // At the start of a text the tokenizer leaves out a space.
    assert_eq!(
        String::from_utf8(bytes).unwrap().trim_start(),
        text.trim_start()
    );
    let chunks = server.stream(PATH, &body);
    let streamed = chunks
        .iter()
        .filter_map(|c| c["choices"][0]["logprobs"]["content"].as_array());
    assert_eq!(streamed.flatten().cloned().collect::<Vec<_>>(), *entries);
}

/// The template is given the tools, in the order in which the request has their fields.
#[test]
fn tools_are_shown_by_the_models_template() {
    let dir = tempfile::TempDir::new().unwrap();
    for entry in std::fs::read_dir(fixture()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let template = "{% for tool in tools or [] %}\
                    {{ tool.function.parameters | tojson }}{% endfor %}\
                    {% for m in messages %}{{ m.role }}: {{ m.content }}\
                    {% for c in m.tool_calls or [] %}{{ c.function.arguments.city }}{% endfor %}\
                    {% endfor %}";
    std::fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
    let server = Server::of(&dir.path().to_string_lossy(), &[]);
    let tools = json!([{"type": "function", "function": {"name": "weather",
        "parameters": {"type": "object",
            "properties": {"city": {"type": "string"}, "at": {"type": "string"}}}}}]);
    let messages = json!([{"role": "user", "content": "Rain?"},
        {"role": "assistant", "tool_calls": [{"id": "1", "type": "function",
            "function": {"name": "weather", "arguments": "{\"city\": \"Oslo\"}"}}]}]);
    let text = |more: Value| {
        let mut body = json!({"messages": messages});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let tokens = server.ok("/tokenize", &body)["tokens"].clone();
        let answer = server.ok("/detokenize", &json!({"tokens": tokens}));
        answer["prompt"].as_str().unwrap().to_owned()
    };
    let shown = text(json!({"tools": tools}));
    let parameters = r#""properties": {"city": {"type": "string"}, "at": {"type": "string"}}}"#;
    assert!(shown.contains(parameters), "{shown}");
    assert!(shown.ends_with("user: Rain?assistant: NoneOslo"), "{shown}");
    let without = text(json!({"tools": tools, "tool_choice": "none"}));
    assert!(!without.contains("properties"), "{without}");
    assert_eq!(
        server
            .post(
                PATH,
                &json!({"messages": messages, "tools": tools, "max_tokens": 2})
            )
            .status,
        200
    );
}

#[test]
fn the_small_paths_answer() {
    let server = Server::start(&[]);
    let models = server.get("/v1/models").json();
    let model = &models["data"][0];
    assert_eq!(model["id"], "phi3-tiny");
    assert_eq!(model["max_model_len"], 8192);
    assert_eq!(server.get("/v1/models/phi3-tiny").json(), *model);
    assert_eq!(server.get("/v1/models/other").status, 404);
    let version = server.get("/version").json();
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(version["device"], "cpu");
    assert!(version["commit"].is_string() && version.get("gpu").is_none());
    let health = server.get("/health");
    assert_eq!((health.status, health.body.len()), (200, 0));

    let ids = server.ok("/tokenize", &json!({"prompt": "Once upon a time"}));
    assert_eq!(
        ids["count"].as_u64(),
        ids["tokens"].as_array().map(|t| t.len() as u64)
    );
    let text = server.ok("/detokenize", &json!({"tokens": ids["tokens"]}));
    assert_eq!(text["prompt"], "Once upon a time");
    let chat = server.ok("/tokenize", &json!({"messages": hello()}));
    let closed = json!({"messages": hello(), "add_generation_prompt": false});
    let closed = server.ok("/tokenize", &closed);
    assert_ne!(chat["tokens"], closed["tokens"]);

    let before = server.metric("vllm:generation_tokens_total", "");
    server.ok(
        "/v1/completions",
        &json!({"prompt": "a", "max_tokens": 5, "ignore_eos": true}),
    );
    assert_eq!(
        server.metric("vllm:generation_tokens_total", "") - before,
        5.0
    );
    assert_eq!(server.metric("vllm:request_success_total", "length"), 1.0);
    assert_eq!(
        server.metric("vllm:time_to_first_token_seconds_count", ""),
        1.0
    );
    assert_eq!(
        server.metric("vllm:inter_token_latency_seconds_count", ""),
        4.0
    );
    assert_eq!(
        server.metric("vllm:e2e_request_latency_seconds_count", ""),
        1.0
    );
    assert_eq!(server.metric("vllm:request_prompt_tokens_count", ""), 1.0);
    let text = server.get("/metrics").text();
    for name in [
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "vllm:prefix_cache_hits_total",
        "vllm:num_preemptions_total",
        "vllm:prompt_tokens_total",
    ] {
        assert!(text.contains(&format!("\n{name}{{")), "{name}: {text}");
    }
}
