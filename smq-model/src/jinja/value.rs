//! The values that a template computes with: Python's, as Jinja sees them.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use super::ast::{For, Macro};
use super::error::{Fault, Result};
use super::heap::{Body, Items, Pairs, Queue};
use super::limits;
use super::ops;
use super::scope::Scope;

/// A Python value. Lists and dicts never change: the sandbox forbids what would change them.
#[derive(Clone)]
pub(crate) enum Value {
    /// A name, attribute or item that is not there; the text says which.
    Undefined(Rc<str>),
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Text),
    List(Rc<Items>),
    Tuple(Rc<Tuple>),
    Dict(Rc<Dict>),
    Range(Range),
    View(Rc<View>),
    /// What a generator yields: each item can be taken once.
    Iter(Rc<RefCell<Queue>>),
    Namespace(Rc<RefCell<Dict>>),
    Loop(Rc<Loop>),
    Cycler(Rc<Cycler>),
    Callable(Rc<Callable>),
}

/// A string. Escaped text (`|e`, `|safe`) escapes what is added to it, as Markup does.
#[derive(Clone)]
pub(crate) struct Text {
    pub(crate) text: Rc<Body>,
    pub(crate) safe: bool,
}

/// A tuple; a group of `groupby` has names for its two items.
pub(crate) struct Tuple {
    pub(crate) items: Items,
    pub(crate) fields: &'static [&'static str],
}

/// A dict in insertion order. Templates have small ones, so that a search is a scan.
#[derive(Default)]
pub(crate) struct Dict(Pairs<Value>);

/// Python's `range`, never of more items than the sandbox allows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) start: i128,
    pub(crate) stop: i128,
    pub(crate) step: i128,
}

/// What `keys`, `values` and `items` of a dict give.
pub(crate) struct View {
    pub(crate) kind: &'static str,
    pub(crate) items: Items,
}

/// The state of a for loop, which its body knows as `loop`.
pub(crate) struct Loop {
    pub(crate) node: Arc<For>,
    pub(crate) scope: Rc<Scope>,
    pub(crate) depth0: usize,
    /// Items not reached yet, before the loop's own condition.
    pub(crate) rest: RefCell<Queue>,
    /// An item taken early, to know whether there is one.
    pub(crate) ahead: RefCell<Option<Value>>,
    pub(crate) current: RefCell<Option<Value>>,
    pub(crate) before: RefCell<Option<Value>>,
    /// Items begun so far.
    pub(crate) begun: Cell<usize>,
    pub(crate) length: Cell<Option<usize>>,
    pub(crate) last_changed: RefCell<Option<Value>>,
}

/// What `cycler(...)` makes: it gives its items in turns.
pub(crate) struct Cycler {
    pub(crate) items: Items,
    pub(crate) at: Cell<usize>,
}

/// What can be called.
pub(crate) enum Callable {
    Method {
        receiver: Value,
        name: Rc<str>,
    },
    Macro {
        node: Arc<Macro>,
        scope: Rc<Scope>,
    },
    Function(Function),
    /// One item, which stands between what is joined.
    Joiner {
        separator: Items,
        used: Cell<bool>,
    },
}

/// The functions that every template knows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Function {
    Range,
    Dict,
    Namespace,
    Cycler,
    Joiner,
    RaiseException,
    StrftimeNow,
}

impl Function {
    pub(crate) const ALL: [(&'static str, Self); 7] = [
        ("range", Self::Range),
        ("dict", Self::Dict),
        ("namespace", Self::Namespace),
        ("cycler", Self::Cycler),
        ("joiner", Self::Joiner),
        ("raise_exception", Self::RaiseException),
        ("strftime_now", Self::StrftimeNow),
    ];
}

impl Value {
    pub(crate) fn str(text: impl AsRef<str>) -> Self {
        Self::Str(Text {
            text: Rc::new(Body::new(text.as_ref())),
            safe: false,
        })
    }

    /// Text that is not escaped again.
    pub(crate) fn markup(text: impl AsRef<str>) -> Self {
        Self::Str(Text {
            text: Rc::new(Body::new(text.as_ref())),
            safe: true,
        })
    }

    pub(crate) fn list(items: Vec<Value>) -> Self {
        Self::List(Rc::new(Items::new(items)))
    }

    pub(crate) fn tuple(items: Vec<Value>) -> Self {
        let (items, fields) = (Items::new(items), &[] as &[&str]);
        Self::Tuple(Rc::new(Tuple { items, fields }))
    }

    pub(crate) fn generator(items: impl IntoIterator<Item = Value>) -> Self {
        Self::Iter(Rc::new(RefCell::new(Queue::new(items))))
    }

    pub(crate) fn undefined(message: impl AsRef<str>) -> Self {
        Self::Undefined(Rc::from(message.as_ref()))
    }

    pub(crate) fn is_undefined(&self) -> bool {
        matches!(self, Self::Undefined(_))
    }

    /// The name of the value's type, as Python's `type(x).__name__`.
    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "Undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Str(t) if t.safe => "Markup",
            Self::Str(_) => "str",
            Self::List(_) => "list",
            Self::Tuple(_) => "tuple",
            Self::Dict(_) => "dict",
            Self::Range(_) => "range",
            Self::View(v) => v.kind,
            Self::Iter(_) => "generator",
            Self::Namespace(_) => "Namespace",
            Self::Loop(_) => "LoopContext",
            Self::Cycler(_) => "Cycler",
            Self::Callable(c) => match &**c {
                Callable::Method { .. } => "builtin_function_or_method",
                Callable::Macro { .. } => "Macro",
                Callable::Function(_) => "function",
                Callable::Joiner { .. } => "Joiner",
            },
        }
    }

    /// Whether the value counts as true, as Python's `bool(x)` says.
    pub(crate) fn truth(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::None => false,
            Self::Bool(b) => *b,
            Self::Int(i) => *i != 0,
            Self::Float(f) => *f != 0.0,
            Self::Str(t) => !t.text.is_empty(),
            Self::List(l) => !l.is_empty(),
            Self::Tuple(t) => !t.items.is_empty(),
            Self::Dict(d) => !d.is_empty(),
            Self::Range(r) => r.len() != 0,
            Self::View(v) => !v.items.is_empty(),
            Self::Iter(_)
            | Self::Namespace(_)
            | Self::Loop(_)
            | Self::Cycler(_)
            | Self::Callable(_) => true,
        }
    }

    /// Python's `len(x)`; `None` where it has none. A loop's length is the interpreter's to tell.
    pub(crate) fn len(&self) -> Option<usize> {
        match self {
            Self::Undefined(_) => Some(0),
            Self::Str(t) => Some(t.text.chars().count()),
            Self::List(l) => Some(l.len()),
            Self::Tuple(t) => Some(t.items.len()),
            Self::Dict(d) => Some(d.len()),
            Self::Range(r) => Some(r.len()),
            Self::View(v) => Some(v.items.len()),
            Self::None
            | Self::Bool(_)
            | Self::Int(_)
            | Self::Float(_)
            | Self::Iter(_)
            | Self::Namespace(_)
            | Self::Loop(_)
            | Self::Cycler(_)
            | Self::Callable(_) => None,
        }
    }

    /// Every item, as a for loop meets them; a generator has none left afterwards.
    pub(crate) fn iterate(&self) -> Result<Vec<Value>> {
        Ok(match self {
            Self::Undefined(_) => Vec::new(),
            Self::Str(t) => {
                limits::items(t.text.len())?;
                let one = |c: char| Self::str(c.encode_utf8(&mut [0; 4]));
                t.text.chars().map(one).collect()
            }
            Self::List(l) => l.to_vec(),
            Self::Tuple(t) => t.items.to_vec(),
            Self::Dict(d) => d.keys().cloned().collect(),
            Self::Range(r) => r.iter().map(Self::Int).collect(),
            Self::View(v) => v.items.to_vec(),
            Self::Iter(i) => i.borrow_mut().drain(..).collect(),
            Self::None
            | Self::Bool(_)
            | Self::Int(_)
            | Self::Float(_)
            | Self::Namespace(_)
            | Self::Loop(_)
            | Self::Cycler(_)
            | Self::Callable(_) => {
                let kind = self.type_name();
                return Err(Fault::new(format!("'{kind}' object is not iterable")));
            }
        })
    }

    /// The text of a string.
    pub(crate) fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(t) => Some(&t.text),
            _ => None,
        }
    }

    /// The number of an int or a bool, which Python counts as one.
    pub(crate) fn as_int(&self) -> Option<i128> {
        match self {
            Self::Int(i) => Some(*i),
            Self::Bool(b) => Some(i128::from(*b)),
            _ => None,
        }
    }

    /// The number of an int, a bool or a float.
    pub(crate) fn as_float(&self) -> Option<f64> {
        match self {
            Self::Float(f) => Some(*f),
            other => other.as_int().map(|i| i as f64),
        }
    }

    /// Whether two values are the same object, by Python's `is`.
    pub(crate) fn same_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::None, Self::None) => true,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            // Small ints and short strings are shared in CPython; templates compare those.
            (Self::Int(a), Self::Int(b)) => a == b,
            (Self::Str(a), Self::Str(b)) => a.text == b.text && a.safe == b.safe,
            (Self::List(a), Self::List(b)) => Rc::ptr_eq(a, b),
            (Self::Tuple(a), Self::Tuple(b)) => Rc::ptr_eq(a, b),
            (Self::Dict(a), Self::Dict(b)) => Rc::ptr_eq(a, b),
            (Self::Namespace(a), Self::Namespace(b)) => Rc::ptr_eq(a, b),
            (Self::Undefined(a), Self::Undefined(b)) => Rc::ptr_eq(a, b),
            _ => false,
        }
    }
}

impl Dict {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &Value> {
        self.0.iter().map(|(key, _)| key)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &(Value, Value)> {
        self.0.iter()
    }

    pub(crate) fn get(&self, key: &Value) -> Option<&Value> {
        let found = self.0.iter().find(|(k, _)| ops::equal(k, key));
        found.map(|(_, value)| value)
    }

    pub(crate) fn get_str(&self, key: &str) -> Option<&Value> {
        let found = self.0.iter().find(|(k, _)| k.as_str() == Some(key));
        found.map(|(_, value)| value)
    }

    /// Sets an item; a key that is there keeps its place.
    ///
    /// Fails for a key that Python cannot hash.
    pub(crate) fn set(&mut self, key: Value, value: Value) -> Result<()> {
        limits::time()?;
        if !hashable(&key) {
            let kind = key.type_name();
            return Err(Fault::new(format!("unhashable type: '{kind}'")));
        }
        match self.0.iter_mut().find(|(k, _)| ops::equal(k, &key)) {
            Some(entry) => entry.1 = value,
            None => self.0.push(key, value),
        }
        Ok(())
    }

    /// Another dict of the same items.
    pub(crate) fn copied(&self) -> Self {
        let mut pairs = Pairs::default();
        for (key, value) in self.iter() {
            pairs.push(key.clone(), value.clone());
        }
        Self(pairs)
    }

    /// The dict's items as two-tuples.
    pub(crate) fn pairs(&self) -> Vec<Value> {
        let pair = |(k, v): &(Value, Value)| Value::tuple(vec![k.clone(), v.clone()]);
        self.0.iter().map(pair).collect()
    }
}

/// Whether Python can hash a value, and so look it up in a dict.
pub(crate) fn hashable(value: &Value) -> bool {
    hashable_at(value, 0)
}

fn hashable_at(value: &Value, depth: usize) -> bool {
    match value {
        Value::List(_) | Value::Dict(_) => false,
        Value::View(v) => v.kind == "dict_values",
        Value::Tuple(t) => {
            depth < limits::NESTING && t.items.iter().all(|item| hashable_at(item, depth + 1))
        }
        Value::Undefined(_)
        | Value::None
        | Value::Bool(_)
        | Value::Int(_)
        | Value::Float(_)
        | Value::Str(_)
        | Value::Range(_)
        | Value::Iter(_)
        | Value::Namespace(_)
        | Value::Loop(_)
        | Value::Cycler(_)
        | Value::Callable(_) => true,
    }
}

impl Range {
    pub(crate) fn len(self) -> usize {
        let span = match self.step > 0 {
            true => self.stop.saturating_sub(self.start),
            false => self.start.saturating_sub(self.stop),
        };
        let step = self.step.saturating_abs().max(1);
        let steps = span.max(0) / step + i128::from(span.max(0) % step != 0);
        usize::try_from(steps).unwrap_or(usize::MAX)
    }

    pub(crate) fn iter(self) -> impl DoubleEndedIterator<Item = i128> {
        (0..self.len() as i128).map(move |i| self.start + i * self.step)
    }
}
