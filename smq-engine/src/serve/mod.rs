//! Many sequences at once.
//!
//! A [`Scheduler`] takes requests at any time and runs all of them together on a [`BatchEngine`],
//! one step after another: a step computes the next token of every sequence that generates, and
//! as much of new prompts as fits beside them. Everything here but [`CpuBatch`] is the same for
//! every device.
//!
//! # Pages
//!
//! How long a text gets is not known when it begins. Were each sequence given room for the longest
//! one, most of the memory would stay empty, and memory is what limits how many sequences share
//! one pass over the weights. So keys and values lie in [`Pages`] of a few tokens, taken one at a
//! time as a sequence grows; a table a sequence says where they are, and at most one page of each
//! is partly empty.
//!
//! A page that is full never changes. It is published under a hash of its tokens and of all before
//! them, so that a sequence whose prompt begins alike takes it over in place of computing it: a
//! system prompt that many requests share, an earlier turn of a conversation, the samples of one
//! prompt. A published page stays after its last holder has left, until its memory is needed.
//!
//! # Order
//!
//! Requests run in the order in which they came. The first one that waits begins when there are
//! pages for all of its tokens, beside those that running sequences will soon need, and none
//! overtakes it; so a large request is not starved by small ones. In a step, sequences that
//! generate come first, since somebody reads along; prompts fill the step up to the number of
//! tokens that the device is best given, cut where it is reached. A prompt whose next page another
//! sequence is computing in this step waits for it and finds it in the next one.
//!
//! When no page is left, the youngest sequence gives all of its pages up and is computed anew
//! later, with what it has generated so far as a part of its prompt. Keeping its keys and values in
//! other memory would be the alternative: it moves as many bytes as computing them does at short
//! lengths, needs memory of the host's for it, and its transfers disturb the steps of all others.
//! To be preempted is rare, and the published pages of the sequence are often still there.
//!
//! LongRoPE's factors follow from a sequence's length. One that outgrows the original context is
//! computed anew with the long factors, as [`generate`](crate::generate) does, which looks like a
//! preemption without losing its turn. Hashes tell the two ranges apart.
//!
//! # Drafts
//!
//! With [`Scheduler::speculate`] the next tokens of sequences that generate are guessed, and a step
//! computes them too. What is chosen is what would be chosen without, so a draft never shows in a
//! text (`speculate/mod.rs`). A draft takes pages only where some are left, and never from another
//! sequence; those that its wrong tokens took are given back, and a page is published for tokens
//! that were chosen, and for no others.
//!
//! # Determinism
//!
//! A sequence has the same tokens and log-probabilities, to the last bit, whatever it runs beside,
//! however its prompt is cut, whatever the cache had of it and however often it is computed anew;
//! they are those of [`generate`](crate::generate). For that a [`BatchEngine`] adds every sum that
//! belongs to one row in an order that depends on nothing but the row and its position: products
//! over the columns of a weight, attention over the positions before it, page by page without a
//! sum a page. Each request has its own random stream, which a preemption does not advance, and
//! its penalties look at its own tokens. Time decides which requests share a step, and that does
//! not show.

mod batch;
mod cpu;
mod load;
mod pages;
mod request;
mod scheduler;
mod sequence;
mod speculate;
mod warm;

pub(crate) use batch::choose;
pub use batch::{BatchEngine, Choice, Chosen, Chunk, Computed, LogProbs, Scores};
pub use cpu::CpuBatch;
pub use load::{BatchOptions, CPU_KV_TOKENS, load_batch, load_guessing};
pub use pages::{Pages, page_hash};
pub use request::{Constraint, Counters, Event, Request, RequestId};
pub use scheduler::Scheduler;
pub use speculate::{Asked, Drafter, ModelDrafter, NgramDrafter, Repeats};
pub use warm::warm_up;
