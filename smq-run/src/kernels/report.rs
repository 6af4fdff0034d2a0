//! What is said about each kernel.

use serde::Serialize;
use smq_format::{Dtype, Family};

use super::host::HostMatrix;
use super::reference::Worst;
use smq_engine::GpuInfo;

/// One kernel at one shape.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct KernelReport {
    /// The kernel; `cublaslt` is cuBLASLt's product of the same shape.
    pub kernel: &'static str,
    /// The layer whose shape it has.
    pub layer: &'static str,
    /// `int4`, `lut4`, `nf4`, `fp8` or `bf16`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<&'static str>,
    /// How int4 weights' scales are stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scales: Option<String>,
    /// Columns that share one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<usize>,
    /// Rows of activations, where the kernel takes several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows: Option<usize>,
    /// Tokens in the cache before this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cached: Option<usize>,
    /// Median time of a launch.
    pub us: f64,
    /// Bytes moved: a product's weights, attention's keys and values, all that is read and written
    /// elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<usize>,
    /// 10^9 of those bytes a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gb_per_s: Option<f64>,
    /// 10^12 multiplications and additions a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tflop_per_s: Option<f64>,
    /// Time of a kernel that only reads, or copies, as many bytes, measured alike.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub floor_us: Option<f64>,
    /// That over `us`, where the kernel mostly reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent_of_read_floor: Option<f64>,
    /// That over `us`, where the kernel reads and writes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent_of_copy_floor: Option<f64>,
    /// Whether it is right.
    pub check: Check,
}

/// A comparison with the CPU.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Check {
    /// No error exceeds its tolerance.
    pub passed: bool,
    /// The largest error over its tolerance; null if something is not a number, or not the bits it
    /// should be.
    pub max_error_over_tolerance: f64,
    /// What was compared with plain sums.
    pub checked: String,
    /// What an error may be.
    pub tolerance: &'static str,
    /// The first value that is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// What all kernels came to, and on what.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Report {
    /// Version of this program.
    pub version: &'static str,
    /// The GPU that they ran on.
    pub gpu: GpuInfo,
    /// The model whose shapes were used.
    pub model: &'static str,
    /// Memory's speed, reading 1 GiB, 10^9 bytes a second.
    pub read_gb_per_s: f64,
    /// Memory's speed, copying 1 GiB, 10^9 bytes read and written a second.
    pub copy_gb_per_s: f64,
    /// Kernels that failed their check.
    pub failed: usize,
    /// What each kernel came to.
    pub kernels: Vec<KernelReport>,
}

impl KernelReport {
    /// A report of a kernel with what every one has.
    pub(super) fn new(kernel: &'static str, layer: &'static str, us: f64, check: Check) -> Self {
        Self {
            kernel,
            layer,
            weights: None,
            scales: None,
            group: None,
            rows: None,
            cached: None,
            us,
            bytes: None,
            gb_per_s: None,
            tflop_per_s: None,
            floor_us: None,
            percent_of_read_floor: None,
            percent_of_copy_floor: None,
            check,
        }
    }

    /// Adds what the weights of a product are stored as.
    pub(super) fn weights(self, w: &HostMatrix) -> Self {
        let scales = w.scales.as_ref().map(|s| s.format.to_string());
        let levels = w.scales.as_ref().and_then(|s| s.levels);
        let weights = Some(match scales {
            Some(_) if levels.is_some() => Family::Lut4.name(),
            Some(_) => Family::Int4.name(),
            None => Dtype::Bf16.name(),
        });
        Self {
            weights,
            scales,
            group: w.scales.as_ref().map(|s| s.group),
            ..self
        }
    }

    /// Adds the number of rows of activations.
    pub(super) fn rows(self, rows: usize) -> Self {
        let rows = Some(rows);
        Self { rows, ..self }
    }

    /// Adds the rate of so many multiplications and additions.
    pub(super) fn flop(self, flop: f64) -> Self {
        let tflop_per_s = Some(flop / self.us / 1e6);
        Self {
            tflop_per_s,
            ..self
        }
    }
}

impl Check {
    pub(super) fn new(worst: Worst, checked: String, tolerance: &'static str) -> Self {
        let (max_error_over_tolerance, failure) = worst.finish();
        Self {
            passed: max_error_over_tolerance <= 1.0,
            max_error_over_tolerance,
            checked,
            tolerance,
            failure,
        }
    }
}
