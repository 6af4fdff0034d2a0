//! Interrupts: what a signal does while a program runs.

use std::sync::atomic::{AtomicBool, Ordering};

/// The exit code of a program that was interrupted, as a shell gives it for SIGINT.
pub(super) const INTERRUPTED_CODE: u8 = 130;

/// Whether the first signal only sets [`INTERRUPTED`].
static COOPERATIVE: AtomicBool = AtomicBool::new(false);
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Prepares a program for signals, as the first thing in `main`. From here on SIGINT, SIGTERM and
/// SIGHUP end it with 130, and what it has not finished is removed.
pub fn prepare() {
    smq_format::catch_signals();
    // Where no handler can be set, a signal ends the process and the next run removes what is left.
    let _ = ctrlc::set_handler(|| {
        let first = !INTERRUPTED.swap(true, Ordering::Relaxed);
        if !(first && COOPERATIVE.load(Ordering::Relaxed)) {
            smq_format::end_at_once(INTERRUPTED_CODE);
        }
    });
}

/// A flag that the first signal sets from now on, for work that looks at it and stops by itself. A
/// second signal still ends the program at once.
pub fn interrupts() -> &'static AtomicBool {
    COOPERATIVE.store(true, Ordering::Relaxed);
    &INTERRUPTED
}

/// A piece of work that a signal stops without ending the program, for as long as this lives. A
/// second signal ends the program even so.
#[derive(Debug)]
pub struct Interruptible(());

impl Interruptible {
    /// Lets a signal set the flag, in place of ending the program, until this is dropped.
    #[must_use]
    pub fn begin() -> Self {
        INTERRUPTED.store(false, Ordering::Relaxed);
        COOPERATIVE.store(true, Ordering::Relaxed);
        Self(())
    }

    /// Whether the work is to stop.
    #[must_use]
    pub fn is_interrupted(&self) -> bool {
        INTERRUPTED.load(Ordering::Relaxed)
    }
}

impl Drop for Interruptible {
    fn drop(&mut self) {
        COOPERATIVE.store(false, Ordering::Relaxed);
        INTERRUPTED.store(false, Ordering::Relaxed);
    }
}
