//! Single numbers of config.json that decide what is computed, and the function on the gate.

use super::keys::{Keys, Read};
use super::{MAX_POSITIONS, ModelConfig};
use crate::architecture::{Activation, MultiplierRule, Multipliers, SoftCapRule, SoftCaps};

/// The function on the gate.
pub(super) fn activation(keys: Keys<'_>, c: &mut ModelConfig) -> Read<()> {
    let key = c.architecture.activation_key;
    if let Some(name) = keys.text(key)? {
        c.activation = Activation::named(name).ok_or_else(|| {
            format!("{key} is {name}; only silu and gelu_pytorch_tanh are supported")
        })?;
    }
    Ok(())
}

/// The norms' epsilon and the longest context.
pub(super) fn norm_and_context(keys: Keys<'_>, c: &mut ModelConfig) -> Read<()> {
    if let Some(eps) = keys.number("rms_norm_eps")? {
        if !(0.0..1.0).contains(&eps) {
            return Err(format!(
                "rms_norm_eps is {eps}, expected a small number, 0 or more"
            ));
        }
        c.rms_norm_eps = eps as f32;
    }
    if let Some(positions) = keys.size("max_position_embeddings", MAX_POSITIONS)? {
        c.max_positions = positions;
    }
    Ok(())
}

/// Factors along the way.
pub(super) fn multipliers(keys: Keys<'_>, c: &ModelConfig) -> Read<Multipliers> {
    let plain = Multipliers::of_head_dim(c.head_dim);
    match c.architecture.multipliers {
        MultiplierRule::HeadDim => Ok(plain),
        MultiplierRule::QueryScalar => {
            let default = c.architecture.defaults.query_pre_attn_scalar;
            let scalar = positive(keys, "query_pre_attn_scalar", default)?;
            Ok(Multipliers {
                embedding: (c.hidden as f64).sqrt() as f32,
                scores: scalar.powf(-0.5) as f32,
                ..plain
            })
        }
        MultiplierRule::Listed => {
            let factor = |key| positive(keys, key, 1.0).map(|factor| factor as f32);
            Ok(Multipliers {
                embedding: factor("embedding_multiplier")?,
                scores: factor("attention_multiplier")?,
                residual: factor("residual_multiplier")?,
                logits_divisor: factor("logits_scaling")?,
            })
        }
    }
}

/// Soft caps on scores and logits.
pub(super) fn soft_caps(keys: Keys<'_>, c: &ModelConfig) -> Read<SoftCaps> {
    let defaults = &c.architecture.defaults;
    let cap = |key, default: Option<f64>| match (keys.get(key), default) {
        (None, None) => Ok(None),
        (Some(value), _) if value.is_null() => Ok(None),
        (_, default) => positive(keys, key, default.unwrap_or(1.0)).map(|cap| Some(cap as f32)),
    };
    let scores = || cap("attn_logit_softcapping", defaults.attn_logit_softcapping);
    let logits = || cap("final_logit_softcapping", defaults.final_logit_softcapping);
    Ok(match c.architecture.soft_caps {
        SoftCapRule::Absent => SoftCaps {
            scores: None,
            logits: None,
        },
        SoftCapRule::ScoresAndLogits => SoftCaps {
            scores: scores()?,
            logits: logits()?,
        },
        SoftCapRule::Logits => SoftCaps {
            scores: None,
            logits: logits()?,
        },
    })
}

/// A number over 0; `default` where the key is absent.
fn positive(keys: Keys<'_>, key: &str, default: f64) -> Read<f64> {
    match keys.number(key)?.unwrap_or(default) {
        value if value > 0.0 && value.is_finite() => Ok(value),
        value => Err(format!("{key} is {value}, expected a positive number")),
    }
}
