//! Many sequences at once.
//!
//! A [`Scheduler`] takes requests at any time and runs all of them together on a [`BatchEngine`],
//! one step after another: a step computes the next token of every sequence that generates, and
//! as much of new prompts as fits beside them.

mod batch;
mod cpu;
mod pages;
mod request;
mod scheduler;
mod sequence;

pub use batch::{BatchEngine, Choice, Chosen, Chunk, Computed, LogProbs, Scores};
pub use cpu::{BatchOptions, CpuBatch};
pub use pages::{Pages, page_hash};
pub use request::{Constraint, Counters, Event, Request, RequestId};
pub use scheduler::Scheduler;
