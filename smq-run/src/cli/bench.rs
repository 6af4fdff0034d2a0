//! `smq-run bench`.

use std::path::PathBuf;

use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use indicatif::DecimalBytes;

use super::{Common, JsonArg, load, open, print, write_json};
use crate::bench::{BenchOptions, BenchReport, bench};

#[derive(Args)]
pub(super) struct BenchArgs {
    /// A .smq file or a checkpoint directory
    model: PathBuf,
    /// Tokens of the prompt
    #[arg(long, default_value_t = BenchOptions::default().prompt_tokens)]
    prompt_tokens: usize,
    /// Tokens generated after it
    #[arg(long, default_value_t = BenchOptions::default().output_tokens)]
    output_tokens: usize,
    /// Runs that are not counted
    #[arg(long, default_value_t = BenchOptions::default().warmup)]
    warmup: usize,
    /// Runs that are
    #[arg(long, default_value_t = BenchOptions::default().repeats)]
    repeats: usize,
    #[command(flatten)]
    json: JsonArg,
}

pub(super) fn run(common: &Common, args: BenchArgs) -> anyhow::Result<()> {
    let source = open(common, &args.model)?;
    let (mut engine, load_time) = load(common, &source)?;
    let options = BenchOptions {
        prompt_tokens: args.prompt_tokens,
        output_tokens: args.output_tokens,
        warmup: args.warmup,
        repeats: args.repeats,
    };
    let report = bench(&mut *engine, &source, load_time, &options)?;
    if !args.json.is_stdout() {
        print(&text(&report))?;
    }
    match &args.json.json {
        Some(target) => write_json(target, &report),
        None => Ok(()),
    }
}

/// The report for people.
fn text(r: &BenchReport) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(["", "mean", "p50", "p95"]);
    let rows = [("TTFT, ms", Some(r.ttft_ms)), ("TPOT, ms", r.tpot_ms)];
    for (name, summary) in rows {
        if let Some(s) = summary {
            table.add_row([name.to_owned(), three(s.mean), three(s.p50), three(s.p95)]);
        }
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let o = &r.options;
    let mut out = format!(
        "{} on {} ({}, {} threads)\n{}; {} of weights read a token\n{} prompt and {} output tokens, {} warm-up and {} timed runs; {}\n\n{table}\n\n",
        r.model.path,
        r.machine.cpu,
        r.device,
        r.machine.threads,
        r.model.schemes,
        DecimalBytes(r.model.bytes_per_token as u64),
        o.prompt_tokens,
        o.output_tokens,
        o.warmup,
        o.repeats,
        r.prompt,
    );
    if let (Some(rate), Some(gb)) = (r.decode_tokens_per_s, r.decode_gb_per_s) {
        out += &format!("decode    {rate:.1} tokens/s, {gb:.2} GB/s of weights\n");
    }
    out += &format!(
        "overall   {:.1} output tokens/s, {:.1} total tokens/s\nload      {:.1} ms; file {}\n",
        r.output_tokens_per_s,
        r.total_tokens_per_s,
        r.load_ms,
        DecimalBytes(r.model.file_bytes)
    );
    if let (Some(peak), Some(anon)) = (r.memory.peak_rss_bytes, r.memory.rss_anon_bytes) {
        out += &format!(
            "memory    {} peak RSS, {} anonymous\n",
            DecimalBytes(peak),
            DecimalBytes(anon)
        );
    }
    out
}

fn three(ms: f64) -> String {
    format!("{ms:.3}")
}
