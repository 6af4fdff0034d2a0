//! A server of the test's own, and as little of HTTP as it takes to see every byte of an answer.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Longer than anything here takes, also on a machine that does much else.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) fn fixture() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/phi3-tiny")
}

/// `smq-run serve`, ended with the test.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: String,
}

impl Server {
    pub(crate) fn start(options: &[&str]) -> Self {
        Self::of(&fixture().to_string_lossy(), options)
    }

    pub(crate) fn of(model: &str, options: &[&str]) -> Self {
        Self::at(model, "0", options)
    }

    pub(crate) fn at(model: &str, port: &str, options: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_smq-run"));
        command.args([
            "--device",
            "cpu",
            "--threads",
            "2",
            "serve",
            model,
            "--port",
            port,
            "--check-pages",
        ]);
        let mut child = command
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let (_, address) = line.trim().split_once(" is served at http://").unwrap();
        Self {
            child,
            address: address.to_owned(),
        }
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let socket = TcpStream::connect(&self.address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    /// Sends a request and reads its answer.
    pub(crate) fn send(&self, method: &str, path: &str, headers: &[&str], body: &[u8]) -> Reply {
        let mut socket = self.connect();
        write_request(&mut socket, method, path, headers, body);
        Reply::read(socket)
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        self.send("GET", path, &[], b"")
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Reply {
        self.send("POST", path, &[], body.to_string().as_bytes())
    }

    /// An answer that is not refused.
    pub(crate) fn ok(&self, path: &str, body: &Value) -> Value {
        let reply = self.post(path, body);
        assert_eq!(reply.status, 200, "{body}: {}", reply.text());
        reply.json()
    }

    /// The data of a stream's events, without its `[DONE]`.
    pub(crate) fn stream(&self, path: &str, body: &Value) -> Vec<Value> {
        let mut body = body.clone();
        body["stream"] = true.into();
        let reply = self.post(path, &body);
        assert_eq!(reply.status, 200, "{body}: {}", reply.text());
        let text = reply.text();
        let mut events: Vec<&str> = text.split_terminator("\n\n").collect();
        assert_eq!(events.pop(), Some("data: [DONE]"), "{text}");
        let data = |event: &str| serde_json::from_str(event.strip_prefix("data: ").unwrap());
        events
            .into_iter()
            .map(|event| data(event).unwrap())
            .collect()
    }

    /// A request whose answer is streamed, of which the first piece has come.
    pub(crate) fn begun(&self, body: &Value) -> TcpStream {
        let mut body = body.clone();
        body["stream"] = true.into();
        let mut socket = self.connect();
        let body = body.to_string();
        write_request(&mut socket, "POST", "/v1/completions", &[], body.as_bytes());
        let mut some = [0; 16];
        socket.read_exact(&mut some).unwrap();
        assert_eq!(&some[..12], b"HTTP/1.1 200");
        socket
    }

    /// A figure of `/metrics`, summed over what labels it has but those given.
    pub(crate) fn metric(&self, name: &str, label: &str) -> f64 {
        let text = self.get("/metrics").text();
        let lines = text.lines().filter(|line| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with('{') && rest.contains(label))
        });
        let values = lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap());
        values.sum()
    }

    /// Waits until a figure has a value.
    pub(crate) fn wait_for(&self, name: &str, label: &str, value: f64) {
        let start = Instant::now();
        while self.metric(name, label) != value {
            let now = self.metric(name, label);
            assert!(
                start.elapsed() < PATIENCE,
                "{name} is {now}, expected {value}"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args([name, &id]).status().unwrap();
        assert!(sent.success());
    }

    pub(crate) fn close_stdin(&mut self) {
        drop(self.child.stdin.take());
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "the server does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn write_request(
    socket: &mut TcpStream,
    method: &str,
    path: &str,
    headers: &[&str],
    body: &[u8],
) {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
    for header in headers {
        head += &format!("{header}\r\n");
    }
    head += &format!("Content-Length: {}\r\n\r\n", body.len());
    // A server may refuse before it has read everything.
    let _ = socket.write_all(head.as_bytes());
    let _ = socket.write_all(body);
}

/// An answer of the server.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    /// Reads an answer to the end of the connection.
    pub(crate) fn read(mut socket: TcpStream) -> Self {
        let mut bytes = Vec::new();
        let end = socket.read_to_end(&mut bytes);
        // What the server did not read of a request resets the connection behind the answer.
        assert!(end.is_ok() || !bytes.is_empty(), "{end:?}");
        let split = bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(bytes[..split].to_vec())
            .unwrap()
            .to_lowercase();
        let mut body = bytes[split + 4..].to_vec();
        if head.contains("transfer-encoding: chunked") {
            body = unchunked(&body);
        }
        Self {
            status: head[9..12].parse().unwrap(),
            head,
            body,
        }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The error object of an answer, as OpenAI has it.
    pub(crate) fn error(&self) -> Value {
        let error = self.json()["error"].clone();
        assert!(
            error["message"].is_string() && error["type"].is_string(),
            "{error}"
        );
        error
    }
}

fn unchunked(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let line = rest.windows(2).position(|w| w == b"\r\n").unwrap();
        let size = std::str::from_utf8(&rest[..line]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return body;
        }
        body.extend_from_slice(&rest[line + 2..line + 2 + size]);
        rest = &rest[line + 4 + size..];
    }
}

/// A request for a text that goes on for `tokens`.
pub(crate) fn long(tokens: usize) -> Value {
    json!({"prompt": "Once upon a time", "max_tokens": tokens, "ignore_eos": true})
}
