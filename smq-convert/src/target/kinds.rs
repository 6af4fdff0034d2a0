//! Names of tensors, told briefly.

use std::fmt;

use super::role::is_number;

/// Kinds that are listed by name.
const LISTED_KINDS: usize = 12;

/// Names of tensors by kind, numbers apart, in the order of the first of each.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Kinds(Vec<Kind>);

#[derive(Debug, Clone, PartialEq)]
struct Kind {
    /// The name with `*` for numbers.
    pattern: String,
    /// Name of the first tensor of the kind.
    first: String,
    tensors: usize,
}

impl Kinds {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Tensors of all kinds.
    pub(crate) fn tensors(&self) -> usize {
        self.0.iter().map(|kind| kind.tensors).sum()
    }

    /// A regex of each.
    pub(crate) fn patterns(&self) -> impl Iterator<Item = String> {
        let kinds = self.0.iter();
        kinds.map(|kind| regex::escape(&kind.pattern).replace(r"\*", r"\d+"))
    }

    pub(crate) fn add(&mut self, name: &str) {
        let parts = name.split('.');
        let parts: Vec<_> = parts.map(|p| if is_number(p) { "*" } else { p }).collect();
        let pattern = parts.join(".");
        match self.0.iter_mut().find(|kind| kind.pattern == pattern) {
            Some(kind) => kind.tensors += 1,
            None => self.0.push(Kind {
                pattern,
                first: name.to_owned(),
                tensors: 1,
            }),
        }
    }
}

impl fmt::Display for Kinds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, kind) in self.0.iter().take(LISTED_KINDS).enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            match kind.tensors {
                1 => write!(f, "{comma}{}", kind.first)?,
                tensors => write!(f, "{comma}{} ({tensors} tensors)", kind.pattern)?,
            }
        }
        match self.0.len().saturating_sub(LISTED_KINDS) {
            0 => Ok(()),
            more => write!(f, ", and {more} more kinds"),
        }
    }
}
