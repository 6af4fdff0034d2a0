//! The keys of compressed-tensors, as its `QuantizationConfig` reads them.

use serde_json::{Value, json};

use super::{CONSECUTIVE, Declared, Key, ONE_SCHEME, Packing, SYMMETRIC};
use crate::error::ConvertError;
use crate::import::{Grouping, REMEDY};

const FORMAT: &str = "only \"pack-quantized\" can be imported";
const ONLY_WEIGHTS: &str = "only weights may be quantized";
/// The preset that is int4 weights, symmetric, in groups of 128.
const PRESET: &str = "W4A16";

pub(super) fn declared(root: &Key) -> Result<Declared, ConvertError> {
    let pack = json!("pack-quantized");
    root.get("format")
        .one_of(std::slice::from_ref(&pack), FORMAT, REMEDY)?;
    root.get("sparsity_config").get("format").one_of(
        &[Value::Null, json!("dense")],
        "only dense weights can be imported",
        REMEDY,
    )?;
    root.get("kv_cache_scheme").absent(ONLY_WEIGHTS)?;
    root.get("transform_config")
        .absent("only weights without transforms can be imported")?;
    let groups = root.get("config_groups");
    let mut found = None;
    for (name, scheme) in groups.entries() {
        let (size, grouping) = match scheme.value {
            // A preset's name, and the modules that have it.
            Value::Array(_) if name.eq_ignore_ascii_case(PRESET) => (scheme, Grouping::Runs(128)),
            Value::Array(_) => {
                let only = format!("of the presets only {PRESET:?} can be imported");
                return Err(scheme.refused(only, REMEDY));
            }
            _ => {
                scheme
                    .get("format")
                    .one_of(&[Value::Null, pack.clone()], FORMAT, REMEDY)?;
                for activations in ["input_activations", "output_activations"] {
                    scheme.get(activations).absent(ONLY_WEIGHTS)?;
                }
                weights(&scheme.get("weights"))?
            }
        };
        if found.is_some_and(|other| other != grouping) {
            return Err(size.refused(ONE_SCHEME, REMEDY));
        }
        found = Some(grouping);
    }
    let packing = Packing::CompressedTensors;
    match found {
        Some(grouping) => Ok(Declared { packing, grouping }),
        None => Err(groups.refused(
            "an object with the scheme of the int4 weights is needed",
            REMEDY,
        )),
    }
}

/// The key that decides the groups, and the groups.
fn weights<'a>(weights: &Key<'a>) -> Result<(Key<'a>, Grouping), ConvertError> {
    weights
        .get("num_bits")
        .one_of(&[json!(4)], "only 4 can be imported", REMEDY)?;
    weights.get("type").one_of(
        &[Value::Null, json!("int")],
        "only \"int\" can be imported",
        REMEDY,
    )?;
    weights.get("symmetric").one_of(
        &[Value::Null, json!(true)],
        SYMMETRIC,
        "quantize again with symmetric=true",
    )?;
    // "weight" (also "static") orders the columns while quantizing only; its groups are
    // consecutive.
    weights.get("actorder").one_of(
        &[Value::Null, json!(false), json!("weight"), json!("static")],
        CONSECUTIVE,
        "quantize again with actorder \"weight\" or none",
    )?;
    let (strategy, size) = (weights.get("strategy"), weights.get("group_size"));
    match strategy.value.as_str() {
        Some("channel") => {
            size.one_of(
                &[Value::Null, json!(-1)],
                "strategy \"channel\" has one group a row",
                REMEDY,
            )?;
            Ok((strategy, Grouping::Row))
        }
        Some("group") => match size.grouping()? {
            Grouping::Row => Err(size.refused("strategy \"group\" needs a size", REMEDY)),
            runs @ Grouping::Runs(_) => Ok((size, runs)),
        },
        // Where only the size is given, it decides: none is one scale for the whole tensor.
        None if strategy.value.is_null() && !size.value.is_null() => {
            let grouping = size.grouping()?;
            Ok((size, grouping))
        }
        _ => Err(strategy.refused("only \"group\" and \"channel\" can be imported", REMEDY)),
    }
}
