//! The .smq container: an LLM checkpoint quantized once, hashed throughout, memory-mapped.
//!
//! ```text
//!   header | embedded files | tensors: nibbles, scales ... | index (JSON) | error statistics
//! ```
//!
//! This crate holds what every program needs that reads or writes one: the scale codec ([`scale`],
//! [`bits`], [`int4`], [`lut4`], [`nf4`], [`fp8`]), the container ([`header`], [`index`],
//! [`statistics`]), and [`SmqFile`] and [`SmqWriter`]. It also has the words that commands, files
//! and tables have in common: [`ScaleChoice`], [`MantissaBits`], [`ScaleRule`], [`LevelChoice`],
//! [`Family`], [`SchemeKind`] and [`Dtype`] are read and printed here alone. How weights are
//! quantized is `smq-convert`'s business, how they run is `smq-engine`'s. The bytes are specified
//! in `spec/format.md`, the arithmetic in `spec/method.md`.
//!
//! ```
//! use smq_format::{Dtype, Provenance, Scheme, SmqFile, SmqWriter, bits};
//! use smq_format::scale::{MiniFloat, ScaleFormat};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let dir = tempfile::tempdir()?;
//! let path = dir.path().join("tiny.smq");
//!
//! // One row of four weights, one group: codes 1, -2, 7, -8 times a scale of 0.5, stored as E5M5.
//! let format = MiniFloat::for_largest(5, 5, 0.5).ok_or("widths out of range")?;
//! let scheme = Scheme::Int4 { group: 128, scales: ScaleFormat::Mini(format) };
//! let scales = bits::pack([format.encode(0.5).code], format.width_bits());
//!
//! let mut writer = SmqWriter::create(&path, false)?;
//! writer.add_file("config.json", b"{}")?;
//! writer.add_tensor("w", &[1, 4], Dtype::Bf16, scheme, &[&[0xe1, 0x87], &scales])?;
//! writer.finish(Provenance::default(), None)?;
//!
//! let file = SmqFile::open(&path)?;
//! assert!(file.verify(|_| ()).is_empty());
//! let w = file.tensor("w").ok_or("no such tensor")?;
//! assert_eq!(w.dequantize()?, [0.5, -1.0, 3.5, -4.0]);
//! # Ok(())
//! # }
//! ```

pub mod bits;
mod bounded;
mod choice;
pub mod error;
pub mod fp8;
pub mod header;
pub mod index;
pub mod int4;
mod json;
pub mod lut4;
mod map;
mod names;
pub mod nf4;
mod output;
mod parameters;
mod partial;
mod place;
mod printable;
mod reader;
pub mod scale;
pub mod scheme;
mod signals;
pub mod statistics;
mod stored_scales;
mod view;
mod writer;

pub use bounded::{read_at_most, read_bounded, read_text};
pub use choice::{LevelChoice, MantissaBits, ScaleChoice, ScaleRule};
pub use error::{Defect, Error};
pub use index::{Index, Provenance, SourceFile, TensorEntry};
pub use lut4::Levels;
pub use map::{MappedFile, map_file};
pub use names::UnknownName;
pub use output::{Output, input_at, is_stdout};
pub use partial::{PARTIAL_SUFFIX, Scratch, leftovers, remove_leftovers};
pub use printable::{plain_cell, printable, printable_json};
pub use reader::{SmqFile, hash};
pub use scheme::{Dtype, Family, Role, Scheme, SchemeKind};
pub use signals::{catch_signals, end_at_once};
pub use statistics::Statistics;
pub use stored_scales::{Nf4Scales, RowScales, Scales};
pub use view::{TensorData, TensorView, widen};
pub use writer::{Sealed, SmqWriter, Written, remove_statistics};
