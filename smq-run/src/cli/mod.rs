//! The command line: arguments here, one file for each command.

mod bench;
mod cells;
mod chat;
mod demo;
mod draft;
mod explain;
mod generate;
mod kernels;
mod kl;
mod load;
mod manual;
mod matrix;
mod ppl;
mod recall;
mod report;
mod sensitivity;
mod serve;
mod suite;
mod task;
mod unused;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};

use crate::eval::task::{Prompts, Task};
use smq_convert::cli::{print_note, print_notes};
use smq_engine::serve::{BatchEngine, BatchOptions, load_batch, load_guessing};
use smq_engine::{Device, Engine, KvCacheFormat, LoadOptions, Opening};
use smq_model::Source;

/// An engine of many sequences, or why there is none.
type Loaded<'s> = smq_engine::Result<Box<dyn BatchEngine + 's>>;

/// Run a .smq file or a Hugging Face checkpoint directory: generate text, time it, evaluate it.
#[derive(Debug, Parser)]
#[command(name = "smq-run", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    global: Global,
}

#[derive(Debug, Args)]
struct Global {
    /// What to run on: auto, which takes a GPU where there is one, cpu or cuda [default: auto]
    #[arg(long, global = true, value_name = "DEVICE")]
    device: Option<Device>,
    /// Longest sequence in tokens, prompt and output together, which sizes the KV cache [default:
    /// the model's longest context]
    #[arg(long, global = true, value_name = "N", value_parser = generate::at_least_one)]
    context: Option<usize>,
    /// How keys and values are cached: f32, bf16, fp8 (half of bf16), int8 (half), int4 (a quarter)
    /// [default: f32 on a CPU, bf16 on a GPU]
    #[arg(long, global = true, value_name = "FORMAT")]
    kv_cache: Option<KvCacheFormat>,
    /// Worker threads, at most 8 for each CPU [default: one for each CPU]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Check every hash of the .smq file before running it
    #[arg(long, global = true)]
    verify: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Continue a prompt, streaming the text
    Generate(generate::GenerateArgs),
    /// Talk with a model, turn by turn
    Chat(chat::ChatArgs),
    /// Time prefill and decode
    Bench(bench::BenchArgs),
    /// Check and time every CUDA kernel at the shapes of Phi-3.5-mini
    Kernels(kernels::KernelsArgs),
    /// Measure the quality of a model, by texts and by tasks
    #[command(subcommand)]
    Eval(EvalCommand),
    /// Serve a model to many clients at once, by OpenAI's HTTP API
    Serve(serve::ServeArgs),
    /// Put load on an OpenAI-compatible server and measure what its clients see
    Load(load::LoadArgs),
    /// Run the experiment of spec/experiment.toml, or what is left of it
    Matrix(matrix::MatrixArgs),
    /// Write tables, plots and report.md from what `matrix` measured
    Report(report::ReportArgs),
    /// A process of `matrix`: measures workloads of one model, a JSON line each
    #[command(hide = true)]
    Cells(cells::CellsArgs),
    /// Convert, inspect, evaluate and time the bundled checkpoint in every config
    Demo(demo::DemoArgs),
    /// Write man pages and shell completions of smq-convert, smq-inspect and smq-run
    Manual(manual::ManualArgs),
}

#[derive(Debug, Subcommand)]
enum EvalCommand {
    /// Perplexity of a text, over non-overlapping windows
    Ppl(ppl::PplArgs),
    /// Distance of next-token distributions from the unquantized model's: KL divergence, top-1
    /// agreement, perplexity ratio
    Kl(kl::KlArgs),
    /// Which layers or projections mind quantization: each quantized alone, its weight error beside
    /// its distance from C0
    Sensitivity(sensitivity::SensitivityArgs),
    /// Every task and the distance from C0, over every config, scale rule and width, with what each
    /// costs against C0
    Suite(suite::SuiteArgs),
    /// The last word of passages: accuracy and perplexity (lambada_openai)
    Lambada(task::TaskArgs),
    /// The most likely ending: plain and length-normalized accuracy
    Hellaswag(task::TaskArgs),
    /// Multiple-choice science questions, ARC-Challenge or ARC-Easy: plain and length-normalized
    /// accuracy
    Arc(task::TaskArgs),
    /// Arithmetic answered freely, greedily: strict and flexible exact match
    Gsm8k(task::AnswerArgs),
    /// A word that only a passage tells, asked for some hundred tokens later: accuracy and
    /// perplexity by distance. Its items are made, and need no data
    Recall(recall::RecallArgs),
}

/// A model file and the engine's loading, common to all commands.
struct Opened {
    source: Source,
    device: Device,
    context: Option<usize>,
    kv_cache: Option<KvCacheFormat>,
    opening: Duration,
    /// The device for the first engine, where it is being opened already.
    being_opened: Mutex<Option<Opening>>,
}

/// Runs one command.
///
/// # Errors
/// Whatever goes wrong, to be shown as one line.
pub fn run(cli: &Cli) -> anyhow::Result<()> {
    unused::refuse(cli)?;
    if let Some(threads) = cli.global.threads {
        rayon::ThreadPoolBuilder::new()
            .num_threads(smq_convert::threads(threads.into()))
            .build_global()?;
    }
    match &cli.command {
        Command::Generate(args) => generate::run(args, &cli.global),
        Command::Chat(args) => chat::run(args, &cli.global),
        Command::Bench(args) => bench::run(args, &cli.global),
        Command::Kernels(args) => kernels::run(args, &cli.global),
        Command::Eval(command) => run_eval(command, &cli.global),
        Command::Serve(args) => serve::run(args, &cli.global),
        Command::Load(args) => load::run(args),
        Command::Matrix(args) => matrix::run(args, &cli.global),
        Command::Report(args) => report::run(args),
        Command::Cells(args) => cells::run(args, &cli.global),
        Command::Demo(args) => demo::run(args, &cli.global),
        Command::Manual(args) => manual::run(args),
    }
}

fn run_eval(command: &EvalCommand, global: &Global) -> anyhow::Result<()> {
    let run = |task, args| task::run(task, args, Prompts::default(), global);
    match command {
        EvalCommand::Ppl(args) => ppl::run(args, global),
        EvalCommand::Kl(args) => kl::run(args, global),
        EvalCommand::Sensitivity(args) => sensitivity::run(args, global),
        EvalCommand::Suite(args) => suite::run(args, global),
        EvalCommand::Lambada(args) => run(Task::Lambada, args),
        EvalCommand::Hellaswag(args) => run(Task::Hellaswag, args),
        EvalCommand::Arc(args) => run(Task::Arc, args),
        EvalCommand::Recall(args) => recall::run(args, global),
        EvalCommand::Gsm8k(args) => task::run(Task::Gsm8k, &args.task, args.prompts(), global),
    }
}

impl Global {
    fn device(&self) -> Device {
        self.device.unwrap_or(Device::Auto)
    }
}

impl Opened {
    fn new(model: &Path, global: &Global) -> anyhow::Result<Self> {
        Self::beside(None, model, global)
    }

    /// As [`new`](Self::new), where an engine will follow: a thread opens the GPU meanwhile, and
    /// while the tokenizer is read.
    fn for_engine(model: &Path, global: &Global) -> anyhow::Result<Self> {
        Self::beside(Some(Opening::begin(global.device())), model, global)
    }

    fn beside(
        being_opened: Option<Opening>,
        model: &Path,
        global: &Global,
    ) -> anyhow::Result<Self> {
        let start = Instant::now();
        let source = Source::open(model)?;
        print_notes(source.notes());
        let opening = start.elapsed();
        if global.verify {
            source.verify()?;
        }
        Ok(Self {
            source,
            device: global.device(),
            context: global.context,
            kv_cache: global.kv_cache,
            opening,
            being_opened: Mutex::new(being_opened),
        })
    }

    /// Refuses a prompt that fills the context that --context leaves; what the model itself has no
    /// room for, the engine refuses.
    ///
    /// # Errors
    /// Such a prompt.
    fn check_context(&self, prompt_tokens: usize) -> anyhow::Result<()> {
        match self.context {
            Some(context) if prompt_tokens >= context => anyhow::bail!(
                "the prompt has {prompt_tokens} tokens, which --context {context} has no room for \
                 beside an answer; give a larger one, or leave it out"
            ),
            Some(_) | None => Ok(()),
        }
    }

    /// Every file that must not be replaced: the model's, and `others`.
    fn inputs(&self, others: &[&PathBuf]) -> Vec<PathBuf> {
        let mut inputs = self.source.paths();
        inputs.extend(others.iter().map(|path| path.to_path_buf()));
        inputs
    }

    fn device_to_load(&self) -> Opening {
        let being_opened = self.being_opened.lock();
        let being_opened = being_opened.unwrap_or_else(PoisonError::into_inner).take();
        being_opened.unwrap_or_else(|| self.device.into())
    }

    /// The engine, and how long opening and loading took (without verification).
    fn load(&self) -> anyhow::Result<(Box<dyn Engine + '_>, Duration)> {
        let start = Instant::now();
        let path = self.source.path().display();
        let options = LoadOptions {
            max_tokens: self.context,
            kv_cache: self.kv_cache,
        };
        let engine = smq_engine::load_with(&self.source, self.device_to_load(), &options)
            .with_context(|| format!("cannot load {path}"))?;
        let loading = start.elapsed();
        for note in &engine.config().notes {
            print_note(note);
        }
        Ok((engine, self.opening + loading))
    }

    /// The engine of many sequences.
    fn load_batch(&self, options: &BatchOptions) -> anyhow::Result<Box<dyn BatchEngine + '_>> {
        self.load_many(options, load_batch)
    }

    /// The engine of one sequence whose tokens are guessed.
    fn load_guessing(&self, options: &BatchOptions) -> anyhow::Result<Box<dyn BatchEngine + '_>> {
        self.load_many(options, load_guessing)
    }

    fn load_many<'s, F>(
        &'s self,
        options: &BatchOptions,
        load: F,
    ) -> anyhow::Result<Box<dyn BatchEngine + 's>>
    where
        F: FnOnce(&'s Source, Opening, &BatchOptions) -> Loaded<'s>,
    {
        let path = self.source.path().display();
        let options = BatchOptions {
            max_tokens: self.context,
            kv_cache: self.kv_cache,
            ..options.clone()
        };
        let engine = load(&self.source, self.device_to_load(), &options)
            .with_context(|| format!("cannot load {path}"))?;
        for note in &engine.config().notes {
            print_note(note);
        }
        Ok(engine)
    }
}
