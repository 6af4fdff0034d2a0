//! Memory, machine and order statistics.

use serde::{Deserialize, Serialize};

/// This process's resident memory, where the system tells (`/proc/self/status`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// Largest resident set so far, mapped weights included, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_rss_bytes: Option<u64>,
    /// Resident memory that is not mapped from files, now, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rss_anon_bytes: Option<u64>,
}

impl Memory {
    /// Memory of this process as it is now.
    #[must_use]
    pub(crate) fn now() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(name))?;
            line.trim_start_matches(':')
                .trim()
                .trim_end_matches("kB")
                .trim()
                .parse::<u64>()
                .ok()
                .map(|kb| kb * 1024)
        };
        Self {
            peak_rss_bytes: field("VmHWM"),
            rss_anon_bytes: field("RssAnon"),
        }
    }
}

/// The machine a figure was measured on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// CPU model; `unknown` where the system does not tell.
    pub cpu: String,
    /// Logical CPUs of the machine.
    pub cores: usize,
    /// Worker threads that computed.
    pub threads: usize,
    /// Operating system and architecture.
    pub platform: String,
}

impl Machine {
    /// Describes the machine that this runs on.
    #[must_use]
    pub(crate) fn this() -> Self {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = info
            .lines()
            .find(|l| l.starts_with("model name"))
            .and_then(|l| l.split_once(':'));
        Self {
            cpu: model.map_or("unknown", |(_, name)| name.trim()).to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            threads: rayon::current_num_threads(),
            platform: format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn memory_is_plausible() {
        let m = Memory::now();
        let (peak, anon) = (m.peak_rss_bytes.unwrap(), m.rss_anon_bytes.unwrap());
        assert!(peak > 1 << 20 && anon > 1 << 16 && anon <= peak);
    }
}
