//! What a template may spend. A chat template that needs more is a mistake or an attack.

use super::error::{Fault, Result};

/// Statements and expressions evaluated.
pub(crate) const STEPS: u64 = 20_000_000;
/// Expressions and statements within each other, calls of macros included.
pub(crate) const DEPTH: usize = 400;
/// Characters of a text, items of a list.
pub(crate) const SIZE: usize = 64 << 20;
/// Items of a range: the sandbox's own limit.
pub(crate) const RANGE: usize = 100_000;

/// Refuses a text or a list that would become too large.
pub(crate) fn size(size: usize) -> Result<()> {
    match size > SIZE {
        true => Err(Fault::new(format!(
            "a value of {size} characters or items is over the limit of {SIZE}"
        ))),
        false => Ok(()),
    }
}

/// A count that a template gives: none if it is negative.
pub(crate) fn count(number: i128) -> usize {
    usize::try_from(number.max(0)).unwrap_or(usize::MAX)
}
