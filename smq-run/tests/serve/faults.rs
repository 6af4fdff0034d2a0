//! Clients that leave, that are slow, and servers that are told to end.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use serde_json::json;

use crate::client::{Server, fixture, long, write_request};

const PATH: &str = "/v1/completions";

fn is_empty(server: &Server) {
    server.wait_for("vllm:num_requests_running", "", 0.0);
    server.wait_for("vllm:num_requests_waiting", "", 0.0);
    server.wait_for("vllm:kv_cache_usage_perc", "", 0.0);
    server.wait_for("smq:http_requests_in_flight", "", 0.0);
}

#[test]
fn a_client_that_leaves_frees_its_pages() {
    let server = Server::start(&["--max-sequences", "1"]);
    // While its tokens are streamed.
    let streaming = server.begun(&long(8000));
    server.wait_for("vllm:num_requests_running", "", 1.0);
    // Queued behind it, and left while it waits.
    let mut queued = server.connect();
    let body = long(8000).to_string();
    write_request(&mut queued, "POST", PATH, &[], body.as_bytes());
    server.wait_for("vllm:num_requests_waiting", "", 1.0);
    drop(queued);
    server.wait_for("vllm:num_requests_waiting", "", 0.0);
    assert_eq!(server.metric("vllm:request_success_total", "abort"), 1.0);
    drop(streaming);
    is_empty(&server);
    assert_eq!(server.metric("vllm:request_success_total", "abort"), 2.0);
    // While its prompt is computed.
    let prompt: Vec<usize> = (0..8000).map(|i| 20 + i % 900).collect();
    let mut prefill = server.connect();
    let body = json!({"prompt": prompt, "max_tokens": 1}).to_string();
    write_request(&mut prefill, "POST", PATH, &[], body.as_bytes());
    server.wait_for("vllm:num_requests_running", "", 1.0);
    drop(prefill);
    is_empty(&server);
    assert_eq!(server.metric("vllm:request_success_total", "abort"), 3.0);
    // While its tokens are made and nothing is sent.
    let mut decoding = server.connect();
    let body = long(8000).to_string();
    write_request(&mut decoding, "POST", PATH, &[], body.as_bytes());
    let tokens = server.metric("vllm:generation_tokens_total", "");
    while server.metric("vllm:generation_tokens_total", "") < tokens + 8.0 {}
    drop(decoding);
    is_empty(&server);
    assert_eq!(server.metric("vllm:request_success_total", "abort"), 4.0);
    server.ok(PATH, &long(2));
}

/// A client that closes its side only has left as well, as far as can be told.
#[test]
fn a_half_closed_connection_is_one_that_left() {
    let server = Server::start(&[]);
    let mut socket = server.connect();
    write_request(
        &mut socket,
        "POST",
        PATH,
        &[],
        long(8000).to_string().as_bytes(),
    );
    server.wait_for("vllm:num_requests_running", "", 1.0);
    socket.shutdown(Shutdown::Write).unwrap();
    is_empty(&server);
    let mut rest = Vec::new();
    let _ = socket.read_to_end(&mut rest);
    assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
    // Half a head and half a body.
    for text in [
        "POST /v1/compl",
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{",
    ] {
        let mut socket = server.connect();
        socket.write_all(text.as_bytes()).unwrap();
        socket.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        let _ = socket.read_to_end(&mut rest);
    }
    is_empty(&server);
}

#[test]
fn a_slow_reader_waits_for_nobody_and_nobody_for_it() {
    let server = Server::start(&["--write-timeout", "1"]);
    // Nothing is read of it, and its text is complete before it is.
    let slow = server.begun(&long(200));
    for _ in 0..3 {
        server.ok(PATH, &long(4));
    }
    server.wait_for("vllm:num_requests_running", "", 0.0);
    std::thread::sleep(Duration::from_millis(200));
    let mut slow = slow;
    let mut text = String::new();
    slow.read_to_string(&mut text).unwrap();
    assert!(text.contains("data: [DONE]"), "{}", text.len());
}

#[test]
fn many_clients_get_their_own_answers() {
    let server = Server::start(&["--kv-tokens", "1024"]);
    let expected: Vec<_> = (0..8)
        .map(|i| server.ok(PATH, &ask(i))["choices"].clone())
        .collect();
    std::thread::scope(|scope| {
        for thread in 0..16 {
            let (server, expected) = (&server, &expected);
            scope.spawn(move || {
                for round in 0..12 {
                    let which = (thread * 5 + round) % 8;
                    let answer = server.ok(PATH, &ask(which));
                    assert_eq!(answer["choices"], expected[which], "{which}");
                }
            });
        }
    });
    is_empty(&server);
    let done = server.metric("vllm:request_success_total", "length")
        + server.metric("vllm:request_success_total", "stop");
    assert_eq!(done, 200.0);
    assert_eq!(server.metric("vllm:request_success_total", "error"), 0.0);
    // After every step each page was where it belongs; the server ends where one is not.
    let steps = server.metric("smq:steps_total", "");
    assert!(steps > 0.0 && server.metric("smq:page_checks_total", "") >= steps);
    assert!(server.metric("smq:engine_seconds_total", "") > 0.0);
    assert!(server.metric("smq:host_seconds_total", "") > 0.0);

    fn ask(which: usize) -> serde_json::Value {
        let prompt = ["The cat", "A dog and", "Once", "In the morning the"][which % 4];
        let temperature = if which < 4 { 0.0 } else { 0.9 };
        json!({"prompt": prompt, "max_tokens": 12 + which, "temperature": temperature,
            "seed": which})
    }
}

#[test]
fn a_signal_drains_and_a_second_one_ends() {
    let mut server = Server::start(&[]);
    let running = server.begun(&long(300));
    server.signal("-TERM");
    let mut rest = String::new();
    let mut running = running;
    running.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("data: [DONE]"), "{rest}");
    assert_eq!(server.wait().code(), Some(0));
    assert!(std::net::TcpStream::connect(&server.address).is_err());

    let mut server = Server::start(&[]);
    let running = server.begun(&long(8000));
    server.signal("-TERM");
    while std::net::TcpStream::connect(&server.address).is_ok() {}
    server.signal("-TERM");
    assert_eq!(server.wait().code(), Some(130));
    drop(running);

    // Whoever started it through a pipe has ended.
    let mut server = Server::start(&["--until-stdin-ends"]);
    let mut running = server.begun(&long(300));
    server.close_stdin();
    let mut rest = String::new();
    running.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("data: [DONE]"), "{rest}");
    assert_eq!(server.wait().code(), Some(0));

    // What was begun before it was killed does not keep the next one from the address.
    let server = Server::start(&[]);
    let address = server.address.clone();
    let running = server.begun(&long(8000));
    server.signal("-KILL");
    drop(server);
    let port = address.rsplit(':').next().unwrap();
    let again = Server::at(&fixture().to_string_lossy(), port, &[]);
    assert_eq!(again.address, address);
    again.ok(PATH, &long(2));
    drop(running);
}
