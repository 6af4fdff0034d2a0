//! Receipts: how far a finished file's model is from the checkpoint's, measured on texts
//! (`spec/method.md`, "Receipts").

use std::path::{Path, PathBuf};

use smq_engine::divergence::{Base, Position, mean_and_error, window_tokens};
use smq_engine::{Device, Engine};
use smq_format::statistics::Receipt;
use smq_model::{ModelConfig, Source, Tokenizer};

use crate::error::ConvertError;
use crate::source::Checkpoint;

/// Tokens of a window, each of which is a sequence of its own.
const WINDOW: usize = 512;

/// What to measure a finished file on.
#[derive(Debug, Clone)]
pub struct MeasureOptions {
    /// Plain UTF-8 texts, each for a receipt of its own.
    pub texts: Vec<PathBuf>,
    /// Leading tokens of each text; an incomplete last window is left out.
    pub tokens: usize,
    /// Where both models run.
    pub device: Device,
}

/// Called with windows done so far and in all; returns whether to go on.
pub type MeasureProgress<'a> = &'a (dyn Fn(usize, usize) -> bool + Sync);

/// What to measure on, and who is told how far it is.
#[derive(Clone, Copy)]
pub struct Measuring<'a> {
    /// What to measure on.
    pub options: &'a MeasureOptions,
    /// Who is told how far it is, and may stop it.
    pub progress: MeasureProgress<'a>,
}

/// A model and texts that it can be measured on.
pub(crate) struct Prepared<'a> {
    base: Source,
    texts: Vec<Text>,
    progress: MeasureProgress<'a>,
    /// The device that both models run on, which is no longer left open.
    device: Device,
}

struct Text {
    path: PathBuf,
    blake3: [u8; 32],
    ids: Vec<u32>,
}

impl<'a> Measuring<'a> {
    /// Reads the texts, before anything is converted.
    ///
    /// # Errors
    /// A checkpoint that is quantized or cannot be run, a text that cannot be read or is too short.
    pub(crate) fn prepare(self, checkpoint: &Checkpoint) -> Result<Prepared<'a>, ConvertError> {
        let MeasureOptions {
            texts,
            tokens,
            device,
        } = self.options;
        if checkpoint.import().is_some() {
            return Err(ConvertError::Text {
                path: checkpoint.path().to_path_buf(),
                problem: "is int4 already, so there is no unquantized model to compare with; \
                          leave out --measure-kl"
                    .to_owned(),
            });
        }
        if *tokens < WINDOW {
            return Err(ConvertError::Option {
                option: "--measure-kl-tokens",
                value: tokens.to_string(),
                rule: format!("must be at least {WINDOW}, which are one window"),
            });
        }
        let base = Source::open(checkpoint.path())?;
        let positions = ModelConfig::of(&base)?.max_positions;
        let tokenizer = Tokenizer::load(&base)?;
        let text = |path: &PathBuf| {
            let problem = |problem: String| ConvertError::Text {
                path: path.clone(),
                problem,
            };
            let map = smq_format::map_file(path)?;
            let text = std::str::from_utf8(&map);
            let text = text.map_err(|e| problem(format!("is not UTF-8: {e}")))?;
            let ids = window_tokens(&tokenizer, text, WINDOW, Some(*tokens), positions);
            Ok(Text {
                path: path.clone(),
                blake3: smq_format::hash(&map),
                ids: ids.map_err(|e| problem(e.to_string()))?,
            })
        };
        Ok(Prepared {
            texts: texts
                .iter()
                .map(text)
                .collect::<Result<_, ConvertError>>()?,
            progress: self.progress,
            device: device.resolved(),
            base,
        })
    }
}

impl Prepared<'_> {
    /// Where both models run.
    pub(crate) fn device(&self) -> Device {
        self.device
    }

    /// Measures the model in `file`, which is complete but for its statistics.
    ///
    /// # Errors
    /// A model that cannot be run or produces what is no number, progress returning false.
    pub(crate) fn receipts(&self, file: &Path) -> Result<Vec<Receipt>, ConvertError> {
        let source = Source::open(file)?;
        let mut base = smq_engine::load(&self.base, self.device, Some(WINDOW))?;
        let mut model = smq_engine::load(&source, self.device, Some(WINDOW))?;
        let windows = |text: &Text| text.ids.len() / WINDOW;
        let all: usize = self.texts.iter().map(windows).sum();
        let mut before = 0;
        let mut receipts = Vec::new();
        for text in &self.texts {
            let positions = compare(&mut *base, &mut *model, text, |done| {
                (self.progress)(before + done, all)
            })?;
            before += windows(text);
            receipts.push(receipt(text, &positions));
        }
        match (self.progress)(all, all) {
            true => Ok(receipts),
            false => Err(ConvertError::Interrupted),
        }
    }
}

fn compare(
    base: &mut dyn Engine,
    model: &mut dyn Engine,
    text: &Text,
    progress: impl FnMut(usize) -> bool,
) -> Result<Vec<Position>, ConvertError> {
    // Each window is looked at once, so that nothing need be kept.
    let mut base = Base::new(base, text.ids.clone(), WINDOW, 0);
    let positions = base.compare(model, progress)?;
    positions.ok_or(ConvertError::Interrupted)
}

fn receipt(text: &Text, positions: &[Position]) -> Receipt {
    let figure =
        |of: fn(&Position) -> f64| mean_and_error(&positions.iter().map(of).collect::<Vec<f64>>());
    let (mean_kl, kl_stderr) = figure(|p| p.kl);
    let name = text.path.file_name().unwrap_or_default();
    Receipt {
        text: name.to_string_lossy().into_owned(),
        blake3: text.blake3,
        window: WINDOW as u64,
        tokens_scored: positions.len() as u64,
        mean_kl,
        // A window has more than one position.
        kl_stderr: kl_stderr.unwrap_or_default(),
        perplexity: figure(|p| p.nll).0.exp(),
        base_perplexity: figure(|p| p.base_nll).0.exp(),
        top1_agreement: figure(|p| f64::from(u8::from(p.same_top))).0,
    }
}
