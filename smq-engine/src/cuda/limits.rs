//! What the kernels do not do, all of it, and what to do instead: said before anything is compiled
//! or uploaded.

use super::weights::{DeviceMatrix, Format, GROUPS, LARGEST_GROUP};
use crate::error::{Error, Result};
use smq_model::architecture::{
    Activation, Architecture, Biases, Multipliers, NormWeight, Norms, QkNorm, Rotations, SoftCaps,
    Windows,
};
use smq_model::{LayerNorms, ModelConfig, NamedMatrix, RopeConfig, RopeScaling, Tables};

/// Elements of a head, of which there are kernels.
const HEAD_DIMS: [usize; 4] = [32, 64, 96, 128];
/// Rows of every matrix are a multiple of this.
const ROWS: usize = 8;

/// Refuses a model that the kernels do not compute, on a GPU of `sms` multiprocessors.
///
/// Every field is named here, so that a new one, or a new kind of one, does not compile before
/// somebody has thought of it for the kernels.
///
/// # Errors
/// [`Error::Config`](smq_model::Error::Config) with what would do.
pub(super) fn check(c: &ModelConfig, sms: usize) -> Result<()> {
    let ModelConfig {
        architecture,
        hidden: _,
        intermediate: _,
        layers: _,
        heads: _,
        kv_heads,
        head_dim,
        vocab: _,
        biases: Biases { qkv, o, mlp },
        activation,
        rms_norm_eps: _,
        max_positions: _,
        windows,
        tables: Tables::Both | Tables::Embedding | Tables::Head,
        rope:
            RopeConfig {
                theta: _,
                rotary_dim: _,
                scaling,
            },
        rotations,
        multipliers,
        soft_caps: SoftCaps { scores, logits },
        notes: _,
    } = c;
    let Architecture {
        name,
        model_type: _,
        models: _,
        embedding: _,
        last_norm: _,
        head: _,
        projections: _,
        norms:
            Norms {
                before_attention,
                after_attention,
                before_mlp,
                after_mlp,
            },
        norm_weight,
        qk_norm,
        // What these say is in `c`.
        biases: _,
        activation_key: _,
        windows: _,
        rope: _,
        multipliers: _,
        soft_caps: _,
        refused_flags: _,
        defaults: _,
    } = architecture;
    let no_inner_norm = before_attention.is_none() || before_mlp.is_none();
    let absent = [
        (*qkv || *o || *mlp, "biases"),
        (
            match qk_norm {
                QkNorm::Absent => false,
                QkNorm::PerHead(_) | QkNorm::WholeWidth(_) => true,
            },
            "norms of queries and keys",
        ),
        (
            no_inner_norm || after_attention.is_some() || after_mlp.is_some(),
            "norms behind attention and MLP",
        ),
        (
            match norm_weight {
                NormWeight::AsStored => false,
                NormWeight::OnePlus => true,
            },
            "norm weights that one is added to",
        ),
        (
            match activation {
                Activation::Silu => false,
                Activation::GeluTanh => true,
            },
            "an MLP with gelu_pytorch_tanh",
        ),
        (
            match windows {
                Windows::Alike(_) => false,
                Windows::ByLayer(_) => true,
            },
            "a sliding window in some layers",
        ),
        (
            match rotations {
                Rotations::Alike => false,
                Rotations::Listed(_) | Rotations::Windowed(_) => true,
            },
            "rotary embedding that differs between layers",
        ),
        (
            match scaling {
                RopeScaling::None
                | RopeScaling::Linear { .. }
                | RopeScaling::Llama3 { .. }
                | RopeScaling::Yarn { .. }
                | RopeScaling::LongRope { .. } => false,
                RopeScaling::Dynamic { .. } => true,
            },
            "dynamic scaling of its rotary embedding",
        ),
        (
            *multipliers != Multipliers::of_head_dim(*head_dim),
            "factors on embedding, scores, residual stream or logits",
        ),
        (scores.is_some() || logits.is_some(), "soft caps"),
    ];
    let absent = absent.iter().filter(|(asked, _)| *asked);
    let absent: Vec<_> = absent.map(|(_, what)| *what).collect();
    if !absent.is_empty() {
        return Err(Error::config(format!(
            "this {name} has {}, which --device cuda does not compute; run with --device cpu",
            absent.join(", ")
        )));
    }
    if !HEAD_DIMS.contains(head_dim) {
        return Err(Error::config(format!(
            "heads of {head_dim} elements do not run with --device cuda, only those of 32, 64, 96 and 128; run with \
             --device cpu"
        )));
    }
    heads(*kv_heads, sms)
}

/// Refuses more key/value heads than multiprocessors.
pub(super) fn heads(kv_heads: usize, sms: usize) -> Result<()> {
    match kv_heads > sms {
        false => Ok(()),
        true => Err(Error::config(format!(
            "{kv_heads} key/value heads are more than this GPU's {sms} multiprocessors; run with --device cpu"
        ))),
    }
}

/// The weights of the norms before attention and before the MLP, which are all that a layer may
/// have.
pub(super) fn norms(norms: &LayerNorms) -> Result<[&str; 2]> {
    match norms {
        LayerNorms {
            before_attention: Some(attention),
            after_attention: None,
            before_mlp: Some(mlp),
            after_mlp: None,
        } => Ok([attention, mlp]),
        LayerNorms {
            before_attention: _,
            after_attention: _,
            before_mlp: _,
            after_mlp: _,
        } => Err(Error::config(
            "its layers have norms behind attention and MLP, which --device cuda does not compute; run with --device \
             cpu",
        )),
    }
}

/// Refuses a matrix whose sizes the products do not take.
pub(super) fn sizes(m: &NamedMatrix, format: Format) -> Result<()> {
    // Rows start at 16 bytes, bf16's are whole lines of 128 bytes, NF4's whole blocks.
    let step = match format {
        Format::Bf16 | Format::Nf4 { .. } => 64,
        Format::Int4 { .. } | Format::Lut4 { .. } | Format::Fp8 { .. } => 32,
    };
    if m.cols.is_multiple_of(step) && m.rows.is_multiple_of(ROWS) {
        return Ok(());
    }
    let message = format!(
        "is [{}, {}]; --device cuda needs rows in eights and columns in multiples of {step}",
        m.rows, m.cols
    );
    Err(Error::tensor(&m.name, message))
}

/// The error of a matrix whose code book has no halves of bytes (`book.rs`).
pub(super) fn widest_book(name: &str) -> Error {
    Error::tensor(
        name,
        "has a code book from -128 to 127 whose eighth level is negative, which --device cuda does not look up; run \
         with --device cpu",
    )
}

/// Refuses an embedding that is not bf16.
pub(super) fn embedding(name: &str, table: &DeviceMatrix) -> Result<()> {
    match table.is_coded() {
        false => Ok(()),
        true => Err(Error::tensor(
            name,
            "the embedding is quantized, which --device cuda does not look up; run with --device cpu",
        )),
    }
}

/// Refuses matrices that are multiplied together and not stored alike.
pub(super) fn stored_alike(names: &[NamedMatrix], matrices: &[DeviceMatrix]) -> Result<()> {
    let stored = |m: &DeviceMatrix| (std::mem::discriminant(&m.format), m.scale_defines());
    let other = matrices
        .iter()
        .position(|m| stored(m) != stored(&matrices[0]));
    match other {
        None => Ok(()),
        Some(i) => Err(Error::tensor(
            &names[i].name,
            format!(
                "is stored in another format than {}; --device cuda multiplies them together, so quantize both \
                 alike, or run with --device cpu",
                names[0].name
            ),
        )),
    }
}

/// The kernels' group for `m`, whose file has groups of `group`; `first`: of the model's first int4
/// matrix, and its name. A step is compiled for one.
pub(super) fn group(
    m: &NamedMatrix,
    group: usize,
    first: Option<&(usize, String)>,
) -> Result<usize> {
    let bad = |message: String| Err(Error::tensor(&m.name, message));
    // A row of one group is the first part of a larger one.
    let one_a_row = group >= m.cols && m.cols <= LARGEST_GROUP;
    let group = match GROUPS.contains(&group) {
        true => group,
        false if one_a_row => LARGEST_GROUP,
        false => {
            return bad(format!(
                "has groups of {}; --device cuda runs groups of 32, 64 or 128: convert again with --group-size \
                 {LARGEST_GROUP}, or run with --device cpu",
                group.min(m.cols)
            ));
        }
    };
    match first {
        Some((first, name)) if *first != group => bad(format!(
            "has groups of {group}, and {name} has groups of {first}; --device cuda runs groups of one size in a \
             model: convert again with one --group-size, or run with --device cpu"
        )),
        _ => Ok(group),
    }
}

/// Refuses more kinds of product than the `most` that a step is compiled for.
pub(super) fn kinds(count: usize, most: usize) -> Result<()> {
    match count > most {
        false => Ok(()),
        true => Err(Error::config(format!(
            "its layers have {count} different shapes and storages of weights; --device cuda runs up to {most}, so \
             quantize the layers alike, or run with --device cpu"
        ))),
    }
}

/// The error of a step that needs more shared memory than a block has, bytes.
pub(super) fn shared_memory(needed: usize, block: usize) -> Error {
    Error::config(format!(
        "a decode step needs {needed} bytes of shared memory, a block has {block}; leave the largest matrix \
         unquantized (--target mlp or all), or run with --device cpu"
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn refusal(keys: Value) -> Option<String> {
        let mut config = json!({
            "vocab_size": 64, "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 6,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        });
        let map = config.as_object_mut().unwrap();
        map.extend(keys.as_object().unwrap().clone());
        let c = ModelConfig::from_json(config.to_string().as_bytes()).unwrap();
        check(&c, 132).err().map(|error| error.to_string())
    }

    #[test]
    fn what_a_family_has_beyond_the_kernels_is_refused_with_the_remedy() {
        let head = |model_type: &str| json!({"model_type": model_type, "head_dim": 32});
        let with = |model_type: &str, key: &str, value: Value| {
            let mut keys = head(model_type);
            keys[key] = value;
            keys
        };
        for (keys, words) in [
            (head("qwen3"), &["norms of queries and keys"][..]),
            (head("qwen2"), &["biases"]),
            (with("llama", "attention_bias", true.into()), &["biases"]),
            (with("llama", "mlp_bias", true.into()), &["biases"]),
            (head("smollm3"), &["differs between layers"]),
            (
                head("gemma3_text"),
                &[
                    "one is added",
                    "gelu_pytorch_tanh",
                    "behind attention",
                    "queries and keys",
                    "some layers",
                ],
            ),
            (head("gemma2"), &["soft caps", "factors", "some layers"]),
            (with("granite", "logits_scaling", json!(8.0)), &["factors"]),
            (head("olmo2"), &["behind attention", "queries and keys"]),
            (head("olmo3"), &["some layers"]),
            (
                with(
                    "llama",
                    "rope_scaling",
                    json!({"type": "dynamic", "factor": 2.0}),
                ),
                &["dynamic scaling"],
            ),
            (with("llama", "head_dim", 256.into()), &["heads of 256"]),
        ] {
            let shown = keys.to_string();
            let message = refusal(keys).unwrap_or_else(|| panic!("{shown} is taken"));
            for word in words.iter().chain(&["run with --device cpu"]) {
                assert!(message.contains(word), "{shown}: {message}");
            }
        }
    }

    #[test]
    fn families_that_need_nothing_new_run() {
        for keys in [
            json!({"model_type": "llama"}),
            json!({"model_type": "phi3"}),
            json!({"model_type": "mistral", "sliding_window": null}),
            json!({"model_type": "mistral", "sliding_window": 16, "head_dim": 64}),
            json!({"model_type": "llama", "rope_scaling": {"type": "yarn", "factor": 4.0}}),
            json!({"model_type": "granite", "head_dim": 64, "attention_multiplier": 0.125}),
        ] {
            assert_eq!(refusal(keys.clone()), None, "{keys}");
        }
    }
}
