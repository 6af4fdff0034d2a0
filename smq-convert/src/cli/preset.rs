//! `smq-convert --preset`, and what a command line without options takes.

use std::fmt::Write;

use anyhow::ensure;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use comfy_table::{CellAlignment, Table, presets};
use indicatif::DecimalBytes;
use smq_format::Family;

use super::convert::ConvertArgs;
use crate::{
    Checkpoint, ConvertOptions, LevelChoice, Method, QuantizeOptions, ScaleChoice, ScaleRule,
    Target, dry_run,
};

/// Elements a group, where a recipe does not have smaller ones.
const GROUP: usize = 128;

/// Options that go together, and what they were measured to cost.
#[derive(Debug)]
pub(super) struct Recipe {
    pub(super) name: &'static str,
    /// What the weights become, for people.
    weights: &'static str,
    scheme: Family,
    /// How scales are stored, where there are groups: in int4 and lut4.
    scales: Option<ScaleChoice>,
    group: usize,
    layers: Layers,
    /// Whether it was measured calibrated, and is not to be had without a text.
    calibrated: bool,
    measured: Measured,
}

/// Which linear layers a recipe quantizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layers {
    Mlp,
    All,
}

/// What `results/quality` says of a recipe on SmolLM2-135M-Instruct, rounded as it is shown; a test
/// compares it with those files.
#[derive(Debug)]
struct Measured {
    bits_per_weight: f64,
    mean_kl_nats: f64,
    /// Mean relative drop over the tasks.
    drop_percent: f64,
    /// The variant's name there, in the suite's file or, of calibrated recipes, in that of
    /// spec/calibration.toml.
    #[cfg_attr(not(test), expect(dead_code, reason = "only the test looks it up"))]
    variant: &'static str,
}

impl Recipe {
    /// Rounded to nearest, in groups of 128 where there are groups.
    const fn rounded(
        name: &'static str,
        weights: &'static str,
        scheme: Family,
        scales: Option<ScaleChoice>,
        layers: Layers,
        measured: Measured,
    ) -> Self {
        Self {
            name,
            weights,
            scheme,
            scales,
            group: GROUP,
            layers,
            calibrated: false,
            measured,
        }
    }
}

const fn measured(
    variant: &'static str,
    bits_per_weight: f64,
    mean_kl_nats: f64,
    drop_percent: f64,
) -> Measured {
    Measured {
        bits_per_weight,
        mean_kl_nats,
        drop_percent,
        variant,
    }
}

/// What a plain command takes where it has a text to calibrate on. By `results/findings.md` E5M3
/// is wide enough for the scales of calibrated files, and int4 decodes fastest.
const SMALL: Recipe = Recipe {
    name: "small",
    weights: "int4, E5M3 scales",
    scheme: Family::Int4,
    scales: Some(ScaleChoice::e5(3)),
    group: GROUP,
    layers: Layers::All,
    calibrated: true,
    measured: measured("all-e5m3-weighted-cal-mix-0-32768", 4.08, 0.135, 4.9),
};

/// What a plain command takes without a text. Divergence and tasks contradict each other about the
/// scales of rounded int4 (`results/findings.md`, "In short"), and both find NF4 nearer to the
/// unquantized model than any of them, in the same number of bits.
const NF4: Recipe = Recipe::rounded(
    "nf4",
    "NF4",
    Family::Nf4,
    None,
    Layers::All,
    measured("all-nf4", 4.13, 0.283, 4.3),
);

/// What loses least in 4 bits.
const FINE: Recipe = Recipe {
    name: "fine",
    weights: "lut4, E5M3 scales, groups of 64",
    scheme: Family::Lut4,
    scales: Some(ScaleChoice::e5(3)),
    group: 64,
    layers: Layers::All,
    calibrated: true,
    measured: measured(
        "all-lut4-e5m3-weighted-g64-cal-mix-0-32768",
        4.14,
        0.087,
        2.3,
    ),
};

/// The recipe that loses least, in twice the bits of the others.
const BEST: Recipe = Recipe::rounded(
    "best",
    "FP8, FP8 activations",
    Family::Fp8,
    None,
    Layers::All,
    measured("all-fp8", 8.05, 0.033, 1.6),
);

/// Every recipe, those for use before those of the study.
static RECIPES: [Recipe; 13] = [
    SMALL,
    NF4,
    FINE,
    BEST,
    Recipe::rounded(
        "study-c1",
        "FP8, FP8 activations",
        Family::Fp8,
        None,
        Layers::Mlp,
        measured("mlp-fp8", 8.04, 0.022, 2.9),
    ),
    Recipe::rounded(
        "study-c1-all",
        "FP8, FP8 activations",
        Family::Fp8,
        None,
        Layers::All,
        measured("all-fp8", 8.05, 0.033, 1.6),
    ),
    Recipe::rounded(
        "study-c2",
        "NF4",
        Family::Nf4,
        None,
        Layers::Mlp,
        measured("mlp-nf4", 4.13, 0.171, 6.5),
    ),
    Recipe::rounded(
        "study-c2-all",
        "NF4",
        Family::Nf4,
        None,
        Layers::All,
        measured("all-nf4", 4.13, 0.283, 4.3),
    ),
    Recipe::rounded(
        "study-c3",
        "int4, exact f32 scales",
        Family::Int4,
        Some(ScaleChoice::F32),
        Layers::Mlp,
        measured("mlp-f32", 4.27, 0.397, 2.1),
    ),
    Recipe::rounded(
        "study-c4",
        "int4, E5M5 scales",
        Family::Int4,
        Some(ScaleChoice::e5(5)),
        Layers::Mlp,
        measured("mlp-e5m5", 4.09, 0.348, 6.3),
    ),
    Recipe::rounded(
        "study-c5-e5m3",
        "int4, E5M3 scales",
        Family::Int4,
        Some(ScaleChoice::e5(3)),
        Layers::Mlp,
        measured("mlp-e5m3", 4.08, 0.359, 7.1),
    ),
    Recipe::rounded(
        "study-c5-e5m0",
        "int4, E5M0 scales",
        Family::Int4,
        Some(ScaleChoice::e5(0)),
        Layers::Mlp,
        measured("mlp-e5m0", 4.05, 0.837, 24.0),
    ),
    Recipe::rounded(
        "study-c6",
        "int4, E5M5 scales",
        Family::Int4,
        Some(ScaleChoice::e5(5)),
        Layers::All,
        measured("all-e5m5", 4.09, 0.563, 12.2),
    ),
];

/// What `--preset` asks for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Preset {
    /// Show all recipes, and convert nothing.
    List,
    /// Convert by this recipe.
    Take(&'static Recipe),
}

/// Reads a preset's name.
pub(super) fn preset() -> impl TypedValueParser<Value = Preset> {
    let words = RECIPES.iter().map(|recipe| PossibleValue::new(recipe.name));
    let words: Vec<_> = words.chain([PossibleValue::new("list")]).collect();
    PossibleValuesParser::new(words).try_map(|word| match word.as_str() {
        "list" => Ok(Preset::List),
        name => {
            let found = RECIPES.iter().find(|recipe| recipe.name == name);
            found.map(Preset::Take).ok_or("expected a preset's name")
        }
    })
}

/// The table of `--preset list`.
pub(super) fn list() -> String {
    let mut rows = Table::new();
    rows.load_style(presets::NOTHING).set_header([
        "preset",
        "weights, scales",
        "layers",
        "text",
        "bits",
        "mean KL",
        "tasks",
    ]);
    for column in rows.column_iter_mut().skip(4) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for recipe in &RECIPES {
        rows.add_row([
            recipe.name.to_owned(),
            // The table is to fit a terminal of 80 columns.
            recipe.weights.replace(" scales", ""),
            match recipe.layers {
                Layers::Mlp => "mlp".to_owned(),
                Layers::All => "all".to_owned(),
            },
            match recipe.calibrated {
                true => "yes".to_owned(),
                false => "no".to_owned(),
            },
            format!("{:.2}", recipe.measured.bits_per_weight),
            format!("{:.3}", recipe.measured.mean_kl_nats),
            format!("-{:.1} %", recipe.measured.drop_percent),
        ]);
    }
    format!(
        "{rows}\n\n\
         text: whether it is calibrated on one, by --calibrate. bits: of a quantized\n\
         weight, scales included. mean KL: divergence from the unquantized model in nats\n\
         a token, on WikiText-2's test text. tasks: mean relative change over LAMBADA,\n\
         HellaSwag and ARC. All were measured on SmolLM2-135M-Instruct, calibrated on\n\
         32,768 tokens of three kinds of text; other models lose more or less (smq-run\n\
         eval kl, smq-run eval suite).\n\n\
         Without options smq-convert takes {} where --calibrate gives it a text, and\n\
         {} otherwise. C5's E5M5 is study-c4, and study-c0 is the checkpoint itself.\n",
        SMALL.name, NF4.name,
    )
}

impl ConvertArgs {
    /// Puts the recipe's options in the place of those that were left out, where one is asked for
    /// or nothing is; what was taken without being asked for is returned as a line to show.
    ///
    /// # Errors
    /// A recipe that needs a text without one, or one of the study, which needs none, with one.
    pub(super) fn take_recipe(
        &mut self,
        checkpoint: &Checkpoint,
    ) -> anyhow::Result<Option<String>> {
        let has_text = !self.calibrate.is_empty();
        let (recipe, is_plain) = match self.preset {
            Some(Preset::Take(recipe)) => (recipe, false),
            Some(Preset::List) => return Ok(None),
            None if checkpoint.import().is_some() || !self.is_plain() => return Ok(None),
            None if self.reader.is_some() => return Ok(Some(self.fit_reader(checkpoint))),
            None if has_text => (&SMALL, true),
            None => (&NF4, true),
        };
        ensure!(
            has_text || !recipe.calibrated,
            "--preset {} was measured calibrated: add --calibrate TEXT, or take --preset {}, which \
             needs no text",
            recipe.name,
            NF4.name
        );
        ensure!(
            !has_text || recipe.calibrated,
            "--preset {} is rounded to nearest, without a text: leave --calibrate out, or take \
             --preset {} or {}",
            recipe.name,
            SMALL.name,
            FINE.name
        );
        self.scheme = Some(recipe.scheme);
        self.scales = recipe.scales;
        self.group_size = recipe.scales.map(|_| recipe.group);
        self.target = Some(recipe.target());
        Ok(is_plain.then(|| taken(recipe, checkpoint)))
    }

    /// Whether no option says what the weights become, or which.
    fn is_plain(&self) -> bool {
        self.scheme.is_none()
            && self.mbits.is_none()
            && self.scales.is_none()
            && self.group_size.is_none()
            && self.scale_rule.is_none()
            && self.levels.is_none()
            && self.target.is_none()
            && self.auto.refuse().is_ok()
    }
}

impl Recipe {
    fn target(&self) -> Target {
        match self.layers {
            Layers::Mlp => Target::Mlp,
            Layers::All => Target::All,
        }
    }

    /// Bytes of `checkpoint`'s file, but for the few that calibration adds to its statistics;
    /// `None` for a checkpoint that the recipe cannot be taken of.
    fn file_bytes(&self, checkpoint: &Checkpoint) -> Option<u64> {
        // A rule changes no size.
        let options = self.scales.map(|scales| QuantizeOptions {
            group: self.group,
            scales,
            rule: ScaleRule::Nearest,
        });
        let quantize = match (self.scheme, options) {
            (Family::Int4, Some(options)) => Method::Int4(options),
            (Family::Lut4, Some(options)) => Method::Lut4 {
                options,
                levels: LevelChoice::Learned,
            },
            (Family::Int4 | Family::Lut4, None) => return None,
            (Family::Nf4, _) => Method::Nf4,
            (Family::Fp8, _) => Method::Fp8,
        };
        let options = ConvertOptions {
            quantize,
            target: self.target(),
            overwrite: true,
            jobs: 0,
        };
        dry_run(checkpoint, &options)
            .ok()
            .map(|plan| plan.file_bytes)
    }

    /// Its weights and the size of the file.
    fn with_size(&self, checkpoint: &Checkpoint) -> String {
        match self.file_bytes(checkpoint) {
            Some(bytes) => format!("{}: {}", self.weights, DecimalBytes(bytes)),
            None => self.weights.to_owned(),
        }
    }
}

/// What to say of a recipe that was taken without being asked for.
fn taken(recipe: &Recipe, checkpoint: &Checkpoint) -> String {
    let reason = match recipe.calibrated {
        true => "calibrated on the text",
        false => "which loses least in 4 bits without a text",
    };
    let mut line = format!(
        "taking --preset {} ({}), all linear layers, {reason}; others are ",
        recipe.name,
        recipe.with_size(checkpoint),
    );
    let others = [&SMALL, &FINE, &BEST];
    let others = others.into_iter().filter(|other| other.name != recipe.name);
    let others = others.map(|other| {
        let text = match other.calibrated && !recipe.calibrated {
            true => " --calibrate TEXT",
            false => "",
        };
        format!(
            "--preset {}{text} ({})",
            other.name,
            other.with_size(checkpoint)
        )
    });
    let others: Vec<_> = others.collect();
    let _ = write!(
        line,
        "{}; --preset list has what each loses",
        others.join(", ")
    );
    line
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::Value;

    use super::*;

    fn results(name: &str) -> Value {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../results/quality");
        serde_json::from_slice(&std::fs::read(dir.join(name)).unwrap()).unwrap()
    }

    #[test]
    fn the_figures_are_those_that_were_measured() {
        let (rounded, calibrated) = (
            results("suite-smollm2.json"),
            results("calibration-smollm2.json"),
        );
        for recipe in &RECIPES {
            let measured = &recipe.measured;
            let file = match recipe.calibrated {
                true => &calibrated,
                false => &rounded,
            };
            let mut variants = file["variants"].as_array().unwrap().iter();
            let found = variants.find(|v| v["name"] == measured.variant).unwrap();
            let shown = |value: &Value, digits: usize, factor: f64| {
                format!("{:.digits$}", factor * value.as_f64().unwrap())
            };
            let drop = shown(&found["mean_relative_drop"], 1, 100.0);
            assert_eq!(
                drop,
                format!("{:.1}", measured.drop_percent),
                "{}",
                recipe.name
            );
            let kl = shown(&found["kl"]["mean_kl"]["value"], 3, 1.0);
            assert_eq!(
                kl,
                format!("{:.3}", measured.mean_kl_nats),
                "{}",
                recipe.name
            );
            let bits = shown(&found["bits_per_weight"], 2, 1.0);
            assert_eq!(
                bits,
                format!("{:.2}", measured.bits_per_weight),
                "{}",
                recipe.name
            );
            // A study's name is its config's.
            if let Some(config) = recipe.name.strip_prefix("study-") {
                let config = config.to_uppercase().replace("ALL", "all");
                assert!(
                    config.starts_with(found["config"].as_str().unwrap()),
                    "{config}"
                );
            }
            let target = recipe.target();
            assert_eq!(found["target"], target.name(), "{}", recipe.name);
        }
    }
}
