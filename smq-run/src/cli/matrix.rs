//! `smq-run matrix`: runs the study's experiment.

use std::io::Write;
use std::path::PathBuf;

use anyhow::bail;
use clap::Args;

use super::Global;
use super::generate::at_least_one;
use crate::study::contract::DEFAULT_PATH;
use crate::study::log::{RAW, RAW_ONLINE};
use crate::study::online::{self, contract::DEFAULT_PATH as ONLINE_PATH};
use crate::study::plan::{Section, Selection};
use crate::study::runner::{self, MatrixOptions};
use smq_convert::number::count;

#[derive(Debug, Args)]
pub(super) struct MatrixArgs {
    /// The file that registers what is measured; without one at the default path, the copy of it
    /// that the program has
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
    config: PathBuf,
    /// The checkpoint directory, not quantized
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Where results go: raw/matrix.jsonl in it is added to, or raw/online.jsonl
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Where converted files are while their cells run, one at a time; no other run's [default:
    /// work in OUT]
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// Only these configs, comma-separated: ids such as C4, or what they are, such as mlp-e5m5
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    only: Vec<String>,
    /// Only these parts [default: all; with --only, all but scale-errors]
    #[arg(long, value_enum, value_name = "PARTS", value_delimiter = ',')]
    sections: Vec<Section>,
    /// Measure the online half in its place: servers of some configs, and what more and more
    /// clients see; what is asked of them is in FILE, the results in raw/online.jsonl [default of
    /// FILE: spec/online.toml]
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true,
        default_missing_value = ONLINE_PATH, conflicts_with = "sections")]
    online: Option<PathBuf>,
    /// Repeats, in place of the config's
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    repeats: Option<usize>,
    /// Add to results of another model, commit or config
    #[arg(long)]
    allow_mixed: bool,
}

pub(super) fn run(args: &MatrixArgs, global: &Global) -> anyhow::Result<()> {
    let has_repeats = |part: &Section| matches!(part, Section::Cells | Section::LongContext);
    if args.repeats.is_some() && !args.sections.is_empty() && !args.sections.iter().any(has_repeats)
    {
        bail!("--repeats has no effect: none of --sections is repeated; leave it out");
    }
    let options = MatrixOptions {
        contract: args.config.clone(),
        model: args.model.clone(),
        out: args.out.clone(),
        work: args.work.clone().unwrap_or_else(|| args.out.join("work")),
        selection: Selection {
            only: args.only.clone(),
            sections: args.sections.clone(),
            repeats: args.repeats,
        },
        device: global.device(),
        threads: global.threads,
        allow_mixed: args.allow_mixed,
        program: std::env::current_exe()?,
    };
    let (outcome, raw) = match &args.online {
        None => (runner::run(&options)?, RAW),
        Some(online) => (online::runner::run(&options, online)?, RAW_ONLINE),
    };
    let mut out = smq_convert::cli::stdout();
    let raw = args.out.join(raw);
    writeln!(
        out,
        "{}: {} lines added",
        raw.display(),
        count(outcome.measured)
    )?;
    for (id, reason) in &outcome.absent {
        writeln!(out, "absent: {id}: {reason}")?;
    }
    match outcome.failed.as_slice() {
        [] => Ok(()),
        [(what, reason), rest @ ..] => bail!(
            "{} of the processes failed; the first, {what}: {reason}; run the same command again \
             for what is missing",
            1 + rest.len()
        ),
    }
}
