//! What values own: texts, items, variables. How much there is of it is counted, so that a
//! template cannot use up the machine's memory, and values within values are dropped one after the
//! other, so that a deep one does not use up the stack.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};

use super::value::Value;

thread_local! {
    /// Bytes that live values own.
    static LIVE: Cell<usize> = const { Cell::new(0) };
    /// Values that wait to be dropped, while some are being dropped.
    static WAITING: RefCell<Option<Vec<Value>>> = const { RefCell::new(None) };
}

/// Bytes that live values own.
pub(crate) fn live() -> usize {
    LIVE.get()
}

fn count(bytes: usize) {
    LIVE.set(LIVE.get().saturating_add(bytes));
}

fn discount(bytes: usize) {
    // A thread that ends may have lost its count before its values.
    let _ = LIVE.try_with(|live| live.set(live.get().saturating_sub(bytes)));
}

/// Drops values without recursion, however deep they are.
fn bury(values: impl IntoIterator<Item = Value>) {
    let mut values = values.into_iter().peekable();
    if values.peek().is_none() {
        return;
    }
    let first = WAITING.try_with(|waiting| {
        let mut waiting = waiting.borrow_mut();
        let first = waiting.is_none();
        waiting.get_or_insert_default().extend(values);
        first
    });
    if !first.unwrap_or(false) {
        return;
    }
    let next = || WAITING.with(|waiting| waiting.borrow_mut().as_mut().and_then(Vec::pop));
    while let Some(value) = next() {
        drop(value);
    }
    WAITING.set(None);
}

/// The characters of a text, counted as long as it lives.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Body(Box<str>);

impl Body {
    pub(crate) fn new(text: &str) -> Self {
        count(text.len());
        Self(text.into())
    }
}

impl Deref for Body {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        discount(self.0.len());
    }
}

/// Items of a list, a tuple or a view.
pub(crate) struct Items(Vec<Value>);

impl Items {
    pub(crate) fn new(items: Vec<Value>) -> Self {
        count(items.len() * size_of::<Value>());
        Self(items)
    }
}

impl Deref for Items {
    type Target = [Value];

    fn deref(&self) -> &[Value] {
        &self.0
    }
}

impl Drop for Items {
    fn drop(&mut self) {
        discount(self.0.len() * size_of::<Value>());
        bury(std::mem::take(&mut self.0));
    }
}

/// Items that can be taken.
#[derive(Default)]
pub(crate) struct Queue(VecDeque<Value>);

impl Queue {
    pub(crate) fn new(items: impl IntoIterator<Item = Value>) -> Self {
        Self(items.into_iter().collect())
    }
}

impl Deref for Queue {
    type Target = VecDeque<Value>;

    fn deref(&self) -> &VecDeque<Value> {
        &self.0
    }
}

impl DerefMut for Queue {
    fn deref_mut(&mut self) -> &mut VecDeque<Value> {
        &mut self.0
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        bury(std::mem::take(&mut self.0));
    }
}

/// Keys and values, of a dict or of variables.
pub(crate) struct Pairs<K>(Vec<(K, Value)>)
where
    K: Key;

/// What values are kept under: a value, or the name of a variable.
pub(crate) trait Key {
    /// The key as a value that may be deep.
    fn value(self) -> Option<Value>;
}

impl Key for Value {
    fn value(self) -> Option<Value> {
        Some(self)
    }
}

impl Key for std::sync::Arc<str> {
    fn value(self) -> Option<Value> {
        None
    }
}

impl<K: Key> Default for Pairs<K> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: Key> Deref for Pairs<K> {
    type Target = [(K, Value)];

    fn deref(&self) -> &[(K, Value)] {
        &self.0
    }
}

impl<K: Key> DerefMut for Pairs<K> {
    fn deref_mut(&mut self) -> &mut [(K, Value)] {
        &mut self.0
    }
}

impl<K: Key> Pairs<K> {
    pub(crate) fn push(&mut self, key: K, value: Value) {
        count(size_of::<(K, Value)>());
        self.0.push((key, value));
    }
}

impl<K: Key> Drop for Pairs<K> {
    fn drop(&mut self) {
        discount(self.0.len() * size_of::<(K, Value)>());
        let pairs = std::mem::take(&mut self.0).into_iter();
        bury(pairs.flat_map(|(key, value)| key.value().into_iter().chain([value])));
    }
}
