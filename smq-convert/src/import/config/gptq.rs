//! The keys of GPTQ, and those of AutoRound for the same tensors.

use serde_json::{Value, json};

use super::{CONSECUTIVE, Declared, Key, ONE_SCHEME, Packing, SYMMETRIC};
use crate::error::ConvertError;
use crate::import::REMEDY;

const BITS: &str = "only 4 can be imported";
const ROTATION: &str = "only weights without rotation can be imported";
const QUANTIZE_SYMMETRIC: &str = "quantize again with sym=true";
/// What AutoRound calls the layout of GPTQ's tensors; null is `auto_round:gptq`, as transformers
/// has it.
const PACKING_FORMATS: [&str; 5] = [
    "auto_round",
    "auto_round:auto_gptq",
    "auto_round:exllamav2",
    "auto_round:gptq",
    "auto_round:gptqmodel",
];

pub(super) fn declared(root: &Key) -> Result<Declared, ConvertError> {
    root.get("bits").one_of(&[json!(4)], BITS, REMEDY)?;
    root.get("sym")
        .one_of(&[Value::Null, json!(true)], SYMMETRIC, QUANTIZE_SYMMETRIC)?;
    root.get("desc_act").one_of(
        &[Value::Null, json!(false)],
        CONSECUTIVE,
        "quantize again with desc_act=false",
    )?;
    let mut version = None;
    // Its older and its newer name.
    for key in ["checkpoint_format", "format"] {
        let format = root.get(key);
        let stored_zero = match format.value.as_str() {
            Some("gptq") => 7,
            Some("gptq_v2") => 8,
            None if format.value.is_null() => continue,
            _ => {
                let only = "only \"gptq\" and \"gptq_v2\" can be imported";
                return Err(format.refused(only, REMEDY));
            }
        };
        if version.is_some_and(|other| other != stored_zero) {
            let other = "checkpoint_format says another";
            return Err(format.refused(other, "remove the one of the two that is wrong"));
        }
        version = Some(stored_zero);
    }
    root.get("is_marlin_format")
        .absent("only the layout of GPTQ itself can be imported")?;
    root.get("pack_dtype").one_of(
        &[Value::Null, json!("int32")],
        "only \"int32\" can be imported",
        REMEDY,
    )?;
    root.get("rotation").absent(ROTATION)?;
    // An override that starts with "-:" leaves a module unquantized.
    let overrides = root.get("dynamic");
    let named = overrides.value.as_object();
    if named.is_none_or(|m| m.keys().any(|key| !key.starts_with("-:"))) {
        overrides.absent("only one scheme for all modules can be imported")?;
    }
    Ok(Declared {
        packing: Packing::Gptq {
            stored_zero: version,
        },
        grouping: root.get("group_size").grouping()?,
    })
}

pub(super) fn auto_round(root: &Key) -> Result<Declared, ConvertError> {
    let mut formats = vec![Value::Null];
    formats.extend(PACKING_FORMATS.map(|format| json!(format)));
    root.get("packing_format").one_of(
        &formats,
        "only GPTQ's layout of int4 (\"auto_round:auto_gptq\" and the like) can be imported",
        REMEDY,
    )?;
    root.get("bits").one_of(&[json!(4)], BITS, REMEDY)?;
    let grouping = root.get("group_size").grouping()?;
    scheme(root)?;
    root.get("rotation_config").absent(ROTATION)?;
    for (_, module) in root.get("extra_config").entries() {
        let bits = module.get("bits");
        // What has 16 bits is not quantized, whatever else is said of it.
        if bits.value.as_u64().is_some_and(|bits| bits >= 16) {
            continue;
        }
        bits.one_of(&[Value::Null, json!(4)], BITS, REMEDY)?;
        scheme(&module)?;
        let size = module.get("group_size");
        if !size.value.is_null() && size.grouping()? != grouping {
            return Err(size.refused(ONE_SCHEME, REMEDY));
        }
    }
    Ok(Declared {
        packing: Packing::AutoRound,
        grouping,
    })
}

/// What a scheme of AutoRound's says beside bits and groups.
fn scheme(of: &Key) -> Result<(), ConvertError> {
    of.get("sym")
        .one_of(&[Value::Null, json!(true)], SYMMETRIC, QUANTIZE_SYMMETRIC)?;
    of.get("data_type").one_of(
        &[Value::Null, json!("int"), json!("int_sym")],
        "only \"int\" can be imported",
        REMEDY,
    )?;
    let activations = of.get("act_bits");
    match activations.value.as_u64() {
        Some(16..) => Ok(()),
        _ => activations.absent("only weights may be quantized"),
    }?;
    of.get("super_bits")
        .absent("only scales that are not quantized themselves can be imported")
}
