//! `smq-run eval kl`.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::ppl::TextArgs;
use super::{Global, Opened};
use crate::eval::kl::{Base, KlReport};
use crate::output::{create, is_stdout, put_json};
use smq_format::SmqFile;
use smq_model::Tokenizer;

#[derive(Debug, Args)]
pub(super) struct KlArgs {
    /// A .smq file or a checkpoint directory
    model: PathBuf,
    /// What to compare with: the same model, not quantized
    #[arg(long, value_name = "MODEL")]
    base: PathBuf,
    #[command(flatten)]
    text: TextArgs,
}

#[derive(Serialize)]
struct Report<'a> {
    model: String,
    base: String,
    text: String,
    device: &'a str,
    #[serde(flatten)]
    result: &'a KlReport,
}

pub(super) fn run(args: &KlArgs, global: &Global) -> anyhow::Result<()> {
    let text = args.text.read()?;
    // A checkpoint directory has no hashes to verify.
    let base_global = Global {
        verify: global.verify && !args.base.is_dir(),
        ..*global
    };
    let (opened, base) = (
        Opened::new(&args.model, global)?,
        Opened::new(&args.base, &base_global)?,
    );
    refuse_quantized(&base)?;
    let mut inputs = opened.inputs(&[&args.text.text]);
    inputs.extend(base.inputs(&[]));
    let json = create(args.text.json.as_ref(), &inputs)?;
    let to_stdout = is_stdout(json.as_ref());
    let options = args.text.options();
    let (mut engine, _) = opened.load()?;
    let (mut base_engine, _) = base.load()?;
    let positions = engine.config().max_positions;
    let tokens =
        |opened: &Opened| options.tokens(&Tokenizer::load(&opened.source)?, &text, positions);
    let ids = tokens(&base)?;
    anyhow::ensure!(
        tokens(&opened)? == ids,
        "{} and {} tokenize the text differently: they are not the same model",
        args.model.display(),
        args.base.display()
    );
    let mut comparison = Base::new(&mut *base_engine, ids, options);
    // indicatif draws on standard error, and not at all where that is no terminal.
    let bar =
        ProgressBar::new(comparison.windows() as u64).with_style(ProgressStyle::with_template(
            "{wide_bar} {pos}/{len} windows, {elapsed} elapsed, {eta} left",
        )?);
    let result = comparison.compare(&mut *engine, |done| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    let report = Report {
        model: args.model.display().to_string(),
        base: args.base.display().to_string(),
        text: args.text.text.display().to_string(),
        device: engine.device(),
        result: &result,
    };
    put_json(json, &report)?;
    if !to_stdout {
        print(&result)?;
    }
    Ok(())
}

/// What is measured is called the distance from the unquantized model, and from any other it is not.
fn refuse_quantized(base: &Opened) -> anyhow::Result<()> {
    let mut tensors = base.source.smq().into_iter().flat_map(SmqFile::tensors);
    anyhow::ensure!(
        !tensors.any(|tensor| tensor.scheme().is_quantized()),
        "--base {} is quantized itself ({}), and the distance is that from the unquantized model; \
         give the checkpoint directory",
        base.source.path().display(),
        base.source.schemes()
    );
    Ok(())
}

fn print(r: &KlReport) -> std::io::Result<()> {
    let mut out = smq_convert::cli::stdout();
    let error = |stderr: Option<f64>| stderr.map_or(String::new(), |e| format!(" +- {e:.6}"));
    writeln!(
        out,
        "KL divergence, nats: mean {:.6}{}, median {:.6}, 99th percentile {:.6}, largest {:.4}",
        r.mean_kl.value,
        error(r.mean_kl.stderr),
        r.median_kl,
        r.p99_kl,
        r.max_kl
    )?;
    let same = r.top1_agreement;
    writeln!(
        out,
        "same most likely token: {:.2} % +- {:.2}",
        100.0 * same.value,
        100.0 * same.stderr.unwrap_or(f64::NAN)
    )?;
    writeln!(
        out,
        "perplexity {:.4}, base {:.4}, ratio {:.6}{}",
        r.perplexity,
        r.base_perplexity,
        r.perplexity_ratio.value,
        error(r.perplexity_ratio.stderr)
    )?;
    writeln!(
        out,
        "{} positions in {} windows of {}",
        r.tokens_scored, r.windows, r.window
    )?;
    writeln!(out, "protocol: {}", r.protocol)
}
