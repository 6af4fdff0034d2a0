//! Power, energy, clocks, temperature and memory of the GPU, from NVML, which is loaded at run
//! time.

use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use nvml_wrapper::error::NvmlError;
use serde::{Deserialize, Serialize};

use smq_engine::cuda::pci_bus_id;

/// The library's name where only the driver is installed, and no development files.
const DRIVER_LIBRARY: &str = "libnvidia-ml.so.1";

/// The GPU at one moment. What NVML does not say is absent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct GpuState {
    /// Clock of the multiprocessors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sm_mhz: Option<u32>,
    /// Clock of the memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mhz: Option<u32>,
    /// Temperature of the chip.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature_c: Option<u32>,
    /// Power; on an H100 an average over the last second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watts: Option<f64>,
    /// Why clocks are not the highest, as NVML names it; `GPU_IDLE` is among them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throttle_reasons: Option<Vec<String>>,
}

impl GpuState {
    /// Whether something holds the clocks down: power, temperature or the board.
    #[must_use]
    pub(crate) fn throttled(&self) -> bool {
        let slowing = ThrottleReasons::SW_POWER_CAP
            | ThrottleReasons::HW_SLOWDOWN
            | ThrottleReasons::SW_THERMAL_SLOWDOWN
            | ThrottleReasons::HW_THERMAL_SLOWDOWN
            | ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN;
        let reasons = self.throttle_reasons.iter().flatten();
        let named = |r: &String| ThrottleReasons::from_name(r);
        reasons.filter_map(named).any(|r| slowing.contains(r))
    }

    /// What a measurement between two states is flagged for.
    #[must_use]
    pub(crate) fn flags(before: &Self, after: &Self, temperature_above_c: u32) -> Vec<String> {
        let states = [before, after];
        let hot = |s: &&Self| s.temperature_c.is_some_and(|t| t > temperature_above_c);
        let mut flags = Vec::new();
        if states.iter().any(|s| s.throttled()) {
            flags.push("throttled".to_owned());
        }
        if states.iter().any(hot) {
            flags.push("hot".to_owned());
        }
        flags
    }
}

/// What can be asked for power and energy.
pub(crate) trait PowerSource: Sync {
    /// Power that is drawn now, in watts.
    fn watts(&self) -> Option<f64>;
    /// A counter of energy, in joules.
    fn joules(&self) -> Option<f64>;
}

/// NVML's view of the GPU that CUDA calls number 0.
#[derive(Debug)]
pub(crate) struct Meter {
    nvml: Nvml,
    bus_id: String,
}

impl Meter {
    /// Loads NVML and finds the GPU, without opening it for CUDA.
    ///
    /// # Errors
    /// Why that is not possible, in one sentence.
    pub(crate) fn open() -> Result<Self, String> {
        let nvml = Nvml::init().or_else(|first| {
            let other = Nvml::builder().lib_path(DRIVER_LIBRARY.as_ref()).init();
            other.map_err(|second| match second {
                NvmlError::LibloadingError(_) => {
                    format!(
                        "NVML ({DRIVER_LIBRARY}) was not found; it comes with the NVIDIA driver"
                    )
                }
                _ => format!("NVML does not start: {first}; {second}"),
            })
        })?;
        let bus_id = pci_bus_id(0).map_err(|e| e.to_string())?;
        let meter = Self { nvml, bus_id };
        meter
            .ask(|_| Ok(()))
            .map_err(|e| format!("NVML does not know the GPU at {}: {e}", meter.bus_id))?;
        Ok(meter)
    }

    fn ask<T>(
        &self,
        question: impl FnOnce(&nvml_wrapper::Device<'_>) -> Result<T, NvmlError>,
    ) -> Result<T, NvmlError> {
        question(&self.nvml.device_by_pci_bus_id(self.bus_id.as_str())?)
    }

    /// What the GPU's clocks, temperature and power are now.
    #[must_use]
    pub(crate) fn state(&self) -> GpuState {
        let names = |reasons: ThrottleReasons| reasons.iter_names().map(|(n, _)| n.to_owned());
        GpuState {
            sm_mhz: self.ask(|d| d.clock_info(Clock::SM)).ok(),
            memory_mhz: self.ask(|d| d.clock_info(Clock::Memory)).ok(),
            temperature_c: self.ask(|d| d.temperature(TemperatureSensor::Gpu)).ok(),
            watts: self.watts(),
            throttle_reasons: self
                .ask(|d| d.current_throttle_reasons())
                .ok()
                .map(|r| names(r).collect()),
        }
    }

    /// Bytes of the GPU's memory in use by any process.
    #[must_use]
    pub(crate) fn memory_in_use(&self) -> Option<u64> {
        self.ask(|d| d.memory_info()).ok().map(|m| m.used)
    }
}

impl PowerSource for Meter {
    fn watts(&self) -> Option<f64> {
        let milliwatts = self.ask(|d| d.power_usage()).ok()?;
        Some(f64::from(milliwatts) / 1e3)
    }

    fn joules(&self) -> Option<f64> {
        let millijoules = self.ask(|d| d.total_energy_consumption()).ok()?;
        Some(millijoules as f64 / 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(reasons: &[&str], temperature_c: u32) -> GpuState {
        GpuState {
            throttle_reasons: Some(reasons.iter().map(|&r| r.to_owned()).collect()),
            temperature_c: Some(temperature_c),
            ..GpuState::default()
        }
    }

    #[test]
    fn flags_name_what_slows_and_what_is_hot() {
        let cool = state(&["GPU_IDLE", "APPLICATIONS_CLOCKS_SETTING"], 75);
        assert_eq!(GpuState::flags(&cool, &cool, 75), [""; 0]);
        let capped = state(&["SW_POWER_CAP"], 60);
        assert_eq!(GpuState::flags(&cool, &capped, 75), ["throttled"]);
        let hot = state(&["HW_THERMAL_SLOWDOWN"], 76);
        assert_eq!(GpuState::flags(&hot, &cool, 75), ["throttled", "hot"]);
        // Nothing known is nothing flagged, and nothing made up in the record.
        let unknown = GpuState::default();
        assert_eq!(GpuState::flags(&unknown, &unknown, 75), [""; 0]);
        assert_eq!(serde_json::to_string(&unknown).unwrap(), "{}");
    }

    #[test]
    fn without_nvml_the_reason_is_a_sentence() {
        if let Err(reason) = Meter::open() {
            assert!(
                reason.contains("NVML") || reason.contains("NVIDIA"),
                "{reason}"
            );
        }
    }
}
