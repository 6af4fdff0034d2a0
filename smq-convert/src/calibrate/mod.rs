//! Calibrated rounding: integers and scales chosen so that the outputs of each layer, on a text, stay those of the
//! unquantized model (`spec/method.md`, "Calibrated rounding").
//!
//! ```text
//!   texts -> windows -> for each layer and set of products: moments -> factor -> target -> scales -> columns
//! ```

mod columns;
mod factor;
mod levels;
mod moments;
mod product;
mod run;
mod scales;
mod storage;
mod texts;

use std::collections::BTreeMap;
use std::path::PathBuf;

use smq_model::{Source, Tokenizer};

use crate::choice::Choice;
use crate::error::ConvertError;
use crate::source::Checkpoint;
pub use run::{Calibration, CalibrationProgress};
use texts::CalibrationText;

/// Version of the method, for the provenance: it changes when the same input gives other integers.
const METHOD_VERSION: &str = "1";

/// What to calibrate on.
#[derive(Debug, Clone)]
pub struct CalibrateOptions {
    /// Plain UTF-8 texts, or JSON Lines (`.jsonl`) of objects with a `text` or with chat `messages`.
    pub texts: Vec<PathBuf>,
    /// Tokens in all.
    pub tokens: usize,
    /// Tokens a window, each a sequence of its own.
    pub window: usize,
}

/// Chooses scales and integers of every int4 tensor of `choice` that is a product of a layer; `choice` records on what.
///
/// # Errors
/// A model that cannot be run, texts that cannot be read or are too short, `progress` returning false.
pub fn calibrate(
    checkpoint: &Checkpoint,
    choice: &mut Choice,
    options: &CalibrateOptions,
    progress: CalibrationProgress,
) -> Result<Calibration, ConvertError> {
    let source = Source::open(checkpoint.path())?;
    let tokenizer = Tokenizer::load(&source)?;
    let text = CalibrationText::read(&options.texts, &tokenizer, options.tokens, options.window)?;
    let calibration = run::calibrate(checkpoint, choice, &text, progress)?;
    choice.parameters.extend(provenance(&text, options));
    Ok(calibration)
}

fn provenance(text: &CalibrationText, options: &CalibrateOptions) -> BTreeMap<String, String> {
    let hex = |hash: &[u8; 32]| blake3::Hash::from_bytes(*hash).to_hex().to_string();
    let sources = text
        .sources
        .iter()
        .map(|(name, hash)| format!("{} {name}", hex(hash)));
    BTreeMap::from([
        ("calibration".to_owned(), METHOD_VERSION.to_owned()),
        (
            "calibration_texts".to_owned(),
            sources.collect::<Vec<_>>().join(", "),
        ),
        ("calibration_tokens".to_owned(), text.tokens().to_string()),
        ("calibration_window".to_owned(), options.window.to_string()),
    ])
}
