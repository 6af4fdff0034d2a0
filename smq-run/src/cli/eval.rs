//! `smq-run eval`.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{Common, JsonArg, load, open, print, write_json};
use crate::Tokenizer;
use crate::eval::ppl::{PplOptions, perplexity};

#[derive(Subcommand)]
pub(super) enum EvalCommand {
    /// Perplexity of a text
    Ppl(PplArgs),
}

#[derive(Args)]
pub(super) struct PplArgs {
    /// A .smq file or a checkpoint directory
    model: PathBuf,
    /// The text, UTF-8
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Tokens a window
    #[arg(long, default_value_t = PplOptions::default().window)]
    window: usize,
    /// Only this many leading tokens of the text
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    #[command(flatten)]
    json: JsonArg,
}

pub(super) fn ppl(common: &Common, args: PplArgs) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(&args.text)
        .with_context(|| format!("{}: cannot read it as UTF-8 text", args.text.display()))?;
    let source = open(common, &args.model)?;
    let tokenizer = Tokenizer::load(&source)?;
    let (mut engine, _) = load(common, &source)?;
    let options = PplOptions {
        window: args.window,
        max_tokens: args.max_tokens,
    };
    let bar = windows_bar();
    let report = perplexity(&mut *engine, &tokenizer, &text, &options, |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    let report = report?;
    if !args.json.is_stdout() {
        print(&format!(
            "perplexity {:.4} ({:.6} nats a token, {} tokens scored in {} windows)\nprotocol: {}\n",
            report.perplexity,
            report.loss_nats_per_token,
            report.tokens_scored,
            report.windows,
            report.protocol
        ))?;
    }
    match &args.json.json {
        Some(target) => write_json(target, &report),
        None => Ok(()),
    }
}

/// Windows done and time left, drawn only where stderr is a terminal.
fn windows_bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    match ProgressStyle::with_template("scoring {bar:32} {pos}/{len} windows, {eta} left") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
