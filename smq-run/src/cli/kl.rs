//! `smq-run eval kl`: how far a model's predictions are from the unquantized one's.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::explain::ExplainArgs;
use super::generate::at_least_one;
use super::{Global, Opened};
use crate::eval::kl::{Base, KlReport};
use crate::eval::ppl::PplOptions;
use crate::eval::suite::file_name;
use crate::eval::texts::file_tokens;
use crate::output::{create, is_stdout, put_json};
use smq_convert::cli::JsonArgs;
use smq_convert::number::{count, fixed};
use smq_engine::KvCacheFormat;
use smq_format::SmqFile;
use smq_model::Tokenizer;

#[derive(Debug, Args)]
pub(super) struct KlArgs {
    /// A .smq file or a checkpoint directory
    model: PathBuf,
    /// What to compare with: the same model, not quantized; with --kv-cache also the model itself,
    /// which then runs with the device's own cache, so that what the cache loses is measured
    #[arg(long, value_name = "MODEL")]
    base: PathBuf,
    /// A text: UTF-8, or JSON Lines (.jsonl) with a text, chat messages, or a question and an
    /// answer a line; given more than once, each is a row of a table
    #[arg(long, value_name = "FILE", required = true)]
    text: Vec<PathBuf>,
    #[command(flatten)]
    explain: ExplainArgs,
    /// Tokens of a window, each of which is a sequence of its own
    #[arg(long, default_value_t = 512, value_name = "N")]
    window: usize,
    /// Use only this many leading tokens of each text
    #[arg(long, value_name = "N", value_parser = at_least_one, alias = "max-tokens")]
    text_tokens: Option<usize>,
    #[command(flatten)]
    json: JsonArgs,
}

#[derive(Serialize)]
struct Report<'a> {
    model: String,
    base: String,
    device: &'a str,
    kv_cache: KvCacheFormat,
    base_kv_cache: KvCacheFormat,
    #[serde(flatten)]
    result: Results,
}

/// One text's figures are the report's own.
#[derive(Serialize)]
#[serde(untagged)]
enum Results {
    One(OnText),
    Several { texts: Vec<OnText> },
}

#[derive(Serialize)]
struct OnText {
    text: String,
    #[serde(flatten)]
    result: KlReport,
}

pub(super) fn run(args: &KlArgs, global: &Global) -> anyhow::Result<()> {
    // A checkpoint directory has no hashes to verify.
    let base_global = Global {
        verify: global.verify && !args.base.is_dir(),
        kv_cache: None,
        ..*global
    };
    let (opened, base) = (
        Opened::new(&args.model, global)?,
        Opened::new(&args.base, &base_global)?,
    );
    // A model beside itself differs by its cache alone.
    let by_cache = global.kv_cache.is_some() && is_same(&args.model, &args.base);
    if !by_cache {
        refuse_quantized(&base)?;
    }
    let texts: Vec<&PathBuf> = args.text.iter().collect();
    let mut inputs = opened.inputs(&texts);
    inputs.extend(base.inputs(&[]));
    let json = create(args.json.target(), &inputs)?;
    let to_stdout = is_stdout(json.as_ref());
    let options = PplOptions {
        window: args.window,
        max_tokens: args.text_tokens,
    };
    let (mut engine, _) = opened.load()?;
    let (mut base_engine, _) = base.load()?;
    let positions = engine.config().max_positions;
    let (kv_cache, base_kv_cache) = (engine.kv_cache().format, base_engine.kv_cache().format);
    let (tokenizer, base_tokenizer) = (
        Tokenizer::load(&opened.source)?,
        Tokenizer::load(&base.source)?,
    );
    // All texts are read before the first is measured: the last may be the one that is amiss.
    let mut texts = Vec::with_capacity(args.text.len());
    for path in &args.text {
        let ids = file_tokens(path, &base_tokenizer, &options, positions)?;
        anyhow::ensure!(
            file_tokens(path, &tokenizer, &options, positions)? == ids,
            "{} and {} tokenize the text differently: they are not the same model",
            args.model.display(),
            args.base.display()
        );
        texts.push((path, ids));
    }
    let mut results = Vec::with_capacity(texts.len());
    for (path, ids) in texts {
        let mut comparison = Base::new(&mut *base_engine, ids, options);
        // indicatif draws on standard error, and not at all where that is no terminal.
        let bar =
            ProgressBar::new(comparison.windows() as u64).with_style(ProgressStyle::with_template(
                "{msg} {wide_bar} {pos}/{len} windows, {elapsed} elapsed, {eta} left",
            )?);
        bar.set_message(file_name(path));
        let result = comparison.compare(&mut *engine, |done| bar.set_position(done as u64))?;
        bar.finish_and_clear();
        let text = path.display().to_string();
        results.push(OnText { text, result });
    }
    let result = match results.len() {
        1 => results.pop().map(Results::One),
        _ => None,
    };
    let report = Report {
        model: args.model.display().to_string(),
        base: args.base.display().to_string(),
        device: engine.device(),
        kv_cache,
        base_kv_cache,
        result: result.unwrap_or(Results::Several { texts: results }),
    };
    put_json(json, &report)?;
    if !to_stdout {
        match &report.result {
            Results::One(one) => print(&one.result, &options, &args.explain)?,
            Results::Several { texts } => print_all(texts, &options, &args.explain)?,
        }
    }
    Ok(())
}

fn print_all(texts: &[OnText], options: &PplOptions, explain: &ExplainArgs) -> std::io::Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "text",
        "positions",
        "mean KL",
        "+-",
        "99 % KL",
        "same token, %",
        "perplexity",
        "base",
        "ratio",
        "+-",
    ]);
    for OnText { text, result: r } in texts {
        let error = |stderr: Option<f64>, digits: usize| {
            stderr.map_or("-".to_owned(), |e| format!("{e:.digits$}"))
        };
        table.add_row([
            file_name(text.as_ref()),
            count(r.tokens_scored),
            format!("{:.5}", r.mean_kl.value),
            error(r.mean_kl.stderr, 5),
            format!("{:.4}", r.p99_kl),
            format!("{:.2}", 100.0 * r.top1_agreement.value),
            fixed(r.perplexity, 4),
            fixed(r.base_perplexity, 4),
            format!("{:.4}", r.perplexity_ratio.value),
            error(r.perplexity_ratio.stderr, 4),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut out = smq_convert::cli::stdout();
    writeln!(out, "{table}")?;
    let Some(OnText { result, .. }) = texts.first() else {
        return Ok(());
    };
    let lines = "of JSON Lines each line tokenized by itself";
    explain.print(
        &mut out,
        &options.protocol_in_short(),
        &format!("{}; {lines}", result.protocol),
    )
}

/// Whether two paths are of one file or directory.
fn is_same(a: &Path, b: &Path) -> bool {
    let [a, b] = [a, b].map(Path::canonicalize);
    a.is_ok() && a.ok() == b.ok()
}

/// What is measured is called the distance from the unquantized model, and from any other it is
/// not.
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

fn print(r: &KlReport, options: &PplOptions, explain: &ExplainArgs) -> std::io::Result<()> {
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
        "perplexity {}, base {}, ratio {:.6}{}",
        fixed(r.perplexity, 4),
        fixed(r.base_perplexity, 4),
        r.perplexity_ratio.value,
        error(r.perplexity_ratio.stderr)
    )?;
    writeln!(
        out,
        "{} positions in {} windows of {}",
        count(r.tokens_scored),
        count(r.windows),
        count(r.window)
    )?;
    explain.print(&mut out, &options.protocol_in_short(), &r.protocol)
}
