//! Who fills what when, and who has it copied: the order alone, without a GPU.
//!
//! Data passes through a ring of places, slot `n` through place `n % places`. A slot has several
//! parts, which different threads fill; who fills the last one has the slot copied as a whole. The
//! next slot of the place waits for that.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::Result;

/// What fills and copies.
pub(super) trait Bus: Sync {
    /// Waits until the copy that was last started from `place` has run; at once if none was.
    ///
    /// # Errors
    /// If that fails.
    fn wait(&self, place: usize) -> Result<()>;

    /// Fills part number `part`, counted over all slots, of the slot at `place`.
    ///
    /// # Safety
    /// No copy from `place` runs or is started meanwhile, and nobody else fills this part.
    unsafe fn fill(&self, part: usize, place: usize);

    /// Starts the copy of slot number `slot`, which is at `place`.
    ///
    /// # Errors
    /// If it cannot be started.
    ///
    /// # Safety
    /// All parts of the slot are filled, and nothing fills any until [`wait`](Bus::wait) has
    /// returned.
    unsafe fn start(&self, slot: usize, place: usize) -> Result<()>;
}

/// What one thread spent its time on.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Times {
    pub filling: Duration,
    /// For the copy of the slot that was there before.
    pub waiting: Duration,
}

/// The order of one run of slots through the places.
#[derive(Debug)]
pub(super) struct Ring {
    /// Of all slots. Only the last slot may have fewer than `slot_parts`.
    parts: usize,
    slot_parts: usize,
    threads: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    places: Vec<Place>,
    stopped: bool,
}

#[derive(Debug, Default, Clone)]
struct Place {
    /// Parts that are filled of the slot that is there.
    filled: usize,
    /// Copies that were started. An event that was never recorded counts as over, so who waits for
    /// a copy first makes sure that it was started.
    started: usize,
}

impl Ring {
    /// For `parts` in slots of `slot_parts`, filled by `threads`. Nothing may be 0 but `parts`.
    pub(super) fn new(parts: usize, slot_parts: usize, places: usize, threads: usize) -> Self {
        Self {
            parts,
            slot_parts,
            threads,
            state: Mutex::new(State {
                places: vec![Place::default(); places],
                stopped: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// One thread's work, which all of `0..threads` must do at once: fills parts until there are
    /// none left. Copies may still run afterwards, whatever is returned.
    ///
    /// Nobody waits for ever: parts are taken in order, so the first slot that is not yet copied
    /// waits only for threads that fill it; and where one fails, all stop.
    ///
    /// # Errors
    /// What `bus` returned in this thread. The others then end without one.
    pub(super) fn work(&self, bus: &impl Bus, thread: usize) -> Result<Times> {
        // Dropped on errors and panics alike.
        let mut stop = StopOthers(Some(self));
        let times = self.fill_parts(bus, thread)?;
        stop.0 = None;
        Ok(times)
    }

    /// Has every thread end as soon as it would wait.
    pub(super) fn stop(&self) {
        self.state().stopped = true;
        self.changed.notify_all();
    }

    fn fill_parts(&self, bus: &impl Bus, thread: usize) -> Result<Times> {
        let mut times = Times::default();
        // Every `threads`-th: where that divides the ring, a thread fills the same memory again,
        // which is in its core's cache. Whichever comes next is slower to fill by a third.
        let own = (thread..self.parts).step_by(self.threads);
        let places = self.state().places.len();
        for part in own {
            let slot = part / self.slot_parts;
            let (round, place) = (slot / places, slot % places);
            let start = Instant::now();
            if !self.is_started(place, round) {
                break;
            }
            // This slot's copy cannot start before this part is filled, so it is the one before
            // that is waited for.
            bus.wait(place)?;
            let waited = Instant::now();
            times.waiting += waited - start;
            // SAFETY: the copy before has run, and this part is taken once.
            unsafe { bus.fill(part, place) };
            times.filling += waited.elapsed();
            if self.fills_slot(slot, place) {
                // SAFETY: all parts are filled, which the lock makes visible here; who takes one of
                // the next slot's waits for `started`, then for the copy.
                unsafe { bus.start(slot, place) }?;
                self.state().places[place].started += 1;
                self.changed.notify_all();
            }
        }
        Ok(times)
    }

    /// Waits until `copies` were started from `place`; false if all are to stop.
    fn is_started(&self, place: usize, copies: usize) -> bool {
        let too_few = |s: &mut State| !s.stopped && s.places[place].started < copies;
        let state = self.changed.wait_while(self.state(), too_few);
        !state.unwrap_or_else(PoisonError::into_inner).stopped
    }

    /// Counts a filled part; true if it was the slot's last.
    fn fills_slot(&self, slot: usize, place: usize) -> bool {
        let of_slot = self.slot_parts.min(self.parts - slot * self.slot_parts);
        let filled = &mut self.state().places[place].filled;
        *filled += 1;
        let full = *filled == of_slot;
        if full {
            *filled = 0;
        }
        full
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Stops all threads unless it is empty when dropped.
struct StopOthers<'a>(Option<&'a Ring>);

impl Drop for StopOthers<'_> {
    fn drop(&mut self) {
        if let Some(ring) = self.0 {
            ring.stop();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::thread;

    use super::*;
    use crate::error::Error;

    /// What goes wrong, and at which slot or part.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Fault {
        None,
        /// The so many-th wait of any thread.
        Wait(usize),
        Fill(usize),
        Start(usize),
    }

    const EMPTY: usize = usize::MAX;

    /// Copies in a thread of its own, some time after it is told to.
    struct FakeBus {
        slot_parts: usize,
        fault: Fault,
        waits: AtomicUsize,
        /// Numbers of the parts that are in each place.
        memory: Vec<Mutex<Vec<usize>>>,
        in_flight: Vec<AtomicBool>,
        queue: Mutex<Option<Sender<(usize, usize)>>>,
    }

    impl Bus for FakeBus {
        fn wait(&self, place: usize) -> Result<()> {
            if self.fault == Fault::Wait(self.waits.fetch_add(1, Ordering::Relaxed)) {
                return Err(Error::Cuda("wait".into()));
            }
            // As an event is, over before it is first recorded.
            while self.in_flight[place].load(Ordering::Acquire) {
                thread::yield_now();
            }
            Ok(())
        }

        unsafe fn fill(&self, part: usize, place: usize) {
            assert_ne!(self.fault, Fault::Fill(part), "the planned panic");
            jitter(part);
            let at = part % self.slot_parts;
            let before = std::mem::replace(&mut self.memory[place].lock().unwrap()[at], part);
            assert_eq!(before, EMPTY, "part {part} overwrites another");
            assert!(!self.in_flight[place].load(Ordering::Acquire));
        }

        unsafe fn start(&self, slot: usize, place: usize) -> Result<()> {
            if self.fault == Fault::Start(slot) {
                return Err(Error::Cuda("start".into()));
            }
            // Long enough for a thread that takes an unrecorded event for a finished copy.
            jitter(!slot);
            assert!(!self.in_flight[place].swap(true, Ordering::AcqRel));
            let queue = self.queue.lock().unwrap();
            queue.as_ref().unwrap().send((slot, place)).unwrap();
            Ok(())
        }
    }

    impl FakeBus {
        /// Copies until there is nothing more to come: the slots and what was in them, in the order
        /// of the copies.
        fn copies(&self, queue: Receiver<(usize, usize)>) -> Vec<(usize, Vec<usize>)> {
            let mut copies = Vec::new();
            for (slot, place) in queue {
                jitter(slot);
                let empty = vec![EMPTY; self.slot_parts];
                let parts = std::mem::replace(&mut *self.memory[place].lock().unwrap(), empty);
                copies.push((slot, parts));
                self.in_flight[place].store(false, Ordering::Release);
            }
            copies
        }
    }

    /// Some time, now short, now long.
    fn jitter(seed: usize) {
        for _ in 0..(seed as u32).wrapping_mul(0x9e37_79b9) >> 27 {
            thread::yield_now();
        }
    }

    type Copies = Vec<(usize, Vec<usize>)>;

    /// What arrived, and each thread's result; `None` where it panicked.
    fn run(ring: &Ring, fault: Fault) -> (Copies, Vec<Option<Result<Times>>>) {
        let (sender, receiver) = channel();
        let places = ring.state().places.len();
        let bus = FakeBus {
            slot_parts: ring.slot_parts,
            fault,
            waits: AtomicUsize::new(0),
            memory: (0..places)
                .map(|_| Mutex::new(vec![EMPTY; ring.slot_parts]))
                .collect(),
            in_flight: (0..places).map(|_| AtomicBool::new(false)).collect(),
            queue: Mutex::new(Some(sender)),
        };
        let bus = &bus;
        thread::scope(|scope| {
            let copier = scope.spawn(move || bus.copies(receiver));
            let work = |thread| {
                let work = move || ring.work(bus, thread);
                scope.spawn(move || catch_unwind(AssertUnwindSafe(work)).ok())
            };
            let workers: Vec<_> = (0..ring.threads).map(work).collect();
            let results = workers.into_iter().map(|w| w.join().unwrap()).collect();
            *bus.queue.lock().unwrap() = None;
            (copier.join().unwrap(), results)
        })
    }

    #[test]
    fn every_part_arrives_once_and_nothing_is_overwritten_before() {
        for (parts, slot_parts, places, threads) in [
            (0, 4, 2, 3),
            (1, 4, 1, 1),
            (3, 4, 1, 3),
            (9, 1, 1, 4),
            (64, 4, 1, 5),
            (203, 4, 2, 16),
            (801, 4, 8, 16),
            (500, 8, 3, 7),
            (97, 3, 50, 24),
        ] {
            let ring = Ring::new(parts, slot_parts, places, threads);
            let (mut copies, results) = run(&ring, Fault::None);
            let case = (parts, slot_parts, places, threads);
            assert!(results.iter().all(|r| matches!(r, Some(Ok(_)))), "{case:?}");
            // A place's slots are copied in their order.
            let of_place = |place: usize| copies.iter().filter(move |c| c.0 % places == place);
            assert!((0..places).all(|p| of_place(p).is_sorted()), "{case:?}");
            copies.sort();
            let expected: Copies = (0..parts.div_ceil(slot_parts))
                .map(|slot| {
                    let parts_of = slot * slot_parts..(slot + 1) * slot_parts;
                    let there = parts_of.map(|p| if p < parts { p } else { EMPTY });
                    (slot, there.collect())
                })
                .collect();
            assert_eq!(copies, expected, "{case:?}");
        }
    }

    #[test]
    fn where_one_thread_fails_the_others_end() {
        for fault in [Fault::Wait(100), Fault::Fill(150), Fault::Start(30)] {
            let ring = Ring::new(801, 4, 3, 8);
            let (copies, results) = run(&ring, fault);
            let failed = results.iter().filter(|r| !matches!(r, Some(Ok(_)))).count();
            assert_eq!(failed, 1, "{fault:?}: {results:?}");
            let panicked = results.iter().any(Option::is_none);
            assert_eq!(panicked, matches!(fault, Fault::Fill(_)));
            // The place where it happened is not used again, so the others cannot have got far.
            assert!(copies.len() < 100, "{fault:?}");
        }
    }

    #[test]
    fn stopped_before_it_starts_nothing_is_filled() {
        let ring = Ring::new(64, 4, 2, 4);
        ring.stop();
        assert!(run(&ring, Fault::None).0.is_empty());
    }
}
