//! `smq-run serve`: answers many clients by OpenAI's HTTP API.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use super::bench::room;
use super::draft::DraftArgs;
use super::generate::at_least_one;
use super::{Global, Opened};
use crate::serve::{Keys, Limits, ServeOptions, serve};
use smq_convert::cli::{interrupts, print_note};
use smq_engine::serve::{BatchEngine, BatchOptions, Scheduler, warm_up};

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// A .smq file or a checkpoint directory
    model: PathBuf,
    /// The port; 0 takes a free one
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// The address to listen on; 0.0.0.0 takes connections from everywhere, which is for networks
    /// that are trusted: nothing is encrypted
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// What clients call the model [default: the file's or the directory's name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Answer only requests that have one of the keys in this file, one a line
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// On a GPU, a sequence alone takes the kernel of one sequence, which is up to twice as fast;
    /// its tokens may then depend on whether others were beside it
    #[arg(long)]
    fast_nondeterministic: bool,
    /// Tokens that the KV cache has room for, of all sequences together [default: 16384 on a CPU,
    /// what there is memory for on a GPU]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    kv_tokens: Option<usize>,
    /// Sequences that are computed together, at most 256 on a GPU
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = at_least_one)]
    max_sequences: usize,
    /// Shut down, as by SIGTERM, once standard input ends: for programs that start a server and
    /// must not leave it behind
    #[arg(long)]
    until_stdin_ends: bool,
    /// Check after every step that no page is lost or in two sequences, and stop where one is: for
    /// tests
    #[arg(long, hide = true)]
    check_pages: bool,
    #[command(flatten)]
    draft: DraftArgs,
    #[command(flatten)]
    limits: LimitArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
struct LimitArgs {
    /// Largest body of a request, in bytes
    #[arg(long, value_name = "N", default_value_t = 8 << 20, value_parser = at_least_one)]
    max_body_bytes: usize,
    /// Requests that are answered at a time; further ones are refused with 429
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = at_least_one)]
    max_requests: usize,
    /// Texts that wait for their first token; further ones are refused with 503
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = at_least_one)]
    max_queue: usize,
    /// Seconds that a request may take, waiting included
    #[arg(long, value_name = "SECONDS", default_value_t = 600,
        value_parser = clap::value_parser!(u64).range(1..))]
    request_timeout: u64,
    /// Seconds that a client may leave unread what was sent to it
    #[arg(long, value_name = "SECONDS", default_value_t = 60,
        value_parser = clap::value_parser!(u64).range(1..))]
    write_timeout: u64,
}

pub(super) fn run(args: &ServeArgs, global: &Global) -> anyhow::Result<()> {
    let keys = args.api_key_file.as_deref().map(Keys::read).transpose()?;
    // It is kept until the program ends: the scheduler's thread reads weights from it.
    let opened: &'static Opened = Box::leak(Box::new(Opened::for_engine(&args.model, global)?));
    let batch = BatchOptions {
        kv_tokens: args.kv_tokens,
        max_rows: args.max_sequences,
        fast_nondeterministic: args.fast_nondeterministic,
        ..BatchOptions::default()
    };
    // Before the model, which takes what memory is left on a GPU.
    let guessing = args.draft.load(opened, global, &batch)?;
    let mut engine = opened.load_batch(&batch)?;
    print_note(&format!("the KV cache is {}", room(&engine.kv_cache())));
    if engine.gpu().is_some() {
        warm_up(&mut engine).context("cannot compute the first steps")?;
    }
    let mut scheduler = Scheduler::new(engine)?;
    if let Some((drafter, most)) = guessing {
        scheduler.speculate(drafter, most);
    }
    let limits = Limits {
        body_bytes: args.limits.max_body_bytes,
        requests: args.limits.max_requests,
        queue: args.limits.max_queue,
        request_timeout: Duration::from_secs(args.limits.request_timeout),
        write_timeout: Duration::from_secs(args.limits.write_timeout),
    };
    let options = ServeOptions {
        address: SocketAddr::new(args.host, args.port),
        name: args.name.clone().unwrap_or_else(|| name(&args.model)),
        limits,
        keys: keys.unwrap_or_default(),
        until_stdin_ends: args.until_stdin_ends,
        check_pages: args.check_pages,
    };
    serve(&opened.source, scheduler, options, interrupts())
}

/// The model's name by its path: a file's without `.smq`, a directory's.
fn name(path: &Path) -> String {
    let whole = path.canonicalize();
    let path = whole.as_deref().unwrap_or(path);
    let name = path
        .file_name()
        .unwrap_or(path.as_os_str())
        .to_string_lossy();
    let plain = name.strip_suffix(".smq").unwrap_or(&name);
    plain.to_owned()
}
