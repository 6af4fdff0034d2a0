//! `smq-run eval suite`: every task and the distance from C0, for every variant.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::Global;
use super::generate::at_least_one;
use crate::eval::ppl::PplOptions;
use crate::eval::suite::{self, Progress, RegisteredPlan, SuiteOptions};
use crate::eval::task::{MAX_NEW_TOKENS, Prompts, Task};
use smq_convert::number::count;

#[derive(Debug, Args)]
pub(super) struct SuiteArgs {
    /// The checkpoint directory that variants are made of
    checkpoint: PathBuf,
    /// Directory of the data: lambada.jsonl, hellaswag.jsonl, arc.jsonl, gsm8k.jsonl and, for the
    /// distance from C0, text.txt or wiki.test.raw, or their published names in directories
    /// lambada/, hellaswag/, arc/, gsm8k/, wikitext2/
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Directory of the results; what is finished there is not measured again
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Only these tasks, comma-separated; recall, which needs no data, is run only where it is
    /// named [default: all whose data is there]
    #[arg(long, value_name = "TASKS", value_delimiter = ',')]
    tasks: Vec<Task>,
    /// Only these variants beside C0, comma-separated, such as mlp-e5m5,all-e5m0-nearest, configs
    /// of the study such as C4, or all-auto-4.5 for what smq-convert --mbits auto --budget 4.5
    /// chooses [default: all that are uniform]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    only: Vec<String>,
    /// Measure what FILE registers in place of the built-in variants, with its tasks and its text:
    /// spec/calibration.toml
    #[arg(long, value_name = "FILE", conflicts_with_all = [
        "tasks", "sensitivity", "limit", "max_new_tokens", "text", "window", "text_tokens",
    ])]
    plan: Option<PathBuf>,
    /// Only these grids of the plan, comma-separated; the tables have all that is measured
    #[arg(long, value_name = "IDS", value_delimiter = ',', requires = "plan")]
    grids: Vec<String>,
    /// What weighs the errors of variants such as all-auto-4.5-weighed: the JSON of eval
    /// sensitivity
    #[arg(long, value_name = "FILE")]
    sensitivity: Option<PathBuf>,
    /// Only the first N items of each task, or of the tasks named: 500, or lambada=1000,gsm8k=100
    #[arg(long, value_name = "N | TASK=N", value_delimiter = ',')]
    limit: Vec<Limit>,
    /// Most new tokens of a gsm8k answer [default: 256]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    max_new_tokens: Option<usize>,
    /// The text for the distance from C0 [default: the data directory's]
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Tokens a window of the text
    #[arg(long, default_value_t = 512, value_name = "N")]
    window: usize,
    /// Use only this many leading tokens of the text
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    text_tokens: Option<usize>,
}

/// Most items of one task, or of every task.
#[derive(Debug, Clone, Copy)]
struct Limit {
    task: Option<Task>,
    items: usize,
}

impl FromStr for Limit {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let (task, items) = match s.split_once('=') {
            Some((task, items)) => (Some(task.parse()?), items),
            None => (None, s),
        };
        let items = at_least_one(items)?;
        Ok(Self { task, items })
    }
}

/// The limit of each task that has one; its own goes before that of all.
fn limits(given: &[Limit]) -> BTreeMap<Task, usize> {
    let of = |task: Option<Task>| given.iter().rev().find(move |l| l.task == task);
    let limit = |task| Some((task, of(Some(task)).or_else(|| of(None))?.items));
    Task::ALL.into_iter().filter_map(limit).collect()
}

/// indicatif draws on standard error, and not at all where that is no terminal.
struct Bar(ProgressBar);

impl Progress for Bar {
    fn cell(&mut self, name: &str, index: usize, cells: usize, steps: usize) {
        self.0.reset();
        self.0.set_length(steps as u64);
        self.0.set_message(format!("{index}/{cells} {name}"));
    }

    fn step(&mut self, done: usize) {
        self.0.set_position(done as u64);
    }
}

/// Refuses options of tasks that are not run.
fn refuse_unused(args: &SuiteArgs) -> anyhow::Result<()> {
    let left_out = |task: Task| !args.tasks.is_empty() && !args.tasks.contains(&task);
    let limited = args.limit.iter().filter_map(|limit| limit.task);
    if let Some(task) = limited.into_iter().find(|task| left_out(*task)) {
        anyhow::bail!(
            "--limit {}=N has no effect: --tasks does not name {0}; leave one of them out",
            task.name()
        );
    }
    anyhow::ensure!(
        args.max_new_tokens.is_none() || !left_out(Task::Gsm8k),
        "--max-new-tokens has no effect: it is for gsm8k, which --tasks does not name"
    );
    Ok(())
}

pub(super) fn run(args: &SuiteArgs, global: &Global) -> anyhow::Result<()> {
    refuse_unused(args)?;
    let plan = args.plan.as_deref().map(RegisteredPlan::load).transpose()?;
    let mut options = SuiteOptions {
        checkpoint: args.checkpoint.clone(),
        data: args.data.clone(),
        out: args.out.clone(),
        tasks: args.tasks.clone(),
        only: args.only.clone(),
        limits: limits(&args.limit),
        plan: None,
        grids: args.grids.clone(),
        sensitivity: args.sensitivity.clone(),
        prompts: Prompts {
            chat: true,
            max_new_tokens: args.max_new_tokens.unwrap_or(MAX_NEW_TOKENS),
        },
        text_file: args.text.clone(),
        text: PplOptions {
            window: args.window,
            max_tokens: args.text_tokens,
        },
        device: global.device(),
        max_tokens: global.context,
    };
    if let Some(plan) = plan {
        options.follow(plan);
    }
    let mut bar = Bar(ProgressBar::new(0).with_style(ProgressStyle::with_template(
        "{msg} {wide_bar} {pos}/{len}, {elapsed} elapsed, {eta} left of it",
    )?));
    let summary = suite::run(&options, &mut bar)?;
    bar.0.finish_and_clear();
    let out = args.out.display();
    writeln!(
        smq_convert::cli::stdout(),
        "{}\n{} variants, in full in {out}/suite.md and {out}/suite.json",
        suite::brief(&summary),
        count(summary.variants.len())
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tasks_own_limit_goes_before_that_of_all() {
        let parsed = |text: &str| {
            text.split(',')
                .map(str::parse)
                .collect::<Result<Vec<_>, _>>()
        };
        let of = |text: &str| limits(&parsed(text).unwrap());
        assert_eq!(of("lambada=7"), BTreeMap::from([(Task::Lambada, 7)]));
        let both = of("gsm8k=3,20");
        assert_eq!(
            (both[&Task::Gsm8k], both[&Task::Arc], both.len()),
            (3, 20, Task::ALL.len())
        );
        for bad in ["0", "x", "arc=", "arc=0", "who=3", "3="] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
    }
}
