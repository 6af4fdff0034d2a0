//! The GPU with what every check needs: memory, timing, floors, and the list of reports.

use std::collections::HashMap;
use std::sync::Arc;

use bytemuck::{NoUninit, Pod};
use smq_format::scale::ScaleFormat;

use super::Options;
use super::host::{bf16s, format_of};
use super::report::KernelReport;
use smq_engine::cuda::{
    Args, Blas, Call, DeviceBuffer, Gpu, Kernels, Launch, Stream, measure, time_us,
};
use smq_engine::{Error, Result};
use smq_model::ModelConfig;

pub(super) const CONFIG: &str = r#"{
    "architectures": ["Phi3ForCausalLM"], "hidden_size": 3072, "intermediate_size": 8192,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32064,
    "rms_norm_eps": 1e-05, "max_position_embeddings": 131072, "rope_theta": 10000.0, "sliding_window": 262144
}"#;
/// Timed graphs last about this long, so that their start does not count,
const GRAPH_US: f64 = 1500.0;
/// have at most this many launches,
const MAX_LAUNCHES: usize = 512;
/// and are replayed for about this long.
const REPLAYS_US: f64 = 20_000.0;
/// Bytes of each side of the copies that give memory's speed.
const SCRATCH: usize = 1 << 30;
/// Words that a thread of `measure.cu` has in flight; the fastest counts.
const LOADS: [usize; 3] = [2, 4, 8];

/// What every check has at hand.
pub(super) struct Lab<'a> {
    pub gpu: Arc<Gpu>,
    pub kernels: Kernels,
    pub blas: Blas,
    pub config: ModelConfig,
    pub scales: ScaleFormat,
    pub reports: Vec<KernelReport>,
    filter: Option<String>,
    on_kernel: &'a mut dyn FnMut(&KernelReport),
    /// What memory's speed is measured on: from, to.
    scratch: [DeviceBuffer; 2],
    read_floors: HashMap<usize, f64>,
    copy_floors: HashMap<(usize, usize), f64>,
}

/// What is compared with a kernel's time.
pub(super) enum Floor {
    None,
    /// Reading so many bytes takes so long.
    Read(usize, f64),
    /// Moving so many bytes, half of them written, takes so long.
    Copy(usize, f64),
}

impl<'a> Lab<'a> {
    pub(super) fn new(
        options: &Options,
        on_kernel: &'a mut dyn FnMut(&KernelReport),
    ) -> Result<Self> {
        let gpu = Gpu::open(0)?;
        let scratch = || DeviceBuffer::new(&gpu, SCRATCH, "what memory's speed is measured on");
        let scratch = [scratch()?, scratch()?];
        // Memory's speed may depend on what is in it.
        let random = bf16s(1, SCRATCH / 64);
        let stream = gpu.main();
        scratch[0].upload(stream, 0, &random)?;
        let mut filled = 2 * random.len();
        while filled < SCRATCH {
            let (from, to) = (
                scratch[0].span().part(0, filled)?,
                scratch[0].span().part(filled, filled)?,
            );
            // SAFETY: both are parts of the buffer, which do not overlap and nothing else uses.
            unsafe { to.copy_within(stream, from)? };
            filled *= 2;
        }
        stream.synchronize()?;
        Ok(Self {
            kernels: Kernels::new(gpu.clone()),
            blas: Blas::new(&gpu, 32 << 20)?,
            config: ModelConfig::from_json(CONFIG.as_bytes())?,
            scales: format_of(options.scales)?,
            reports: Vec::new(),
            filter: options.filter.clone(),
            on_kernel,
            scratch,
            read_floors: HashMap::new(),
            copy_floors: HashMap::new(),
            gpu,
        })
    }

    /// Whether this one is asked for.
    pub(super) fn wants(&self, kernel: &str, layer: &str) -> bool {
        let filter = self.filter.as_deref();
        filter.is_none_or(|f| kernel.contains(f) || layer.contains(f))
    }

    pub(super) fn stream(&self) -> &Stream {
        self.gpu.main()
    }

    /// Memory with `data` in it.
    pub(super) fn upload<T: NoUninit>(&self, data: &[T]) -> Result<DeviceBuffer> {
        let buffer = DeviceBuffer::new(&self.gpu, size_of_val(data), "a check")?;
        buffer.upload(self.stream(), 0, data)?;
        Ok(buffer)
    }

    /// Memory full of NaNs, which show whatever was not written.
    pub(super) fn poisoned(&self, bytes: usize) -> Result<DeviceBuffer> {
        let buffer = DeviceBuffer::new(&self.gpu, bytes, "a check")?;
        buffer.fill(self.stream(), 0xff)?;
        Ok(buffer)
    }

    pub(super) fn download<T: Pod>(&self, buffer: &DeviceBuffer, len: usize) -> Result<Vec<T>> {
        let mut out = vec![T::zeroed(); len];
        buffer.download(self.stream(), 0, &mut out)?;
        Ok(out)
    }

    /// Runs `call` once and waits.
    pub(super) fn run(&self, call: &Call) -> Result<()> {
        // SAFETY: checks make calls with buffers as large as their kernels ask for, which outlive
        // the wait.
        unsafe { call.run(self.stream())? };
        self.stream().synchronize()
    }

    /// Median microseconds of one of `calls`, which are launched in turns.
    pub(super) fn time(&self, calls: &[Call]) -> Result<f64> {
        self.time_each(calls.len(), |stream, i| {
            // SAFETY: as in `run`; `time_us` waits for every replay.
            unsafe { calls[i].run(stream) }
        })
    }

    /// Median microseconds of one of `count` launches, which `queue` queues by number.
    pub(super) fn time_each(
        &self,
        count: usize,
        mut queue: impl FnMut(&Stream, usize) -> Result<()>,
    ) -> Result<f64> {
        let pilot = time_us(self.stream(), count, 3, &mut queue)?.max(0.1);
        let launches = ((GRAPH_US / pilot) as usize).clamp(1, MAX_LAUNCHES);
        let launches = launches.next_multiple_of(count);
        let replays = ((REPLAYS_US / (pilot * launches as f64)) as usize).clamp(7, 31);
        time_us(self.stream(), launches, replays, |stream, i| {
            queue(stream, i % count)
        })
    }

    /// How often data of `bytes` has to be there for the cache not to help.
    pub(super) fn copies_of(&self, bytes: usize) -> usize {
        4 * self.gpu.l2_bytes() / bytes.max(1) + 2
    }

    /// Microseconds to read `bytes` at each of `places` in turns.
    pub(super) fn read_floor(&mut self, places: &[u64], bytes: usize) -> Result<f64> {
        if let Some(us) = self.read_floors.get(&bytes) {
            return Ok(*us);
        }
        let sink = self.scratch[1].ptr();
        let us = self.fastest("read_bytes", bytes, places.len(), |i| {
            Args::new()
                .ptr(places[i])
                .u32((bytes / 16) as u32)
                .ptr(sink)
        })?;
        self.read_floors.insert(bytes, us);
        Ok(us)
    }

    /// Microseconds to move `bytes`, half of them written: from and to memory, or always the same
    /// ones.
    pub(super) fn copy_floor(&mut self, bytes: usize, from_memory: bool) -> Result<f64> {
        let half = (bytes / 2).next_multiple_of(256);
        let places = match from_memory {
            true => (SCRATCH / half).clamp(1, self.copies_of(half)),
            false => 1,
        };
        if let Some(us) = self.copy_floors.get(&(half, places)) {
            return Ok(*us);
        }
        let [from, to] = [self.scratch[0].ptr(), self.scratch[1].ptr()];
        let us = self.fastest("copy_bytes", half, places, |i| {
            let at = (i * half) as u64;
            Args::new()
                .ptr(from + at)
                .ptr(to + at)
                .u32((half / 16) as u32)
        })?;
        self.copy_floors.insert((half, places), us);
        Ok(us)
    }

    fn fastest(
        &self,
        kernel: &str,
        bytes: usize,
        places: usize,
        args: impl Fn(usize) -> Args,
    ) -> Result<f64> {
        let mut best = f64::INFINITY;
        for loads in LOADS {
            let kernel = self
                .kernels
                .get(measure::FILE, measure::defines(loads), kernel)?;
            let grid = (bytes / 16).div_ceil(measure::THREADS * loads);
            let call = |i| Call {
                kernel: kernel.clone(),
                launch: Launch::new(grid, measure::THREADS as u32).overlap(),
                args: args(i),
            };
            best = best.min(self.time(&(0..places).map(call).collect::<Vec<_>>())?);
        }
        Ok(best)
    }

    /// Memory's speed, reading and copying, 10^9 bytes a second.
    pub(super) fn memory_rates(&mut self) -> Result<(f64, f64)> {
        let read = self.read_floor(&[self.scratch[0].ptr()], SCRATCH)?;
        let copy = self.copy_floor(2 * SCRATCH, true)?;
        Ok((
            SCRATCH as f64 / read / 1e3,
            2.0 * SCRATCH as f64 / copy / 1e3,
        ))
    }

    /// Files a report: the check first, then the time.
    pub(super) fn report(&mut self, mut report: KernelReport, floor: &Floor) {
        let percent = |us: f64| Some(100.0 * us / report.us);
        let mut moved = |bytes: usize, us: f64| {
            report.bytes = Some(bytes);
            report.gb_per_s = Some(bytes as f64 / report.us / 1e3);
            report.floor_us = Some(us);
        };
        match *floor {
            Floor::None => (),
            Floor::Read(bytes, us) => {
                moved(bytes, us);
                report.percent_of_read_floor = percent(us);
            }
            Floor::Copy(bytes, us) => {
                moved(bytes, us);
                report.percent_of_copy_floor = percent(us);
            }
        }
        (self.on_kernel)(&report);
        self.reports.push(report);
    }
}

/// Says which kernel an error is of.
pub(super) fn of<T>(kernel: &str, layer: &str, result: Result<T>) -> Result<T> {
    result.map_err(|e| Error::Cuda(format!("{kernel}, {layer}: {e}")))
}
