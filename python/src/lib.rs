//! The native half of the Python package `smq-format`.
//!
//! It opens files with `smq-format`, fills arrays that Python has made and lends views of the map.
//! Everything that Python can say as well, such as which array to make, how torch names an element
//! type or what a model's parameters are called, is in `smq_format/*.py`.

mod describe;
mod errors;
mod file;
mod fill;
mod threads;

/// What `smq_format/*.py` uses of this crate; `smq_format/_native.pyi` describes it.
#[pyo3::pymodule]
mod _native {
    #[pymodule_export]
    use super::file::NativeFile;
}
