//! Calibrated rounding: integers and scales chosen so that the outputs of each layer, on a text,
//! stay those of the unquantized model (`spec/method.md`, "Calibrated rounding").
//!
//! ```text
//!   texts -> windows -> for each layer and set of products:
//!       moments -> factor -> target -> storage, scales -> columns -> product
//! ```
//!
//! Where storage is still to be chosen, [`Prepared::outputs`] goes over the layers once before that
//! and says what each candidate does to the outputs.

mod arithmetic;
mod columns;
mod cpu;
mod factor;
mod gpu;
mod levels;
mod memory;
mod moments;
mod outputs;
mod product;
mod run;
mod saved;
mod scales;
mod storage;
mod texts;

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use smq_engine::Device;
use smq_model::{LayerNames, ModelConfig, Source, Tokenizer};

use crate::choice::Choice;
use crate::error::ConvertError;
use crate::quantize::{Method, QuantizeOptions};
use crate::source::Checkpoint;
use memory::States;
pub(crate) use outputs::Outputs;
pub(crate) use product::{Outcome, finite_error};
pub(crate) use run::Calibration;
pub use run::CalibrationProgress;
use run::Streams;
pub(crate) use saved::Saved;
pub(crate) use scales::SEARCHED_MANTISSA_BITS;
use texts::CalibrationText;

/// Version of the method, for the provenance: it changes when the same input gives other integers.
const METHOD_VERSION: &str = "1";
/// Provenance key of the method's version, which only calibrated files have.
pub(crate) const CALIBRATION: &str = "calibration";

/// What to calibrate on.
#[derive(Debug, Clone)]
pub struct CalibrateOptions {
    /// Plain UTF-8 texts, or JSON Lines (`.jsonl`) of objects with a `text` or with chat
    /// `messages`.
    pub texts: Vec<PathBuf>,
    /// Tokens to take of the texts, of all windows together.
    pub tokens: usize,
    /// Tokens a window, each a sequence of its own.
    pub window: usize,
    /// What is chosen by the text.
    pub method: CalibrationMethod,
    /// Where to calculate; automatically on a GPU if there is one.
    pub device: Device,
    /// Bytes of memory that the CPU may take; beyond them hidden states are kept in a file beside
    /// the output. Most of what is available where it is `None`.
    pub memory_bytes: Option<u64>,
    /// Go on with what a killed run has left.
    pub resume: bool,
}

/// What calibration chooses by the text; each does what those before it do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CalibrationMethod {
    /// Scales, by how large each column's inputs are; weights are rounded to nearest.
    Search,
    /// Codes too, so that columns make up for each other's errors (GPTQ).
    Gptq,
    /// The target too, so that a matrix makes up for the errors of those before it (GPTAQ).
    Asymmetric,
}

impl CalibrationMethod {
    /// Every one of them, as the command line lists them.
    pub const ALL: [Self; 3] = [Self::Search, Self::Gptq, Self::Asymmetric];

    /// As the command line and the provenance have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Search => "search",
            Self::Gptq => "gptq",
            Self::Asymmetric => "asymmetric",
        }
    }
}

/// A model and texts that fit each other.
pub(crate) struct Prepared {
    source: Source,
    config: ModelConfig,
    text: CalibrationText,
    method: CalibrationMethod,
    /// The device that calibration runs on, which is no longer left open.
    device: Device,
    states: States,
}

impl Prepared {
    /// Reads the texts.
    ///
    /// # Errors
    /// Options that make no windows, a model that cannot be run, texts that cannot be read or are
    /// too short, too little memory.
    pub(crate) fn new(
        checkpoint: &Checkpoint,
        options: &CalibrateOptions,
    ) -> Result<Self, ConvertError> {
        let model = |problem: &str| ConvertError::Calibration {
            path: checkpoint.path().to_path_buf(),
            problem: problem.to_owned(),
        };
        if checkpoint.import().is_some() {
            return Err(model(
                "is int4 already, and calibration needs the unquantized weights; leave out \
                 --calibrate",
            ));
        }
        let source = Source::open(checkpoint.path())?;
        let config = ModelConfig::of(&source)?;
        check(options, config.max_positions)?;
        let tokenizer = Tokenizer::load(&source)?;
        let text = CalibrationText::read(options, &tokenizer)?;
        let device = options.device.resolved();
        let states = match (device, options.memory_bytes) {
            (Device::Cpu | Device::Auto, budget) => {
                memory::place(checkpoint.path(), &config, &text, budget)?
            }
            (Device::Cuda, None) => States::InMemory,
            (Device::Cuda, Some(bytes)) => {
                return Err(ConvertError::Option {
                    option: "--calibrate-memory",
                    value: bytes.to_string(),
                    rule: "is for calibrating on a CPU; give --device cpu, or leave it out".into(),
                });
            }
        };
        Ok(Self {
            source,
            config,
            text,
            method: options.method,
            device,
            states,
        })
    }

    /// Records in `choice` on what it is calibrated, and which tensors that decides.
    pub(crate) fn record(&self, checkpoint: &Checkpoint, choice: &mut Choice) {
        choice.parameters.extend(self.parameters());
        choice.calibrated = self.calibrated(checkpoint, choice);
    }

    /// What each candidate does to the outputs of the tensors in `candidates`, by name, where
    /// weights go to nearest. All of them are [products of layers](Self::products). Hidden states
    /// that memory does not hold go to `directory`.
    ///
    /// # Errors
    /// Activations or weights that are not finite, `progress` returning false.
    pub(crate) fn outputs(
        &self,
        checkpoint: &Checkpoint,
        candidates: &HashMap<&str, Vec<QuantizeOptions>>,
        directory: &Path,
        progress: CalibrationProgress,
    ) -> Result<HashMap<String, Outputs>, ConvertError> {
        let pass = outputs::Pass {
            checkpoint,
            streams: self.streams(directory),
            candidates,
            progress,
        };
        pass.measure()
    }

    /// Names of the matrices that layers multiply by: all that can be calibrated.
    pub(crate) fn products(&self) -> BTreeSet<String> {
        let layers = 0..self.config.layers;
        let names = layers.flat_map(|layer| {
            let names = LayerNames::of(&self.config, layer);
            let groups = [names.qkv, vec![names.o], names.gate_up, vec![names.down]];
            groups.into_iter().flatten().map(|named| named.name)
        });
        names.collect()
    }

    /// Names of the products of layers that `choice` quantizes to anything that leaves a choice.
    fn calibrated(&self, checkpoint: &Checkpoint, choice: &Choice) -> BTreeSet<String> {
        let products = self.products();
        let tensors = checkpoint.tensors().iter().zip(&choice.methods);
        tensors
            .filter_map(|(tensor, method)| match method {
                Some(Method::Int4(_) | Method::Lut4 { .. } | Method::Nf4) => {
                    Some(tensor.name.clone())
                }
                Some(Method::Fp8) | None => None,
            })
            .filter(|name| products.contains(name))
            .collect()
    }

    fn parameters(&self) -> impl Iterator<Item = (String, String)> {
        let hex = |hash: &[u8; 32]| blake3::Hash::from_bytes(*hash).to_hex().to_string();
        let sources = self.text.sources.iter();
        let sources: Vec<_> = sources
            .map(|(name, hash)| format!("{} {name}", hex(hash)))
            .collect();
        [
            (CALIBRATION, METHOD_VERSION.to_owned()),
            ("calibration_method", self.method.name().to_owned()),
            ("calibration_device", self.device.name().to_owned()),
            ("calibration_texts", sources.join(", ")),
            ("calibration_tokens", self.text.tokens().to_string()),
            ("calibration_window", self.text.window().to_string()),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
    }

    /// Chooses scales and codes of every tensor of `choice` that is a product of a layer and has
    /// any to choose; layers go to `saved` as they are done.
    ///
    /// # Errors
    /// Activations or weights that are not finite, `progress` returning false.
    pub(crate) fn calibrate(
        &self,
        checkpoint: &Checkpoint,
        choice: &Choice,
        saved: &Saved,
        progress: CalibrationProgress,
    ) -> Result<Calibration, ConvertError> {
        let task = run::Task {
            checkpoint,
            streams: self.streams(saved.path()),
            choice,
            method: self.method,
            saved,
            progress,
        };
        run::calibrate(&task)
    }

    fn streams<'a>(&'a self, directory: &'a Path) -> Streams<'a> {
        Streams {
            source: &self.source,
            text: &self.text,
            device: self.device,
            states: self.states,
            directory,
        }
    }
}

fn check(options: &CalibrateOptions, max_position: usize) -> Result<(), ConvertError> {
    let wrong = |option, value: usize, rule: String| {
        let value = value.to_string();
        Err(ConvertError::Option {
            option,
            value,
            rule,
        })
    };
    let (tokens, window) = (options.tokens, options.window);
    if !(2..=max_position).contains(&window) {
        let rule = format!("must be 2 to {max_position}, the model's positions");
        return wrong("--calibrate-window", window, rule);
    }
    let least = window * options.texts.len();
    if tokens < least {
        let texts = options.texts.len();
        let rule = format!(
            "must be at least {least}: one window of {window} tokens of each text, of which there \
             {}",
            if texts == 1 {
                "is 1".to_owned()
            } else {
                format!("are {texts}")
            }
        );
        return wrong("--calibrate-tokens", tokens, rule);
    }
    Ok(())
}

/// What decides the bytes of calibrated layers: the parameters, what becomes of each tensor, and
/// the checkpoint's files as they are now.
pub(crate) fn key(checkpoint: &Checkpoint, choice: &Choice) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut add = |text: String| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    for (key, value) in &choice.parameters {
        add(format!("{key}={value}"));
    }
    // What was chosen from measured errors is no parameter.
    for method in &choice.methods {
        add(format!("{method:?}"));
    }
    for path in checkpoint.files().paths() {
        add(stamp(&path));
    }
    hasher.finalize().to_hex().to_string()
}

/// A file's name, length and time of change.
fn stamp(path: &Path) -> String {
    let metadata = std::fs::metadata(path).ok();
    let length = metadata.as_ref().map(std::fs::Metadata::len);
    let modified = metadata.and_then(|m| m.modified().ok());
    format!("{} {length:?} {modified:?}", path.display())
}
