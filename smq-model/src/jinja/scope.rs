//! Variables: a chain of frames, the innermost first.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use super::heap::Pairs;
use super::value::Value;

/// A frame: the template itself, a pass through a loop's body, a macro's call.
pub(crate) struct Scope {
    vars: RefCell<Pairs<Arc<str>>>,
    parent: Option<Rc<Scope>>,
}

impl Scope {
    pub(crate) fn root() -> Rc<Self> {
        Rc::new(Self {
            vars: RefCell::default(),
            parent: None,
        })
    }

    pub(crate) fn child(self: &Rc<Self>) -> Rc<Self> {
        Rc::new(Self {
            vars: RefCell::default(),
            parent: Some(Rc::clone(self)),
        })
    }

    /// The outermost frame, which is all that a `block` sees.
    pub(crate) fn outermost(self: &Rc<Self>) -> Rc<Self> {
        let mut scope = self;
        while let Some(parent) = &scope.parent {
            scope = parent;
        }
        Rc::clone(scope)
    }

    pub(crate) fn set(&self, name: &Arc<str>, value: Value) {
        let mut vars = self.vars.borrow_mut();
        match vars.iter_mut().find(|(n, _)| n == name) {
            Some(entry) => entry.1 = value,
            None => vars.push(Arc::clone(name), value),
        }
    }

    /// Forgets the variables, and with them the macros that hold this frame.
    pub(crate) fn clear(&self) {
        self.vars.take();
    }

    pub(crate) fn get(&self, name: &str) -> Option<Value> {
        let mut scope = self;
        loop {
            let vars = scope.vars.borrow();
            if let Some((_, value)) = vars.iter().find(|(n, _)| &**n == name) {
                return Some(value.clone());
            }
            drop(vars);
            scope = scope.parent.as_deref()?;
        }
    }
}
