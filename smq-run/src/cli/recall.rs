//! `smq-run eval recall`: words of passages, asked for further down.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::explain::ExplainArgs;
use super::generate::at_least_one;
use super::task::{Evaluated, evaluate_on, outputs};
use super::{Global, Opened};
use crate::eval::metrics::{Score, mean};
use crate::eval::task::recall::{DISTANCES, ITEMS, RecallOptions, SEED};
use crate::eval::task::{Item, Metric, Prompts, Task, scores, values};
use crate::output::{is_stdout, put_json, put_jsonl};
use smq_convert::cli::JsonArgs;
use smq_convert::number::{count, fixed};
use smq_engine::KvCacheFormat;
use smq_model::Tokenizer;

#[derive(Debug, Args)]
pub(super) struct RecallArgs {
    /// A .smq file or a checkpoint directory
    model: PathBuf,
    /// Tokens of filler between what a passage tells and the question, comma-separated; items take
    /// them in turn
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_values_t = DISTANCES,
          value_parser = at_least_one)]
    distances: Vec<usize>,
    /// Where the generator of passages starts
    #[arg(long, value_name = "N", default_value_t = SEED)]
    seed: u32,
    #[command(flatten)]
    explain: ExplainArgs,
    /// Items, of all distances together
    #[arg(long, value_name = "N", default_value_t = ITEMS, value_parser = at_least_one)]
    limit: usize,
    /// Evaluate nothing, and print so many passages of other words with their answers: a text that
    /// calibration may mix in, which gives away none of the task's
    #[arg(long, value_name = "N", value_parser = at_least_one,
          conflicts_with_all = ["limit", "out", "json", "explain"])]
    print_text: Option<usize>,
    /// Also write every item's log-likelihood and its figures, one JSON object a line
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    json: JsonArgs,
}

#[derive(Serialize)]
struct Report<'a> {
    task: Task,
    model: String,
    device: &'a str,
    kv_cache: KvCacheFormat,
    seed: u32,
    #[serde(flatten)]
    all: Figures,
    distances: Vec<AtDistance>,
    protocol: &'a str,
}

#[derive(Serialize)]
struct AtDistance {
    /// Tokens between what a passage tells and the question.
    distance: usize,
    #[serde(flatten)]
    figures: Figures,
}

#[derive(Serialize)]
struct Figures {
    items: usize,
    scores: BTreeMap<Metric, Score>,
    /// Mean log-likelihood of a word, nats.
    log_likelihood: Score,
}

impl Figures {
    fn of(items: &[Item]) -> anyhow::Result<Self> {
        Ok(Self {
            items: items.len(),
            scores: scores(Task::Recall, items)?,
            log_likelihood: mean(&values(items, Metric::Perplexity)?),
        })
    }
}

pub(super) fn run(args: &RecallArgs, global: &Global) -> anyhow::Result<()> {
    let options = RecallOptions {
        distances: args.distances.clone(),
        seed: args.seed,
        items: args.print_text.unwrap_or(args.limit),
    };
    let opened = Opened::new(&args.model, global)?;
    if args.print_text.is_some() {
        let text = options.text(&Tokenizer::load(&opened.source)?)?;
        smq_convert::cli::stdout().write_all(text.as_bytes())?;
        return Ok(());
    }
    let (out, json) = outputs(args.out.as_ref(), args.json.target(), &opened.inputs(&[]))?;
    let to_stdout = is_stdout(json.as_ref());
    let made = |tokenizer: &Tokenizer, positions| Ok(options.requests(tokenizer, positions)?);
    let run = evaluate_on(&opened, Prompts::default(), made)?;
    let Evaluated { items, device, .. } = run;
    put_jsonl(out, &items)?;
    let mut by_distance: BTreeMap<usize, Vec<Item>> = BTreeMap::new();
    for item in &items {
        if let Some(distance) = item.distance {
            by_distance.entry(distance).or_default().push(item.clone());
        }
    }
    let at = |(distance, items): (usize, Vec<Item>)| {
        let figures = Figures::of(&items)?;
        Ok(AtDistance { distance, figures })
    };
    let report = Report {
        task: Task::Recall,
        model: args.model.display().to_string(),
        device: &device,
        kv_cache: run.kv_cache,
        seed: args.seed,
        all: Figures::of(&items)?,
        distances: by_distance
            .into_iter()
            .map(at)
            .collect::<anyhow::Result<_>>()?,
        protocol: Task::Recall.protocol(),
    };
    put_json(json, &report)?;
    if !to_stdout {
        print(&report, &args.explain)?;
    }
    Ok(())
}

fn print(report: &Report<'_>, explain: &ExplainArgs) -> std::io::Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "distance",
        "items",
        "acc",
        "+-",
        "log-likelihood",
        "+-",
        "perplexity",
    ]);
    let mut add = |distance: String, f: &Figures| {
        let error = |score: Score| score.stderr.map_or("-".to_owned(), |e| format!("{e:.4}"));
        let score = |metric| f.scores.get(&metric).copied();
        let of = |metric| score(metric).map_or("-".to_owned(), |s| fixed(s.value, 4));
        table.add_row([
            distance,
            count(f.items),
            of(Metric::Acc),
            score(Metric::Acc).map_or("-".to_owned(), error),
            format!("{:.4}", f.log_likelihood.value),
            error(f.log_likelihood),
            of(Metric::Perplexity),
        ]);
    };
    for at in &report.distances {
        add(count(at.distance), &at.figures);
    }
    add("all".to_owned(), &report.all);
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut out = smq_convert::cli::stdout();
    writeln!(out, "{table}")?;
    explain.print(&mut out, report.task.protocol_in_short(), report.protocol)
}
