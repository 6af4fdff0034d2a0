//! What is refused, with which status and which field to blame.

use serde_json::{Value, json};

use crate::client::Server;

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

#[test]
fn a_field_that_is_wrong_or_unknown_is_named() {
    let server = Server::start(&[]);
    let chat = |mut more: Value| {
        let messages = json!([{"role": "user", "content": "Hi"}]);
        more.as_object_mut()
            .unwrap()
            .entry("messages")
            .or_insert(messages);
        (CHAT, more)
    };
    let completion = |mut more: Value| {
        more.as_object_mut()
            .unwrap()
            .entry("prompt")
            .or_insert("Hi".into());
        (COMPLETIONS, more)
    };
    let mut cases = vec![
        (completion(json!({"model": "gpt-4"})), 404, "model"),
        (completion(json!({"suffix": "x"})), 400, "suffix"),
        (completion(json!({"best_of": 2})), 400, "best_of"),
        (
            completion(json!({"use_beam_search": true})),
            400,
            "use_beam_search",
        ),
        (completion(json!({"prompt": ""})), 400, "prompt"),
        (completion(json!({"prompt": []})), 400, "prompt"),
        (completion(json!({"prompt": {"a": 1}})), 400, "prompt"),
        (completion(json!({"prompt": ["a", 1]})), 400, "prompt"),
        (completion(json!({"prompt": [1, "a"]})), 400, "prompt"),
        (completion(json!({"prompt": [4096]})), 400, "prompt"),
        (completion(json!({"prompt": [-1]})), 400, "prompt"),
        (completion(json!({"prompt": [1.5]})), 400, "prompt"),
        (completion(json!({"prompt": [[1], []]})), 400, "prompt"),
        (completion(json!({"max_tokens": 0})), 400, "max_tokens"),
        (completion(json!({"max_tokens": -1})), 400, "max_tokens"),
        (
            completion(json!({"max_tokens": 4294967296u64})),
            400,
            "max_tokens",
        ),
        (completion(json!({"max_tokens": "many"})), 400, "max_tokens"),
        (completion(json!({"logprobs": 21})), 400, "logprobs"),
        (completion(json!({"logprobs": true})), 400, "logprobs"),
        (completion(json!({"top_p": 0.5})), 400, "top_p"),
        (completion(json!({"stream": "yes"})), 400, "stream"),
        (
            completion(json!({"stream_options": {}})),
            400,
            "stream_options",
        ),
        (
            completion(json!({"stream": true, "stream_options": {"x": 1}})),
            400,
            "stream_options.x",
        ),
        (
            completion(json!({"response_format": {"type": "xml"}})),
            400,
            "response_format.type",
        ),
        (
            completion(json!({"response_format": {"type": "json_object"}, "ignore_eos": true})),
            400,
            "response_format",
        ),
        (chat(json!({"messages": []})), 400, "messages"),
        (chat(json!({"messages": "Hi"})), 400, "messages"),
        (chat(json!({"max_tokens": 0})), 400, "max_tokens"),
        (chat(json!({"top_logprobs": 2})), 400, "top_logprobs"),
        (chat(json!({"logprobs": 2})), 400, "logprobs"),
        (chat(json!({"echo": true})), 400, "echo"),
        (chat(json!({"tool_choice": "required"})), 400, "tool_choice"),
        (chat(json!({"functions": []})), 400, "functions"),
        (
            chat(json!({"tools": [{"type": "function", "function": {"name": "f"}}]})),
            400,
            "tools",
        ),
        (
            chat(json!({"tools": [{"type": "retrieval"}]})),
            400,
            "tools",
        ),
        (
            chat(json!({"reasoning_effort": "high"})),
            400,
            "reasoning_effort",
        ),
        (chat(json!({"modalities": ["audio"]})), 400, "modalities"),
        (chat(json!({"store": true})), 400, "store"),
    ];
    // Each field of sampling at its limits and beyond.
    for (name, least, most, below, above) in [
        ("temperature", json!(0), json!(2), json!(-0.01), json!(2.01)),
        (
            "presence_penalty",
            json!(-2),
            json!(2),
            json!(-2.5),
            json!(2.5),
        ),
        (
            "frequency_penalty",
            json!(-2),
            json!(2),
            json!(-1e300),
            json!(1e300),
        ),
        (
            "repetition_penalty",
            json!(0.01),
            json!(100),
            json!(0),
            json!(101),
        ),
        ("n", json!(1), json!(3), json!(0), json!(129)),
        (
            "min_tokens",
            json!(0),
            json!(4294967295u64),
            json!(-1),
            json!(4294967296u64),
        ),
        (
            "seed",
            json!(i64::MIN),
            json!(i64::MAX),
            json!(-1e30),
            json!(u64::MAX),
        ),
    ] {
        for good in [least, most] {
            let body = json!({"prompt": "Hi", "max_tokens": 2, name: good});
            server.ok(COMPLETIONS, &body);
        }
        for bad in [below, above] {
            cases.push((completion(json!({name: bad})), 400, name));
        }
    }
    for ((path, body), status, param) in cases {
        let reply = server.post(path, &body);
        assert_eq!(reply.status, status, "{body}: {}", reply.text());
        let error = reply.error();
        assert_eq!(error["param"], param, "{body}: {error}");
        assert_eq!(error["type"], "invalid_request_error");
    }
    // Null is as good as absent, and what says nothing about the answer is taken.
    let body = json!({"prompt": "Hi", "max_tokens": 1, "stop": null, "user": "me", "suffix": null});
    server.ok(COMPLETIONS, &body);
    let (_, body) = chat(
        json!({"max_tokens": 1, "metadata": {"a": "b"}, "store": false,
        "service_tier": "auto", "response_format": {"type": "text"}, "tool_choice": "none"}),
    );
    server.ok(CHAT, &body);
    // The most that can be asked for ends with the context, not with the server.
    let body = json!({"prompt": "Hi", "max_tokens": 4294967295u32,
        "stop_token_ids": (0..1024).collect::<Vec<u32>>(),
        "logit_bias": {"5": 100}});
    server.ok(COMPLETIONS, &body);
    // All of it was counted, and nothing is left behind.
    assert!(server.metric("smq:http_requests_refused_total", "400") > 50.0);
    server.wait_for("smq:http_requests_in_flight", "", 0.0);
    server.wait_for("vllm:num_requests_running", "", 0.0);
}

#[test]
fn a_body_that_is_no_request_is_refused() {
    let server = Server::start(&[]);
    let deep = format!("{{\"prompt\": {}1{}}}", "[".repeat(9999), "]".repeat(9999));
    let bodies: [&[u8]; 9] = [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\"text\"",
        b"{\"prompt\": \"\xff\xfe\"}",
        b"{\"prompt\": \"\\ud800\"}",
        b"{\"prompt\": \"a\", \"temperature\": NaN}",
        deep.as_bytes(),
    ];
    for path in [COMPLETIONS, CHAT, "/tokenize", "/detokenize"] {
        for body in bodies {
            let reply = server.send("POST", path, &[], body);
            assert_eq!(reply.status, 400, "{path}: {}", reply.text());
            assert!(
                reply.error()["message"].as_str().unwrap().contains("JSON"),
                "{}",
                reply.text()
            );
        }
    }
    let reply = server.get("/v1/embeddings");
    assert_eq!(reply.status, 404);
    reply.error();
    let reply = server.get(COMPLETIONS);
    assert_eq!(reply.status, 405);
    assert!(reply.error()["message"].as_str().unwrap().contains("POST"));
    assert_eq!(server.send("POST", "/health", &[], b"").status, 405);
}
