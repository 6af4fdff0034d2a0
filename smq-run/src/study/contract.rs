//! `spec/experiment.toml`: what is measured. Each key is explained there.

mod stored;

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use smq_format::scale::MAX_MANTISSA_BITS;
use smq_format::{Family, ScaleChoice, ScaleRule};

use crate::output::toml_message;
pub(crate) use stored::Stored;

/// Where the study's own contract is, seen from the repository's root.
pub(crate) const DEFAULT_PATH: &str = "spec/experiment.toml";
const DEFAULT_TEXT: &str = include_str!("../../../spec/experiment.toml");

/// Version of the file's layout.
const VERSION: u64 = 1;
/// Bounds of anything counted in tokens.
const TOKENS: RangeInclusive<u64> = 1..=1 << 20;
/// Targets that the study knows.
const TARGETS: [&str; 2] = ["mlp", "all"];

/// Why a contract cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContractError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file that was to be read.
        path: PathBuf,
        /// What the system says of it.
        source: std::io::Error,
    },
    /// It is not TOML, a key is missing or unknown, or a value has another type.
    #[error("{}: {message}", path.display())]
    Syntax {
        /// The file that was parsed.
        path: PathBuf,
        /// What is wrong, and where.
        message: String,
    },
    /// A value that is not allowed.
    #[error("{}: {key} is {value}; allowed is {allowed}", path.display())]
    Value {
        /// The file that has the value.
        path: PathBuf,
        /// The key, with its table.
        key: String,
        /// The value that it has there.
        value: String,
        /// What it may be.
        allowed: String,
    },
}

/// The whole experiment as its file registers it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Contract {
    /// Layout of the file.
    pub version: u64,
    /// How tokens are chosen.
    pub decoding: Decoding,
    /// What all int4 configs share.
    pub quantization: Quantization,
    /// What each process runs first.
    pub warmup: Warmup,
    /// The cells that are timed, for every config.
    pub workloads: Workloads,
    /// Contexts that are longer, for some configs.
    pub long_context: LongContext,
    /// What is run under the power meter.
    pub energy: EnergyPlan,
    /// Weights' errors by scale rule and width.
    pub scale_errors: ScaleErrors,
    /// When a cell is flagged.
    pub flags: Flags,
    /// The read rate that TPOT is held against.
    pub roofline: Roofline,
    /// The configs, in order.
    #[serde(rename = "config")]
    pub configs: Vec<Config>,
    /// The file it came from.
    #[serde(skip)]
    pub path: PathBuf,
    /// BLAKE3 of the file, hex.
    #[serde(skip)]
    pub blake3: String,
}

/// How tokens are chosen.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Decoding {
    /// How a token is chosen; `greedy` is the only one.
    pub sampling: String,
    /// Seed of the prompts.
    pub seed: u64,
}

/// What all int4 configs share.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Quantization {
    /// Consecutive elements of a row that share a scale.
    pub group: usize,
    /// How a group's scale is chosen.
    pub rule: ScaleRule,
}

/// What each process runs first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Warmup {
    /// Tokens of its prompt.
    pub prompt_tokens: usize,
    /// Tokens generated after it.
    pub output_tokens: usize,
    /// Whether each prompt length is also run once for its first token.
    pub each_prompt_length: bool,
}

/// Prompts and outputs; every pair is a workload.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Workloads {
    /// Lengths of the prompts, in tokens.
    pub prompt_tokens: Vec<usize>,
    /// Lengths of the outputs, in tokens.
    pub output_tokens: Vec<usize>,
    /// Fresh processes, each of which measures all of them.
    pub repeats: usize,
}

/// As [`Workloads`], for some configs.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LongContext {
    /// Ids of the configs.
    pub configs: Vec<String>,
    /// Lengths of the prompts, in tokens.
    pub prompt_tokens: Vec<usize>,
    /// Lengths of the outputs, in tokens.
    pub output_tokens: Vec<usize>,
    /// Fresh processes, each of which measures all of them.
    pub repeats: usize,
}

/// The energy run of a config.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EnergyPlan {
    /// Tokens of each prompt.
    pub prompt_tokens: usize,
    /// Tokens generated after it.
    pub output_tokens: usize,
    /// Milliseconds between power samples.
    pub sample_ms: u64,
    /// Least duration of the generations.
    pub decode_seconds: f64,
    /// Least duration of the prompts alone.
    pub prefill_seconds: f64,
    /// Work before each of them.
    pub settle_seconds: f64,
    /// Seconds of idling before the GPU is opened.
    pub idle_seconds: f64,
}

/// Weights' errors by scale rule and width.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ScaleErrors {
    /// The scale rules that are compared.
    pub rules: Vec<ScaleRule>,
    /// Mantissa bits of E5Mx.
    pub mantissa_bits: Vec<u32>,
    /// Which tensors are sampled: `mlp`, `all` or a pattern.
    pub target: String,
    /// Rows that are sampled of each tensor.
    pub rows_per_tensor: usize,
}

/// When a cell is flagged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Flags {
    /// Degrees Celsius above which a cell is flagged as hot.
    pub temperature_above_c: u32,
}

/// The read rate that TPOT is held against.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Roofline {
    /// 10^9 bytes a second.
    pub read_gb_per_s: f64,
    /// Where that comes from.
    pub source: String,
}

/// One config: how the weights are stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Name of the config, such as `C4`.
    pub id: String,
    /// What its weights are.
    pub scheme: Stored,
    /// Format of int4 scales: `f32` or `e5m0` to `e5m10`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scales: Option<ScaleChoice>,
    /// `mlp` or `all`; none for bf16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

impl Config {
    /// What `eval suite` calls its weights: the target, and the scales or what there is in their
    /// place; `None` for the checkpoint itself.
    fn variant(&self) -> Option<String> {
        let stored = match (self.scheme, self.scales) {
            (Stored::Bf16, _) => return None,
            (Stored::Quantized(_), Some(scales)) => scales.to_string(),
            (Stored::Quantized(family), None) => family.to_string(),
        };
        Some(format!("{}-{stored}", self.target.as_ref()?))
    }

    /// Mantissa bits of E5Mx scales.
    #[must_use]
    pub(crate) fn mantissa_bits(&self) -> Option<u32> {
        self.scales?.e5_mantissa_bits()
    }

    /// Whether its weights are int4.
    #[must_use]
    pub(crate) fn is_int4(&self) -> bool {
        self.scheme == Stored::Quantized(Family::Int4)
    }

    /// Whether another config has the same weights, and so the same file.
    #[must_use]
    pub(crate) fn same_weights(&self, other: &Config) -> bool {
        (&self.scheme, &self.scales, &self.target) == (&other.scheme, &other.scales, &other.target)
    }

    /// What the config is, in words: `int4 e5m5, mlp`.
    #[must_use]
    pub(crate) fn describe(&self) -> String {
        let scales = self
            .scales
            .as_ref()
            .map_or(String::new(), |s| format!(" {s}"));
        let target = self
            .target
            .as_ref()
            .map_or(String::new(), |t| format!(", {t}"));
        format!("{}{scales}{target}", self.scheme)
    }
}

/// What a file says, and its hash in hexadecimal digits. Where the `default` one, by path, is not
/// there, it is the text that this program was built with.
///
/// # Errors
/// [`ContractError::Read`] and [`ContractError::Syntax`].
pub(super) fn read<T: DeserializeOwned>(
    path: &Path,
    default: (&str, &str),
) -> Result<(T, String), ContractError> {
    let (default_path, default_text) = default;
    let text = match path == Path::new(default_path) && !path.exists() {
        true => default_text.to_owned(),
        false => std::fs::read_to_string(path).map_err(|source| ContractError::Read {
            path: path.to_owned(),
            source,
        })?,
    };
    let said = toml::from_str(&text).map_err(|e| ContractError::Syntax {
        path: path.to_owned(),
        message: toml_message(&text, &e),
    })?;
    Ok((said, blake3::hash(text.as_bytes()).to_hex().to_string()))
}

impl Contract {
    /// Reads and checks a file. Where the default one is not there, as outside of the repository,
    /// it is the one that this program was built with.
    ///
    /// # Errors
    /// [`ContractError`], with the file and the first key that is wrong.
    pub(crate) fn load(path: &Path) -> Result<Self, ContractError> {
        let (mut contract, blake3): (Self, _) = read(path, (DEFAULT_PATH, DEFAULT_TEXT))?;
        path.clone_into(&mut contract.path);
        contract.blake3 = blake3;
        contract.check()?;
        Ok(contract)
    }

    /// A config by id.
    #[must_use]
    pub(crate) fn config(&self, id: &str) -> Option<&Config> {
        self.configs.iter().find(|c| c.id == id)
    }

    /// The config that `--only` means: by its id, in capitals or not, or by what it is, such as
    /// mlp-e5m5, of which the first counts.
    #[must_use]
    pub(crate) fn meant(&self, given: &str) -> Option<&Config> {
        let is_meant = |c: &&Config| {
            c.id.eq_ignore_ascii_case(given) || c.variant().is_some_and(|name| name == given)
        };
        self.config(given)
            .or_else(|| self.configs.iter().find(is_meant))
    }

    /// All ids, for messages.
    #[must_use]
    pub(crate) fn ids(&self) -> String {
        let ids: Vec<_> = self.configs.iter().map(|c| c.id.as_str()).collect();
        ids.join(", ")
    }

    fn check(&self) -> Result<(), ContractError> {
        self.whole("version", self.version, VERSION..=VERSION)?;
        self.one_of("decoding.sampling", &self.decoding.sampling, &["greedy"])?;
        let groups = smq_format::scheme::GROUP_RANGE;
        self.whole(
            "quantization.group",
            self.quantization.group as u64,
            *groups.start() as u64..=*groups.end() as u64,
        )?;
        let tokens = |key: &str, n: usize| self.whole(key, n as u64, TOKENS);
        tokens("warmup.prompt_tokens", self.warmup.prompt_tokens)?;
        tokens("warmup.output_tokens", self.warmup.output_tokens)?;
        let (w, l, e) = (&self.workloads, &self.long_context, &self.energy);
        self.ascending("workloads.prompt_tokens", &w.prompt_tokens)?;
        self.ascending("workloads.output_tokens", &w.output_tokens)?;
        self.whole("workloads.repeats", w.repeats as u64, 1..=100)?;
        self.ascending("long_context.prompt_tokens", &l.prompt_tokens)?;
        self.ascending("long_context.output_tokens", &l.output_tokens)?;
        self.whole("long_context.repeats", l.repeats as u64, 1..=100)?;
        for id in &l.configs {
            let ids: Vec<_> = self.configs.iter().map(|c| c.id.as_str()).collect();
            self.one_of("long_context.configs", id, &ids)?;
        }
        if let Some(n) = (w.prompt_tokens.iter()).find(|n| l.prompt_tokens.contains(n)) {
            let allowed = "lengths that workloads.prompt_tokens does not have";
            return Err(self.wrong("long_context.prompt_tokens", n, allowed));
        }
        tokens("energy.prompt_tokens", e.prompt_tokens)?;
        self.whole(
            "energy.output_tokens",
            e.output_tokens as u64,
            2..=*TOKENS.end(),
        )?;
        self.whole("energy.sample_ms", e.sample_ms, 1..=10_000)?;
        self.seconds("energy.decode_seconds", e.decode_seconds, 0.001)?;
        self.seconds("energy.prefill_seconds", e.prefill_seconds, 0.001)?;
        self.seconds("energy.settle_seconds", e.settle_seconds, 0.0)?;
        self.seconds("energy.idle_seconds", e.idle_seconds, 0.0)?;
        let s = &self.scale_errors;
        for &x in &s.mantissa_bits {
            let allowed = 0..=MAX_MANTISSA_BITS.into();
            self.whole("scale_errors.mantissa_bits", x.into(), allowed)?;
        }
        let rules = ScaleRule::OF_WEIGHTS.map(ScaleRule::name);
        for rule in s.rules.iter().chain([&self.quantization.rule]) {
            self.one_of("scale_errors.rules, quantization.rule", rule.name(), &rules)?;
        }
        self.one_of("scale_errors.target", &s.target, &TARGETS)?;
        self.whole(
            "scale_errors.rows_per_tensor",
            s.rows_per_tensor as u64,
            1..=1 << 30,
        )?;
        self.whole(
            "flags.temperature_above_c",
            self.flags.temperature_above_c.into(),
            1..=200,
        )?;
        self.seconds("roofline.read_gb_per_s", self.roofline.read_gb_per_s, 1e-3)?;
        self.check_configs()
    }

    fn check_configs(&self) -> Result<(), ContractError> {
        if self.configs.is_empty() {
            return Err(self.wrong("config", "empty", "at least one [[config]]"));
        }
        for (i, c) in self.configs.iter().enumerate() {
            let named = |field: &str| format!("config {:?}: {field}", c.id);
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
            if c.id.is_empty() || !c.id.chars().all(plain) {
                let allowed = "letters, digits and hyphens: it becomes part of file names";
                return Err(self.wrong("config.id", format!("{:?}", c.id), allowed));
            }
            // File names ignore case on some systems.
            let same = |other: &&Config| other.id.eq_ignore_ascii_case(&c.id);
            if self.configs[..i].iter().find(same).is_some() {
                return Err(self.wrong("config.id", format!("{:?} again", c.id), "each id once"));
            }
            let scales = match c.scheme {
                Stored::Quantized(Family::Int4 | Family::Lut4) => match c.scales {
                    Some(ScaleChoice::F32) => None,
                    Some(scales) if scales.e5_mantissa_bits().is_some() => None,
                    None | Some(ScaleChoice::Mini { .. } | ScaleChoice::F16) => {
                        let widest = ScaleChoice::e5(MAX_MANTISSA_BITS);
                        Some(format!("f32, or {} to {widest}", ScaleChoice::e5(0)))
                    }
                },
                Stored::Bf16 | Stored::Quantized(Family::Nf4 | Family::Fp8) => {
                    c.scales.map(|_| format!("none with scheme {}", c.scheme))
                }
            };
            if let Some(allowed) = scales {
                let scales = c.scales.map(|s| s.to_string());
                return Err(self.wrong(named("scales"), option(scales.as_deref()), allowed));
            }
            match (c.scheme, &c.target) {
                (Stored::Bf16, None) => {}
                (Stored::Quantized(_), Some(t)) => self.one_of(&named("target"), t, &TARGETS)?,
                (Stored::Bf16, target @ Some(_)) => {
                    let allowed = format!("none with scheme {}", c.scheme);
                    return Err(self.wrong(named("target"), option(target.as_deref()), allowed));
                }
                (Stored::Quantized(_), None) => {
                    return Err(self.wrong(named("target"), option(None), TARGETS.join(", ")));
                }
            }
        }
        Ok(())
    }

    fn wrong(
        &self,
        key: impl Into<String>,
        value: impl ToString,
        allowed: impl Into<String>,
    ) -> ContractError {
        ContractError::Value {
            path: self.path.clone(),
            key: key.into(),
            value: value.to_string(),
            allowed: allowed.into(),
        }
    }

    fn one_of(&self, key: &str, value: &str, allowed: &[&str]) -> Result<(), ContractError> {
        match allowed.contains(&value) {
            true => Ok(()),
            false => Err(self.wrong(key, format!("{value:?}"), allowed.join(", "))),
        }
    }

    fn whole(
        &self,
        key: &str,
        value: u64,
        allowed: RangeInclusive<u64>,
    ) -> Result<(), ContractError> {
        let (least, most) = (allowed.start(), allowed.end());
        match allowed.contains(&value) {
            true => Ok(()),
            false if least == most => Err(self.wrong(key, value, least.to_string())),
            false => Err(self.wrong(key, value, format!("{least} to {most}"))),
        }
    }

    fn seconds(&self, key: &str, value: f64, least: f64) -> Result<(), ContractError> {
        // NaN fails too.
        match value >= least && value <= 1e5 {
            true => Ok(()),
            false => Err(self.wrong(key, value, format!("{least} to 100000"))),
        }
    }

    fn ascending(&self, key: &str, values: &[usize]) -> Result<(), ContractError> {
        for &v in values {
            self.whole(key, v as u64, TOKENS)?;
        }
        match !values.is_empty() && values.is_sorted_by(|a, b| a < b) {
            true => Ok(()),
            false => Err(self.wrong(key, format!("{values:?}"), "at least one, ascending")),
        }
    }
}

fn option(value: Option<&str>) -> String {
    value.map_or("absent".to_owned(), |v| format!("{v:?}"))
}

#[cfg(test)]
mod tests;
