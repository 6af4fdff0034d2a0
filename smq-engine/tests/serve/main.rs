//! Many sequences at once: the scheduler on a device that checks what it is given, and on the CPU
//! with the fixture. smq-run's batches.rs has the CPU engine in every scheme.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file

mod cases;
mod common;
mod cpu;
mod drafts;
mod fake;
mod random;
