//! `/metrics`, in Prometheus's text format.
//!
//! What vLLM measures too has vLLM's name, `vllm:` included, and its unit, since that is what
//! dashboards and autoscalers ask for. What it does not have begins with `smq:`.

use std::sync::Mutex;
use std::time::Duration;

use prometheus::{
    Counter, Encoder, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts,
    Registry, TextEncoder,
};
use smq_engine::serve::Counters;

/// Upper ends of the buckets, in seconds, as vLLM has them.
const FIRST_TOKEN: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
/// vLLM's, and two below: a small model's tokens are faster than its first one.
const NEXT_TOKEN: [f64; 20] = [
    0.001, 0.0025, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0,
    7.5, 10.0, 20.0, 80.0,
];
const WHOLE: [f64; 20] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0,
];
const TOKENS: [f64; 16] = [
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0, 20000.0,
    50000.0, 100_000.0,
];

/// How a sequence ended, as vLLM labels it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Finish {
    Stop,
    Length,
    Abort,
    Error,
}

impl Finish {
    const ALL: [Self; 4] = [Self::Stop, Self::Length, Self::Abort, Self::Error];

    fn label(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
            Self::Error => "error",
        }
    }
}

/// All that is counted.
pub(super) struct Metrics {
    registry: Registry,
    running: IntGauge,
    waiting: IntGauge,
    cache_use: Gauge,
    prefix_queries: IntCounter,
    prefix_hits: IntCounter,
    preemptions: IntCounter,
    prompt_tokens: IntCounter,
    generation_tokens: IntCounter,
    steps: IntCounter,
    drafts: IntCounter,
    draft_tokens: IntCounter,
    accepted_tokens: IntCounter,
    draft_failures: IntCounter,
    draft_seconds: Counter,
    engine_seconds: Counter,
    host_seconds: Counter,
    page_checks: IntCounter,
    finished: IntCounterVec,
    first_token: Histogram,
    next_token: Histogram,
    whole: Histogram,
    prompt_lengths: Histogram,
    generation_lengths: Histogram,
    in_flight: IntGauge,
    refused: IntCounterVec,
    /// The scheduler's counters as they were.
    last: Mutex<Counters>,
}

impl Metrics {
    /// Of a model, whose name is a label of each, and of a cache that has room for so many tokens.
    pub(super) fn new(model: &str, kv_tokens: usize) -> prometheus::Result<Self> {
        let labels = [("model_name", model), ("engine", "0")];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let registry = Registry::new_custom(None, Some(labels.into()))?;
        let keep = Keeper(&registry);
        let room = "Tokens that the KV cache has room for.";
        keep.gauge("smq:kv_cache_tokens", room)?
            .set(kv_tokens as i64);
        let metrics = Self {
            running: keep.gauge("vllm:num_requests_running", "Sequences that have pages.")?,
            waiting: keep.gauge(
                "vllm:num_requests_waiting",
                "Sequences that wait for pages.",
            )?,
            cache_use: {
                let help = "Share of the KV cache's pages in use, 0 to 1.";
                let gauge = Gauge::new("vllm:kv_cache_usage_perc", help)?;
                registry.register(Box::new(gauge.clone()))?;
                gauge
            },
            prefix_queries: keep.counter(
                "vllm:prefix_cache_queries_total",
                "Tokens of prompts that were looked for in the prefix cache.",
            )?,
            prefix_hits: keep.counter(
                "vllm:prefix_cache_hits_total",
                "Tokens of prompts that the prefix cache had.",
            )?,
            preemptions: keep.counter(
                "vllm:num_preemptions_total",
                "Sequences that lost their pages to older ones and were computed again.",
            )?,
            prompt_tokens: keep.counter("vllm:prompt_tokens_total", "Tokens of prompts.")?,
            generation_tokens: keep.counter("vllm:generation_tokens_total", "Tokens generated.")?,
            steps: keep.counter("smq:steps_total", "Steps of all sequences together.")?,
            drafts: keep.counter(
                "vllm:spec_decode_num_drafts_total",
                "Guesses of what comes next (--speculate, --draft).",
            )?,
            draft_tokens: keep.counter(
                "vllm:spec_decode_num_draft_tokens_total",
                "Tokens that were guessed.",
            )?,
            accepted_tokens: keep.counter(
                "vllm:spec_decode_num_accepted_tokens_total",
                "Guessed tokens that were right.",
            )?,
            draft_failures: keep.counter(
                "smq:draft_failures_total",
                "Guesses that ended in an error; the texts went on without them.",
            )?,
            draft_seconds: keep.seconds("smq:draft_seconds_total", "Time that guessing took.")?,
            engine_seconds: keep
                .seconds("smq:engine_seconds_total", "Time that the engine computed.")?,
            host_seconds: keep.seconds(
                "smq:host_seconds_total",
                "Time that the engine waited for its thread between steps while there was work.",
            )?,
            page_checks: keep.counter(
                "smq:page_checks_total",
                "Checks of every page that found no fault (--check-pages).",
            )?,
            finished: keep.labelled(
                "vllm:request_success_total",
                "Sequences that ended; abort is a client that left.",
                "finished_reason",
            )?,
            first_token: keep.histogram(
                "vllm:time_to_first_token_seconds",
                "From a request's arrival to its first token.",
                &FIRST_TOKEN,
            )?,
            next_token: keep.histogram(
                "vllm:inter_token_latency_seconds",
                "Between tokens of a sequence.",
                &NEXT_TOKEN,
            )?,
            whole: keep.histogram(
                "vllm:e2e_request_latency_seconds",
                "From a request's arrival to its end.",
                &WHOLE,
            )?,
            prompt_lengths: keep.histogram(
                "vllm:request_prompt_tokens",
                "Tokens of a prompt.",
                &TOKENS,
            )?,
            generation_lengths: keep.histogram(
                "vllm:request_generation_tokens",
                "Tokens generated for a sequence.",
                &TOKENS,
            )?,
            in_flight: keep.gauge("smq:http_requests_in_flight", "Requests being answered.")?,
            refused: keep.labelled(
                "smq:http_requests_refused_total",
                "Requests answered with an error.",
                "status",
            )?,
            last: Mutex::default(),
            registry,
        };
        // A counter that is not there yet looks like one that a dashboard has misspelt.
        for finish in Finish::ALL {
            metrics.finished.with_label_values(&[finish.label()]);
        }
        Ok(metrics)
    }

    pub(super) fn first_token(&self, after: Duration) {
        self.first_token.observe(after.as_secs_f64());
    }

    pub(super) fn next_token(&self, after: Duration) {
        self.next_token.observe(after.as_secs_f64());
    }

    pub(super) fn finished(&self, how: Finish) {
        self.finished.with_label_values(&[how.label()]).inc();
    }

    /// A sequence was answered to its end.
    pub(super) fn answered(&self, after: Duration, prompt: usize, generated: usize) {
        self.whole.observe(after.as_secs_f64());
        self.prompt_lengths.observe(prompt as f64);
        self.generation_lengths.observe(generated as f64);
    }

    pub(super) fn in_flight(&self, change: i64) {
        self.in_flight.add(change);
    }

    pub(super) fn refused(&self, status: u16) {
        self.refused.with_label_values(&[&status.to_string()]).inc();
    }

    /// Takes over how the scheduler stands.
    pub(super) fn scheduler(&self, now: &Counters) {
        let mut last = match self.last.lock() {
            Ok(last) => last,
            Err(poisoned) => poisoned.into_inner(),
        };
        self.running.set(now.running as i64);
        self.waiting.set(now.waiting as i64);
        let share = now.pages_held as f64 / now.pages.max(1) as f64;
        self.cache_use.set(share);
        for (counter, now, last) in [
            (
                &self.prefix_queries,
                now.prefix_queries,
                last.prefix_queries,
            ),
            (&self.prefix_hits, now.prefix_hits, last.prefix_hits),
            (&self.preemptions, now.preemptions, last.preemptions),
            (&self.prompt_tokens, now.prompt_tokens, last.prompt_tokens),
            (
                &self.generation_tokens,
                now.generated_tokens,
                last.generated_tokens,
            ),
            (&self.steps, now.steps, last.steps),
            (&self.drafts, now.drafts, last.drafts),
            (&self.draft_tokens, now.draft_tokens, last.draft_tokens),
            (
                &self.accepted_tokens,
                now.accepted_tokens,
                last.accepted_tokens,
            ),
            (
                &self.draft_failures,
                now.draft_failures,
                last.draft_failures,
            ),
        ] {
            counter.inc_by(now.saturating_sub(last));
        }
        for (seconds, now, last) in [
            (&self.engine_seconds, now.engine_nanos, last.engine_nanos),
            (&self.draft_seconds, now.draft_nanos, last.draft_nanos),
        ] {
            seconds.inc_by(now.saturating_sub(last) as f64 * 1e-9);
        }
        *last = *now;
    }

    /// The engine waited for so long while there was work.
    pub(super) fn host(&self, time: Duration) {
        self.host_seconds.inc_by(time.as_secs_f64());
    }

    /// Every page was where it belongs.
    pub(super) fn page_check(&self) {
        self.page_checks.inc();
    }

    /// The page of `/metrics` as it is now.
    pub(super) fn text(&self) -> prometheus::Result<Vec<u8>> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

/// Makes metrics and registers them.
struct Keeper<'r>(&'r Registry);

impl Keeper<'_> {
    fn gauge(&self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        let gauge = IntGauge::new(name, help)?;
        self.0.register(Box::new(gauge.clone()))?;
        Ok(gauge)
    }

    fn counter(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        let counter = IntCounter::new(name, help)?;
        self.0.register(Box::new(counter.clone()))?;
        Ok(counter)
    }

    fn seconds(&self, name: &str, help: &str) -> prometheus::Result<Counter> {
        let counter = Counter::new(name, help)?;
        self.0.register(Box::new(counter.clone()))?;
        Ok(counter)
    }

    fn labelled(&self, name: &str, help: &str, label: &str) -> prometheus::Result<IntCounterVec> {
        let counter = IntCounterVec::new(Opts::new(name, help), &[label])?;
        self.0.register(Box::new(counter.clone()))?;
        Ok(counter)
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> prometheus::Result<Histogram> {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        let histogram = Histogram::with_opts(options)?;
        self.0.register(Box::new(histogram.clone()))?;
        Ok(histogram)
    }
}
