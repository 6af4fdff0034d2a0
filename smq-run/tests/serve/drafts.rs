//! A server that guesses tokens answers as one that does not.

use std::thread;

use serde_json::{Value, json};

use crate::client::{Server, fixture};

/// A text that repeats itself, and more of it than its own beginning.
const PROMPT: &str = "The king said: come in. The king said: come in. The king said:";

/// Requests of every kind, greedy and drawn.
fn requests() -> Vec<(&'static str, Value)> {
    let completions = "/v1/completions";
    let chat = "/v1/chat/completions";
    let messages = json!([{"role": "user", "content": PROMPT}]);
    let schema = json!({"type": "object", "properties": {"name": {"type": "string", "maxLength": 20},
        "again": {"type": "string", "maxLength": 20}}, "required": ["name", "again"],
        "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    let mut all = Vec::new();
    for seed in 0..4 {
        let temperature = [0.0, 0.4, 0.7, 1.0][seed];
        let base = json!({"prompt": PROMPT, "max_tokens": 60, "seed": seed,
            "temperature": temperature, "ignore_eos": true});
        let with = |more: Value| {
            let mut body = base.clone();
            let (Value::Object(body_fields), Value::Object(more)) = (&mut body, more) else {
                panic!("objects");
            };
            body_fields.extend(more);
            (completions, body)
        };
        all.push(with(json!({})));
        all.push(with(json!({"logprobs": 3, "echo": true})));
        all.push(with(
            json!({"frequency_penalty": 0.4, "presence_penalty": 0.2}),
        ));
        all.push(with(json!({"repetition_penalty": 1.1, "n": 2})));
        all.push(with(json!({"stop": ["king", "the"]})));
        let body = json!({"messages": messages, "max_tokens": 60, "seed": seed,
            "temperature": temperature, "response_format": format, "logprobs": true});
        all.push((chat, body));
    }
    all
}

/// An answer without its name and time.
fn answer(server: &Server, path: &str, body: &Value) -> Value {
    let mut answer = server.ok(path, body);
    for key in ["id", "created"] {
        answer[key] = Value::Null;
    }
    // What was in the cache depends on what came before.
    answer["usage"]["prompt_tokens_details"] = Value::Null;
    answer
}

#[test]
fn answers_are_those_of_a_server_that_does_not_guess() {
    let plain = Server::start(&["--kv-tokens", "512", "--name", "tiny"]);
    let model = fixture().to_string_lossy().into_owned();
    for guessing in [
        &["--speculate", "ngram:6"][..],
        &["--draft", &model, "--draft-tokens", "3"],
    ] {
        let options = [&["--kv-tokens", "512", "--name", "tiny"], guessing].concat();
        let server = Server::start(&options);
        let requests = requests();
        // All at once, in pages that do not suffice for all.
        thread::scope(|scope| {
            for (path, body) in &requests {
                let (plain, server) = (&plain, &server);
                scope.spawn(move || {
                    let expected = answer(plain, path, body);
                    assert_eq!(answer(server, path, body), expected, "{guessing:?} {body}");
                });
            }
        });
        // How much is guessed there depends on which requests meet in a step, and so on the
        // machine's other work; of one after another it does not.
        for (path, body) in &requests {
            let expected = answer(&plain, path, body);
            assert_eq!(answer(&server, path, body), expected, "{guessing:?} {body}");
        }
        let drafts = server.metric("vllm:spec_decode_num_drafts_total", "");
        let guessed = server.metric("vllm:spec_decode_num_draft_tokens_total", "");
        let right = server.metric("vllm:spec_decode_num_accepted_tokens_total", "");
        assert!(drafts > 10.0 && guessed >= drafts, "{drafts} {guessed}");
        assert!(right > 5.0 && right <= guessed, "{right} of {guessed}");
        assert_eq!(server.metric("smq:draft_failures_total", ""), 0.0);
        assert!(server.metric("smq:draft_seconds_total", "") > 0.0);
        assert!(server.metric("smq:page_checks_total", "") > 10.0);
    }
    assert_eq!(plain.metric("vllm:spec_decode_num_drafts_total", ""), 0.0);
}
