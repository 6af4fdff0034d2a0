//! Which descriptions of a model this engine computes.

use crate::error::{Error, Result};
use smq_model::architecture::{
    Activation, Architecture, Biases, Multipliers, NormWeight, Norms, QkNorm, RopeRule, Rotated,
    SoftCaps, Windows,
};
use smq_model::{ModelConfig, Tables};

/// Refuses what no engine computes.
///
/// Every field is named here, so that a new one, or a new kind of one, does not compile before
/// somebody has thought of it in this engine.
pub(crate) fn check(c: &ModelConfig) -> Result<()> {
    let ModelConfig {
        architecture,
        hidden: _,
        intermediate: _,
        layers: _,
        heads: _,
        kv_heads: _,
        head_dim: _,
        vocab: _,
        biases: Biases { qkv, o, mlp },
        activation: Activation::Silu,
        rms_norm_eps: _,
        max_positions: _,
        windows: Windows::Alike(_),
        tables: Tables::Both | Tables::Embedding | Tables::Head,
        rope: _,
        notes: _,
    } = c;
    let Architecture {
        name: _,
        model_type: _,
        models: _,
        embedding: _,
        last_norm: _,
        head: _,
        projections: _,
        norms: Norms::BeforeBlocks { .. },
        norm_weight: NormWeight::AsStored,
        qk_norm: QkNorm::Absent,
        // What they say is in `c`.
        biases: _,
        windows: _,
        rope:
            RopeRule {
                kinds: _,
                partial: _,
                rotated: Rotated::EveryLayer,
            },
        multipliers: Multipliers::Scores,
        soft_caps: SoftCaps::Absent,
        defaults: _,
    } = architecture;
    if *qkv || *o || *mlp {
        return Err(Error::config(
            "attention_bias or mlp_bias is true; projections with a bias are not supported",
        ));
    }
    Ok(())
}
