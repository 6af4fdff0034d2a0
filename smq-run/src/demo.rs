//! The whole main path in one go: convert, inspect, evaluate and time every config beside C0.

mod bundled;

use std::path::{Path, PathBuf};

use anyhow::Context;
use comfy_table::{CellAlignment, Table, presets};
use smq_convert::cli::{print_notes, show};
use smq_convert::inspect;
use smq_convert::number::{count, fixed, fixed_or};
use smq_convert::{Checkpoint, Method, ScaleChoice, ScaleRule, Target};

use crate::bench::{BenchOptions, bench};
use crate::convert::{GROUP, convert_to, int4, report};
use crate::eval::ppl::{MAX_TEXT_BYTES, PplOptions, PplReport, perplexity};
pub(crate) use bundled::Bundled;
use smq_engine::Device;
use smq_model::{Source, Tokenizer};

/// What to show, and where its files go.
#[derive(Debug, Clone)]
pub(crate) struct DemoOptions {
    /// The directory of the checkpoint.
    pub checkpoint: PathBuf,
    /// A text for perplexity.
    pub text: PathBuf,
    /// Where the .smq files and pages go; made if absent, older results of a demo replaced.
    pub out: PathBuf,
    /// Which tensors are quantized.
    pub target: Target,
    /// The device that every config runs on.
    pub device: Device,
}

/// The configs of the study that differ in their weights: name, weights, method, and the file's
/// name. C5's E5M5 is C4.
fn configs() -> [(&'static str, &'static str, Method, &'static str); 6] {
    let reference = |scales| int4(scales, ScaleRule::Reference, GROUP);
    let e5 = |mantissa_bits| reference(ScaleChoice::e5(mantissa_bits));
    let exact = reference(ScaleChoice::F32);
    [
        ("C1", "FP8, FP8 activations", Method::Fp8, "fp8"),
        ("C2", "NF4, double-quantized", Method::Nf4, "nf4"),
        ("C3", "int4, exact f32 scales", exact, "f32"),
        ("C4", "int4, e5m5 scales", e5(5), "e5m5"),
        ("C5", "int4, e5m3 scales", e5(3), "e5m3"),
        ("C5", "int4, e5m0 scales", e5(0), "e5m0"),
    ]
}

/// One line of the closing table.
struct Line {
    config: &'static str,
    what: &'static str,
    file_bytes: u64,
    bits_per_weight: Option<f64>,
    rel_mse: Option<f64>,
    perplexity: f64,
    tokens_per_s: Option<f64>,
}

/// Runs the demo, printing as it goes.
///
/// # Errors
/// Whatever converting, evaluating or timing meets first.
pub(crate) fn run(options: &DemoOptions) -> anyhow::Result<()> {
    let text = smq_format::read_text(&options.text, MAX_TEXT_BYTES).with_context(|| {
        format!(
            "{}: cannot read it; name another text with --text, or leave that out",
            options.text.display()
        )
    })?;
    let checkpoint = Checkpoint::open(&options.checkpoint)?;
    print_notes(checkpoint.notes());
    std::fs::create_dir_all(&options.out)
        .with_context(|| format!("{}: cannot create it", options.out.display()))?;
    let mut lines = vec![measure(
        options.device,
        &options.checkpoint,
        &text,
        "C0",
        "bf16, not quantized",
    )?];
    for (config, what, method, name) in configs() {
        let path = options.out.join(format!("{name}.smq"));
        convert_to(&checkpoint, &path, &options.target, method)?;
        let page = path.with_extension("html");
        let report = report(&path)?;
        inspect::write_page(&report, &page)?;
        show(&format!(
            "{config}, {what}: {}, report {}\n\n",
            path.display(),
            page.display()
        ))?;
        let errors = inspect::error_table(&report, 8, inspect::Sort::default());
        show(&format!("{errors}\n"))?;
        let mut line = measure(options.device, &path, &text, config, what)?;
        line.bits_per_weight = report.sizes.bits_per_quantized_weight;
        line.rel_mse = report.totals.as_ref().map(|t| t.mean_rel_mse);
        lines.push(line);
    }
    show(&format!(
        "{}\n\nperplexity on {}: {}\nspeed: batch 1, 128-token prompt, 64 new tokens, mean of 3 \
         runs after 1 warm-up\n",
        table(&lines),
        options.text.file_name().unwrap_or_default().display(),
        PplOptions::default().protocol_in_short()
    ))
}

/// Perplexity and decode speed of one model.
fn measure(
    device: Device,
    model: &Path,
    text: &str,
    config: &'static str,
    what: &'static str,
) -> anyhow::Result<Line> {
    let source = Source::open(model)?;
    let tokenizer = Tokenizer::load(&source)?;
    let started = std::time::Instant::now();
    let mut engine = smq_engine::load(&source, device, None)?;
    let load = started.elapsed();
    let PplReport { perplexity, .. } = perplexity(
        &mut *engine,
        &tokenizer,
        text,
        &PplOptions::default(),
        |_, _, _| (),
    )?;
    let timed = bench(&mut *engine, &source, load, &BenchOptions::default())?;
    Ok(Line {
        config,
        what,
        file_bytes: source.file_bytes(),
        bits_per_weight: None,
        rel_mse: None,
        perplexity,
        tokens_per_s: timed.decode_tokens_per_s,
    })
}

fn table(lines: &[Line]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "config",
        "weights",
        "file bytes",
        "bits/weight",
        "rel. MSE",
        "perplexity",
        "tokens/s",
    ]);
    for line in lines {
        table.add_row([
            line.config.to_owned(),
            line.what.to_owned(),
            count(line.file_bytes),
            fixed_or(line.bits_per_weight, 3, "-"),
            fixed_or(line.rel_mse, 6, "-"),
            fixed(line.perplexity, 4),
            fixed_or(line.tokens_per_s, 0, "-"),
        ]);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
