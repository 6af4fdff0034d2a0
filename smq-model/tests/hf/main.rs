//! What transformers makes of side files, recorded in `tests/fixtures/hf`, against what we make of
//! them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file

mod blame;
mod cases;
mod config;
mod text;
