//! Weights from the file's map to the GPU, as fast as the bus takes them.
//!
//! A copy from pageable memory goes through the driver's own small buffer, on one thread (8 GB/s on
//! an H100 whose bus does 54). Here many threads fill the parts of pinned slots (the map's page
//! faults happen there), and each slot is copied to the GPU at once while others are filled
//! (`upload/ring.rs`).

mod ring;

use std::ptr::NonNull;
use std::thread;
use std::time::{Duration, Instant};

use crate::report::LoadReport;

use self::ring::{Bus, Ring, Times};
use super::device::Gpu;
use super::memory::{DeviceBuffer, Span};
use super::pinned::PinnedBuffer;
use super::stream::Event;
use crate::error::{Error, Result};
use crate::summary::Summary;

/// Bytes that one thread fills at once: larger parts leave its core's cache before the bus reads
/// them.
const PART_BYTES: usize = 2 << 20;
/// Parts that are copied together: each copy costs the bus 2.4 us whatever its size.
const SLOT_PARTS: usize = 4;
const SLOT_BYTES: usize = SLOT_PARTS * PART_BYTES;
/// Pinned parts for each thread: while one is filled, another is copied.
const THREAD_PARTS: usize = 2;
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

/// The pinned slots and the threads that fill them.
#[derive(Debug)]
pub struct Staging {
    buffer: PinnedBuffer,
    threads: usize,
    /// What [`while_doing`](Self::while_doing) waited for it.
    waited: Duration,
}

impl Staging {
    /// For every core, as far as `bytes` to copy keep them busy.
    ///
    /// # Errors
    /// If the system has no memory to lock.
    pub fn new(gpu: &Gpu, bytes: usize) -> Result<Self> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let threads = bytes.div_ceil(PART_BYTES).clamp(1, cores.min(MAX_THREADS));
        // At least two, so that one can be filled while the other is copied.
        let places = (threads * THREAD_PARTS).div_ceil(SLOT_PARTS).max(2);
        let places = places.min(bytes.div_ceil(SLOT_BYTES)).max(1);
        let buffer = PinnedBuffer::huge(gpu, places * SLOT_BYTES)?;
        let waited = Duration::ZERO;
        Ok(Self {
            buffer,
            threads,
            waited,
        })
    }

    /// As [`new`](Self::new), in a thread of its own while this one does `work`: locking takes some
    /// milliseconds.
    ///
    /// # Errors
    /// As `work`, and if that succeeds as [`new`](Self::new).
    pub(super) fn while_doing<T>(
        gpu: &Gpu,
        bytes: usize,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<(T, Self)> {
        let (done, staging, waited) = thread::scope(|scope| {
            let staging = scope.spawn(|| Self::new(gpu, bytes));
            let done = work();
            let start = Instant::now();
            (done, staging.join(), start.elapsed())
        });
        let done = done?;
        let failed = |_| Error::Cuda("a thread failed while it locked memory".into());
        let staging = staging.map_err(failed)??;
        Ok((done, Self { waited, ..staging }))
    }
}

/// Copies every piece, and returns when all are there.
///
/// # Errors
/// [`Error::Cuda`] if a piece and its place differ in length or the driver fails.
///
/// # Safety
/// The places are allocated, and nothing else on the GPU uses them meanwhile.
pub unsafe fn upload(gpu: &Gpu, staging: &mut Staging, pieces: &[Piece<'_>]) -> Result<LoadReport> {
    let start = Instant::now();
    let places = staging.buffer.bytes() / SLOT_BYTES;
    let event = |_| Event::new(gpu.context());
    let copies = Copies {
        gpu,
        parts: jobs(pieces, PART_BYTES)?,
        slots: jobs(pieces, SLOT_BYTES)?,
        memory: NonNull::from(staging.buffer.as_mut_slice::<u8>()).cast(),
        free: (0..places).map(event).collect::<Result<_>>()?,
    };
    let threads = staging.threads;
    let ring = Ring::new(copies.parts.len(), SLOT_PARTS, places, threads);
    let results = run(&ring, &copies, threads);
    // Whatever happened, no copy may still read a slot when it is freed or filled again.
    let end = Instant::now();
    gpu.copy().synchronize()?;
    let ending = end.elapsed();
    let times = results.into_iter().collect::<Result<Vec<Times>>>()?;
    let mean = |of: fn(&Times) -> Duration| {
        times.iter().map(of).sum::<Duration>().as_secs_f64() / threads as f64
    };
    Ok(LoadReport {
        bytes: pieces.iter().map(|p| p.source.len()).sum(),
        seconds: (start.elapsed() + staging.waited).as_secs_f64(),
        seconds_locking: staging.waited.as_secs_f64(),
        seconds_filling: mean(|t| t.filling),
        seconds_waiting: mean(|t| t.waiting) + ending.as_secs_f64(),
        threads,
    })
}

/// Works with all threads, and returns how each ended. Copies may still run then.
fn run(ring: &Ring, copies: &Copies<'_>, threads: usize) -> Vec<Result<Times>> {
    thread::scope(|scope| {
        let spawn =
            |thread| thread::Builder::new().spawn_scoped(scope, move || ring.work(copies, thread));
        let workers: Vec<_> = (0..threads).map(spawn).collect();
        if workers.iter().any(std::io::Result::is_err) {
            // The others may wait for what it would have filled.
            ring.stop();
        }
        let failed = "a thread failed while it copied to the GPU";
        let result = |worker: std::io::Result<thread::ScopedJoinHandle<'_, Result<Times>>>| {
            let worker = worker.map_err(|e| Error::Cuda(format!("starting a thread: {e}")))?;
            worker.join().map_err(|_| Error::Cuda(failed.into()))?
        };
        workers.into_iter().map(result).collect()
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

/// What is copied through pinned memory of `free.len()` slots.
struct Copies<'a> {
    gpu: &'a Gpu,
    /// What each part is filled with.
    parts: Vec<Job<'a>>,
    /// Where each slot goes: the same bytes.
    slots: Vec<Job<'a>>,
    memory: NonNull<u8>,
    /// When a place's last copy has run.
    free: Vec<Event>,
}

// SAFETY: the ring says which thread uses which part of `memory` when; all else is shared anyway.
unsafe impl Sync for Copies<'_> {}

impl Bus for Copies<'_> {
    fn wait(&self, place: usize) -> Result<()> {
        self.free[place].synchronize()
    }

    unsafe fn fill(&self, part: usize, place: usize) {
        let offset = place * SLOT_BYTES + part % SLOT_PARTS * PART_BYTES;
        // SAFETY: inside the places' memory, which the upload has borrowed; as promised by the
        // caller, no other thread and no copy uses this part of it meanwhile.
        let memory =
            unsafe { std::slice::from_raw_parts_mut(self.memory.add(offset).as_ptr(), PART_BYTES) };
        let mut at = 0;
        for piece in &self.parts[part] {
            memory[at..][..piece.source.len()].copy_from_slice(piece.source);
            at += piece.source.len();
        }
    }

    unsafe fn start(&self, slot: usize, place: usize) -> Result<()> {
        // SAFETY: as above; as promised by the caller, nothing writes the slot now.
        let memory = unsafe {
            std::slice::from_raw_parts(self.memory.add(place * SLOT_BYTES).as_ptr(), SLOT_BYTES)
        };
        let mut at = 0;
        for piece in &self.slots[slot] {
            let bytes = &memory[at..][..piece.source.len()];
            // SAFETY: the place is that of the upload's caller; the slot is left alone until `free`
            // says so, or, where something fails, until the upload has waited for the stream.
            unsafe { piece.to.copy_from(self.gpu.copy(), bytes) }?;
            at += piece.source.len();
        }
        self.free[place].record(self.gpu.copy())
    }
}

/// Parts of pieces that are handled together.
type Job<'a> = Vec<Piece<'a>>;

/// Cuts large pieces up, and gathers small ones, in jobs of `size` bytes; only the last may have
/// fewer.
fn jobs<'a>(pieces: &[Piece<'a>], size: usize) -> Result<Vec<Job<'a>>> {
    let mut jobs = Vec::new();
    let (mut job, mut room) = (Job::new(), size);
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
                room = size;
            }
        }
    }
    if !job.is_empty() {
        jobs.push(job);
    }
    Ok(jobs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_cover_every_byte_once_and_are_full() {
        let bytes = vec![0; 3 * SLOT_BYTES];
        let lengths = [10, 0, 6144, 2 * SLOT_BYTES + 7, 5, SLOT_BYTES];
        let mut at = 4096;
        let mut pieces = Vec::new();
        for len in lengths {
            let (source, to) = (&bytes[..len], Span::at(at, len));
            pieces.push(Piece { source, to });
            at += len as u64 + 1000;
        }
        for size in [PART_BYTES, SLOT_BYTES] {
            let jobs = jobs(&pieces, size).unwrap();
            let job_bytes = |j: &Job<'_>| j.iter().map(|p| p.source.len()).sum::<usize>();
            let (last, full) = jobs.split_last().unwrap();
            assert!(full.iter().all(|j| job_bytes(j) == size));
            assert!(job_bytes(last) <= size);
            let mut parts = jobs.iter().flatten();
            for piece in &pieces {
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
    }

    #[test]
    fn a_piece_must_fit_its_place() {
        let (source, to) = (&[1, 2, 3][..], Span::at(4096, 4));
        assert!(jobs(&[Piece { source, to }], SLOT_BYTES).is_err());
    }
}
