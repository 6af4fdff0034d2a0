//! `smq-run eval ppl`.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use serde::Serialize;

use super::explain::ExplainArgs;
use super::generate::at_least_one;
use super::{Global, Opened};
use crate::eval::ppl::{MAX_TEXT_BYTES, PplOptions, PplReport, perplexity};
use crate::output::{create, is_stdout, put_json};
use smq_format::read_text;
use smq_model::Tokenizer;

#[derive(Debug, Args)]
pub(super) struct PplArgs {
    /// A .smq file or a checkpoint directory
    model: PathBuf,
    #[command(flatten)]
    text: TextArgs,
    #[command(flatten)]
    explain: ExplainArgs,
}

/// A text that is scored in windows, and where the result goes.
#[derive(Debug, Args)]
pub(super) struct TextArgs {
    /// The text, UTF-8
    #[arg(long, value_name = "FILE")]
    pub text: PathBuf,
    /// Tokens a window
    #[arg(long, default_value_t = 512, value_name = "N")]
    window: usize,
    /// Use only this many leading tokens of the text
    #[arg(long, value_name = "N", value_parser = at_least_one, alias = "max-tokens")]
    text_tokens: Option<usize>,
    /// Print the result as JSON in place of the text; with =FILE write it there beside the text
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
}

impl TextArgs {
    pub(super) fn read(&self) -> anyhow::Result<String> {
        Ok(read_text(&self.text, MAX_TEXT_BYTES)?)
    }

    pub(super) fn options(&self) -> PplOptions {
        PplOptions {
            window: self.window,
            max_tokens: self.text_tokens,
        }
    }
}

#[derive(Serialize)]
struct Report<'a> {
    model: String,
    text: String,
    device: &'a str,
    #[serde(flatten)]
    result: &'a PplReport,
}

pub(super) fn run(args: &PplArgs, global: &Global) -> anyhow::Result<()> {
    let text = args.text.read()?;
    let opened = Opened::new(&args.model, global)?;
    let json = create(args.text.json.as_ref(), &opened.inputs(&[&args.text.text]))?;
    let to_stdout = is_stdout(json.as_ref());
    let tokenizer = Tokenizer::load(&opened.source)?;
    let (mut engine, _) = opened.load()?;
    let options = args.text.options();
    // indicatif draws on standard error, and not at all where that is no terminal.
    let bar = ProgressBar::new(0).with_style(ProgressStyle::with_template(
        "{msg} {wide_bar} {pos}/{len} windows, {elapsed} elapsed, {eta} left",
    )?);
    let progress = |done, all, perplexity: Option<f64>| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
        if let Some(perplexity) = perplexity {
            bar.set_message(format!("perplexity {perplexity:.4}"));
        }
    };
    let result = perplexity(&mut *engine, &tokenizer, &text, &options, progress)?;
    bar.finish_and_clear();
    let report = Report {
        model: args.model.display().to_string(),
        text: args.text.text.display().to_string(),
        device: engine.device(),
        result: &result,
    };
    put_json(json, &report)?;
    if !to_stdout {
        let mut out = smq_convert::cli::stdout();
        writeln!(
            out,
            "perplexity {:.4} ({:.6} nats a token)",
            result.perplexity, result.loss_nats_per_token
        )?;
        writeln!(
            out,
            "{} tokens scored in {} windows of {}",
            HumanCount(result.tokens_scored as u64),
            HumanCount(result.windows as u64),
            HumanCount(result.window as u64)
        )?;
        args.explain
            .print(&mut out, &options.protocol_in_short(), &result.protocol)?;
    }
    Ok(())
}
