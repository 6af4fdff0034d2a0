//! Arguments of a call, bound to parameters as Python binds them.

use std::sync::Arc;

use super::error::{Fault, Result};
use super::show;
use super::value::Value;

/// Values given to a function, a filter, a test or a macro.
#[derive(Clone, Default)]
pub(crate) struct Args {
    pub(crate) list: Vec<Value>,
    pub(crate) named: Vec<(Arc<str>, Value)>,
}

impl Args {
    pub(crate) fn new(list: Vec<Value>) -> Self {
        Self {
            list,
            named: Vec::new(),
        }
    }

    /// The arguments by the parameters `names`, of which the first `required` must be given.
    pub(crate) fn bind<const N: usize>(
        self,
        what: &str,
        names: [&str; N],
        required: usize,
    ) -> Result<[Option<Value>; N]> {
        let given = self.list.len();
        if given > N {
            return Err(Fault::new(format!(
                "{what}() takes {N} arguments at most, {given} were given"
            )));
        }
        let mut bound = [const { None }; N];
        for (place, value) in bound.iter_mut().zip(self.list) {
            *place = Some(value);
        }
        for (name, value) in self.named {
            let place = names.iter().position(|n| **n == *name);
            let place = place.and_then(|at| bound.get_mut(at)).ok_or_else(|| {
                Fault::new(format!(
                    "{what}() got an unexpected keyword argument '{name}'"
                ))
            })?;
            if place.replace(value).is_some() {
                return Err(Fault::new(format!(
                    "{what}() got multiple values for argument '{name}'"
                )));
            }
        }
        let missing = bound.iter().zip(names).take(required);
        match missing.into_iter().find(|(value, _)| value.is_none()) {
            Some((_, name)) => Err(Fault::new(format!(
                "{what}() missing required argument '{name}'"
            ))),
            None => Ok(bound),
        }
    }

    /// As [`Args::bind`] for functions of C, which take no names.
    pub(crate) fn bind_places<const N: usize>(
        self,
        what: &str,
        names: [&str; N],
        required: usize,
    ) -> Result<[Option<Value>; N]> {
        match self.named.is_empty() {
            true => self.bind(what, names, required),
            false => Err(Fault::new(format!("{what}() takes no keyword arguments"))),
        }
    }

    /// No arguments at all.
    pub(crate) fn none(self, what: &str) -> Result<()> {
        self.bind::<0>(what, [], 0).map(|_| ())
    }
}

/// An integer, or the default where nothing was given.
pub(crate) fn integer(value: Option<&Value>, default: i128) -> Result<i128> {
    match value {
        None => Ok(default),
        Some(Value::Undefined(message)) => Err(Fault::new(&**message)),
        Some(value) => value.as_int().ok_or_else(|| {
            let kind = value.type_name();
            Fault::new(format!(
                "'{kind}' object cannot be interpreted as an integer"
            ))
        }),
    }
}

/// A string, or `None` where nothing or `none` was given.
pub(crate) fn string<'v>(value: Option<&'v Value>, what: &str) -> Result<Option<&'v str>> {
    match value {
        None | Some(Value::None) => Ok(None),
        Some(Value::Undefined(message)) => Err(Fault::new(&**message)),
        Some(value) => match value.as_str() {
            Some(text) => Ok(Some(text)),
            None => Err(Fault::new(format!(
                "{what}: a str is expected, not {}",
                show::repr(value)
            ))),
        },
    }
}

/// A flag, or the default.
pub(crate) fn flag(value: Option<&Value>, default: bool) -> bool {
    value.map_or(default, Value::truth)
}
