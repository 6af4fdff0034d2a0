//! config.json: sizes, rotary embedding and refusals.

use serde_json::Value;
use smq_model::architecture::{Activation, Multipliers, Rotations, SoftCaps};
use smq_model::{ModelConfig, RopeConfig, RopeScaling, Source, Tables};

use super::cases::{Case, Cases};

/// f32 arithmetic of one machine against another's: a few units in the last place of a power.
const RELATIVE: f64 = 1e-6;

#[test]
fn a_config_is_what_transformers_makes_of_it() {
    Cases::read("config").check(check);
}

fn check(case: &Case<'_>) -> Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    case.write_checkpoint(dir.path());
    let config = match Source::open(dir.path()).and_then(|source| ModelConfig::of(&source)) {
        Ok(config) => config,
        Err(e) => return case.refused(&e.to_string()),
    };
    case.taken()?;
    let expected = &case.value["effective"];
    if expected.is_null() {
        return Ok(());
    }
    let class = expected["class"].as_str().unwrap();
    equal("class", class, config.architecture.name)?;
    for (key, value) in [
        ("hidden", config.hidden),
        ("intermediate", config.intermediate),
        ("layers", config.layers),
        ("heads", config.heads),
        ("kv_heads", config.kv_heads),
        ("head_dim", config.head_dim),
        ("vocab", config.vocab),
    ] {
        equal(key, &expected[key], &Value::from(value))?;
    }
    let tied = Value::from(config.tables == Tables::Embedding);
    // The checkpoint of these tests has a head of its own, which decides.
    if config.notes.is_empty() {
        equal("tied", &expected["tied"], &tied)?;
    }
    let activation = expected["activation"].as_str().and_then(Activation::named);
    equal("the activation", &activation, &Some(config.activation))?;
    let positions = expected["max_positions"].as_u64().unwrap() as usize;
    match config.rope.scaling {
        // transformers names no limit of theirs, and ours follows from the factor.
        RopeScaling::Dynamic { .. } | RopeScaling::Yarn { .. } => {
            equal(
                "a context of the least",
                &(config.max_positions >= positions),
                &true,
            )?;
        }
        RopeScaling::None
        | RopeScaling::Linear { .. }
        | RopeScaling::Llama3 { .. }
        | RopeScaling::LongRope { .. } => {
            equal("max_positions", &positions, &config.max_positions)?;
        }
    }
    near(
        "rms_norm_eps",
        &expected["rms_norm_eps"],
        f64::from(config.rms_norm_eps),
    )?;
    check_layers(expected, &config)?;
    // A family with two embeddings may have layers of one kind alone.
    let windowed = match &config.rotations {
        Rotations::Windowed(windowed) => windowed,
        Rotations::Alike | Rotations::Listed(_) => &config.rope,
    };
    check_rope(expected, "", &config.rope)?;
    check_rope(expected, "_windowed", windowed)
}

/// What layers have, and what is between them.
fn check_layers(expected: &Value, config: &ModelConfig) -> Result<(), String> {
    let windows: Vec<_> = (0..config.layers)
        .map(|i| Value::from(config.windows.layer(i)))
        .collect();
    let none = vec![Value::Null; config.layers];
    let expected_windows = expected["windows"].as_array().unwrap_or(&none);
    equal("windows", expected_windows, &windows)?;
    if let Some(rotated) = expected["rotated"]
        .as_array()
        .filter(|list| !list.is_empty())
    {
        let found: Vec<_> = (0..config.layers)
            .map(|i| Value::from(config.rope_of(i).is_some()))
            .collect();
        equal("rotated", &rotated[..config.layers], &found)?;
    }
    let b = config.biases;
    equal(
        "biases",
        &expected["layer"],
        &Value::from(vec![b.qkv, b.o, b.mlp]),
    )?;
    let Multipliers {
        embedding,
        scores,
        residual,
        logits_divisor,
    } = config.multipliers;
    all_near(
        "multipliers",
        &expected["multipliers"],
        &[embedding, scores, residual, logits_divisor],
    )?;
    let SoftCaps { scores, logits } = config.soft_caps;
    let caps = [scores, logits].map(|cap| cap.map(f64::from));
    equal(
        "soft_caps",
        &expected["soft_caps"],
        &Value::from(caps.to_vec()),
    )
}

/// One rotary embedding, where transformers has it.
fn check_rope(expected: &Value, suffix: &str, rope: &RopeConfig) -> Result<(), String> {
    let key = |name: &str| format!("{name}{suffix}");
    if expected[key("inv_freq")].is_null() {
        return Ok(());
    }
    let theta = f64::from(rope.theta);
    near("rope_theta", &expected[key("rope_theta")], theta)?;
    let factor = f64::from(rope.attention_factor());
    near(
        "attention_scaling",
        &expected[key("attention_scaling")],
        factor,
    )?;
    all_near(
        "inv_freq",
        &expected[key("inv_freq")],
        &rope.inv_freq(false),
    )?;
    if let RopeScaling::LongRope {
        original_positions, ..
    } = rope.scaling
    {
        let original = Value::from(original_positions);
        equal(
            "original_positions",
            &expected["original_positions"],
            &original,
        )?;
        all_near(
            "inv_freq_long",
            &expected["inv_freq_long"],
            &rope.inv_freq(true),
        )?;
    }
    Ok(())
}

fn equal<T: PartialEq + std::fmt::Debug + ?Sized>(
    what: &str,
    expected: &T,
    found: &T,
) -> Result<(), String> {
    match expected == found {
        true => Ok(()),
        false => Err(format!(
            "{what} is {found:?}, transformers has {expected:?}"
        )),
    }
}

fn near(what: &str, expected: &Value, found: f64) -> Result<(), String> {
    let expected = expected.as_f64().ok_or(format!("no {what} was recorded"))?;
    match (found - expected).abs() <= RELATIVE * expected.abs() {
        true => Ok(()),
        false => Err(format!("{what} is {found}, transformers has {expected}")),
    }
}

fn all_near(what: &str, expected: &Value, found: &[f32]) -> Result<(), String> {
    let list = expected
        .as_array()
        .ok_or(format!("no {what} was recorded"))?;
    equal(&format!("the length of {what}"), &list.len(), &found.len())?;
    let mut pairs = list.iter().zip(found);
    pairs.try_for_each(|(expected, found)| near(what, expected, f64::from(*found)))
}
