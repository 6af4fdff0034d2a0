//! `smq-run load`: what the clients of a server see.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::generate::at_least_one;
use crate::load::{Address, Client, Goodput, LoadOptions, Objective, load, table};
use crate::output::{create, is_stdout, put_json};
use smq_convert::cli::JsonArgs;

/// Longest file of an API key.
const MAX_KEY_BYTES: u64 = 64 << 10;

#[derive(Debug, Args)]
pub(super) struct LoadArgs {
    /// The server's URL, with or without /v1
    #[arg(long, value_name = "URL")]
    url: Address,
    /// The model to ask for [default: the first that the server names]
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Clients at a time; each number is measured on its own
    #[arg(long, value_name = "N,N,...", value_delimiter = ',', default_value = "1,4,8,16,32",
        value_parser = at_least_one)]
    concurrency: Vec<usize>,
    /// Send this many requests a second, at random intervals, as far as the clients allow [default:
    /// each client sends its next request when the one before is answered]
    #[arg(long, value_name = "R", value_parser = rate)]
    rate: Option<f64>,
    /// Tokens of each prompt, which are random ids
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = at_least_one)]
    prompt_len: usize,
    /// Tokens to generate for each prompt
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = at_least_one)]
    output_len: usize,
    /// Requests at each number of clients
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = at_least_one)]
    num_prompts: usize,
    /// Requests before them, which are not counted
    #[arg(long, value_name = "N", default_value_t = 1)]
    warmup: usize,
    /// Prompts of a file in place of random ones: JSON Lines or a JSON array, with `prompt` or the
    /// first turn of ShareGPT's `conversations` or of `messages`; `output_len` goes before
    /// --output-len
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt_len", "vocab"])]
    data: Option<PathBuf>,
    /// Random ids are below this, which must be within the model's vocabulary
    #[arg(long, value_name = "N", default_value_t = 1000,
        value_parser = clap::value_parser!(u32).range(1..))]
    vocab: u32,
    /// Seed of prompts and intervals
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Let answers end where the model ends them; without it `ignore_eos` is sent, which vLLM and
    /// smq-run know and OpenAI does not
    #[arg(long)]
    obey_eos: bool,
    /// Count the requests a second that keep to all of these times in milliseconds, such as
    /// ttft:200 tpot:20
    #[arg(long, value_name = "WHAT:MS", num_args = 1..)]
    goodput: Vec<Objective>,
    /// The longest that a request may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600,
        value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
    /// A file whose first line is the API key
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    #[command(flatten)]
    json: JsonArgs,
}

fn rate(text: &str) -> Result<f64, String> {
    let parsed = text.parse().ok();
    let rate = parsed.filter(|rate: &f64| rate.is_finite() && *rate > 0.0);
    rate.ok_or_else(|| "expected more than 0".to_owned())
}

pub(super) fn run(args: &LoadArgs) -> anyhow::Result<()> {
    let inputs: Vec<PathBuf> = args
        .data
        .iter()
        .chain(&args.api_key_file)
        .cloned()
        .collect();
    let json = create(args.json.target(), &inputs)?;
    let to_stdout = is_stdout(json.as_ref());
    let keys = args.api_key_file.as_ref();
    let keys = keys.map(|path| smq_format::read_text(path, MAX_KEY_BYTES));
    let keys = keys.transpose()?;
    let key = keys
        .as_deref()
        .map(|text| text.lines().next().unwrap_or_default().trim());
    let client = Client::new(args.url.clone(), args.model.clone(), key)?;
    let options = LoadOptions {
        concurrency: args.concurrency.clone(),
        rate: args.rate,
        prompt_len: args.prompt_len,
        output_len: args.output_len,
        num_prompts: args.num_prompts,
        warmup: args.warmup,
        data: args.data.clone(),
        vocab: args.vocab,
        seed: args.seed,
        ignore_eos: !args.obey_eos,
        goodput: Goodput(args.goodput.clone()),
        timeout: Duration::from_secs(args.timeout),
    };
    // indicatif draws on standard error, and not at all where that is no terminal.
    let bar = ProgressBar::new((options.concurrency.len() * options.num_prompts) as u64)
        .with_style(ProgressStyle::with_template(
            "{msg} {bar:32} {pos}/{len} requests, {eta} left",
        )?);
    let on_level = |clients: usize| bar.set_message(format!("{clients} clients"));
    let report = load(&client, options, on_level, || bar.inc(1))?;
    bar.finish_and_clear();
    put_json(json, &report)?;
    if !to_stdout {
        smq_convert::cli::show(&table(&report))?;
    }
    let failed: usize = report.levels.iter().map(|level| level.failed).sum();
    if failed > 0 {
        let sent = report.levels.len() * args.num_prompts;
        let error = report
            .levels
            .iter()
            .find_map(|level| level.first_error.clone());
        let error = error.context("a failure has no message")?;
        bail!("{failed} of {sent} requests failed, the first one so: {error}");
    }
    Ok(())
}
