//! What Python means where the harness that defines the tasks relies on it.

/// What Python's `str.strip` removes.
pub(crate) fn is_python_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}
