//! `smq-run eval sensitivity`.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use smq_convert::{ScaleChoice, ScaleRule, Target, cli};

use super::Global;
use super::generate::at_least_one;
use crate::eval::ppl::PplOptions;
use crate::eval::sensitivity::{Sensitivity, SensitivityOptions, Unit, run as measure};
use crate::output::{create, is_stdout, put_json};

use smq_model::Source;

/// Lines of the table.
const SHOWN: usize = 12;

#[derive(Debug, Args)]
pub(super) struct SensitivityArgs {
    /// A checkpoint directory
    checkpoint: PathBuf,
    /// The text, UTF-8
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// What to quantize at a time
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
    /// Tokens a window
    #[arg(long, default_value_t = 512, value_name = "N")]
    window: usize,
    /// Use only this many leading tokens of the text
    #[arg(long, default_value_t = 4096, value_name = "N", value_parser = at_least_one)]
    text_tokens: usize,
    /// Also write every point as JSON; - writes it to standard output instead of the summary
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(super) fn run(args: &SensitivityArgs, global: &Global) -> anyhow::Result<()> {
    let mut inputs = Source::open(&args.checkpoint)?.paths();
    inputs.push(args.text.clone());
    let json = create(args.json.as_ref(), &inputs)?;
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
        device: global.device,
        max_tokens: global.max_tokens,
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
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "quantized alone",
        "rel. error",
        "mean KL",
        "+-",
        "loss +",
    ]);
    for point in worst.iter().take(SHOWN) {
        table.add_row([
            point.name.clone(),
            format!("{:.6}", point.relative_error),
            format!("{:.6}", point.mean_kl.value),
            format!("{:.6}", point.mean_kl.stderr.unwrap_or(f64::NAN)),
            format!("{:+.5}", point.loss_delta_nats),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut out = smq_convert::cli::stdout();
    writeln!(out, "{table}")?;
    let (n, tokens, text) = (result.points.len(), result.tokens_scored, &result.text);
    writeln!(
        out,
        "the worst of {n}; {tokens} positions of {text}; rank correlations:"
    )?;
    for (pair, rho) in &result.rank_correlation {
        let rho = rho.map_or("-".to_owned(), |r| format!("{r:+.3}"));
        writeln!(out, "  {pair:<28} {rho}")?;
    }
    Ok(())
}
