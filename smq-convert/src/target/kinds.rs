//! Names of tensors, told briefly.

use std::fmt;

use super::role::is_number;

/// Kinds that are listed by name.
const LISTED_KINDS: usize = 12;

/// Names with `*` for numbers, in the order of the first of each, and how many tensors have it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Kinds(Vec<(String, usize)>);

impl Kinds {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Tensors of all kinds.
    pub(crate) fn tensors(&self) -> usize {
        self.0.iter().map(|(_, count)| count).sum()
    }

    /// A regex of each.
    pub(crate) fn patterns(&self) -> impl Iterator<Item = String> {
        let kinds = self.0.iter();
        kinds.map(|(kind, _)| regex::escape(kind).replace(r"\*", r"\d+"))
    }

    pub(crate) fn add(&mut self, name: &str) {
        let parts = name.split('.');
        let parts: Vec<_> = parts.map(|p| if is_number(p) { "*" } else { p }).collect();
        let kind = parts.join(".");
        match self.0.iter_mut().find(|(other, _)| *other == kind) {
            Some((_, count)) => *count += 1,
            None => self.0.push((kind, 1)),
        }
    }
}

impl fmt::Display for Kinds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (kind, count)) in self.0.iter().take(LISTED_KINDS).enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            let s = if *count == 1 { "" } else { "s" };
            write!(f, "{comma}{kind} ({count} tensor{s})")?;
        }
        match self.0.len().saturating_sub(LISTED_KINDS) {
            0 => Ok(()),
            more => write!(f, ", and {more} more kinds"),
        }
    }
}
