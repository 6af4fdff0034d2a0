//! What all requests share.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use smq_model::{GenerationSettings, ModelConfig, Tokenizer};
use tokio::sync::Semaphore;

use super::Version;
use super::error::{ApiError, ApiResult};
use super::fields::Fields;
use super::grammar::Grammars;
use super::limits::{Keys, Limits};
use super::metrics::Metrics;
use super::tool_calls;
use super::vocabulary::Vocabulary;
use super::worker::Worker;

/// The served model and the server's state.
pub(super) struct App {
    /// What clients call the model.
    pub(super) name: String,
    pub(super) version: Version,
    /// Seconds since 1970 at which the server began.
    pub(super) created: u64,
    pub(super) tokenizer: Tokenizer,
    pub(super) vocabulary: Vocabulary,
    /// How the model writes calls of tools, where that is known.
    pub(super) tool_calls: Option<tool_calls::Format>,
    /// The settings that the model itself comes with.
    pub(super) settings: GenerationSettings,
    /// Tokens that the model knows.
    pub(super) vocab: usize,
    /// Tokens of the longest sequence, prompt and answer together.
    pub(super) max_positions: usize,
    pub(super) worker: Worker,
    pub(super) metrics: Arc<Metrics>,
    pub(super) limits: Limits,
    pub(super) keys: Keys,
    /// One for each request that may be answered at a time.
    pub(super) places: Arc<Semaphore>,
    /// The server answers what it has, and takes nothing new.
    pub(super) draining: AtomicBool,
    /// Made when the first request has a grammar.
    pub(super) grammars: OnceLock<Result<Grammars, String>>,
    requests: AtomicU64,
}

impl App {
    pub(super) fn new(
        model: (String, &ModelConfig, GenerationSettings, Version),
        (tokenizer, vocabulary): (Tokenizer, Vocabulary),
        (worker, metrics): (Worker, Arc<Metrics>),
        (limits, keys): (Limits, Keys),
    ) -> Self {
        let (name, config, settings, version) = model;
        Self {
            name,
            version,
            created: now(),
            vocab: config.vocab,
            max_positions: config.max_positions,
            tool_calls: tool_calls::Format::of(&tokenizer, &vocabulary),
            tokenizer,
            vocabulary,
            settings,
            worker,
            metrics,
            places: Arc::new(Semaphore::new(limits.requests)),
            limits,
            keys,
            draining: AtomicBool::new(false),
            grammars: OnceLock::new(),
            requests: AtomicU64::new(0),
        }
    }

    /// A name for an answer, of which there is no other.
    pub(super) fn id(&self, prefix: &str) -> String {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        format!("{prefix}-{:016x}{number:08x}", random())
    }

    /// Checks the name of the model; without one there is only one that can be meant.
    pub(super) fn take_model(&self, fields: &mut Fields) -> ApiResult<()> {
        match fields.text("model")? {
            Some(asked) if asked != self.name => Err(ApiError::no_model(&asked, &self.name)),
            Some(_) | None => Ok(()),
        }
    }
}

/// The time now, in seconds since 1970.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// A number that nobody can foresee: the standard library seeds its hash maps with some.
pub(super) fn random() -> u64 {
    RandomState::new().hash_one(0)
}

/// Work that takes time, such as tokenizing, on a thread that requests do not wait for. A panic in
/// it is an error of this request.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> ApiResult<T> + Send + 'static,
) -> ApiResult<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_) => Err(ApiError::internal("the request's preparation panicked")),
    }
}
