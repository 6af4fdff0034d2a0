//! The command line of `smq-run`.

mod bench;
mod eval;
mod generate;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};

use crate::{Device, Engine, Source, engine};

/// Run a .smq file, or an unquantized checkpoint directory, to generate, time or evaluate
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct Common {
    /// Where to run: auto, cpu or cuda
    #[arg(long, global = true, default_value = "auto")]
    device: Device,
    /// CPU threads; 0 takes every core
    #[arg(long, global = true, default_value_t = 0)]
    threads: usize,
    /// Check every hash of the .smq file before running it
    #[arg(long, global = true)]
    verify: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Continue a prompt, streaming the text
    Generate(generate::GenerateArgs),
    /// Time prefill and decode
    Bench(bench::BenchArgs),
    /// Measure quality
    #[command(subcommand)]
    Eval(eval::EvalCommand),
}

/// Runs the program.
///
/// # Errors
/// What the user should read.
pub fn run() -> anyhow::Result<()> {
    let cli = Cli::parse();
    rayon::ThreadPoolBuilder::new()
        .num_threads(cli.common.threads)
        .build_global()
        .context("cannot start the threads")?;
    match cli.command {
        Command::Generate(args) => generate::run(&cli.common, args),
        Command::Bench(args) => bench::run(&cli.common, args),
        Command::Eval(eval::EvalCommand::Ppl(args)) => eval::ppl(&cli.common, args),
    }
}

/// Opens a model, checked where `--verify` asks for it.
fn open(common: &Common, model: &Path) -> anyhow::Result<Source> {
    let source = Source::open(model)?;
    if common.verify {
        source.verify()?;
    }
    Ok(source)
}

/// Loads a model and says how long that took.
fn load<'a>(
    common: &Common,
    source: &'a Source,
) -> anyhow::Result<(Box<dyn Engine + 'a>, Duration)> {
    let started = Instant::now();
    let engine = engine::load(source, common.device)?;
    Ok((engine, started.elapsed()))
}

/// Writes `json` to the file, or to standard output for `-`.
fn write_json(target: &Path, json: &impl serde::Serialize) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(json).context("cannot write JSON")?;
    text.push('\n');
    if target == Path::new("-") {
        return print(&text);
    }
    std::fs::write(target, text).with_context(|| format!("{}: cannot write it", target.display()))
}

/// Prints without a panic where the reader has gone.
fn print(text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Where `--json` writes.
#[derive(Args)]
struct JsonArg {
    /// Write the figures as JSON to a file, or to standard output with -
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl JsonArg {
    fn is_stdout(&self) -> bool {
        self.json.as_deref() == Some(Path::new("-"))
    }
}
