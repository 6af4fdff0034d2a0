//! From a config of the contract to the converter's options: the one place that knows both.

use smq_convert::{ConvertOptions, QuantizeOptions, ScaleChoice, ScaleRule, Target};

use super::contract::{Config, Quantization};

/// What a config runs from.
#[derive(Debug, Clone)]
pub enum Conversion {
    /// The checkpoint as it is.
    Checkpoint,
    /// A file made with these options.
    File(Box<ConvertOptions>),
    /// This build cannot make it, for this reason.
    Unsupported(String),
}

/// How to make the weights of `config`.
#[must_use]
pub fn conversion(config: &Config, quantization: &Quantization) -> Conversion {
    match config.scheme.as_str() {
        "bf16" => Conversion::Checkpoint,
        "int4" => int4(config, quantization),
        other => Conversion::Unsupported(format!("scheme {other} is not supported by this build")),
    }
}

fn int4(config: &Config, quantization: &Quantization) -> Conversion {
    let scales = match config.mantissa_bits() {
        Some(mantissa_bits) => e5(mantissa_bits),
        None => ScaleChoice::F32,
    };
    let (Some(target), Some(rule)) = (
        config.target.as_deref().and_then(target),
        rule(&quantization.rule),
    ) else {
        return Conversion::Unsupported(format!(
            "target {:?} or scale rule {} is not supported by this build",
            config.target, quantization.rule
        ));
    };
    Conversion::File(Box::new(ConvertOptions {
        target,
        quantize: QuantizeOptions {
            group: quantization.group,
            scales,
            rule,
        },
        overwrite: false,
        jobs: 0,
    }))
}

/// E5Mx.
#[must_use]
pub fn e5(mantissa_bits: u32) -> ScaleChoice {
    ScaleChoice::Mini {
        exponent_bits: 5,
        mantissa_bits,
    }
}

/// A scale rule by name.
#[must_use]
pub fn rule(name: &str) -> Option<ScaleRule> {
    clap::ValueEnum::from_str(name, false).ok()
}

/// A target by name.
#[must_use]
pub fn target(name: &str) -> Option<Target> {
    name.parse().ok()
}
