//! config.json: sizes, rotary embedding and refusals.

use serde_json::Value;
use smq_model::architecture::{Activation, Windows};
use smq_model::{ModelConfig, RopeScaling, Source, Tables};

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
        ("max_positions", config.max_positions),
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
    let Windows::Alike(window) = config.windows;
    equal(
        "sliding_window",
        &expected["sliding_window"],
        &Value::from(window),
    )?;
    near(
        "rms_norm_eps",
        &expected["rms_norm_eps"],
        f64::from(config.rms_norm_eps),
    )?;
    near(
        "rope_theta",
        &expected["rope_theta"],
        f64::from(config.rope.theta),
    )?;
    let factor = f64::from(config.rope.attention_factor());
    near("attention_scaling", &expected["attention_scaling"], factor)?;
    all_near(
        "inv_freq",
        &expected["inv_freq"],
        &config.rope.inv_freq(false),
    )?;
    if let RopeScaling::LongRope {
        original_positions, ..
    } = config.rope.scaling
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
            &config.rope.inv_freq(true),
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
