//! What the server does not take, and what it says then.

use serde_json::{Value, json};

use crate::client::{Reply, Server, long, write_request};

const PATH: &str = "/v1/completions";

#[test]
fn a_full_server_says_when_to_try_again() {
    let server = Server::start(&[
        "--max-requests",
        "1",
        "--max-queue",
        "4",
        "--kv-tokens",
        "8192",
    ]);
    let running = server.begun(&long(4000));
    let reply = server.post(PATH, &long(1));
    assert_eq!(reply.status, 429, "{}", reply.text());
    assert!(reply.head.contains("retry-after: 1"), "{}", reply.head);
    assert_eq!(reply.error()["code"], "rate_limit_exceeded");
    drop(running);
    server.wait_for("smq:http_requests_in_flight", "", 0.0);
    server.ok(PATH, &long(1));
    // More texts than the queue can ever hold are not worth another try.
    let body = json!({"prompt": "a", "n": 5});
    assert_eq!(server.post(PATH, &body).status, 400);
}

#[test]
fn a_full_queue_is_refused() {
    let server = Server::start(&["--max-queue", "2", "--max-sequences", "1"]);
    let running = server.begun(&long(4000));
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let mut socket = server.connect();
            let body = long(1).to_string();
            write_request(&mut socket, "POST", PATH, &[], body.as_bytes());
            socket
        })
        .collect();
    server.wait_for("vllm:num_requests_waiting", "", 2.0);
    let reply = server.post(PATH, &long(1));
    assert_eq!(reply.status, 503, "{}", reply.text());
    assert!(reply.head.contains("retry-after: 1"), "{}", reply.head);
    drop(running);
    for socket in waiting {
        assert_eq!(Reply::read(socket).status, 200);
    }
}

#[test]
fn a_prompt_may_fill_the_cache_and_the_context_and_no_more() {
    let ids = |count: usize| -> Vec<usize> { (0..count).map(|i| 20 + i % 900).collect() };
    let server = Server::start(&["--kv-tokens", "320", "--context", "8000"]);
    for (prompt, tokens, status) in [(320, 1, 200), (321, 1, 400), (300, 21, 200)] {
        let body = json!({"prompt": ids(prompt), "max_tokens": tokens, "ignore_eos": true});
        let reply = server.post(PATH, &body);
        assert_eq!(reply.status, status, "{prompt}: {}", reply.text());
    }
    let server = Server::start(&["--context", "200"]);
    let body = json!({"prompt": ids(199), "max_tokens": 50, "ignore_eos": true});
    let answer = server.ok(PATH, &body);
    // One has a place in the context, and one follows the last place.
    assert_eq!(answer["usage"]["completion_tokens"], 2);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    let body = json!({"prompt": ids(200), "max_tokens": 0, "echo": true, "logprobs": 0});
    server.ok(PATH, &body);
    for body in [
        json!({"prompt": ids(200), "max_tokens": 1}),
        json!({"prompt": ids(201), "max_tokens": 0, "echo": true}),
    ] {
        let reply = server.post(PATH, &body);
        assert_eq!(reply.status, 400, "{}", reply.text());
        assert_eq!(reply.error()["code"], "context_length_exceeded");
    }
}

#[test]
fn bodies_and_heads_have_a_limit() {
    let server = Server::start(&["--max-body-bytes", "1000"]);
    let body = |bytes: usize| {
        let mut body = json!({"prompt": "Hi", "max_tokens": 1, "user": ""});
        body["user"] = "x".repeat(bytes - body.to_string().len()).into();
        body.to_string().into_bytes()
    };
    assert_eq!(server.send("POST", PATH, &[], &body(1000)).status, 200);
    let reply = server.send("POST", PATH, &[], &body(1001));
    assert_eq!(reply.status, 413, "{}", reply.text());
    reply.error();
    // Without a length that says so.
    let mut socket = server.connect();
    let mut text = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
        Transfer-Encoding: chunked\r\n\r\n"
        .to_vec();
    text.extend(
        b"300\r\n"
            .iter()
            .chain([b'x'; 0x300].iter())
            .chain(b"\r\n")
            .cycle()
            .take(9000),
    );
    let _ = std::io::Write::write_all(&mut socket, &text);
    assert_eq!(Reply::read(socket).status, 413);

    let many: Vec<String> = (0..200).map(|i| format!("X-{i}: y")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let large = format!("X: {}", "y".repeat(100_000));
    for headers in [&many[..], &[&large]] {
        let reply = server.send("POST", PATH, headers, b"{}");
        assert_eq!(reply.status, 431);
    }
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn an_answer_that_takes_too_long_ends() {
    let server = Server::start(&["--request-timeout", "1"]);
    let reply = server.post(PATH, &long(8000));
    assert_eq!(reply.status, 504, "{}", reply.text());
    assert!(
        reply.head.contains("x-should-retry: false"),
        "{}",
        reply.head
    );
    // A stream has begun, and says so at its end.
    let socket = server.begun(&long(8000));
    let text = {
        let mut socket = socket;
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut socket, &mut bytes).unwrap();
        String::from_utf8(bytes).unwrap()
    };
    let last = text.rsplit("data: ").next().unwrap();
    let json = last.split("\n\n").next().unwrap();
    let error: Value = serde_json::from_str(json).unwrap();
    assert!(
        error["error"]["message"]
            .as_str()
            .unwrap()
            .contains("--request-timeout"),
        "{error}"
    );
    assert!(!text.contains("[DONE]"));
    server.wait_for("vllm:num_requests_running", "", 0.0);
    assert_eq!(server.metric("vllm:kv_cache_usage_perc", ""), 0.0);
}

#[test]
fn a_key_is_asked_for() {
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("keys");
    std::fs::write(&path, "secret\n").unwrap();
    let server = Server::start(&["--api-key-file", &path.to_string_lossy()]);
    let body = long(1).to_string();
    let with = |headers: &[&str]| server.send("POST", PATH, headers, body.as_bytes());
    assert_eq!(with(&["Authorization: Bearer secret"]).status, 200);
    for headers in [&[][..], &["Authorization: Bearer wrong"]] {
        let reply = with(headers);
        assert_eq!(reply.status, 401);
        assert_eq!(reply.error()["code"], "invalid_api_key");
    }
    for path in ["/v1/models", "/v1/models/phi3-tiny"] {
        assert_eq!(server.get(path).status, 401);
    }
    for path in ["/tokenize", "/detokenize", "/v1/chat/completions"] {
        assert_eq!(server.post(path, &json!({})).status, 401);
    }
    // What says nothing about anybody's texts is open to monitors.
    assert_eq!(server.get("/health").status, 200);
    assert_eq!(server.get("/metrics").status, 200);
}
