//! What an engine tells of its device and of its loading, whatever the device.

use serde::{Deserialize, Serialize};

/// What a figure was measured on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GpuInfo {
    /// Product name.
    pub name: String,
    /// Compute capability, `9.0`.
    pub compute_capability: String,
    /// Streaming multiprocessors.
    pub sm_count: u32,
    /// Device memory in bytes.
    pub memory_bytes: usize,
    /// L2 cache in bytes.
    pub l2_bytes: usize,
    /// The CUDA version that the driver supports, `13.0`.
    pub cuda_version: String,
    /// The driver's own version, `580.95.05`, where the system tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver_version: Option<String>,
    /// NVRTC's version; none where it is not installed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nvrtc_version: Option<String>,
}

/// What copying the weights to the device took.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LoadReport {
    /// Bytes copied.
    pub bytes: usize,
    /// From the call to the last byte on the GPU.
    pub seconds: f64,
    /// Of that, waiting for pinned memory to be locked, where that takes longer than what else
    /// there was to do.
    pub seconds_locking: f64,
    /// Reading the source into it: the mean over threads, as is the next one.
    pub seconds_filling: f64,
    /// Waiting for copies to free a slot, and for the last ones.
    pub seconds_waiting: f64,
    /// Threads that did it.
    pub threads: usize,
}
