//! A model behind OpenAI's HTTP API: `smq-run serve`.
//!
//! A request goes through `routes` (which path), `limits` (whether it may), `fields` with
//! `completions` or `chat` (what it asks for), and is submitted to `worker`, the one thread that
//! owns the scheduler and the device. What comes of it goes back through a channel to its `answer`,
//! which makes text of tokens and is written out whole or by `stream`. All else that a request
//! needs, such as tokenizing, is done on other threads while the device computes.
//!
//! `spec/serve.md` says what is taken and what is refused.

mod answer;
mod chat;
mod completions;
mod error;
mod fields;
mod grammar;
mod limits;
mod messages;
mod metrics;
mod net;
mod prompt;
mod routes;
mod sampling;
mod state;
mod stream;
mod text;
mod tool_calls;
mod vocabulary;
mod worker;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use smq_convert::cli::{print_note, show, tell};
use smq_engine::GpuInfo;
use smq_engine::serve::{BatchEngine, Scheduler};
use smq_model::{GenerationSettings, Source, Tokenizer};
use tokio::net::TcpListener;

pub(crate) use limits::{Keys, Limits};
use metrics::Metrics;
use state::App;
use vocabulary::Vocabulary;
use worker::Worker;

/// Threads for tokenizing and templates.
const BLOCKING_THREADS: usize = 8;
/// How often a signal is looked for.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(50);

/// Where and how a model is served.
pub(crate) struct ServeOptions {
    pub(crate) address: SocketAddr,
    /// What clients call the model.
    pub(crate) name: String,
    pub(crate) limits: Limits,
    pub(crate) keys: Keys,
    /// Whether the end of standard input ends the server as a signal does.
    pub(crate) until_stdin_ends: bool,
    /// Whether every page is checked after every step, for tests.
    pub(crate) check_pages: bool,
}

/// What `/version` answers: which program serves, on what.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Version {
    /// Version of this program.
    pub(crate) version: String,
    /// The commit that it was built from.
    pub(crate) commit: String,
    /// What it runs on: `cpu` or `cuda`.
    pub(crate) device: String,
    /// The GPU, where one computes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gpu: Option<GpuInfo>,
}

impl Version {
    fn of<E: BatchEngine>(engine: &E) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: env!("SMQ_COMMIT").to_owned(),
            device: engine.device().to_owned(),
            gpu: engine.gpu().cloned(),
        }
    }
}

/// Serves until `interrupted` is set, and then answers what has been taken. The address is said on
/// standard output once it can be connected to.
///
/// # Errors
/// If the address cannot be bound, or a side file of the model cannot be used.
pub(crate) fn serve<E: BatchEngine + 'static>(
    source: &Source,
    scheduler: Scheduler<E>,
    options: ServeOptions,
    interrupted: &'static AtomicBool,
) -> anyhow::Result<()> {
    let config = scheduler.engine().config().clone();
    let version = Version::of(scheduler.engine());
    let tokenizer = Tokenizer::load(source)?;
    let vocabulary = Vocabulary::of(&tokenizer, config.vocab)?;
    let settings = GenerationSettings::of(source)?;
    settings.check(config.vocab)?;
    let in_force: Vec<_> = settings
        .in_force()
        .map(|(key, value)| format!("{key} {value}"))
        .collect();
    if let Some(file) = settings.file.filter(|_| !in_force.is_empty()) {
        let list = in_force.join(", ");
        print_note(&format!(
            "{file} sets {list}, which requests may set otherwise"
        ));
    }
    let kv_tokens = scheduler.engine().kv_cache().tokens;
    let metrics = Arc::new(Metrics::new(&options.name, kv_tokens)?);
    let worker = Worker::start(scheduler, metrics.clone(), options.check_pages)?;
    let ServeOptions {
        address,
        name,
        limits,
        keys,
        until_stdin_ends,
        check_pages: _,
    } = options;
    let write_timeout = limits.write_timeout;
    let app = App::new(
        (name, &config, settings, version),
        (tokenizer, vocabulary),
        (worker, metrics),
        (limits, keys),
    );
    // It lives as long as the program, and requests in work borrow from it.
    let app: &'static App = Box::leak(Box::new(app));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address}"))?;
        let bound = listener.local_addr()?;
        show(&format!("{} is served at http://{bound}\n", app.name))?;
        let stdin_ended = match until_stdin_ends {
            true => Some(watch_stdin()?),
            false => None,
        };
        let has_ended = || {
            stdin_ended
                .as_deref()
                .is_some_and(|ended| ended.load(Ordering::Relaxed))
        };
        let stop = async {
            while !interrupted.load(Ordering::Relaxed) && !has_ended() {
                tokio::time::sleep(SIGNAL_INTERVAL).await;
            }
            app.draining.store(true, Ordering::Relaxed);
            tell("shutting down: requests in work are answered; a second signal ends at once");
        };
        net::serve(listener, routes::router(app), write_timeout, stop).await;
        anyhow::Ok(())
    })
}

/// A flag that is set once standard input has ended, whatever came of it before: whoever started
/// the server holds the other end, and lets go of it however it ends itself.
fn watch_stdin() -> std::io::Result<Arc<AtomicBool>> {
    let ended = Arc::new(AtomicBool::new(false));
    let flag = ended.clone();
    let watch = move || {
        // An input that cannot be read has ended, too.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        flag.store(true, Ordering::Relaxed);
    };
    std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(watch)?;
    Ok(ended)
}

#[cfg(test)]
mod tests;
