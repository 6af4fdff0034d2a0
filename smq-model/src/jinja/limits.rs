//! What a template may spend. A chat template that needs more is a mistake or an attack.

use std::cell::Cell;
use std::time::{Duration, Instant};

use super::error::{Fault, Result};
use super::heap;

/// Time to render, which no conversation needs. Steps alone do not bound it: one of them may look
/// at every character of every value.
const TIME: Duration = Duration::from_secs(10);
/// Bytes of a template's source; the longest known has some 30,000.
const SOURCE: usize = 1 << 20;
/// Characters from which on a comparison looks at the time.
const LONG: usize = 1 << 12;

/// Statements and expressions evaluated.
pub(crate) const STEPS: u64 = 5_000_000;
/// Expressions and statements within each other, calls of macros included.
pub(crate) const DEPTH: usize = 400;
/// Values within each other that are compared or printed.
pub(crate) const NESTING: usize = 200;
/// Characters of a text.
const TEXT: usize = 8 << 20;
/// Items of a list.
const ITEMS: usize = 1 << 20;
/// Bytes of all values together.
const LIVE: usize = 256 << 20;
/// Items of a range: the sandbox's own limit.
pub(crate) const RANGE: usize = 100_000;

thread_local! {
    /// When rendering in this thread has to be done.
    static END: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Begins the time to render in.
pub(crate) fn begin() {
    END.set(Instant::now().checked_add(TIME));
}

/// Refuses to go on when it is over.
pub(crate) fn time() -> Result<()> {
    match is_over() {
        true => Err(Fault::new(format!(
            "rendering takes more than {} seconds",
            TIME.as_secs()
        ))),
        false => Ok(()),
    }
}

/// Refuses to go on when values take too much.
pub(crate) fn space() -> Result<()> {
    match heap::live() > LIVE {
        true => Err(Fault::new(format!("values take more than {LIVE} bytes"))),
        false => Ok(()),
    }
}

/// Whether a comparison of texts need not be made any more: its result will not be used, since the
/// next step is refused.
pub(crate) fn is_moot(length: usize) -> bool {
    length >= LONG && is_over()
}

fn is_over() -> bool {
    END.get().is_some_and(|end| Instant::now() > end)
}

/// Refuses a source that is too long.
pub(crate) fn source(length: usize) -> Result<()> {
    within(length, SOURCE, "bytes")
}

/// Refuses a text that would become too long.
pub(crate) fn text(length: usize) -> Result<()> {
    within(length, TEXT, "characters")
}

/// Refuses a list that would become too long.
pub(crate) fn items(count: usize) -> Result<()> {
    within(count, ITEMS, "items")
}

fn within(size: usize, limit: usize, what: &str) -> Result<()> {
    match size > limit {
        true => Err(Fault::new(format!(
            "a value of {size} {what} is over the limit of {limit}"
        ))),
        false => Ok(()),
    }
}

/// A count that a template gives: none if it is negative.
pub(crate) fn count(number: i128) -> usize {
    usize::try_from(number.max(0)).unwrap_or(usize::MAX)
}
