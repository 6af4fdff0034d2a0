//! `smq-run eval ppl`: the perplexity of a text.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::explain::ExplainArgs;
use super::generate::at_least_one;
use super::{Global, Opened};
use crate::eval::ppl::{MAX_TEXT_BYTES, PplOptions, PplReport, perplexity};
use crate::output::{create, is_stdout, put_json};
use smq_convert::cli::JsonArgs;
use smq_convert::number::{count, fixed, plural};
use smq_engine::KvCacheFormat;
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
    /// The text that is scored, in UTF-8
    #[arg(long, value_name = "FILE")]
    pub text: PathBuf,
    /// Tokens of a window, each of which is a sequence of its own
    #[arg(long, default_value_t = 512, value_name = "N")]
    window: usize,
    /// Use only this many leading tokens of the text
    #[arg(long, value_name = "N", value_parser = at_least_one, alias = "max-tokens")]
    text_tokens: Option<usize>,
    #[command(flatten)]
    pub json: JsonArgs,
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
    kv_cache: KvCacheFormat,
    #[serde(flatten)]
    result: &'a PplReport,
}

pub(super) fn run(args: &PplArgs, global: &Global) -> anyhow::Result<()> {
    let text = args.text.read()?;
    let opened = Opened::new(&args.model, global)?;
    let json = create(args.text.json.target(), &opened.inputs(&[&args.text.text]))?;
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
        kv_cache: engine.kv_cache().format,
        result: &result,
    };
    put_json(json, &report)?;
    if !to_stdout {
        let mut out = smq_convert::cli::stdout();
        writeln!(
            out,
            "perplexity {} ({:.6} nats a token)",
            fixed(result.perplexity, 4),
            result.loss_nats_per_token
        )?;
        writeln!(
            out,
            "{} tokens scored in {} of {}",
            count(result.tokens_scored),
            plural(result.windows, "window"),
            count(result.window)
        )?;
        args.explain
            .print(&mut out, &options.protocol_in_short(), &result.protocol)?;
    }
    Ok(())
}
