//! What a conversion fails with.

use std::path::{Path, PathBuf};

use smq_format::Defect;

/// Why a checkpoint was not converted. No output file is left in any case.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// A source or target file.
    #[error(transparent)]
    Format(#[from] smq_format::Error),
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
    /// The checkpoint cannot be read.
    #[error(transparent)]
    Model(#[from] smq_model::Error),
    /// A tensor whose elements .smq does not hold.
    #[error(
        "{}: tensor {tensor:?} has dtype {dtype}; smq-convert reads bf16, f16 and f32",
        path.display()
    )]
    UnsupportedDtype {
        /// The file that holds the tensor.
        path: PathBuf,
        /// Name of the tensor in the checkpoint.
        tensor: String,
        /// The element type that it has there.
        dtype: String,
    },
    /// A weight that is NaN or infinite.
    #[error(
        "{}: tensor {tensor:?} has {value} at row {row}, column {column}; the checkpoint is \
         damaged or was saved after training diverged",
        path.display()
    )]
    NotFinite {
        /// The file that holds the tensor.
        path: PathBuf,
        /// Name of the tensor in the checkpoint.
        tensor: String,
        /// Row of the element, from 0.
        row: usize,
        /// Column of the element, from 0.
        column: usize,
        /// The value, which is infinite or no number.
        value: f32,
    },
    /// A scale that the chosen format cannot hold.
    #[error(
        "{}: tensor {tensor:?} needs a scale of {scale:e}, over f16's largest, 65504; use --mbits \
         or f32 scales",
        path.display()
    )]
    ScaleOverflow {
        /// The file that holds the tensor.
        path: PathBuf,
        /// Name of the tensor in the checkpoint.
        tensor: String,
        /// The scale that its format has no code for.
        scale: f32,
    },
    /// config.json and the tensors disagree.
    #[error("{}: {problem}", path.display())]
    Config {
        /// Where config.json is.
        path: PathBuf,
        /// What it says that other files contradict.
        problem: String,
    },
    /// A directory that is written.
    #[error(transparent)]
    Directory(#[from] crate::directory::DirectoryError),
    /// No tensor of the checkpoint is selected by `--target`.
    #[error("--target {target} matches no 2-dimensional tensor of {}; its tensors are \
             {examples}", path.display())]
    NothingToQuantize {
        /// The pattern as it was given.
        target: String,
        /// The checkpoint that was looked through.
        path: PathBuf,
        /// A few names that are there, to make a pattern of.
        examples: String,
    },
    /// An option has a value that is not allowed.
    #[error("{option} {value}: {rule}")]
    Option {
        /// Name of the option, with its dashes.
        option: &'static str,
        /// The value that was given.
        value: String,
        /// What is allowed in its place.
        rule: String,
    },
    /// A file of sensitivities.
    #[error("{}: {problem}", path.display())]
    Sensitivity {
        /// The file of the measured sensitivity.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A calibration text, or what the model makes of it.
    #[error("{}: {problem}", path.display())]
    Calibration {
        /// The text, or the checkpoint.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A text that the file is to be measured on, or its checkpoint.
    #[error("{}: {problem}", path.display())]
    Text {
        /// The text, or the checkpoint.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// The model cannot be run.
    #[error(transparent)]
    Engine(Box<smq_engine::Error>),
    /// The target is a file of the checkpoint.
    #[error(
        "{} is a file of the checkpoint that is being converted; choose another name for the .smq \
         file",
        .0.display()
    )]
    OutputIsInput(PathBuf),
    /// The thread pool could not start.
    #[error("cannot start {jobs} threads: {reason}")]
    Threads {
        /// How many threads were asked for.
        jobs: usize,
        /// Why they could not be started.
        reason: String,
    },
    /// A .smq file that cannot be written in the form asked for.
    #[error("{}: {problem}", path.display())]
    Export {
        /// The .smq file that was to be exported.
        path: PathBuf,
        /// Why, and what to do.
        problem: String,
    },
    /// Scales that no element type of the form asked for holds.
    #[error(
        "{}: {inexact} of {scales} scales are not exact in {dtype}, the first {scale:e} of tensor \
         {tensor:?}, relative error up to {max_relative_error:.2e}; pass --allow-inexact to round \
         them, use --to safetensors --dtype f32, or convert the checkpoint again with {remedy}",
        path.display()
    )]
    InexactScales {
        /// The .smq file that was to be exported.
        path: PathBuf,
        /// How many would change.
        inexact: u64,
        /// How many scales there are in all.
        scales: u64,
        /// The element type that does not hold them.
        dtype: smq_format::Dtype,
        /// The tensor of the first that would change.
        tensor: String,
        /// The first that would change.
        scale: f32,
        /// Largest relative error of a scale that would be rounded.
        max_relative_error: f64,
        /// Options that make scales which the form holds.
        remedy: &'static str,
    },
    /// A quantized checkpoint that cannot be imported.
    #[error("{}: {found}; {supported}; {remedy}", path.display())]
    Import {
        /// config.json, the file or the directory.
        path: PathBuf,
        /// The key or tensor and what it says.
        found: String,
        /// What is supported, or needed.
        supported: String,
        /// What can be done about it.
        remedy: &'static str,
    },
    /// Interrupted by the user.
    #[error("interrupted; no file was written")]
    Interrupted,
}

impl ConvertError {
    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| ConvertError::Io {
            path,
            action,
            source,
        }
    }

    /// A defect the format library would report while writing; used where lengths are planned.
    pub(crate) fn plan(path: &Path) -> impl Fn(Defect) -> Self + '_ {
        move |defect| {
            ConvertError::Format(smq_format::Error::Write {
                path: path.to_path_buf(),
                defect,
            })
        }
    }
}

impl From<smq_engine::Error> for ConvertError {
    fn from(error: smq_engine::Error) -> Self {
        Self::Engine(Box::new(error))
    }
}
