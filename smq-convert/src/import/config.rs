//! What config.json declares about the quantization, and whether we read that.

use std::path::Path;

use serde_json::{Value, json};
use smq_format::scheme::GROUP_RANGE;

use super::{REMEDY, refused};
use crate::error::ConvertError;

/// A quantization we read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Declared {
    pub(super) gptq: bool,
    /// Elements a group.
    pub(super) group: usize,
}

/// A value in config.json and how to get there; null where it is missing.
struct Key<'a> {
    path: &'a Path,
    name: String,
    value: &'a Value,
}

impl<'a> Key<'a> {
    fn get(&self, key: &str) -> Key<'a> {
        Key {
            path: self.path,
            name: format!("{}.{}", self.name, key.escape_debug()),
            value: self.value.get(key).unwrap_or(&Value::Null),
        }
    }

    fn refused(&self, supported: impl Into<String>, remedy: &'static str) -> ConvertError {
        let found = match self.value {
            Value::Null => format!("{} is missing", self.name),
            value => format!("{} is {value}", self.name),
        };
        refused(self.path, found, supported, remedy)
    }

    /// Refuses every value but these.
    fn one_of(
        &self,
        allowed: &[Value],
        supported: &str,
        remedy: &'static str,
    ) -> Result<(), ConvertError> {
        match allowed.contains(self.value) {
            true => Ok(()),
            false => Err(self.refused(supported, remedy)),
        }
    }

    /// Refuses everything but null, false and what is empty.
    fn absent(&self, supported: &str) -> Result<(), ConvertError> {
        match self.value {
            Value::Null | Value::Bool(false) => Ok(()),
            Value::Object(map) if map.is_empty() => Ok(()),
            Value::Array(list) if list.is_empty() => Ok(()),
            _ => Err(self.refused(supported, REMEDY)),
        }
    }

    fn group(&self) -> Result<usize, ConvertError> {
        let size = self.value.as_u64().and_then(|n| usize::try_from(n).ok());
        size.filter(|n| GROUP_RANGE.contains(n)).ok_or_else(|| {
            let (first, last) = (GROUP_RANGE.start(), GROUP_RANGE.end());
            self.refused(
                format!("only groups of {first} to {last} elements can be imported"),
                REMEDY,
            )
        })
    }
}

/// Checks the `quantization_config` of the config.json at `path`.
///
/// # Errors
/// The first key that says something other than symmetric int4 in groups of consecutive columns.
pub(super) fn declared(path: &Path, value: &Value) -> Result<Declared, ConvertError> {
    let root = Key {
        path,
        name: "quantization_config".to_owned(),
        value,
    };
    let method = root.get("quant_method");
    match method.value.as_str() {
        Some("compressed-tensors") => compressed_tensors(&root),
        Some("gptq") => gptq(&root),
        _ => Err(method.refused(
            "only \"compressed-tensors\" (pack-quantized) and \"gptq\" can be imported",
            REMEDY,
        )),
    }
}

fn compressed_tensors(root: &Key) -> Result<Declared, ConvertError> {
    const FORMAT: &str = "only \"pack-quantized\" can be imported";
    let pack = [json!("pack-quantized")];
    root.get("format").one_of(&pack, FORMAT, REMEDY)?;
    let sparsity = root.get("sparsity_config");
    sparsity.get("format").one_of(
        &[Value::Null, json!("dense")],
        "only dense weights can be imported",
        REMEDY,
    )?;
    root.get("kv_cache_scheme")
        .absent("only weights may be quantized")?;
    root.get("transform_config")
        .absent("only weights without transforms can be imported")?;
    let groups = root.get("config_groups");
    let names = groups.value.as_object().into_iter().flat_map(|m| m.keys());
    let mut group = None;
    for name in names {
        let scheme = groups.get(name);
        scheme
            .get("format")
            .one_of(&[Value::Null, pack[0].clone()], FORMAT, REMEDY)?;
        for activations in ["input_activations", "output_activations"] {
            scheme
                .get(activations)
                .absent("only weights may be quantized")?;
        }
        let weights = scheme.get("weights");
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
            "only symmetric integers can be imported, since a .smq file has no zero points",
            "quantize again with symmetric=true",
        )?;
        weights.get("strategy").one_of(
            &[json!("group")],
            "only \"group\" can be imported",
            REMEDY,
        )?;
        // "weight" (also "static") orders the columns while quantizing only; its groups are consecutive.
        weights.get("actorder").one_of(
            &[
                Value::Null,
                json!(false),
                json!("weight"),
                json!("static"),
            ],
            "only groups of consecutive columns can be imported, and activation order scatters them",
            "quantize again with actorder \"weight\" or none",
        )?;
        let size = weights.get("group_size");
        let elems = size.group()?;
        if group.is_some_and(|other| other != elems) {
            return Err(size.refused("only one group size can be imported", REMEDY));
        }
        group = Some(elems);
    }
    match group {
        Some(group) => Ok(Declared { gptq: false, group }),
        None => Err(groups.refused(
            "an object with the scheme of the int4 weights is needed",
            REMEDY,
        )),
    }
}

fn gptq(root: &Key) -> Result<Declared, ConvertError> {
    root.get("bits")
        .one_of(&[json!(4)], "only 4 can be imported", REMEDY)?;
    root.get("sym").one_of(
        &[Value::Null, json!(true)],
        "only symmetric integers can be imported, since a .smq file has no zero points",
        "quantize again with sym=true",
    )?;
    root.get("desc_act").one_of(
        &[Value::Null, json!(false)],
        "only groups of consecutive columns can be imported, and activation order scatters them",
        "quantize again with desc_act=false",
    )?;
    root.get("checkpoint_format").one_of(
        &[Value::Null, json!("gptq"), json!("gptq_v2")],
        "only \"gptq\" and \"gptq_v2\" can be imported",
        REMEDY,
    )?;
    root.get("is_marlin_format")
        .absent("only the layout of GPTQ itself can be imported")?;
    root.get("pack_dtype").one_of(
        &[Value::Null, json!("int32")],
        "only \"int32\" can be imported",
        REMEDY,
    )?;
    root.get("rotation")
        .absent("only weights without rotation can be imported")?;
    // An override that starts with "-:" leaves a module unquantized.
    let overrides = root.get("dynamic");
    let named = overrides.value.as_object();
    if named.is_none_or(|m| m.keys().any(|key| !key.starts_with("-:"))) {
        overrides.absent("only one scheme for all modules can be imported")?;
    }
    let group = root.get("group_size").group()?;
    Ok(Declared { gptq: true, group })
}
