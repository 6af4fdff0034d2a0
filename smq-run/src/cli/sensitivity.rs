//! `smq-run eval sensitivity`: what each part of a model costs when it alone is quantized.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use smq_convert::cli::JsonArgs;
use smq_convert::number::count;
use smq_convert::{ScaleChoice, ScaleRule, Target, cli};

use super::Global;
use super::generate::at_least_one;
use crate::eval::paired::Delta;
use crate::eval::ppl::PplOptions;
use crate::eval::sensitivity::{Sensitivity, SensitivityOptions, Unit, Words, run as measure};
use crate::eval::task::Task;
use crate::eval::task::recall::RecallOptions;
use crate::output::{create, is_stdout, put_json};

use smq_model::Source;

/// Lines of the table.
const SHOWN: usize = 12;

#[derive(Debug, Args)]
pub(super) struct SensitivityArgs {
    /// The checkpoint directory whose parts are quantized
    checkpoint: PathBuf,
    /// The text that is scored, in UTF-8
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// What to quantize at a time; kinds are of all layers
    #[arg(long, value_enum, default_value_t = Unit::Layer)]
    unit: Unit,
    /// Which matrices: mlp, all, or a regex over names
    #[arg(long, default_value = "all")]
    target: Target,
    /// Scale format: f32, f16, or eXmY
    #[arg(long, default_value_t = ScaleChoice::e5(5), value_name = "FORMAT")]
    scales: ScaleChoice,
    /// How a group's scale is chosen
    #[arg(long, value_parser = cli::scale_rule(), default_value_t = ScaleRule::Reference)]
    scale_rule: ScaleRule,
    /// Also say what becomes of the words that this task asks for: lambada or recall
    #[arg(long, value_name = "TASK", value_parser = word_task)]
    task: Option<Task>,
    /// The items of --task lambada, JSON Lines as published
    #[arg(
        long,
        value_name = "FILE",
        requires = "task",
        required_if_eq("task", "lambada")
    )]
    data: Option<PathBuf>,
    /// Only the first N items of the task
    #[arg(long, value_name = "N", value_parser = at_least_one, requires = "task")]
    limit: Option<usize>,
    /// Tokens of a window, each of which is a sequence of its own
    #[arg(long, default_value_t = 512, value_name = "N")]
    window: usize,
    /// Use only this many leading tokens of the text
    #[arg(long, default_value_t = 4096, value_name = "N", value_parser = at_least_one)]
    text_tokens: usize,
    #[command(flatten)]
    json: JsonArgs,
}

/// A task that asks for words.
fn word_task(name: &str) -> Result<Task, String> {
    let asks_words = |task: &Task| matches!(task, Task::Lambada | Task::Recall);
    let found = name.parse().ok().filter(asks_words);
    found.ok_or_else(|| "expected lambada or recall, which ask for words".to_owned())
}

impl SensitivityArgs {
    fn words(&self) -> anyhow::Result<Option<Words>> {
        Ok(match (self.task, &self.data) {
            (Some(Task::Lambada), Some(data)) => Some(Words::Lambada {
                data: data.clone(),
                limit: self.limit,
            }),
            (Some(Task::Recall), None) => {
                let mut options = RecallOptions::default();
                options.items = self.limit.unwrap_or(options.items);
                Some(Words::Recall(options))
            }
            (Some(Task::Recall), Some(data)) => anyhow::bail!(
                "--data {} is for --task lambada; the items of recall are made: leave it out",
                data.display()
            ),
            // clap has seen to it that lambada has its data, and that there is no other task.
            (Some(Task::Lambada | Task::Hellaswag | Task::Arc | Task::Gsm8k) | None, _) => None,
        })
    }
}

pub(super) fn run(args: &SensitivityArgs, global: &Global) -> anyhow::Result<()> {
    let mut inputs = Source::open(&args.checkpoint)?.paths();
    inputs.push(args.text.clone());
    inputs.extend(args.data.clone());
    let json = create(args.json.target(), &inputs)?;
    let to_stdout = is_stdout(json.as_ref());
    let options = SensitivityOptions {
        checkpoint: args.checkpoint.clone(),
        text: args.text.clone(),
        windows: PplOptions {
            window: args.window,
            max_tokens: Some(args.text_tokens),
        },
        target: args.target.clone(),
        unit: args.unit,
        scales: args.scales,
        rule: args.scale_rule,
        words: args.words()?,
        device: global.device(),
        max_tokens: global.context,
    };
    // indicatif draws on standard error, and not at all where that is no terminal.
    let bar = ProgressBar::new(0).with_style(ProgressStyle::with_template(
        "{msg} {wide_bar} {pos}/{len}, {elapsed} elapsed, {eta} left",
    )?);
    let result = measure(&options, &mut |done, all, name| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
        bar.set_message(name.to_owned());
    })?;
    bar.finish_and_clear();
    put_json(json, &result)?;
    if !to_stdout {
        print(&result)?;
    }
    Ok(())
}

fn print(result: &Sensitivity) -> std::io::Result<()> {
    let mut worst: Vec<_> = result.points.iter().collect();
    worst.sort_by(|a, b| b.mean_kl.value.total_cmp(&a.mean_kl.value));
    let mut header = vec!["quantized alone", "rel. error", "mean KL", "+-", "loss +"];
    if result.task.is_some() {
        header.extend(["word ln p +", "95 %", "acc +, points"]);
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    for point in worst.iter().take(SHOWN) {
        let mut row = vec![
            point.name.clone(),
            format!("{:.6}", point.relative_error),
            format!("{:.6}", point.mean_kl.value),
            format!("{:.6}", point.mean_kl.stderr.unwrap_or(f64::NAN)),
            format!("{:+.5}", point.loss_delta_nats),
        ];
        if let Some(words) = &point.words {
            let Delta { mean, ci95 } = words.log_likelihood;
            row.push(format!("{mean:+.4}"));
            row.push(format!("{:+.4} to {:+.4}", ci95[0], ci95[1]));
            row.push(format!("{:+.2}", 100.0 * words.acc.mean));
        }
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut out = smq_convert::cli::stdout();
    writeln!(out, "{table}")?;
    let (n, tokens) = (count(result.points.len()), count(result.tokens_scored));
    let text = &result.text;
    writeln!(out, "the worst of {n}; {tokens} positions of {text}")?;
    if let Some(task) = &result.task {
        writeln!(
            out,
            "words: {} of {} ({}); unquantized: ln p {:.4}, acc {:.2} %",
            count(task.items),
            task.name.name(),
            task.data,
            task.log_likelihood,
            100.0 * task.acc
        )?;
    }
    writeln!(out, "rank correlations:")?;
    for (pair, rho) in &result.rank_correlation {
        let rho = rho.map_or("-".to_owned(), |r| format!("{r:+.3}"));
        writeln!(out, "  {pair:<28} {rho}")?;
    }
    Ok(())
}
