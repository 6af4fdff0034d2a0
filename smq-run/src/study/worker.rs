//! What a fresh process does: load the model, warm up, measure workloads or energy, one JSON line
//! each.

use std::io::Write;

use serde::{Deserialize, Serialize};

use super::contract::{EnergyPlan, Flags, Warmup};
use super::energy::{joules_per_token, window};
use super::gpu_state::{GpuState, Meter};
use super::record::{Energy, Timed};
use crate::bench::{BenchOptions, BenchReport, bench, run_once, synthetic_prompt};
use smq_engine::GpuInfo;
use smq_engine::cuda::memory_in_use;
use smq_engine::{Device, Engine};
use smq_model::Source;

/// A prompt and an output length, `128x64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Workload {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated after it.
    pub output_tokens: usize,
}

impl std::fmt::Display for Workload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}", self.prompt_tokens, self.output_tokens)
    }
}

impl std::str::FromStr for Workload {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let parts = s.split_once('x');
        let parsed = parts.and_then(|(p, o)| Some((p.parse().ok()?, o.parse().ok()?)));
        match parsed {
            Some((prompt_tokens @ 1.., output_tokens @ 1..)) => Ok(Self {
                prompt_tokens,
                output_tokens,
            }),
            _ => Err("expected PROMPTxOUTPUT tokens, such as 128x64".to_owned()),
        }
    }
}

/// A line on the process's standard output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Reply {
    /// A workload that was timed.
    Timed {
        /// The GPU that ran it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        gpu: Option<GpuInfo>,
        /// What was timed.
        timed: Box<Timed>,
    },
    /// The energy run that was asked for.
    Energy {
        /// The GPU that ran it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        gpu: Option<GpuInfo>,
        /// What was measured.
        energy: Box<Energy>,
    },
    /// Nothing can be measured.
    Absent {
        /// The reason, in a sentence.
        reason: String,
    },
}

/// What a process measures.
#[derive(Debug, Clone)]
pub(crate) enum Job {
    /// Workloads, one after another, shorter first.
    Cells(Vec<Workload>),
    /// One energy run.
    Energy(EnergyPlan),
}

/// How it measures, whatever it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct JobOptions {
    /// What to run on.
    pub device: Device,
    /// What is run first.
    pub warmup: Warmup,
    /// Seed of the prompts.
    pub seed: u64,
    /// When a measurement is flagged.
    pub flags: Flags,
}

/// Why there is nothing from NVML where the CPU ran the model.
pub(crate) const ON_CPU: &str = "the model ran on the CPU, and NVML measures GPUs";

/// The GPU's meter, or why there is none.
type MaybeMeter = Result<Meter, String>;

/// Measures `job`; `load` opens the model and says how long that took. Each result goes to `out` at
/// once.
///
/// # Errors
/// Whatever loading or running meets first.
pub(crate) fn run<'e>(
    job: &Job,
    options: &JobOptions,
    source: &Source,
    load: impl FnOnce() -> anyhow::Result<(Box<dyn Engine + 'e>, std::time::Duration)>,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    // Before anything opens the GPU.
    let mut meter = match options.device {
        Device::Cpu => Err(ON_CPU.to_owned()),
        Device::Auto | Device::Cuda => Meter::open(),
    };
    let mut reply = |reply: &Reply| -> anyhow::Result<()> {
        writeln!(out, "{}", serde_json::to_string(reply)?)?;
        Ok(out.flush()?)
    };
    let memory_before = meter.as_ref().ok().and_then(Meter::memory_in_use);
    let idle_watts = match (job, &meter) {
        (Job::Energy(_), Err(reason)) => {
            let reason = reason.clone();
            return reply(&Reply::Absent { reason });
        }
        (Job::Energy(plan), Ok(meter)) => idle_watts(meter, plan)?,
        (Job::Cells(_), _) => None,
    };
    let (mut engine, load) = load()?;
    if engine.device() == "cpu" && meter.is_ok() {
        meter = Err(ON_CPU.to_owned());
    }
    let gpu = engine.gpu().cloned();
    let mut time = |workload: Workload| {
        let one = BenchOptions {
            prompt_tokens: workload.prompt_tokens,
            output_tokens: workload.output_tokens,
            warmup: 0,
            repeats: 1,
            seed: options.seed,
        };
        bench(&mut *engine, source, load, &one)
    };
    let w = &options.warmup;
    time(Workload {
        prompt_tokens: w.prompt_tokens,
        output_tokens: w.output_tokens,
    })?;
    match (job, &meter) {
        (Job::Cells(workloads), meter) => {
            let mut workloads = workloads.clone();
            workloads.sort();
            let mut first_use: Option<(usize, f64)> = None;
            for workload in workloads {
                let prompt_tokens = workload.prompt_tokens;
                let seen = first_use.is_some_and(|(p, _)| p == prompt_tokens);
                if w.each_prompt_length && !seen {
                    let report = time(Workload {
                        output_tokens: 1,
                        ..workload
                    })?;
                    first_use = Some((prompt_tokens, report.ttft_ms.mean));
                }
                let before = state(meter);
                let report = time(workload)?;
                let timed = Timed {
                    ttft_first_use_ms: first_use.map(|f| f.1),
                    device_memory_before_bytes: memory_before.filter(|_| gpu.is_some()),
                    ..timed(&report, meter, before, &options.flags)
                };
                reply(&Reply::Timed {
                    gpu: gpu.clone(),
                    timed: Box::new(timed),
                })?;
            }
            Ok(())
        }
        (Job::Energy(plan), Ok(meter)) => {
            let energy = energy(&mut *engine, meter, plan, options, idle_watts)?;
            reply(&Reply::Energy {
                gpu,
                energy: Box::new(energy),
            })
        }
        (Job::Energy(_), Err(reason)) => reply(&Reply::Absent {
            reason: reason.clone(),
        }),
    }
}

fn state(meter: &MaybeMeter) -> Option<GpuState> {
    meter.as_ref().ok().map(Meter::state)
}

fn timed(
    report: &BenchReport,
    meter: &MaybeMeter,
    gpu_before: Option<GpuState>,
    flags: &Flags,
) -> Timed {
    let gpu_after = state(meter);
    let flags = match (&gpu_before, &gpu_after) {
        (Some(before), Some(after)) => GpuState::flags(before, after, flags.temperature_above_c),
        _ => Vec::new(),
    };
    let run = report.runs.first();
    Timed {
        prompt_tokens: report.options.prompt_tokens,
        output_tokens: report.options.output_tokens,
        device: report.device.to_owned(),
        weight_bytes_per_token: report.model.bytes_per_token,
        ttft_ms: report.ttft_ms.mean,
        ttft_first_use_ms: None,
        tpot_ms: report.tpot_ms,
        token_ms: run.map(|r| r.token_ms.clone()).unwrap_or_default(),
        rope_switch_ms: run.and_then(|r| r.rope_switch_ms),
        output_tokens_per_s: report.output_tokens_per_s,
        total_tokens_per_s: report.total_tokens_per_s,
        load_ms: report.load_ms,
        upload: report.upload,
        memory: report.memory,
        device_memory_bytes: report.gpu.as_ref().and_then(|_| memory_in_use().ok()),
        device_memory_before_bytes: None,
        gpu_before,
        gpu_after,
        flags,
        nvml_absent: meter.as_ref().err().cloned(),
    }
}

/// Mean power of the GPU that nobody uses; the last process's work has left the reading's average
/// by then.
fn idle_watts(meter: &Meter, plan: &EnergyPlan) -> smq_engine::Result<Option<f64>> {
    if plan.idle_seconds == 0.0 {
        return Ok(None);
    }
    let mut wait = || {
        std::thread::sleep(std::time::Duration::from_millis(plan.sample_ms));
        Ok(())
    };
    let idle = window(
        meter,
        plan.sample_ms,
        plan.settle_seconds,
        plan.idle_seconds,
        &mut wait,
    )?;
    Ok(idle.trapezoid_joules.map(|j| j / idle.seconds))
}

fn energy(
    engine: &mut dyn Engine,
    meter: &Meter,
    plan: &EnergyPlan,
    options: &JobOptions,
    idle_watts: Option<f64>,
) -> smq_engine::Result<Energy> {
    let prompt = synthetic_prompt(plan.prompt_tokens, engine.config().vocab, options.seed);
    let gpu_before = meter.state();
    let mut measure = |output_tokens, least_seconds| {
        let mut work = || run_once(engine, &prompt, output_tokens).map(drop);
        let settle = plan.settle_seconds;
        window(meter, plan.sample_ms, settle, least_seconds, &mut work)
    };
    let generations = measure(plan.output_tokens, plan.decode_seconds)?;
    // While it is as warm as it gets.
    let gpu_after = meter.state();
    let prompts = measure(1, plan.prefill_seconds)?;
    let limit = options.flags.temperature_above_c;
    Ok(Energy {
        prompt_tokens: plan.prompt_tokens,
        output_tokens: plan.output_tokens,
        sample_ms: plan.sample_ms,
        idle_watts,
        joules_per_token: joules_per_token(plan, &generations, &prompts),
        generations,
        prompts,
        flags: GpuState::flags(&gpu_before, &gpu_after, limit),
        gpu_before,
        gpu_after,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workloads_read_as_they_are_written() {
        let workload: Workload = "128x64".parse().unwrap();
        assert_eq!(workload.to_string(), "128x64");
        for bad in ["", "128", "x", "0x4", "4x0", "-1x4", "1x2x3"] {
            assert!(bad.parse::<Workload>().is_err(), "{bad}");
        }
    }
}
