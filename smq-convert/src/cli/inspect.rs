//! The command line of `smq-inspect`: what a .smq file holds, and what quantization did to it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::error::ErrorKind;
use clap::{ArgGroup, CommandFactory, Parser, Subcommand};
use smq_format::{Output, SmqFile, remove_statistics};
use smq_model::open_smq;

use super::json::{JsonArgs, explain_json};
use super::{exit, exit_with, is_broken_pipe, print_notes, show, tell};
use crate::inspect::{self, Diff, InspectError, Report, Sort, StatisticsState, TensorReport};
use crate::number::count;

/// Rows of the error table without `--top`.
const DEFAULT_TOP: usize = 20;

/// Shows what a .smq file holds: header, provenance, sizes, and the quantization error of every
/// tensor.
///
/// Exits with 1 where the file, its statistics or what was asked of it is not in order.
#[derive(Debug, Parser)]
#[command(
    name = "smq-inspect",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    group(ArgGroup::new("action").arg("json"))
)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,

    /// The .smq file to look into
    #[arg(required = true)]
    file: Option<PathBuf>,

    /// Tensors in the error table; 0 shows all [default: 20]
    #[arg(
        long,
        value_name = "N",
        conflicts_with_all = ["tensor", "csv", "html", "verify", "recheck", "strip_statistics"]
    )]
    top: Option<usize>,

    /// Order of the table, worst first [default: rel-mse; --csv: the file's order]
    #[arg(
        long,
        value_enum,
        value_name = "BY",
        conflicts_with_all = ["tensor", "html", "verify", "recheck", "strip_statistics"]
    )]
    sort: Option<Sort>,

    /// One tensor in full; part of its name will do where only one has it
    #[arg(
        long,
        value_name = "NAME",
        conflicts_with_all = ["html", "verify", "recheck", "strip_statistics"]
    )]
    tensor: Option<String>,

    #[command(flatten)]
    json: JsonArgs,

    /// Print a table as CSV, with a row for each tensor
    #[arg(long, group = "action")]
    csv: bool,

    /// Write one self-contained HTML page with plots
    #[arg(long, value_name = "FILE", group = "action")]
    html: Option<PathBuf>,

    /// Recompute every hash and check every scale code
    #[arg(long, group = "action")]
    verify: bool,

    /// Recompute the statistics from the checkpoint that the file was made from
    #[arg(long, value_name = "CHECKPOINT_DIR", group = "action")]
    recheck: Option<PathBuf>,

    /// Remove the error statistics from the file; the weights stay as they are
    #[arg(long, group = "action")]
    strip_statistics: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what differs between two .smq files
    ///
    /// Blobs are compared by the hashes that the files record (--verify checks those of one file).
    /// Exits with 0 where the files are identical, 1 where they differ and 2 on an error.
    Diff(DiffArgs),
}

#[derive(Debug, clap::Args)]
struct DiffArgs {
    /// The .smq file that comes first, A in what is printed
    a: PathBuf,

    /// The .smq file that it is compared with, B
    b: PathBuf,

    /// Tensors in each list; 0 shows all [default: 20]
    #[arg(long, value_name = "N")]
    top: Option<usize>,

    #[command(flatten)]
    json: JsonArgs,
}

impl Args {
    /// What to say of an option for text where JSON takes the text's place.
    fn without_effect(&self) -> Option<String> {
        let (json, given) = match &self.command {
            Some(Command::Diff(args)) => (&args.json, [("--top", args.top.is_some()); 2]),
            None => (
                &self.json,
                [
                    ("--top", self.top.is_some()),
                    ("--sort", self.sort.is_some()),
                ],
            ),
        };
        let (option, _) = given.iter().find(|(_, is_given)| *is_given)?;
        json.replaces_text().then(|| {
            format!(
                "{option} has no effect on JSON; leave it out, or write the JSON to a file beside \
                 the text, by --json=FILE"
            )
        })
    }
}

/// The command line, for man pages and completions.
#[must_use]
pub fn inspect_interface() -> clap::Command {
    Args::command()
}

/// Reads the command line, runs the program, and says what to exit with.
#[must_use]
pub fn run_inspect() -> ExitCode {
    let args = Args::try_parse().unwrap_or_else(|error| explain_json(error).exit());
    if let Some(refusal) = args.without_effect() {
        Args::command()
            .error(ErrorKind::ArgumentConflict, refusal)
            .exit();
    }
    match (&args.command, &args.file) {
        (Some(Command::Diff(args)), _) => exit_with(diff(args), ExitCode::from(2)),
        (None, Some(path)) => exit(run(&args, path)),
        (None, None) => ExitCode::from(2), // clap requires one of them
    }
}

fn diff(args: &DiffArgs) -> anyhow::Result<ExitCode> {
    let (a, b) = (open_smq(&args.a)?, open_smq(&args.b)?);
    let output = output(&args.json, &[args.a.clone(), args.b.clone()])?;
    let bar = inspect::byte_bar(inspect::diff_bytes(&a, &b));
    let diff = Diff::of(&a, &b, &|done| bar.inc(done));
    bar.finish_and_clear();
    let diff = diff?;
    let printed = write_json(output, &diff).and_then(|()| match args.json.replaces_text() {
        true => Ok(()),
        false => {
            let top = args.top.unwrap_or(DEFAULT_TOP);
            print(inspect::diff_text(&diff, top, a.header().file_bytes).as_bytes())
        }
    });
    // The code is the answer, also where the reader of the text stops early.
    match printed {
        Err(error) if !is_broken_pipe(&error) => Err(error),
        _ => Ok(ExitCode::from(u8::from(!diff.identical))),
    }
}

fn run(args: &Args, path: &Path) -> anyhow::Result<ExitCode> {
    if args.strip_statistics {
        return strip_statistics(path);
    }
    let file = open_smq(path)?;
    let output = output(&args.json, &[path.to_path_buf()])?;
    if args.verify {
        return verify(&file);
    }
    if let Some(checkpoint) = &args.recheck {
        return recheck(&file, checkpoint);
    }

    let report = Report::of(&file);
    let tensor = match &args.tensor {
        Some(name) => Some(find(&report, path, name)?),
        None => None,
    };
    match tensor {
        Some(tensor) => write_json(output, tensor)?,
        None => write_json(output, &report)?,
    }
    if let Some(target) = &args.html {
        let bytes = inspect::write_page(&report, target)?;
        if !smq_format::is_stdout(target) {
            print(format!("wrote {}, {} bytes\n", target.display(), count(bytes)).as_bytes())?;
        }
    } else if args.csv {
        let rows = inspect::csv(&csv_rows(&report, tensor, args.sort))?;
        let mut out = std::io::stdout().lock();
        out.write_all(&rows)
            .and_then(|()| out.flush())
            .context("cannot write to standard output")?;
    } else if args.json.replaces_text() {
        // It is written.
    } else if let Some(tensor) = tensor {
        print(inspect::tensor_detail(tensor).as_bytes())?;
    } else {
        let top = args.top.unwrap_or(DEFAULT_TOP);
        let table = inspect::error_table(&report, top, args.sort.unwrap_or_default());
        let outputs = inspect::output_table(&report, top);
        let parts = [inspect::overview(&report), table, outputs];
        let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        print(parts.join("\n").as_bytes())?;
    }
    if let StatisticsState::Damaged { reason } = &report.statistics {
        let rest = "(the rest of the file was shown without them)";
        tell(&format!("error: {reason} {rest}"));
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

fn strip_statistics(path: &Path) -> anyhow::Result<ExitCode> {
    let bytes = open_smq(path)?.header().statistics.length;
    if bytes == 0 {
        print(format!("{} has no statistics\n", path.display()).as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    remove_statistics(path)?;
    print(
        format!(
            "removed {} bytes of statistics from {}\n",
            count(bytes),
            path.display()
        )
        .as_bytes(),
    )?;
    Ok(ExitCode::SUCCESS)
}

fn verify(file: &SmqFile) -> anyhow::Result<ExitCode> {
    let verified = inspect::verify(file);
    if verified.defects.is_empty() {
        let (blobs, bytes) = (count(verified.blobs), count(verified.bytes));
        print(format!("ok: {blobs} blobs, {bytes} bytes\n").as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    let path = file.path().display();
    let lines = verified.defects.iter().map(|d| format!("{path}: {d}\n"));
    print(lines.collect::<String>().as_bytes())?;
    Ok(ExitCode::FAILURE)
}

fn recheck(file: &SmqFile, checkpoint: &Path) -> anyhow::Result<ExitCode> {
    let bar = inspect::byte_bar(file.index().tensors.iter().map(|t| t.source_bytes()).sum());
    let report = inspect::recheck(file, checkpoint, &|done| bar.inc(done));
    bar.finish_and_clear();
    let report = report?;
    print_notes(&report.notes);
    if report.differences.is_empty() {
        let n = report.tensors;
        let apart = match report.calibrated {
            0 => String::new(),
            n => {
                format!(
                    "; {} of them are calibrated, and their output errors were not recomputed",
                    count(n)
                )
            }
        };
        print(format!("ok: the statistics of {} tensors hold{apart}\n", count(n)).as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    let lines = report
        .differences
        .iter()
        .map(|d| format!("{}: {d}\n", file.path().display()));
    print(lines.collect::<String>().as_bytes())?;
    Ok(ExitCode::FAILURE)
}

/// The tensor called `name`, or the only one whose name contains it: as whole parts between dots,
/// as the tables print them (`0.mlp.up_proj` is of layer 0 and not of layer 10), or else anywhere.
fn find<'a>(report: &'a Report, path: &Path, name: &str) -> anyhow::Result<&'a TensorReport> {
    if let Some(exact) = report.tensors.iter().find(|t| t.name == name) {
        return Ok(exact);
    }
    let parts = format!(".{name}.");
    let holds_parts = |t: &&TensorReport| format!(".{}.", t.name).contains(&parts);
    let by_parts: Vec<_> = report.tensors.iter().filter(holds_parts).collect();
    if let [one] = by_parts[..] {
        return Ok(one);
    }
    let tensors = report.tensors.iter();
    let containing: Vec<_> = tensors.filter(|t| t.name.contains(name)).collect();
    match containing[..] {
        [one] => Ok(one),
        _ => Err(InspectError::NoSuchTensor {
            path: path.to_path_buf(),
            name: name.to_owned(),
            candidates: containing.iter().map(|t| t.name.clone()).collect(),
        }
        .into()),
    }
}

/// Where `--json` writes; none of `inputs` may be replaced.
fn output(json: &JsonArgs, inputs: &[PathBuf]) -> anyhow::Result<Option<Output>> {
    let output = json.target().map(|path| Output::create(path, inputs));
    Ok(output.transpose()?)
}

fn write_json(output: Option<Output>, value: &impl serde::Serialize) -> anyhow::Result<()> {
    let Some(output) = output else {
        return Ok(());
    };
    let json = serde_json::to_string_pretty(value).context("cannot write JSON")?;
    let text = format!("{}\n", smq_format::printable_json(&json));
    Ok(output.write(text.as_bytes())?)
}

fn csv_rows<'a>(
    report: &'a Report,
    tensor: Option<&'a TensorReport>,
    sort: Option<Sort>,
) -> Vec<&'a TensorReport> {
    match (tensor, sort) {
        (Some(t), _) => vec![t],
        (None, Some(sort)) => inspect::sorted(&report.tensors, sort),
        (None, None) => report.tensors.iter().collect(),
    }
}

fn print(bytes: &[u8]) -> anyhow::Result<()> {
    // All of it is made of strings.
    show(&String::from_utf8_lossy(bytes))
}
