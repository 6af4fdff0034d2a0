//! `smq-run eval lambada | hellaswag | arc | gsm8k`.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::explain::ExplainArgs;
use super::generate::at_least_one;
use super::{Global, Opened};
use crate::eval::metrics::Score;
use crate::eval::task::{
    Item, MAX_NEW_TOKENS, Metric, Prompts, Request, Task, batches, encode_all, evaluate, scores,
};
use crate::output::{create, is_stdout, put_json, put_jsonl};
use smq_convert::cli::JsonArgs;
use smq_convert::number::{count, fixed};
use smq_engine::KvCacheFormat;
use smq_format::Output;
use smq_model::{GenerationSettings, Tokenizer};

#[derive(Debug, Args)]
pub(super) struct TaskArgs {
    /// A .smq file or a checkpoint directory
    model: PathBuf,
    /// The items, JSON Lines as published
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    #[command(flatten)]
    explain: ExplainArgs,
    /// Only the first N items
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    limit: Option<usize>,
    /// Also write every item's log-likelihoods or answer and its figures, one JSON object a line
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    json: JsonArgs,
}

#[derive(Debug, Args)]
pub(super) struct AnswerArgs {
    #[command(flatten)]
    pub(super) task: TaskArgs,
    /// Most new tokens of an answer
    #[arg(long, value_name = "N", default_value_t = MAX_NEW_TOKENS, value_parser = at_least_one)]
    max_new_tokens: usize,
    /// Put the questions as plain text even where the model has a chat template
    #[arg(long)]
    raw: bool,
}

impl AnswerArgs {
    pub(super) fn prompts(&self) -> Prompts {
        Prompts {
            chat: !self.raw,
            max_new_tokens: self.max_new_tokens,
        }
    }
}

#[derive(Serialize)]
struct Report<'a> {
    task: Task,
    model: String,
    data: String,
    device: &'a str,
    kv_cache: KvCacheFormat,
    items: usize,
    scores: BTreeMap<Metric, Score>,
    #[serde(flatten)]
    answers: Option<Answers>,
    protocol: &'a str,
}

/// How free answers were asked for.
#[derive(Serialize)]
struct Answers {
    chat_template: bool,
    max_new_tokens: usize,
}

pub(super) fn run(
    task: Task,
    args: &TaskArgs,
    prompts: Prompts,
    global: &Global,
) -> anyhow::Result<()> {
    let requests = task.read(&args.data, args.limit)?;
    let opened = Opened::new(&args.model, global)?;
    let inputs = opened.inputs(&[&args.data]);
    let (out, json) = outputs(args.out.as_ref(), args.json.target(), &inputs)?;
    let to_stdout = is_stdout(json.as_ref());
    let run = evaluate_on(&opened, prompts, |_, _| Ok(requests))?;
    let Evaluated { items, device, .. } = &run;
    put_jsonl(out, items)?;
    let report = Report {
        task,
        model: args.model.display().to_string(),
        data: args.data.display().to_string(),
        device,
        kv_cache: run.kv_cache,
        items: items.len(),
        scores: scores(task, items)?,
        answers: (task == Task::Gsm8k).then_some(Answers {
            chat_template: prompts.chat && run.has_template,
            max_new_tokens: prompts.max_new_tokens,
        }),
        protocol: task.protocol(),
    };
    put_json(json, &report)?;
    if !to_stdout {
        print(&report, &args.explain)?;
    }
    Ok(())
}

/// Where items and the result go.
///
/// # Errors
/// One file for both, or one that cannot be written or is one of `inputs`.
pub(super) fn outputs(
    out: Option<&PathBuf>,
    json: Option<&PathBuf>,
    inputs: &[PathBuf],
) -> anyhow::Result<(Option<Output>, Option<Output>)> {
    anyhow::ensure!(
        json.is_none() || out != json,
        "--out and --json name the same file; give each its own"
    );
    Ok((create(out, inputs)?, create(json, inputs)?))
}

/// What a model made of a task.
pub(super) struct Evaluated {
    pub(super) items: Vec<Item>,
    pub(super) device: String,
    pub(super) kv_cache: KvCacheFormat,
    /// Whether the model has a chat template.
    has_template: bool,
}

/// Loads a model and puts to it what `requests` makes for its tokenizer and longest sequence.
pub(super) fn evaluate_on(
    opened: &Opened,
    prompts: Prompts,
    requests: impl FnOnce(&Tokenizer, usize) -> anyhow::Result<Vec<Request>>,
) -> anyhow::Result<Evaluated> {
    let tokenizer = Tokenizer::load(&opened.source)?;
    let eos_ids = GenerationSettings::plain(&opened.source)?.eos_ids;
    let (mut engine, _) = opened.load()?;
    let positions = engine.config().max_positions;
    let requests = requests(&tokenizer, positions)?;
    // indicatif draws on standard error, and not at all where that is no terminal.
    let bar = ProgressBar::new(requests.len() as u64).with_style(ProgressStyle::with_template(
        "{wide_bar} {pos}/{len} items, {elapsed} elapsed, {eta} left",
    )?);
    let requests = encode_all(&tokenizer, prompts, positions, &requests)?;
    let mut items = Vec::with_capacity(requests.len());
    for batch in batches(&requests, engine.pass_tokens()) {
        items.extend(evaluate(
            &mut *engine,
            &tokenizer,
            &eos_ids,
            prompts,
            batch,
        )?);
        bar.inc(batch.len() as u64);
    }
    bar.finish_and_clear();
    Ok(Evaluated {
        items,
        device: engine.device().to_owned(),
        kv_cache: engine.kv_cache().format,
        has_template: tokenizer.chat().is_some(),
    })
}

fn print(report: &Report<'_>, explain: &ExplainArgs) -> std::io::Result<()> {
    let mut out = smq_convert::cli::stdout();
    for (metric, Score { value, stderr }) in &report.scores {
        let error = stderr.map_or(String::new(), |e| format!(" +- {e:.4}"));
        writeln!(out, "{} {}{error}", metric.name(), fixed(*value, 4))?;
    }
    writeln!(out, "{} items", count(report.items))?;
    if let Some(answers) = &report.answers {
        let with = if answers.chat_template {
            "with"
        } else {
            "without"
        };
        let most = answers.max_new_tokens;
        writeln!(out, "{with} the chat template, at most {most} new tokens")?;
    }
    explain.print(&mut out, report.task.protocol_in_short(), report.protocol)
}
