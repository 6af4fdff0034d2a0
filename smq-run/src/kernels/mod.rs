//! Every kernel at every shape of Phi-3.5-mini, and FP8 rows that end within a line of 128 bytes:
//! first whether it is right, against plain f64 sums on the CPU, then how fast it is beside what
//! memory allows.
//!
//! Calls are the engine's own. A kernel is timed as one of many in a graph that is replayed, each
//! launch with other weights, so that they come from memory and not from the L2 cache; activations
//! stay where they are, as in the engine.

mod attention;
mod coded;
mod coded_rows;
mod copies;
mod dequantize;
mod host;
mod kv_cache;
mod lab;
mod products;
mod prompt_attention;
mod reference;
mod report;
mod row_kernels;
mod rows;

use smq_format::ScaleChoice;

pub(crate) use report::{KernelReport, Report};

use lab::Lab;
use smq_engine::Result;

/// Which kernels to check, and with which scales.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// Only kernels and layers whose name has this in it.
    pub filter: Option<String>,
    /// How int4 weights' scales are stored.
    pub scales: ScaleChoice,
}

/// Runs every check that `options` ask for; `on_kernel` sees each as it is done.
///
/// # Errors
/// [`Error::Cuda`](smq_engine::Error::Cuda) if there is no GPU, or a kernel does not compile or
/// run. A wrong result is none: the report says so.
pub(crate) fn run(options: &Options, on_kernel: &mut dyn FnMut(&KernelReport)) -> Result<Report> {
    let mut lab = Lab::new(options, on_kernel)?;
    let (read, copy) = lab.memory_rates()?;
    products::run(&mut lab)?;
    rows::run(&mut lab)?;
    coded_rows::run(&mut lab)?;
    dequantize::run(&mut lab)?;
    attention::run(&mut lab)?;
    prompt_attention::run(&mut lab)?;
    kv_cache::run(&mut lab)?;
    row_kernels::run(&mut lab)?;
    let kernels = std::mem::take(&mut lab.reports);
    Ok(Report {
        version: env!("CARGO_PKG_VERSION"),
        gpu: lab.gpu.info()?,
        model: "Phi-3.5-mini",
        read_gb_per_s: read,
        copy_gb_per_s: copy,
        failed: kernels.iter().filter(|k| !k.check.passed).count(),
        kernels,
    })
}
