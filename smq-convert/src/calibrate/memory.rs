//! What calibrating takes in memory, and what of that goes to disk: told before it starts.

use std::path::Path;

use smq_model::ModelConfig;

use super::texts::CalibrationText;
use crate::error::ConvertError;

/// Bytes for each pair of input features: `H`, `D` and `C` in f64, two factors and an inverse with
/// room to make them, and what the products read in f32.
const SUMS_BYTES: u64 = 3 * 8 + 6 * 8 + 5 * 4;
/// Copies of a matrix in f32: weights, target, their difference, and for two candidates what they
/// stand for, its error and the error's product with `H`.
const MATRIX_COPIES: u64 = 9;

/// Of the memory that is available, this share is taken where nothing is said.
const DEFAULT_SHARE: f64 = 0.75;

/// Where the hidden states of both streams are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum States {
    /// There is room for them, so they stay in memory.
    InMemory,
    /// There is no room for them, so they are kept in a file beside the output.
    OnDisk,
}

/// Bytes that calibrating holds at most, the mapped weights apart.
#[derive(Debug, Clone, Copy)]
struct Peak {
    /// Bytes of the hidden states of all windows.
    states: u64,
    /// Bytes of everything else that is live at the time.
    rest: u64,
}

fn peak(config: &ModelConfig, text: &CalibrationText, threads: usize) -> Peak {
    let [hidden, intermediate] = [config.hidden, config.intermediate].map(|n| n as u64);
    let attention = (config.heads * config.head_dim) as u64;
    let kv = (config.kv_heads * config.head_dim) as u64;
    let features = hidden.max(intermediate).max(attention);
    let rows = (attention + 2 * kv).max(2 * intermediate);
    let (tokens, window) = (text.tokens() as u64, text.windows[0].len() as u64);
    let products = 4 * 2 * threads as u64 * window * rows;
    let matrix = 4 * MATRIX_COPIES * features * rows.max(hidden);
    Peak {
        // Two streams, each with its residual stream and the next products' input.
        states: 2 * 4 * tokens * (hidden + features),
        rest: products + SUMS_BYTES * features * features + matrix,
    }
}

/// Where the hidden states go within `budget` bytes, or within most of what is available. The bytes
/// of the result do not depend on it.
///
/// # Errors
/// What does not fit even so.
pub(super) fn place(
    checkpoint: &Path,
    config: &ModelConfig,
    text: &CalibrationText,
    budget: Option<u64>,
) -> Result<States, ConvertError> {
    let peak = peak(config, text, rayon::current_num_threads());
    let share = |bytes: u64| (bytes as f64 * DEFAULT_SHARE) as u64;
    match budget.or_else(|| available_bytes().map(share)) {
        Some(bytes) if peak.rest > bytes => Err(ConvertError::Calibration {
            path: checkpoint.to_path_buf(),
            problem: format!(
                "calibrating takes {:.1} GB of memory even with its hidden states on disk, and may \
                 take {:.1} GB; {}",
                peak.rest as f64 / 1e9,
                bytes as f64 / 1e9,
                match budget {
                    Some(_) => "give more --calibrate-memory",
                    None => "give a shorter --calibrate-window, or --calibrate-memory",
                }
            ),
        }),
        Some(bytes) if peak.rest + peak.states > bytes => Ok(States::OnDisk),
        Some(_) | None => Ok(States::InMemory),
    }
}

/// Memory that Linux estimates to be available; `None` on other systems.
fn available_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_states_go_to_disk_where_memory_is_short_and_the_rest_is_refused() {
        let fixture =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/phi3-tiny/config.json");
        let config = ModelConfig::from_json(&std::fs::read(fixture).unwrap()).unwrap();
        let text = CalibrationText {
            windows: vec![vec![1; 512]; 32],
            sources: Vec::new(),
        };
        let peak = peak(&config, &text, rayon::current_num_threads());
        // Two streams of 16,384 tokens, 256 and up to 768 values each.
        assert_eq!(peak.states, 2 * 4 * 16_384 * (256 + 768));
        let place = |bytes| place(Path::new("model"), &config, &text, Some(bytes));
        assert_eq!(place(peak.rest + peak.states).unwrap(), States::InMemory);
        assert_eq!(place(peak.rest + peak.states - 1).unwrap(), States::OnDisk);
        assert_eq!(place(peak.rest).unwrap(), States::OnDisk);
        let message = place(peak.rest - 1).unwrap_err().to_string();
        assert!(
            message.starts_with("model: ")
                && message.contains("even with its hidden states on disk")
                && message.ends_with("give more --calibrate-memory"),
            "{message}"
        );
    }
}
