//! What the kernels do not do, all of it, and what to do instead: said before anything is compiled
//! or uploaded.

use super::prefill::attention::ROPE_THREADS;
use super::weights::{DeviceMatrix, Format, GROUPS, LARGEST_GROUP};
use crate::error::{Error, Result};
use crate::kv::{KvCacheFormat, KvCode};
use smq_model::architecture::{
    Activation, Architecture, Biases, Multipliers, NormWeight, Norms, QkNorm, Rotations, SoftCaps,
    Windows,
};
use smq_model::{ModelConfig, NamedMatrix, RopeConfig, Source, Tables};

/// Elements of a head, of which there are kernels.
const HEAD_DIMS: [usize; 5] = [32, 64, 96, 128, 256];
/// Rows of every matrix are a multiple of this.
const ROWS: usize = 8;

/// The shape of a model whose sequences have at most `max_tokens` positions (by default those of the
/// longest context), where a GPU of `sms` multiprocessors runs it.
///
/// # Errors
/// As [`ModelConfig::of`] and [`check`].
pub(super) fn config(
    source: &Source,
    max_tokens: Option<usize>,
    sms: usize,
) -> Result<ModelConfig> {
    let mut config = ModelConfig::of(source)?;
    if let Some(max) = max_tokens {
        config.max_positions = config.max_positions.min(max);
    }
    check(&config, sms)?;
    Ok(config)
}

/// Refuses a model that the kernels do not compute, on a GPU of `sms` multiprocessors.
///
/// Every field is named here, so that a new one, or a new kind of one, does not compile before
/// somebody has thought of it for the kernels. What the kernel of one sequence's step leaves to
/// those of prompts is told in `family.rs`.
///
/// # Errors
/// [`Error::Config`](smq_model::Error::Config) with what would do.
pub(super) fn check(c: &ModelConfig, sms: usize) -> Result<()> {
    let ModelConfig {
        architecture,
        hidden: _,
        intermediate: _,
        layers: _,
        heads,
        kv_heads,
        head_dim,
        vocab: _,
        biases: Biases {
            qkv: _,
            o: _,
            mlp: _,
        },
        activation: Activation::Silu | Activation::GeluTanh,
        rms_norm_eps: _,
        max_positions: _,
        windows: Windows::Alike(_) | Windows::ByLayer(_),
        tables: Tables::Both | Tables::Embedding | Tables::Head,
        rope: _,
        rotations: _,
        multipliers:
            Multipliers {
                embedding: _,
                scores: _,
                residual: _,
                logits_divisor: _,
            },
        soft_caps: SoftCaps {
            scores: _,
            logits: _,
        },
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
                before_attention: _,
                after_attention: _,
                before_mlp: _,
                after_mlp: _,
            },
        norm_weight: NormWeight::AsStored | NormWeight::OnePlus,
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
    let ropes = ropes(c);
    let whole_width = match qk_norm {
        QkNorm::Absent | QkNorm::PerHead(_) => false,
        QkNorm::WholeWidth(_) => true,
    };
    let absent = [
        (
            ropes[0].rotary_dim != ropes[1].rotary_dim,
            "rotary embeddings of several widths",
        ),
        (
            whole_width && heads + kv_heads > MOST_NORMED_HEADS,
            "norms over more than 256 heads of queries and keys",
        ),
    ];
    let absent = absent.iter().filter(|(asked, _)| *asked);
    let absent: Vec<_> = absent.map(|(_, what)| *what).collect();
    if !absent.is_empty() {
        return Err(Error::config(format!(
            "this {name} has {}, which --device cuda does not compute; run with --device cpu",
            absent.join(", ")
        )));
    }
    longest(c, "--context")?;
    if !HEAD_DIMS.contains(head_dim) {
        return Err(Error::config(format!(
            "heads of {head_dim} elements do not run with --device cuda, only those of 32, 64, 96, 128 and 256; run \
             with --device cpu"
        )));
    }
    self::heads(*kv_heads, sms)
}

/// The rotary embeddings that layers have, of which there may be one, twice.
fn ropes(c: &ModelConfig) -> [&RopeConfig; 2] {
    match &c.rotations {
        Rotations::Alike | Rotations::Listed(_) => [&c.rope; 2],
        Rotations::Windowed(other) => [&c.rope, other],
    }
}

/// Refuses more positions than a rotary embedding is the same for: keys in the cache would be of
/// many lengths' frequencies. `option` is what has fewer.
pub(super) fn longest(c: &ModelConfig, option: &str) -> Result<()> {
    let fixed_up_to = ropes(c).into_iter().filter_map(RopeConfig::fixed_up_to);
    let fixed_up_to = fixed_up_to.min();
    match fixed_up_to.filter(|most| c.max_positions > *most) {
        None => Ok(()),
        Some(limit) => Err(Error::config(format!(
            "this {} has dynamic scaling of its rotary embedding, which changes with every token beyond {limit}; \
             --device cuda does not compute that: give {option} {limit}, or run with --device cpu",
            c.architecture.name
        ))),
    }
}

/// Heads that `rope.cu` norms together: a thread each.
const MOST_NORMED_HEADS: usize = ROPE_THREADS as usize;

/// How keys and values are held, where the kernels know that.
pub(super) fn kv_cache(format: Option<KvCacheFormat>) -> Result<KvCode> {
    match format {
        None => Ok(KvCode::Bf16),
        Some(KvCacheFormat::Coded(code)) => Ok(code),
        Some(KvCacheFormat::F32) => Err(Error::config(
            "--kv-cache f32 does not run with --device cuda, whose keys and values are bf16; leave \
             it out, or run with --device cpu",
        )),
    }
}

/// Shared memory that a block of `rope.cu` has for the keys and values of a row, which it encodes
/// there: what a block has without asking, less what norms take.
const FRESH_BYTES: usize = 46 << 10;

/// Refuses pages of fewer bits than bf16 where `rope.cu` has no room for a token's keys and values.
pub(super) fn pages(c: &ModelConfig, code: KvCode) -> Result<()> {
    let bytes = 2 * size_of::<u16>() * c.kv_heads * c.head_dim;
    match code {
        KvCode::Fp8 | KvCode::Int8 | KvCode::Int4 if bytes > FRESH_BYTES => {
            let format = KvCacheFormat::Coded(code);
            Err(Error::config(format!(
                "--kv-cache {format} does not run with --device cuda for many sequences at once, or \
                 with guessed tokens, where a token's keys and values of a layer take {bytes} bytes \
                 in bf16, at most {FRESH_BYTES}; leave it out, or run with --device cpu"
            )))
        }
        KvCode::Bf16 | KvCode::Fp8 | KvCode::Int8 | KvCode::Int4 => Ok(()),
    }
}

/// Refuses the kernel of one sequence over pages where that does not compute the model.
pub(super) fn alone(c: &ModelConfig, sms: usize) -> Result<()> {
    let beyond = super::family::beyond_one_kernel(c, sms);
    match beyond.is_empty() {
        true => Ok(()),
        false => Err(Error::config(format!(
            "this {} has {}, which the kernel of one sequence does not compute; leave out --fast-nondeterministic",
            c.architecture.name,
            beyond.join(", ")
        ))),
    }
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
        "a decode step needs {needed} bytes of shared memory, a block has {block}; convert with \
         larger groups or narrower scales (--group-size 128, --mbits 5), leave the largest matrix \
         unquantized (--target mlp or all), or run with --device cpu"
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn base() -> Value {
        json!({
            "vocab_size": 64, "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 6,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        })
    }

    fn refusal(keys: Value) -> Option<String> {
        let mut config = base();
        let map = config.as_object_mut().unwrap();
        map.extend(keys.as_object().unwrap().clone());
        let c = ModelConfig::from_json(config.to_string().as_bytes()).unwrap();
        check(&c, 132).err().map(|error| error.to_string())
    }

    /// The families' own sizes, but for heads that there are kernels for.
    fn family(model_type: &str) -> Value {
        json!({"model_type": model_type, "head_dim": 32})
    }

    #[test]
    fn what_the_kernels_do_not_compute_is_refused_with_the_remedy() {
        let with = |model_type: &str, key: &str, value: Value| {
            let mut keys = family(model_type);
            keys[key] = value;
            keys
        };
        let dynamic = json!({"type": "dynamic", "factor": 2.0});
        for (keys, words) in [
            (
                with("llama", "rope_scaling", dynamic.clone()),
                &["dynamic scaling", "beyond 64", "give --context 64"][..],
            ),
            (
                with("qwen3", "rope_scaling", dynamic),
                &["Qwen3ForCausalLM", "dynamic scaling"],
            ),
            (with("llama", "head_dim", 80.into()), &["heads of 80"]),
            (
                with("olmo2", "num_attention_heads", 256.into()),
                &["more than 256 heads"],
            ),
        ] {
            let shown = keys.to_string();
            let message = refusal(keys).unwrap_or_else(|| panic!("{shown} is taken"));
            for word in words.iter().chain(&["run with --device cpu"]) {
                assert!(message.contains(word), "{shown}: {message}");
            }
        }
    }

    /// Up to its own length a dynamic embedding is a plain one.
    #[test]
    fn a_dynamic_embedding_runs_as_far_as_it_does_not_change() {
        let mut config = base();
        config["model_type"] = "llama".into();
        config["rope_scaling"] = json!({"type": "dynamic", "factor": 2.0});
        let mut c = ModelConfig::from_json(config.to_string().as_bytes()).unwrap();
        assert_eq!(c.max_positions, 128);
        assert!(check(&c, 132).is_err());
        c.max_positions = 64;
        check(&c, 132).unwrap();
        assert_eq!(c.rope.grown_inv_freq(64), c.rope.inv_freq(false));
    }

    #[test]
    fn every_family_runs() {
        for architecture in &smq_model::architecture::ARCHITECTURES {
            let keys = family(architecture.model_type);
            assert_eq!(refusal(keys), None, "{}", architecture.name);
        }
        for keys in [
            json!({"model_type": "llama", "attention_bias": true, "mlp_bias": true}),
            json!({"model_type": "mistral", "sliding_window": 16, "head_dim": 64}),
            json!({"model_type": "llama", "rope_scaling": {"type": "yarn", "factor": 4.0}}),
            json!({"model_type": "granite", "head_dim": 64, "logits_scaling": 8.0}),
            json!({"model_type": "gemma3_text", "head_dim": 256}),
        ] {
            assert_eq!(refusal(keys.clone()), None, "{keys}");
        }
    }
}
