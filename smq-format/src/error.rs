//! Everything that can be wrong with a file, each with its own variant and one sentence.

use std::path::{Path, PathBuf};

use crate::scheme::SchemeKind;

/// What an operation on a file failed with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file that the system refused something of.
        path: PathBuf,
        /// What was being done, as an infinitive.
        action: &'static str,
        /// What the system says of it.
        source: std::io::Error,
    },
    /// The file breaks the format.
    #[error("{}: {defect}", path.display())]
    Format {
        /// The file that was read.
        path: PathBuf,
        /// The rule of the format that it breaks.
        defect: Defect,
    },
    /// The writer was asked for something the format cannot hold.
    #[error("{}: {defect}", path.display())]
    Write {
        /// The file that was to be written.
        path: PathBuf,
        /// What cannot be written.
        defect: Defect,
    },
    /// The target exists and overwriting was not asked for.
    #[error("{} exists already; choose another name or pass --force to replace it", .0.display())]
    Exists(PathBuf),
    /// The target's directory is not there.
    #[error("{}: cannot create it: {} {problem}", path.display(), directory.display())]
    Directory {
        /// The file that was to be created.
        path: PathBuf,
        /// The directory that it was to be created in.
        directory: PathBuf,
        /// What is wrong with that, and what to do.
        problem: &'static str,
    },
    /// The path names something that is not a regular file.
    #[error("{} is {kind}, not a regular file", path.display())]
    NotAFile {
        /// The path as it was given.
        path: PathBuf,
        /// What it is instead.
        kind: &'static str,
    },
    /// A file that is read whole, and too long for it.
    #[error(
        "{} holds more than {limit} bytes, the limit of what is read whole; give a shorter file",
        path.display()
    )]
    TooLong {
        /// The file that is too long.
        path: PathBuf,
        /// The most bytes that are read of such a file.
        limit: u64,
    },
    /// An input that was written to, or replaced, while it was read.
    #[error(
        "{} was changed while it was read; run this again when nobody writes to it",
        .0.display()
    )]
    Changed(PathBuf),
    /// An output that is one of the inputs.
    #[error("{}; choose another name for the output", is_input(path, input))]
    OutputIsInput {
        /// The output as it was given.
        path: PathBuf,
        /// The input that it is.
        input: PathBuf,
    },
}

impl Error {
    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Error::Io {
            path,
            action,
            source,
        }
    }

    pub(crate) fn format(path: &Path) -> impl FnOnce(Defect) -> Self {
        let path = path.to_path_buf();
        move |defect| Error::Format { path, defect }
    }

    /// The defect, where the file itself is at fault.
    pub fn defect(&self) -> Option<&Defect> {
        match self {
            Error::Format { defect, .. } | Error::Write { defect, .. } => Some(defect),
            Error::Io { .. }
            | Error::Exists(_)
            | Error::Directory { .. }
            | Error::NotAFile { .. }
            | Error::TooLong { .. }
            | Error::Changed(_)
            | Error::OutputIsInput { .. } => None,
        }
    }
}

/// A way in which bytes are not a valid .smq file (`spec/format.md` names the rule behind each).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each message says what its fields are
pub enum Defect {
    #[error("file is {actual_bytes} bytes, shorter than the 256-byte header")]
    ShorterThanHeader { actual_bytes: u64 },
    #[error("not an .smq file: the first 8 bytes are {found}, expected 89 53 4d 51 0d 0a 1a 0a")]
    Magic { found: String },
    #[error(
        "the header was damaged by a text-mode transfer (line endings were changed); copy the file \
         again in binary mode"
    )]
    TextMode,
    #[error("header checksum does not match: the header is damaged")]
    HeaderChecksum,
    #[error(
        "format version {major}.{minor} is newer than 1.x, which this reader knows; update smq"
    )]
    Version { major: u16, minor: u16 },
    #[error("header has a non-zero reserved byte at offset {offset}")]
    Reserved { offset: usize },
    #[error(
        "incompatible feature bits {bits:#x} are set that this reader does not know; update smq"
    )]
    IncompatibleFeature { bits: u64 },
    #[error(
        "header gives a length of {expected_bytes} bytes but the file has {actual_bytes}: {}",
        if .actual_bytes < .expected_bytes { "it is truncated, copy it again" }
        else { "something was appended" }
    )]
    FileLength {
        expected_bytes: u64,
        actual_bytes: u64,
    },
    #[error("{section} needs {length} bytes at offset {offset}, but the file ends at {file_bytes}")]
    SectionBounds {
        section: &'static str,
        offset: u64,
        length: u64,
        file_bytes: u64,
    },
    #[error("{section} is {length} bytes, over the limit of {limit}")]
    SectionTooLarge {
        section: &'static str,
        length: u64,
        limit: u64,
    },
    #[error("{section} starts at offset {offset}, expected {expected}")]
    SectionOffset {
        section: &'static str,
        offset: u64,
        expected: u64,
    },
    #[error("{section} is absent (length 0), yet its offset or hash is not zero")]
    AbsentSection { section: &'static str },
    #[error("file ends at {actual}, but its last section ends at {expected}")]
    TrailingBytes { expected: u64, actual: u64 },
    #[error("{section} hash does not match: the section is damaged")]
    SectionHash { section: &'static str },
    #[error("index is not valid JSON of the expected form: {reason}")]
    IndexJson { reason: String },
    #[error(
        "index is not canonical JSON (keys sorted, no white space, no unknown or duplicate keys): \
         first difference at byte {offset}"
    )]
    IndexNotCanonical { offset: usize },
    #[error("{what} name {name:?} is not allowed: {rule}")]
    Name {
        what: &'static str,
        name: String,
        rule: &'static str,
    },
    #[error("{what} {name:?} appears twice")]
    Duplicate { what: &'static str, name: String },
    #[error("tensor {tensor:?}: shape has {dims} dimensions, over the limit of {limit}")]
    Dimensions {
        tensor: String,
        dims: usize,
        limit: usize,
    },
    #[error("tensor {tensor:?}: the number of elements overflows")]
    ElementOverflow { tensor: String },
    #[error(
        "tensor {tensor:?}: scheme {scheme:?} is unknown; this reader knows {}",
        SchemeKind::ALL.map(SchemeKind::name).join(", ")
    )]
    UnknownScheme { tensor: String, scheme: String },
    #[error(
        "tensor {tensor:?}: scheme {scheme} needs a 2-dimensional shape, found {dims} dimensions"
    )]
    NotMatrix {
        tensor: String,
        scheme: &'static str,
        dims: usize,
    },
    #[error("tensor {tensor:?}: parameter {parameter} is {actual}, allowed {allowed}")]
    Parameter {
        tensor: String,
        parameter: &'static str,
        actual: i64,
        allowed: String,
    },
    #[error("tensor {tensor:?}: {problem} {parameter:?} for scheme {scheme}")]
    ParameterSet {
        tensor: String,
        scheme: &'static str,
        problem: &'static str,
        parameter: &'static str,
    },
    #[error("tensor {tensor:?}: levels {problem}")]
    Levels { tensor: String, problem: String },
    #[error("tensor {tensor:?}: blobs are {found}, scheme {scheme} has {expected}")]
    BlobRoles {
        tensor: String,
        scheme: &'static str,
        found: String,
        expected: String,
    },
    #[error("{owner}: length {actual} bytes, expected {expected}")]
    BlobLength {
        owner: String,
        actual: u64,
        expected: u64,
    },
    #[error(
        "{owner}: offset {actual}, expected {expected} (blobs are in index order, 256-byte \
         aligned, without gaps)"
    )]
    BlobOffset {
        owner: String,
        actual: u64,
        expected: u64,
    },
    #[error("{owner}: needs {length} bytes at offset {offset}, but the blobs end at {limit}")]
    BlobBounds {
        owner: String,
        offset: u64,
        length: u64,
        limit: u64,
    },
    #[error("padding byte at offset {offset} is not zero")]
    Padding { offset: u64 },
    #[error("{owner}: hash does not match: the blob is damaged")]
    BlobHash { owner: String },
    #[error("tensor {tensor:?}: scale {group} has the invalid code {code:#x}")]
    ScaleCode {
        tensor: String,
        group: u64,
        code: u32,
    },
    #[error("tensor {tensor:?}: scale {group} is not finite")]
    ScaleNotFinite { tensor: String, group: u64 },
    #[error("tensor {tensor:?}: the unused bits at the end of its scales are not zero")]
    ScalePadding { tensor: String },
    #[error("tensor {tensor:?}: the unused nibble at the end of row {row} is not zero")]
    NibblePadding { tensor: String, row: u64 },
    #[error("tensor {tensor:?}: the unused half of its last byte of nibbles is not 7")]
    Nf4Padding { tensor: String },
    #[error("tensor {tensor:?}: nested absmax {index} is not finite")]
    NestedAbsmaxNotFinite { tensor: String, index: u64 },
    #[error("tensor {tensor:?}: element {element} of row {row} is NaN")]
    Fp8Nan {
        tensor: String,
        row: u64,
        element: u64,
    },
    #[error("statistics cannot be decoded: {reason}")]
    Statistics { reason: String },
    #[error(
        "statistics do not fit the index: tensor {tensor:?} {problem} (the weights are not \
         affected)"
    )]
    StatisticsMismatch { tensor: String, problem: String },
    #[error("statistics: {owner} {problem} (the weights are not affected)")]
    StatisticsFigure { owner: String, problem: String },
    #[error("embedded files must be written before the first tensor")]
    FileAfterTensor,
}

impl Defect {
    /// Whether only the statistics are at fault, so that the weights can be used all the same.
    pub fn spares_the_weights(&self) -> bool {
        match self {
            Defect::SectionHash { section } => *section == "statistics",
            Defect::Statistics { .. }
            | Defect::StatisticsMismatch { .. }
            | Defect::StatisticsFigure { .. } => true,
            _ => false,
        }
    }
}

/// Says which input an output is, by both names where they differ.
fn is_input(path: &Path, input: &Path) -> String {
    match path == input {
        true => format!("{} is an input", path.display()),
        false => format!("{} is an input, {}", path.display(), input.display()),
    }
}
