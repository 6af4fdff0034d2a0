//! How a variant's file is made, and the texts that it is calibrated on.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use smq_convert::{
    AutoOptions, CalibrateOptions, Checkpoint, ChooseBy, Goal, Sensitivity, convert_auto,
};
use smq_model::Tokenizer;

use super::plan::{RegisteredPlan, TextPlan};
use super::variants::{Calibration, Quantized, Storage};
use super::{SuiteOptions, file_name};
use crate::convert::{GROUP, convert_calibrated_to, convert_to};
use crate::eval::task::recall::RecallOptions;

/// What all variants are made from.
pub(super) struct Maker<'a> {
    pub options: &'a SuiteOptions,
    pub checkpoint: &'a Checkpoint,
    pub tokenizer: &'a Tokenizer,
    /// Where texts are written that are not files as they are.
    pub dir: &'a Path,
}

impl Maker<'_> {
    /// Makes a variant's file; returns bits a weight of the target's tensors where storage is
    /// chosen.
    pub(super) fn make(&self, how: &Quantized, path: &Path) -> anyhow::Result<Option<f64>> {
        if let Some(method) = how.storage.method() {
            let target = &how.target;
            match &how.calibration {
                None => convert_to(self.checkpoint, path, target, method)?,
                Some(calibration) => {
                    let texts = self.calibrate_options(calibration)?;
                    convert_calibrated_to(self.checkpoint, path, target, method, &texts)?;
                }
            }
        }
        let Storage::Auto {
            budget_bits,
            weighed,
        } = how.storage
        else {
            return Ok(None);
        };
        let sensitivity = self.options.sensitivity.as_deref().filter(|_| weighed);
        let auto = AutoOptions {
            target: how.target.clone(),
            group: GROUP,
            rule: None,
            goal: Goal::Budget(budget_bits),
            choose_by: ChooseBy::Weights,
            sensitivity: sensitivity.map(Sensitivity::read).transpose()?,
            mixed_widths: false,
            overwrite: true,
            jobs: 0,
        };
        let (auto, _) = convert_auto(self.checkpoint, path, &auto, &|_| true)?;
        Ok(Some(auto.bits_per_weight))
    }

    /// The converter's options for a calibration of the plan.
    fn calibrate_options(&self, calibration: &Calibration) -> anyhow::Result<CalibrateOptions> {
        let Some(plan) = &self.options.plan else {
            bail!("calibrated variants need a plan; pass --plan FILE");
        };
        Ok(CalibrateOptions {
            texts: self.texts(plan.text(&calibration.text)?, calibration.start_percent)?,
            tokens: calibration.tokens,
            window: plan.calibration.window,
            method: calibration.method,
            device: self.options.device,
            memory_bytes: None,
            resume: false,
        })
    }

    /// The files of a text, each begun at `start_percent` of it and continued with what was left
    /// out, so that its length stays the same.
    fn texts(&self, text: &TextPlan, start_percent: u8) -> anyhow::Result<Vec<PathBuf>> {
        let dir = self.dir.join(format!("{}-{start_percent}", text.id));
        std::fs::create_dir_all(&dir)
            .with_context(|| format!("cannot create {}", dir.display()))?;
        let mut paths = Vec::new();
        for file in &text.files {
            let path = self.options.data.join(file);
            if start_percent == 0 {
                paths.push(path);
                continue;
            }
            let contents = std::fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            paths.push(dir.join(file_name(&path)));
            write_from(paths.last(), &contents, start_percent)?;
        }
        if text.recall_passages > 0 {
            let recall = RecallOptions {
                items: text.recall_passages,
                ..RecallOptions::default()
            };
            paths.push(dir.join("recall.txt"));
            write_from(paths.last(), &recall.text(self.tokenizer)?, start_percent)?;
        }
        Ok(paths)
    }
}

/// BLAKE3 and name of every file of every text, so that results of other texts are told apart.
pub(super) fn text_files(
    plan: &RegisteredPlan,
    data: &Path,
) -> anyhow::Result<Vec<super::store::DataFile>> {
    let files = plan.texts.iter().flat_map(|text| &text.files);
    files
        .map(|file| super::store::DataFile::of(&data.join(file), None))
        .collect()
}

fn write_from(path: Option<&PathBuf>, text: &str, percent: u8) -> anyhow::Result<()> {
    let Some(path) = path else { return Ok(()) };
    std::fs::write(path, turned(text, percent))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// A text from the first line on that begins at `percent` of its bytes or later, and then what
/// stands before.
fn turned(text: &str, percent: u8) -> String {
    let least =
        text.len() / 100 * usize::from(percent) + text.len() % 100 * usize::from(percent) / 100;
    let mut begins = text.match_indices('\n').map(|(at, _)| at + 1);
    let begin = match least {
        0 => 0,
        _ => begins.find(|at| *at >= least).unwrap_or(text.len()),
    };
    let (before, after) = text.split_at(begin);
    // The last line may lack its end.
    let end = if after.is_empty() || after.ends_with('\n') {
        ""
    } else {
        "\n"
    };
    [after, end, before].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_begun_at_a_line_and_kept_whole() {
        let text = "eins\nzwei\ndrei\nvier";
        assert_eq!(turned(text, 0), format!("{text}\n"));
        assert_eq!(turned(text, 50), "drei\nvier\neins\nzwei\n");
        // 26 % of 19 bytes is 4: the line that begins at 5.
        assert_eq!(turned(text, 26), "zwei\ndrei\nvier\neins\n");
        // Nothing begins that late: as it is.
        assert_eq!(turned(text, 99), text);
        assert_eq!(turned("ä\nö\nü\n", 40), "ö\nü\nä\n");
    }
}
