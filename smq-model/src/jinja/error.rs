//! Why a template cannot be read or rendered.

use std::fmt;

/// What evaluating a part of a template gives back: a value, or what stops the template.
pub(crate) type Result<T> = std::result::Result<T, Fault>;

/// What went wrong, in Jinja's or Python's words where they have some, and the line of the
/// template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    message: String,
    line: Option<usize>,
}

impl Fault {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            line: None,
        }
    }

    /// A construct that Jinja has and this interpreter has not.
    pub(crate) fn unsupported(what: &str) -> Self {
        Self::new(format!("{what} is not supported"))
    }

    /// The innermost line wins: a statement within a loop rather than the loop.
    pub(crate) fn at(mut self, line: usize) -> Self {
        self.line.get_or_insert(line);
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match self.line {
            Some(line) => write!(f, " (line {line})"),
            None => Ok(()),
        }
    }
}
