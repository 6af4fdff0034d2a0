//! `smq-run bench`: times prefill and decode.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{CellAlignment, Table};
use indicatif::DecimalBytes;
use serde::Serialize;

use super::draft::NGRAM_TOKENS;
use super::generate::at_least_one;
use super::{Global, Opened};
use crate::bench::guesses::{Guesses, GuessesReport, bench_guesses};
use crate::bench::sequences::{SequencesOptions, SequencesReport, bench_sequences};
use crate::bench::{BenchOptions, BenchReport, bench};
use crate::measure::Machine;
use crate::output::{create, is_stdout, put_json};
use smq_convert::cli::JsonArgs;
use smq_convert::number::{count, fixed, fixed_or};
use smq_engine::serve::{BatchEngine, BatchOptions};
use smq_engine::{GpuInfo, KvCacheReport, Summary};
use smq_format::Output;
use smq_model::ModelConfig;

/// Two of the largest pages: sequences end within one, and none begins before there is one more for
/// each that runs.
const PAGE_SLACK: usize = 128;

#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    /// A .smq file or a checkpoint directory
    model: PathBuf,
    /// Tokens of the prompt
    #[arg(long, default_value_t = 128, value_name = "N", value_parser = at_least_one)]
    prompt_tokens: usize,
    /// Tokens to generate; end-of-sequence tokens do not stop them
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = at_least_one)]
    output_tokens: usize,
    /// Runs before the timed ones
    #[arg(long, default_value_t = 1, value_name = "N")]
    warmup: usize,
    /// Runs that are timed
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = at_least_one)]
    repeats: usize,
    /// So many sequences at once, as serve runs them, each number timed in turn; several are
    /// separated by commas
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = at_least_one)]
    sequences: Vec<usize>,
    /// With --sequences on a GPU: one alone takes the kernel of one sequence, as serve's option
    /// says
    #[arg(long, requires = "sequences")]
    fast_nondeterministic: bool,
    /// Steps of one sequence that compute guessed tokens, as generate's --speculate has them: without
    /// guesses, with guesses that all come true, and with guesses of which none does
    #[arg(long, conflicts_with = "sequences")]
    guesses: bool,
    #[command(flatten)]
    json: JsonArgs,
}

pub(super) fn run(args: &BenchArgs, global: &Global) -> anyhow::Result<()> {
    let options = BenchOptions {
        prompt_tokens: args.prompt_tokens,
        output_tokens: args.output_tokens,
        warmup: args.warmup,
        repeats: args.repeats,
        ..BenchOptions::default()
    };
    let opened = Opened::for_engine(&args.model, global)?;
    let json = create(args.json.target(), &opened.inputs(&[]))?;
    let to_stdout = is_stdout(json.as_ref());
    if !args.sequences.is_empty() || args.guesses {
        let limit = ModelConfig::of(&opened.source)?.max_positions;
        options.check(opened.context.map_or(limit, |context| limit.min(context)))?;
    }
    if !args.sequences.is_empty() {
        let fast = args.fast_nondeterministic;
        return run_sequences(&args.sequences, fast, &options, &opened, json);
    }
    if args.guesses {
        return run_guesses(&options, &opened, json);
    }
    let (mut engine, load) = opened.load()?;
    let report = bench(&mut *engine, &opened.source, load, &options)?;
    put_json(json, &report)?;
    if !to_stdout {
        print(&report)?;
    }
    Ok(())
}

/// What `--sequences` and `--guesses` write as JSON.
#[derive(Debug, Serialize)]
struct BatchFile<'a, O, R> {
    version: &'static str,
    model: String,
    device: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu: Option<GpuInfo>,
    machine: Machine,
    kv_cache: KvCacheReport,
    options: &'a O,
    results: &'a [R],
}

impl<'a, O, R> BatchFile<'a, O, R> {
    /// Without results yet.
    fn new(opened: &Opened, engine: &dyn BatchEngine, options: &'a O) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            model: opened.source.path().display().to_string(),
            device: engine.device(),
            gpu: engine.gpu().cloned(),
            machine: Machine::this(),
            kv_cache: engine.kv_cache(),
            options,
            results: &[],
        }
    }

    /// What was timed and where, and the table of it.
    fn print(&self, timed: &BenchOptions, a: &str, mut table: Table) -> std::io::Result<()> {
        let mut out = smq_convert::cli::stdout();
        let on = self.gpu.as_ref().map_or(&self.machine.cpu, |gpu| &gpu.name);
        writeln!(
            out,
            "{} on {} ({on}); {} prompt + {} output tokens{a}, {} warm-up, {} repeats",
            self.model,
            self.device,
            count(timed.prompt_tokens),
            count(timed.output_tokens),
            count(timed.warmup),
            count(timed.repeats)
        )?;
        writeln!(out, "KV cache: {}", room(&self.kv_cache))?;
        for column in table.column_iter_mut() {
            column.set_cell_alignment(CellAlignment::Right);
        }
        writeln!(out, "{table}")
    }
}

fn run_sequences(
    sequences: &[usize],
    fast_nondeterministic: bool,
    timed: &BenchOptions,
    opened: &Opened,
    json: Option<Output>,
) -> anyhow::Result<()> {
    let options = SequencesOptions {
        sequences: sequences.to_vec(),
        prompt_tokens: timed.prompt_tokens,
        output_tokens: timed.output_tokens,
        warmup: timed.warmup,
        repeats: timed.repeats,
    };
    let most = sequences.iter().max().copied().unwrap_or(0);
    let each = options.prompt_tokens + options.output_tokens + PAGE_SLACK;
    let engine = opened.load_batch(&BatchOptions {
        kv_tokens: Some(most.saturating_mul(each)),
        max_rows: most,
        fast_nondeterministic,
        ..BatchOptions::default()
    })?;
    let file = BatchFile::new(opened, &*engine, &options);
    let results = &bench_sequences(engine, &options)?[..];
    let file = BatchFile { results, ..file };
    let to_stdout = is_stdout(json.as_ref());
    put_json(json, &file)?;
    if !to_stdout {
        file.print(timed, " a sequence", sequences_table(results))?;
    }
    Ok(())
}

fn sequences_table(results: &[SequencesReport]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY).set_header([
        "sequences",
        "first tokens, ms",
        "prompt, tokens/s",
        "step p50, ms",
        "p95",
        "decode, tokens/s",
    ]);
    for r in results {
        table.add_row([
            count(r.sequences),
            fixed(r.all_first_tokens_ms.p50, 2),
            fixed(r.prompt_tokens_per_s, 0),
            fixed_or(r.step_ms.map(|s| s.p50), 3, "-"),
            fixed_or(r.step_ms.map(|s| s.p95), 3, "-"),
            fixed_or(r.decode_tokens_per_s, 1, "-"),
        ]);
    }
    table
}

fn run_guesses(
    options: &BenchOptions,
    opened: &Opened,
    json: Option<Output>,
) -> anyhow::Result<()> {
    let engine = opened.load_guessing(&BatchOptions {
        kv_tokens: Some(options.prompt_tokens + options.output_tokens + PAGE_SLACK),
        max_rows: 1,
        ..BatchOptions::default()
    })?;
    let file = BatchFile::new(opened, &*engine, options);
    let results = &bench_guesses(engine, options, NGRAM_TOKENS)?[..];
    let file = BatchFile { results, ..file };
    let to_stdout = is_stdout(json.as_ref());
    put_json(json, &file)?;
    if !to_stdout {
        file.print(options, "", guesses_table(results))?;
    }
    Ok(())
}

fn guesses_table(results: &[GuessesReport]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY).set_header([
        "guesses",
        "step p50, ms",
        "p95",
        "guessed a step",
        "tokens a step",
        "decode, tokens/s",
    ]);
    for r in results {
        let guesses = match r.guesses {
            Guesses::None => "none",
            Guesses::Right => "all right",
            Guesses::Wrong => "all wrong",
        };
        table.add_row([
            guesses.to_owned(),
            fixed(r.step_ms.p50, 3),
            fixed(r.step_ms.p95, 3),
            fixed(r.guessed_per_step, 2),
            fixed(r.tokens_per_step, 2),
            fixed(r.decode_tokens_per_s, 1),
        ]);
    }
    table
}

/// What a cache takes, in words.
pub(super) fn room(cache: &KvCacheReport) -> String {
    format!(
        "{}, {} bytes a token, {} MB for {} tokens",
        cache.format,
        count(cache.bytes_per_token),
        fixed(cache.bytes as f64 / 1e6, 1),
        count(cache.tokens)
    )
}

fn print(r: &BenchReport) -> std::io::Result<()> {
    let mut out = smq_convert::cli::stdout();
    let o = &r.options;
    writeln!(
        out,
        "{} ({}; {})",
        r.model.path,
        DecimalBytes(r.model.file_bytes),
        r.model.schemes
    )?;
    let on = match &r.gpu {
        Some(gpu) => format!("{} on {}", r.device, gpu.name),
        None => format!(
            "{} on {}, {} of {} cores",
            r.device, r.machine.cpu, r.machine.threads, r.machine.cores
        ),
    };
    writeln!(
        out,
        "{on}; {} prompt + {} output tokens, {} warm-up, {} repeats",
        count(o.prompt_tokens),
        count(o.output_tokens),
        count(o.warmup),
        count(o.repeats)
    )?;
    writeln!(out, "KV cache: {}", room(&r.kv_cache))?;
    let mut table = Table::new();
    table
        .load_style(UTF8_HORIZONTAL_ONLY)
        .set_header(["", "mean", "p50", "p95"]);
    let mut row = |name: &str, s: &Summary| {
        let ms = |v: f64| fixed(v, 2);
        table.add_row([name.to_owned(), ms(s.mean), ms(s.p50), ms(s.p95)]);
    };
    row("TTFT, ms", &r.ttft_ms);
    if let Some(tpot) = &r.tpot_ms {
        row("TPOT, ms", tpot);
    }
    let switches: Vec<f64> = r.runs.iter().filter_map(|run| run.rope_switch_ms).collect();
    if let Some(switch) = Summary::of(&switches) {
        row("LongRoPE switch, ms (not in TPOT)", &switch);
    }
    let mut value = |name: &str, text: String| {
        table.add_row([name.to_owned(), text]);
    };
    if let (Some(rate), Some(gb)) = (r.decode_tokens_per_s, r.decode_gb_per_s) {
        value("decode, tokens/s", fixed(rate, 1));
        value("decode, GB/s of weights", fixed(gb, 1));
    }
    value("output, tokens/s", fixed(r.output_tokens_per_s, 1));
    value("prompt + output, tokens/s", fixed(r.total_tokens_per_s, 1));
    value("load, ms", fixed(r.load_ms, 1));
    if let Some(upload) = &r.upload {
        let (ms, rate) = (
            upload.seconds * 1e3,
            upload.bytes as f64 / upload.seconds / 1e9,
        );
        let text = format!("{} ({rate:.1} GB/s)", fixed(ms, 1));
        value("of which copying, ms", text);
    }
    let mb = |bytes: u64| fixed(bytes as f64 / 1e6, 1);
    if let Some(bytes) = r.memory.peak_rss_bytes {
        value("peak RSS, MB", mb(bytes));
    }
    if let Some(bytes) = r.memory.rss_anon_bytes {
        value("RssAnon, MB", mb(bytes));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    writeln!(out, "{table}")
}
