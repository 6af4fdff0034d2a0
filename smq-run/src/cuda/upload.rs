//! Weights from the file's map to the GPU, as fast as the bus takes them.
//!
//! A copy from pageable memory goes through the driver's own small buffer, on one thread (8 GB/s on an
//! H100 whose bus does 54). Here each of many threads takes the next job, copies it into one of its
//! pinned slots (the map's page faults happen there), queues the slot's copy to the GPU, and goes on
//! with its other slot meanwhile.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::device::Gpu;
use super::memory::{DeviceBuffer, Span};
use super::pinned::PinnedBuffer;
use super::stream::Event;
use crate::error::{Error, Result};
use crate::measure::Summary;

/// Bytes of a slot. Each copy costs 2.4 us whatever its size (1 MiB: 47 GB/s, 2 MiB: 50), and larger
/// slots leave a core's cache before the bus reads them.
const SLOT_BYTES: usize = 2 << 20;
/// Slots of a thread: one is filled while the other is copied.
const SLOTS: usize = 2;
/// More threads than this read memory no faster.
const MAX_THREADS: usize = 32;

/// Bytes and where they go.
#[derive(Debug, Clone, Copy)]
pub struct Piece<'a> {
    /// The bytes, usually part of a map.
    pub source: &'a [u8],
    /// Device memory of the same length.
    pub to: Span,
}

/// What an upload took.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct UploadReport {
    /// Bytes copied.
    pub bytes: usize,
    /// From the call to the last byte on the GPU.
    pub seconds: f64,
    /// Of that, waiting for pinned memory to be locked, which begins while the weights' places are found.
    pub seconds_locking: f64,
    /// Reading the source into it: the mean over threads, as is the next one.
    pub seconds_filling: f64,
    /// Waiting for copies to free a slot, and for the last ones.
    pub seconds_waiting: f64,
    /// Threads that did it.
    pub threads: usize,
}

impl UploadReport {
    /// GB/s (10^9), locking included.
    #[must_use]
    pub fn gb_per_second(&self) -> f64 {
        self.bytes as f64 / self.seconds / 1e9
    }
}

/// The pinned slots of all threads. They take some milliseconds to make, which may pass while
/// something else is done.
#[derive(Debug)]
pub struct Staging {
    buffer: PinnedBuffer,
    threads: usize,
}

impl Staging {
    /// For every core, as far as `bytes` to copy keep them busy.
    ///
    /// # Errors
    /// If the system has no memory to lock.
    pub fn new(gpu: &Gpu, bytes: usize) -> Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = bytes.div_ceil(SLOT_BYTES).clamp(1, cores.min(MAX_THREADS));
        let buffer = PinnedBuffer::huge(gpu, threads * SLOTS * SLOT_BYTES)?;
        Ok(Self { buffer, threads })
    }
}

/// Copies every piece, and returns when all are there. Locking the memory of `staging` is not in its report.
///
/// # Errors
/// [`Error::Cuda`] if a piece and its place differ in length or the driver fails.
///
/// # Safety
/// The places are allocated, and nothing else on the GPU uses them meanwhile.
pub unsafe fn upload(
    gpu: &Gpu,
    staging: &mut Staging,
    pieces: &[Piece<'_>],
) -> Result<UploadReport> {
    let start = Instant::now();
    let jobs = jobs(pieces)?;
    let next = AtomicUsize::new(0);
    let threads = staging.threads;
    let memory = staging.buffer.as_mut_slice::<u8>();
    let times = std::thread::scope(|scope| {
        let work = |slots| {
            let (jobs, next) = (&jobs, &next);
            // SAFETY: as promised by the caller; each job is taken once, and each slot is one
            // thread's.
            scope.spawn(move || unsafe { copy_jobs(gpu, jobs, next, slots) })
        };
        let workers: Vec<_> = memory.chunks_mut(SLOTS * SLOT_BYTES).map(work).collect();
        let failed = |_| Error::Cuda("a thread failed while it copied to the GPU".into());
        let results = workers.into_iter().map(|w| w.join().map_err(failed)?);
        results.collect::<Vec<Result<Times>>>()
    });
    let times = times.into_iter().collect::<Result<Vec<Times>>>()?;
    let mean = |of: fn(&Times) -> Duration| {
        times.iter().map(of).sum::<Duration>().as_secs_f64() / threads as f64
    };
    Ok(UploadReport {
        bytes: pieces.iter().map(|p| p.source.len()).sum(),
        seconds: start.elapsed().as_secs_f64(),
        seconds_locking: 0.0,
        seconds_filling: mean(|t| t.filling),
        seconds_waiting: mean(|t| t.waiting),
        threads,
    })
}

/// GB/s (10^9) of copies from pinned memory to the GPU: what an upload is measured against.
///
/// # Errors
/// If the memory is not there or the driver fails.
pub fn pinned_copy_rate(gpu: &Gpu) -> Result<f64> {
    const BYTES: usize = 256 << 20;
    let device = DeviceBuffer::new(gpu, BYTES, "measuring the bus")?;
    let host = PinnedBuffer::new(gpu, BYTES)?;
    let stream = gpu.copy();
    let (start, end) = (Event::timed(gpu.context())?, Event::timed(gpu.context())?);
    let mut rates = Vec::new();
    for _ in 0..4 {
        start.record(stream)?;
        // SAFETY: both live until the end of this function, and the copy is waited for.
        unsafe { device.span().copy_from::<u8>(stream, host.as_slice()) }?;
        end.record(stream)?;
        end.synchronize()?;
        rates.push(BYTES as f64 / start.us_until(&end)? / 1e3);
    }
    // The first one warms up.
    Ok(Summary::of(&rates[1..]).map_or(0.0, |s| s.p50))
}

/// Parts of pieces that fill one slot together.
type Job<'a> = Vec<Piece<'a>>;

/// Cuts large pieces up, and gathers small ones.
fn jobs<'a>(pieces: &[Piece<'a>]) -> Result<Vec<Job<'a>>> {
    let mut jobs = Vec::new();
    let (mut job, mut room) = (Job::new(), SLOT_BYTES);
    for piece in pieces {
        if piece.source.len() != piece.to.bytes() {
            return Err(Error::Cuda(format!(
                "{} bytes do not fit device memory of {} bytes",
                piece.source.len(),
                piece.to.bytes()
            )));
        }
        let mut done = 0;
        while done < piece.source.len() {
            let len = room.min(piece.source.len() - done);
            job.push(Piece {
                source: &piece.source[done..done + len],
                to: piece.to.part(done, len)?,
            });
            done += len;
            room -= len;
            if room == 0 {
                jobs.push(std::mem::take(&mut job));
                room = SLOT_BYTES;
            }
        }
    }
    if !job.is_empty() {
        jobs.push(job);
    }
    Ok(jobs)
}

/// What one thread spent its time on.
#[derive(Debug, Default)]
struct Times {
    filling: Duration,
    waiting: Duration,
}

/// One thread's work: takes jobs until there are none left, and returns when its slots are free.
///
/// # Safety
/// As [`upload`].
unsafe fn copy_jobs(
    gpu: &Gpu,
    jobs: &[Job<'_>],
    next: &AtomicUsize,
    memory: &mut [u8],
) -> Result<Times> {
    let mut times = Times::default();
    let event = |_| Event::new(gpu.context());
    let free = (0..SLOTS).map(event).collect::<Result<Vec<_>>>()?;
    let mut run = || -> Result<()> {
        for turn in 0.. {
            let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) else {
                break;
            };
            let (slot, free) = (turn % SLOTS * SLOT_BYTES, &free[turn % SLOTS]);
            let start = Instant::now();
            free.synchronize()?;
            let waited = Instant::now();
            times.waiting += waited - start;
            let mut at = slot;
            for part in job {
                memory[at..][..part.source.len()].copy_from_slice(part.source);
                at += part.source.len();
            }
            times.filling += waited.elapsed();
            let mut at = slot;
            for part in job {
                let bytes = &memory[at..][..part.source.len()];
                // SAFETY: the place is the caller's; the slot is left alone until `free` says so.
                unsafe { part.to.copy_from(gpu.copy(), bytes) }?;
                at += part.source.len();
            }
            free.record(gpu.copy())?;
        }
        Ok(())
    };
    let copied = run();
    // Whatever happened, no copy may still read a slot when it is freed or filled again.
    let start = Instant::now();
    let ended = gpu.copy().synchronize();
    times.waiting += start.elapsed();
    copied.and(ended).map(|()| times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_cover_every_byte_once_and_fill_slots() {
        let bytes = vec![0; 3 * SLOT_BYTES];
        let lengths = [10, 0, 6144, 2 * SLOT_BYTES + 7, 5, SLOT_BYTES];
        let mut at = 4096;
        let mut pieces = Vec::new();
        for len in lengths {
            let (source, to) = (&bytes[..len], Span::at(at, len));
            pieces.push(Piece { source, to });
            at += len as u64 + 1000;
        }
        let jobs = jobs(&pieces).unwrap();
        let job_bytes = |j: &Job<'_>| j.iter().map(|p| p.source.len()).sum::<usize>();
        let (last, full) = jobs.split_last().unwrap();
        assert!(full.iter().all(|j| job_bytes(j) == SLOT_BYTES));
        assert!(job_bytes(last) <= SLOT_BYTES);
        let mut parts = jobs.iter().flatten();
        for piece in pieces {
            let mut done = 0;
            while done < piece.source.len() {
                let part = parts.next().unwrap();
                assert_eq!(part.to.ptr(), piece.to.ptr() + done as u64);
                assert_eq!(part.source.as_ptr(), piece.source[done..].as_ptr());
                assert_eq!(part.source.len(), part.to.bytes());
                done += part.source.len();
            }
            assert_eq!(done, piece.source.len());
        }
        assert!(parts.next().is_none());
    }

    #[test]
    fn a_piece_must_fit_its_place() {
        let (source, to) = (&[1, 2, 3][..], Span::at(4096, 4));
        assert!(jobs(&[Piece { source, to }]).is_err());
    }
}
