//! Jinja as Hugging Face's chat templates use it, with Python's values, text and arithmetic.
//!
//! A template is what [jinja2](https://jinja.palletsprojects.com) makes of it in the environment
//! that transformers sets up: immutable and sandboxed, blocks trimmed, loop controls and the
//! `generation` block added. What jinja2 has and this has not is refused by name. Rendering is
//! bounded in steps, depth, size and time ([`limits`]), since templates come with models.

mod args;
mod ast;
mod call;
mod checks;
mod error;
mod exec;
mod filters;
mod format;
mod heap;
mod index;
mod interp;
mod json;
mod lexer;
mod limits;
mod literal;
mod methods;
mod ops;
mod parser;
mod scope;
mod show;
mod unicode;
mod value;

use std::sync::Arc;

pub(crate) use error::Result;
pub(crate) use interp::Clock;
pub(crate) use value::{Dict, Value};

use interp::Interp;
use scope::Scope;

/// A template that was parsed, to be rendered any number of times.
#[derive(Debug)]
pub(crate) struct Template(Vec<ast::Node>);

impl Template {
    pub(crate) fn parse(source: &str) -> Result<Self> {
        limits::source(source.len())?;
        parser::parse(source).map(Self)
    }

    /// The text that the template makes of its variables.
    pub(crate) fn render(
        &self,
        variables: impl IntoIterator<Item = (String, Value)>,
        clock: Clock,
    ) -> Result<String> {
        limits::begin();
        let scope = Scope::root();
        for (name, value) in variables {
            scope.set(&Arc::from(name), value);
        }
        let mut out = String::new();
        Interp::new(clock).exec(&self.0, &scope, &mut out)?;
        limits::time()?;
        Ok(out)
    }
}
