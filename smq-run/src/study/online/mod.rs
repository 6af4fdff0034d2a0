//! The online half of the experiment: how long clients wait when many of them share a server.
//!
//! For each config and repeat a server is started as `smq-run serve`, waited for, asked as by
//! `smq-run load`, one number of clients after another, and ended. What its clients see has HTTP
//! and waiting for each other in it, and comes from the engine of many sequences, so that it is not
//! comparable with the cells of batch 1. It is kept in a file of its own, `raw/online.jsonl`, which
//! may be measured on another machine.

pub(crate) mod contract;
mod plan;
pub(crate) mod runner;
mod server;

pub(crate) use contract::Online;
pub(crate) use plan::level_ids;
