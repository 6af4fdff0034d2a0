//! `smq-run serve` as its clients see it, on the bundled checkpoint.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file
#![cfg(unix)]

mod chat;
mod client;
mod completions;
mod drafts;
mod faults;
mod limits;
mod refusals;
