//! `spec/calibration.toml`: what `eval suite --plan` measures. Each key is explained there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use smq_convert::{CalibrationMethod, LevelChoice, ScaleChoice, ScaleRule, Target};
use smq_format::Family;

use super::variants::{Calibration, Ladder, Quantized, Storage, Variant};
use crate::eval::task::Task;
use crate::output::toml_message;

/// Version of the file's layout.
const VERSION: u64 = 1;

/// A registered plan as its file has it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RegisteredPlan {
    version: u64,
    /// What is asked of every variant.
    pub tasks: TaskPlan,
    /// How the distance from C0 is measured.
    pub distance: DistancePlan,
    /// What all calibrations share.
    pub calibration: CalibrationPlan,
    /// What is calibrated on.
    #[serde(rename = "text")]
    pub texts: Vec<TextPlan>,
    /// The grids of variants that are measured.
    #[serde(rename = "grid")]
    grids: Vec<Grid>,
    /// The file it came from.
    #[serde(skip)]
    pub path: PathBuf,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TaskPlan {
    pub names: Vec<Task>,
    pub max_new_tokens: usize,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DistancePlan {
    /// The text's name in the data directory.
    pub text: PathBuf,
    pub window: usize,
    pub tokens: usize,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CalibrationPlan {
    /// Tokens of a calibration window.
    pub window: usize,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TextPlan {
    pub id: String,
    /// The names of its files in the data directory.
    pub files: Vec<PathBuf>,
    /// Passages of `eval recall --print-text` beside them.
    pub recall_passages: usize,
}

/// Every combination of its lists is a variant.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Grid {
    id: String,
    scheme: Family,
    targets: Vec<String>,
    /// Of int4 and lut4, as the next two.
    scales: Option<Vec<ScaleChoice>>,
    groups: Option<Vec<usize>>,
    rules: Option<Vec<ScaleRule>>,
    /// Rounded to nearest where it is absent.
    calibrate: Option<Calibrate>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Calibrate {
    texts: Vec<String>,
    starts: Vec<u8>,
    tokens: Vec<usize>,
    methods: Vec<CalibrationMethod>,
}

impl RegisteredPlan {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// One that cannot be read, is no TOML, lacks a key or has an unknown one, or has a value that
    /// is not allowed; the file and the key are named.
    pub(crate) fn load(path: &Path) -> anyhow::Result<Self> {
        let name = path.display();
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
        let mut plan: Self = toml::from_str(&text)
            .map_err(|e| anyhow::anyhow!("{name}: {}", toml_message(&text, &e)))?;
        path.clone_into(&mut plan.path);
        plan.check().with_context(|| name.to_string())?;
        Ok(plan)
    }

    fn check(&self) -> anyhow::Result<()> {
        let version = self.version;
        ensure!(
            version == VERSION,
            "version is {version}; allowed is {VERSION}"
        );
        each_once("tasks.names", self.tasks.names.iter().map(|t| t.name()))?;
        for (key, n) in [
            ("tasks.max_new_tokens", self.tasks.max_new_tokens),
            ("distance.tokens", self.distance.tokens),
        ] {
            ensure!(n > 0, "{key} is 0; allowed is at least 1");
        }
        for (key, n) in [
            ("distance.window", self.distance.window),
            ("calibration.window", self.calibration.window),
        ] {
            ensure!(n > 1, "{key} is {n}; allowed is at least 2");
        }
        for text in &self.texts {
            let key = format!("text {:?}", text.id);
            plain("text.id", &text.id)?;
            ensure!(
                !text.files.is_empty() || text.recall_passages > 0,
                "{key} has no files and no recall_passages; give it one of them"
            );
            // Files are told apart by their names where they are written anew.
            let names: Vec<_> = text.files.iter().map(|f| super::file_name(f)).collect();
            ensure!(
                names.is_empty() || each_once(&key, names.iter().map(String::as_str)).is_ok(),
                "{key} has two files of one name; give each its own"
            );
        }
        each_once("text.id", self.texts.iter().map(|t| t.id.as_str()))?;
        for grid in &self.grids {
            plain("grid.id", &grid.id)?;
            self.check_grid(grid)
                .with_context(|| format!("grid {:?}", grid.id))?;
        }
        each_once("grid.id", self.grids.iter().map(|g| g.id.as_str()))?;
        let variants = self.variants(&[])?;
        let names = variants.iter().map(|v| v.name.as_str());
        each_once("the variants of all grids", names)
    }

    fn check_grid(&self, grid: &Grid) -> anyhow::Result<()> {
        each_once("targets", grid.targets.iter().map(String::as_str))?;
        for target in &grid.targets {
            let known = ["mlp", "all"].contains(&target.as_str());
            ensure!(known, "targets has {target:?}; allowed are mlp and all");
        }
        let (scales, groups, rules) = (&grid.scales, &grid.groups, &grid.rules);
        match grid.scheme {
            Family::Int4 | Family::Lut4 => {
                let (Some(scales), Some(groups), Some(rules)) = (scales, groups, rules) else {
                    bail!("scheme {} needs scales, groups and rules", grid.scheme);
                };
                let words = |of: Vec<String>| of;
                let scales = words(scales.iter().map(ToString::to_string).collect());
                each_once("scales", scales.iter().map(String::as_str))?;
                each_once("rules", rules.iter().map(|r| r.name()))?;
                let groups = words(groups.iter().map(ToString::to_string).collect());
                each_once("groups", groups.iter().map(String::as_str))?;
            }
            Family::Nf4 | Family::Fp8 => ensure!(
                scales.is_none() && groups.is_none() && rules.is_none(),
                "scheme {} has one form; leave out scales, groups and rules",
                grid.scheme
            ),
        }
        let range = smq_format::scheme::GROUP_RANGE;
        if let Some(bad) = groups.iter().flatten().find(|g| !range.contains(g)) {
            let (least, most) = (range.start(), range.end());
            bail!("groups has {bad}; allowed is {least} to {most}");
        }
        let weighted = rules.iter().flatten().any(|r| *r == ScaleRule::Weighted);
        let Some(calibrate) = &grid.calibrate else {
            ensure!(
                !weighted,
                "rule weighted weighs by what a text makes of the inputs; give calibrate, or \
                 leave the rule out"
            );
            return Ok(());
        };
        ensure!(
            grid.scheme != Family::Fp8,
            "scheme fp8 is rounded to nearest; leave out calibrate"
        );
        each_once(
            "calibrate.texts",
            calibrate.texts.iter().map(String::as_str),
        )?;
        for id in &calibrate.texts {
            let text = self.texts.iter().find(|t| t.id == *id);
            let text = text.with_context(|| {
                format!("calibrate.texts has {id:?}, and there is no [[text]] of that id")
            })?;
            let files = text.files.len() + usize::from(text.recall_passages > 0);
            let least = files * self.calibration.window;
            if let Some(few) = calibrate.tokens.iter().find(|n| **n < least) {
                bail!(
                    "calibrate.tokens has {few}; text {id:?} needs at least {least}, a window of \
                     each of its files"
                );
            }
        }
        let words: Vec<_> = calibrate.starts.iter().map(ToString::to_string).collect();
        each_once("calibrate.starts", words.iter().map(String::as_str))?;
        if let Some(bad) = calibrate.starts.iter().find(|s| **s > 99) {
            bail!("calibrate.starts has {bad}; allowed is 0 to 99, percent of a text");
        }
        each_once(
            "calibrate.methods",
            calibrate.methods.iter().map(|method| method.name()),
        )?;
        let words: Vec<_> = calibrate.tokens.iter().map(ToString::to_string).collect();
        each_once("calibrate.tokens", words.iter().map(String::as_str))
    }

    /// C0, and every variant of the grids `only`, of all where it is empty.
    ///
    /// # Errors
    /// An id that no grid has.
    pub(crate) fn variants(&self, only: &[String]) -> anyhow::Result<Vec<Variant>> {
        let ids: Vec<&str> = self.grids.iter().map(|g| g.id.as_str()).collect();
        if let Some(unknown) = only.iter().find(|id| !ids.contains(&id.as_str())) {
            bail!(
                "{} has no grid {unknown:?}; it has {}",
                self.path.display(),
                ids.join(", ")
            );
        }
        let mut variants = vec![Variant::base()];
        for grid in &self.grids {
            if only.is_empty() || only.contains(&grid.id) {
                grid.add_to(&mut variants)?;
            }
        }
        Ok(variants)
    }

    /// A text by id.
    pub(super) fn text(&self, id: &str) -> anyhow::Result<&TextPlan> {
        let found = self.texts.iter().find(|t| t.id == id);
        found.with_context(|| format!("{} has no text {id:?}", self.path.display()))
    }
}

impl Grid {
    fn add_to(&self, variants: &mut Vec<Variant>) -> anyhow::Result<()> {
        for target in &self.targets {
            let target: Target = target.parse()?;
            for (storage, step) in self.storages() {
                for calibration in self.calibrations() {
                    let quantized = Quantized {
                        target: target.clone(),
                        storage,
                        calibration,
                    };
                    let ladder = step.map(|step| Ladder {
                        key: quantized.name_with("*"),
                        step,
                    });
                    variants.push(Variant {
                        name: quantized.name(),
                        quantized: Some(quantized),
                        ladder,
                    });
                }
            }
        }
        Ok(())
    }

    /// Each with its place among the scales, where it has any.
    fn storages(&self) -> Vec<(Storage, Option<usize>)> {
        let one = |storage| vec![(storage, None)];
        let levels = match self.scheme {
            Family::Nf4 => return one(Storage::Nf4),
            Family::Fp8 => return one(Storage::Fp8),
            Family::Int4 => None,
            Family::Lut4 => Some(LevelChoice::Learned),
        };
        let mut storages = Vec::new();
        for &group in self.groups.iter().flatten() {
            for &rule in self.rules.iter().flatten() {
                for (step, &scales) in self.scales.iter().flatten().enumerate() {
                    let storage = match levels {
                        None => Storage::Uniform {
                            scales,
                            rule,
                            group,
                        },
                        Some(levels) => Storage::Lut4 {
                            scales,
                            rule,
                            group,
                            levels,
                        },
                    };
                    storages.push((storage, Some(step)));
                }
            }
        }
        storages
    }

    fn calibrations(&self) -> Vec<Option<Calibration>> {
        let Some(calibrate) = &self.calibrate else {
            return vec![None];
        };
        let mut out = Vec::new();
        for text in &calibrate.texts {
            for &start_percent in &calibrate.starts {
                for &tokens in &calibrate.tokens {
                    out.extend(calibrate.methods.iter().map(|&method| {
                        Some(Calibration {
                            text: text.clone(),
                            start_percent,
                            tokens,
                            method,
                        })
                    }));
                }
            }
        }
        out
    }
}

/// Refuses an empty list, and a word that comes twice.
fn each_once<'a>(key: &str, words: impl Iterator<Item = &'a str>) -> anyhow::Result<()> {
    let mut seen = BTreeSet::new();
    for word in words {
        ensure!(
            seen.insert(word),
            "{key}: {word} is there twice; give it once"
        );
    }
    ensure!(!seen.is_empty(), "{key} is empty; give at least one");
    Ok(())
}

/// Refuses what does not become part of a file's name.
fn plain(key: &str, id: &str) -> anyhow::Result<()> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    ensure!(
        !id.is_empty() && id.chars().all(fits),
        "{key} is {id:?}; allowed are lower-case letters and digits: it becomes part of file names"
    );
    Ok(())
}

#[cfg(test)]
mod tests;
