//! `smq-run kernels`: checks and times every kernel, or compiles them ahead.

use std::io::Write;
use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{CellAlignment, Table};
use rayon::prelude::*;
use smq_format::ScaleChoice;

use super::Global;
use crate::kernels::{self, KernelReport, Options, Report};
use crate::output::{create, is_stdout, put_json};
use smq_convert::cli::JsonArgs;
use smq_convert::number::{count, fixed, fixed_or};
use smq_engine::cuda::compile::compile;
use smq_engine::cuda::{Need, SMS, cache, kernels_of};
use smq_model::Source;

/// What an H100 and an H200 run.
const ARCH: &str = "sm_90a";

#[derive(Debug, Args)]
pub(super) struct KernelsArgs {
    /// Only kernels and layers whose name has this in it
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// How int4 weights' scales are stored: f32, f16 or eXmY
    #[arg(long, value_name = "FORMAT", default_value_t = ScaleChoice::e5(5))]
    scales: ScaleChoice,
    /// Only compile into the cache what these models need on an H100 or H200; no GPU is needed, but
    /// NVRTC. A later run must use the same NVRTC version
    #[arg(long, value_name = "MODEL", num_args = 1.., conflicts_with_all = ["filter", "json", "scales"])]
    compile: Vec<PathBuf>,
    #[command(flatten)]
    json: JsonArgs,
}

pub(super) fn run(args: &KernelsArgs, global: &Global) -> anyhow::Result<()> {
    if !args.compile.is_empty() {
        return compile_all(&args.compile, global.context);
    }
    if global.context.is_some() {
        bail!("--context has no effect on kernels without --compile, whose models it is for");
    }
    let options = Options {
        filter: args.filter.clone(),
        scales: args.scales,
    };
    let json = create(args.json.target(), &[])?;
    let to_stdout = is_stdout(json.as_ref());
    let mut done = Vec::new();
    let report = match kernels::run(&options, &mut |k| done.push(k.clone())) {
        Ok(report) => report,
        Err(error) => {
            // A kernel that crashes takes the GPU's context along; what came before it is worth
            // showing.
            if !done.is_empty() && !to_stdout {
                writeln!(std::io::stdout(), "{}", table(&done))?;
            }
            return Err(error.into());
        }
    };
    put_json(json, &report)?;
    if !to_stdout {
        print(&report)?;
    }
    match (report.failed, report.kernels.len()) {
        (_, 0) => bail!("no kernel or layer has that in its name"),
        (0, _) => Ok(()),
        (failed, all) => bail!("{failed} of {all} checks failed"),
    }
}

/// Compiles each kernel of these models once, on all cores.
fn compile_all(models: &[PathBuf], max_tokens: Option<usize>) -> anyhow::Result<()> {
    let Some(cache) = cache::directory() else {
        bail!("there is no cache to compile into; set SMQ_KERNEL_CACHE to a directory");
    };
    let mut needs: Vec<Need> = Vec::new();
    for path in models {
        let source = Source::open(path)?;
        for need in kernels_of(&source, max_tokens, SMS)? {
            if !needs.contains(&need) {
                needs.push(need);
            }
        }
    }
    needs.par_iter().try_for_each(|(file, defines)| {
        compile(ARCH, file, defines)?;
        anyhow::Ok(())
    })?;
    writeln!(
        std::io::stdout(),
        "{} kernel files in {}",
        needs.len(),
        cache.display()
    )?;
    Ok(())
}

fn print(r: &Report) -> std::io::Result<()> {
    let mut out = smq_convert::cli::stdout();
    writeln!(
        out,
        "{}, CUDA {}; shapes of {}; memory: read {} GB/s, copy {} GB/s (read + written)",
        r.gpu.name,
        r.gpu.cuda_version,
        r.model,
        fixed(r.read_gb_per_s, 0),
        fixed(r.copy_gb_per_s, 0)
    )?;
    writeln!(out, "{}", table(&r.kernels))?;
    writeln!(
        out,
        "weights: int4 with scales of so many columns each. floor: a kernel that only reads as \
         many bytes (r), or copies them (c), launched alike; over 100 %: launches overlap better \
         than its. error: the largest, over its tolerance."
    )?;
    for k in &r.kernels {
        if let Some(failure) = &k.check.failure {
            let tolerance = k.check.tolerance;
            writeln!(
                out,
                "FAILED: {}, {}: {failure} (tolerance {tolerance})",
                k.kernel, k.layer
            )?;
        }
    }
    Ok(())
}

fn table(kernels: &[KernelReport]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY).set_header([
        "kernel",
        "layer",
        "weights",
        "rows",
        "us",
        "GB/s",
        "TFLOP/s",
        "floor, us",
        "% of it",
        "error",
        "checked",
    ]);
    for k in kernels {
        let number = |v: Option<f64>, digits: usize| fixed_or(v, digits, "");
        let weights = match (&k.weights, &k.scales, k.group) {
            (Some(weights), Some(scales), Some(group)) => format!("{weights} {scales}/{group}"),
            (weights, ..) => weights.unwrap_or_default().to_owned(),
        };
        let rows = match (k.cached, k.rows) {
            (Some(cached), _) => format!("{} cached", count(cached)),
            (None, rows) => rows.map_or(String::new(), count),
        };
        let percent = match (k.percent_of_read_floor, k.percent_of_copy_floor) {
            (Some(p), _) => format!("{p:.0} r"),
            (None, Some(p)) => format!("{p:.0} c"),
            _ => String::new(),
        };
        let check = match k.check.passed {
            true => format!("{:.3}", k.check.max_error_over_tolerance),
            false => format!("FAILED {:.3}", k.check.max_error_over_tolerance),
        };
        table.add_row([
            k.kernel.to_owned(),
            k.layer.to_owned(),
            weights,
            rows,
            fixed(k.us, 2),
            number(k.gb_per_s, 0),
            number(k.tflop_per_s, 0),
            number(k.floor_us, 2),
            percent,
            check,
            k.check.checked.clone(),
        ]);
    }
    for column in table.column_iter_mut().skip(3).take(7) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
