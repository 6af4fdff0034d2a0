//! Writing a checkpoint directory as Hugging Face has it: which tensors go into which file, what
//! the files begin with, and that all of them appear together or not at all.

mod error;
mod exchange;
mod shards;
mod staging;

pub use error::DirectoryError;
pub(crate) use shards::{fill_shards, header, shard_name};
pub(crate) use staging::Staging;

/// Hugging Face's default `max_shard_size` of "5GB", in bytes of tensor data.
pub const DEFAULT_SHARD_BYTES: u64 = 5_000_000_000;

/// JSON as the other files of a checkpoint are written: indented by two, with a final newline.
pub(crate) fn pretty(json: &impl serde::Serialize) -> Vec<u8> {
    let value = serde_json::json!(json);
    format!("{value:#}\n").into_bytes()
}
