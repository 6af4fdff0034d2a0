//! What calibrating takes in memory, told before it starts.

use smq_model::ModelConfig;

use super::texts::CalibrationText;
use crate::error::ConvertError;
use crate::source::Checkpoint;

/// Bytes for each pair of input features: `H`, `D` and `C` in f64, two factors and an inverse with
/// room to make them, and what the products read in f32.
const SUMS_BYTES: u64 = 3 * 8 + 6 * 8 + 5 * 4;
/// Copies of a matrix in f32: weights, target, their difference, and for two candidates what they
/// stand for, its error and the error's product with `H`.
const MATRIX_COPIES: u64 = 9;

/// Bytes that calibrating holds at most, the mapped weights apart.
pub(super) fn peak_bytes(config: &ModelConfig, text: &CalibrationText, threads: usize) -> u64 {
    let [hidden, intermediate] = [config.hidden, config.intermediate].map(|n| n as u64);
    let attention = (config.heads * config.head_dim) as u64;
    let kv = (config.kv_heads * config.head_dim) as u64;
    let features = hidden.max(intermediate).max(attention);
    let rows = (attention + 2 * kv).max(2 * intermediate);
    let (tokens, window) = (text.tokens() as u64, text.windows[0].len() as u64);
    // Two streams, each with its residual stream and the next products' input.
    let streams = 2 * 4 * tokens * (hidden + features);
    let products = 4 * 2 * threads as u64 * window * rows;
    let matrix = 4 * MATRIX_COPIES * features * rows.max(hidden);
    streams + products + SUMS_BYTES * features * features + matrix
}

/// Refuses what does not fit into the memory there is.
pub(super) fn check(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    text: &CalibrationText,
) -> Result<(), ConvertError> {
    let needed = peak_bytes(config, text, rayon::current_num_threads());
    match available_bytes() {
        Some(available) if needed > available => Err(ConvertError::Calibration {
            path: checkpoint.path().to_path_buf(),
            problem: format!(
                "calibrating on {} tokens takes {:.1} GB of memory, and {:.1} GB are available; \
                 give fewer --calibrate-tokens",
                text.tokens(),
                needed as f64 / 1e9,
                available as f64 / 1e9
            ),
        }),
        Some(_) | None => Ok(()),
    }
}

/// As Linux estimates it; `None` elsewhere.
fn available_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
