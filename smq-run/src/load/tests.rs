//! A sweep against a server of known delays.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::stream;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};

use super::{Client, Goodput, LoadOptions, LoadReport, load, table};

const FIRST: Duration = Duration::from_millis(60);
const GAP: Duration = Duration::from_millis(12);

pub(super) fn options() -> LoadOptions {
    LoadOptions {
        concurrency: vec![1, 4],
        rate: None,
        prompt_len: 24,
        output_len: 6,
        num_prompts: 8,
        warmup: 1,
        data: None,
        vocab: 100,
        seed: 3,
        ignore_eos: true,
        goodput: Goodput::default(),
        timeout: Duration::from_secs(20),
    }
}

/// What the server saw.
#[derive(Default)]
struct Seen {
    requests: AtomicUsize,
    running: AtomicUsize,
    most_running: AtomicUsize,
}

async fn complete(seen: Arc<Seen>, body: Bytes) -> Response {
    let request: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(request["ignore_eos"], true);
    assert_eq!(request["temperature"], 0.0);
    assert_eq!(request["stream_options"]["include_usage"], true);
    let number = seen.requests.fetch_add(1, Ordering::Relaxed);
    if number == 3 {
        return (StatusCode::BAD_REQUEST, "{\"error\": \"the fourth\"}").into_response();
    }
    let running = seen.running.fetch_add(1, Ordering::Relaxed) + 1;
    seen.most_running.fetch_max(running, Ordering::Relaxed);
    let prompt = request["prompt"].as_array().unwrap().len();
    let tokens = request["max_tokens"].as_u64().unwrap() as usize;
    let usage =
        json!({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": tokens}});
    let chunks = stream::unfold(0, move |at| {
        let (usage, seen) = (usage.clone(), seen.clone());
        async move {
            let event =
                |value: String| Some((Ok::<_, Infallible>(format!("data: {value}\n\n")), at + 1));
            if at < tokens {
                tokio::time::sleep(if at == 0 { FIRST } else { GAP }).await;
                return event(json!({"choices": [{"text": "x"}], "usage": null}).to_string());
            }
            if at == tokens {
                return event(usage.to_string());
            }
            if at == tokens + 1 {
                seen.running.fetch_sub(1, Ordering::Relaxed);
                return event("[DONE]".to_owned());
            }
            None
        }
    });
    Body::from_stream(chunks).into_response()
}

/// Runs a sweep against the server; also what the server saw.
fn sweep(options: LoadOptions) -> (LoadReport, Arc<Seen>) {
    let seen = Arc::new(Seen::default());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
        .unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let shared = seen.clone();
    let router = Router::new()
        .route(
            "/v1/models",
            get(|| async { json!({"data": [{"id": "fake"}]}).to_string() }),
        )
        .route("/v1/completions", post(move |body| complete(shared, body)));
    runtime.spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            socket.set_nodelay(true).unwrap();
            let service = TowerToHyperService::new(router.clone());
            tokio::spawn(async move {
                let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ = builder
                    .serve_connection(TokioIo::new(socket), service)
                    .await;
            });
        }
    });
    let client = Client::new(url.parse().unwrap(), None, None).unwrap();
    let report = load(&client, options, |_| {}, || {}).unwrap();
    (report, seen)
}

#[test]
fn delays_of_a_server_are_measured() {
    let goodput = Goodput(vec!["ttft:1".parse().unwrap()]);
    let (report, seen) = sweep(LoadOptions {
        goodput,
        ..options()
    });
    assert_eq!(report.model, "fake");
    // A warm-up and eight requests a level, of which the fourth of all was refused.
    assert_eq!(seen.requests.load(Ordering::Relaxed), 18);
    assert_eq!(seen.most_running.load(Ordering::Relaxed), 4);
    let [one, four] = &report.levels[..] else {
        panic!("{} levels", report.levels.len())
    };
    assert_eq!((one.completed, one.failed), (7, 1));
    assert_eq!((four.completed, four.failed), (8, 0));
    let error = one.first_error.clone().unwrap();
    assert!(
        error.contains("400") && error.contains("the fourth"),
        "{error}"
    );
    for level in [one, four] {
        assert_eq!(level.total_input_tokens, level.completed * 24);
        assert_eq!(level.total_output_tokens, level.completed * 6);
        assert_eq!(level.good, Some(0));
        let (first, gap) = (FIRST.as_secs_f64() * 1e3, GAP.as_secs_f64() * 1e3);
        // Sleeping takes at least its time; how much more depends on the machine.
        assert!(
            level.ttft.median >= first && level.ttft.median < 3.0 * first,
            "{level:?}"
        );
        assert!(
            level.tpot.median >= gap - 1.0 && level.tpot.median < 3.0 * gap,
            "{level:?}"
        );
        assert!(
            level.itl.median >= gap - 1.0 && level.itl.median < 3.0 * gap,
            "{level:?}"
        );
        assert!(level.e2el.mean >= first + 5.0 * gap - 1.0, "{level:?}");
    }
    // Four clients wait at the same time.
    assert!(four.duration * 2 < one.duration, "{report:?}");
    let shown = table(&report);
    assert!(
        shown.contains("TPOT p99, ms") && shown.contains("good requests/s"),
        "{shown}"
    );
}

#[test]
fn a_rate_spaces_requests_out() {
    let (report, seen) = sweep(LoadOptions {
        concurrency: vec![64],
        rate: Some(40.0),
        num_prompts: 20,
        output_len: 1,
        ..options()
    });
    let level = &report.levels[0];
    assert_eq!((level.completed, level.failed), (19, 1));
    let expected = super::level::arrivals(40.0, 20, 3)[19] + FIRST;
    assert!(level.duration >= expected, "{level:?}");
    assert!(seen.most_running.load(Ordering::Relaxed) > 1);
    // One token has no time for a further one.
    assert_eq!(level.tpot.mean, 0.0);
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let client = Client::new("http://127.0.0.1:9".parse().unwrap(), None, None).unwrap();
    let error = load(&client, options(), |_| {}, || {}).unwrap_err();
    assert!(
        format!("{error:#}").contains("http://127.0.0.1:9/v1/models"),
        "{error:#}"
    );
}
