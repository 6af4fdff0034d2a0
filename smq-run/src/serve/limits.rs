//! What keeps one client from taking the server from the others: keys, sizes, numbers, times.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::bail;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::sync::OwnedSemaphorePermit;

use super::error::{ApiError, ApiResult};
use super::metrics::Metrics;
use super::state::App;

/// Longest file of keys.
const MAX_KEY_BYTES: u64 = 1 << 20;
/// How long a body may take to arrive.
pub(super) const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// How much the server takes.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// Most bytes of a request's body.
    pub body_bytes: usize,
    /// Requests that are being answered.
    pub requests: usize,
    /// Sequences that wait for their first token.
    pub queue: usize,
    /// From a request's arrival to the end of its answer.
    pub request_timeout: Duration,
    /// How long a client may leave what was sent to it unread.
    pub write_timeout: Duration,
}

/// The keys that may ask; none where everyone may.
#[derive(Default)]
pub(crate) struct Keys(Vec<blake3::Hash>);

impl Keys {
    /// Reads a file of keys, one a line; empty lines and those that begin with `#` are none.
    ///
    /// # Errors
    /// If it cannot be read or has no key.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = smq_format::read_text(path, MAX_KEY_BYTES)?;
        let lines = text.lines().map(str::trim);
        let keys = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        let hashes: Vec<_> = keys.map(|key| blake3::hash(key.as_bytes())).collect();
        if hashes.is_empty() {
            bail!("{}: has no keys, expected one a line", path.display());
        }
        Ok(Self(hashes))
    }

    /// Whether the request may ask. Hashes are compared, which takes the same time wherever they
    /// differ, and all of them are.
    pub(super) fn check(&self, headers: &HeaderMap) -> ApiResult<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        let given = headers.get(header::AUTHORIZATION);
        let given = given.map(header::HeaderValue::as_bytes).unwrap_or_default();
        let scheme = given.get(..7).unwrap_or_default();
        let key = match scheme.eq_ignore_ascii_case(b"bearer ") {
            true => given[7..].trim_ascii(),
            false => return Err(ApiError::unauthorized()),
        };
        let hash = blake3::hash(key);
        // blake3 compares its hashes in constant time.
        let found = self
            .0
            .iter()
            .fold(false, |found, known| found | (*known == hash));
        match found {
            true => Ok(()),
            false => Err(ApiError::unauthorized()),
        }
    }
}

/// A request's place among those that are being answered, until its answer is sent or dropped.
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
    metrics: Arc<Metrics>,
}

impl Place {
    /// Takes one.
    ///
    /// # Errors
    /// If there is none left, or the server is about to end.
    pub(super) fn take(app: &App) -> ApiResult<Self> {
        if app.draining.load(Ordering::Relaxed) {
            return Err(ApiError::unavailable("the server is shutting down"));
        }
        if app.worker.is_dead() {
            return Err(ApiError::unavailable("the engine has stopped"));
        }
        match app.places.clone().try_acquire_owned() {
            Ok(permit) => {
                app.metrics.in_flight(1);
                Ok(Self {
                    _permit: permit,
                    metrics: app.metrics.clone(),
                })
            }
            Err(_) => Err(ApiError::too_many(app.limits.requests)),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.metrics.in_flight(-1);
    }
}

/// Refuses more sequences than the queue has room for.
pub(super) fn check_queue(app: &App, sequences: usize) -> ApiResult<()> {
    let limit = app.limits.queue;
    if sequences > limit {
        let message = format!(
            "the request asks for {sequences} texts, this server queues {limit} at most \
             (--max-queue); ask for fewer at a time"
        );
        return Err(ApiError::request(message));
    }
    let waiting = app.worker.waiting();
    if waiting + sequences > limit {
        let message = format!(
            "{waiting} texts are waiting and {sequences} more do not fit into the queue of {limit} \
             (--max-queue); try again later"
        );
        return Err(ApiError::unavailable(message));
    }
    Ok(())
}

/// Reads a body, within its limits of size and time.
pub(super) async fn read_body(app: &App, body: Body) -> ApiResult<Bytes> {
    let limit = app.limits.body_bytes;
    let whole = Limited::new(body, limit).collect();
    match tokio::time::timeout(BODY_TIMEOUT, whole).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ApiError::body_too_large(limit)),
        Ok(Err(error)) => Err(ApiError::request(format!(
            "the body cannot be read: {error}"
        ))),
        Err(_) => Err(ApiError::body_too_slow(BODY_TIMEOUT.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_the_file() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("keys");
        std::fs::write(&path, "# of us\nfirst\n\n second \n").unwrap();
        let keys = Keys::read(&path).unwrap();
        let asks = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            keys.check(&headers)
        };
        for good in ["Bearer first", "bearer second", "BEARER  first "] {
            asks(good).unwrap();
        }
        for bad in [
            "first",
            "Bearer",
            "Bearer ",
            "Bearer # of us",
            "Bearer firs",
            "Basic first",
        ] {
            assert_eq!(asks(bad).unwrap_err().status(), 401, "{bad}");
        }
        assert!(keys.check(&HeaderMap::new()).is_err());
        Keys::default().check(&HeaderMap::new()).unwrap();
        std::fs::write(&path, "# none\n").unwrap();
        assert!(Keys::read(&path).is_err());
    }
}
