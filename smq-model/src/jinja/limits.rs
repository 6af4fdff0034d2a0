//! What a template may spend. A chat template that needs more is a mistake or an attack.

use super::error::{Fault, Result};

/// Statements and expressions evaluated.
pub(crate) const STEPS: u64 = 5_000_000;
/// Expressions and statements within each other, calls of macros included.
pub(crate) const DEPTH: usize = 400;
/// Values within each other that are compared or printed.
pub(crate) const NESTING: usize = 200;
/// Characters of a text.
const TEXT: usize = 32 << 20;
/// Items of a list.
const ITEMS: usize = 1 << 20;
/// Bytes of all values together.
pub(crate) const LIVE: usize = 256 << 20;
/// Items of a range: the sandbox's own limit.
pub(crate) const RANGE: usize = 100_000;

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
