//! What config.json declares about the quantization, and whether we read that.

mod compressed_tensors;
mod gptq;

use std::path::Path;

use serde_json::{Value, json};
use smq_format::scheme::GROUP_RANGE;

use super::{Grouping, REMEDY, refused};
use crate::error::ConvertError;

const SYMMETRIC: &str =
    "only symmetric integers can be imported, since a .smq file has no zero points";
const CONSECUTIVE: &str =
    "only groups of consecutive columns can be imported, and activation order scatters them";
const ONE_SCHEME: &str = "only one scheme for all int4 tensors can be imported";

/// A quantization we read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Declared {
    pub(super) packing: Packing,
    pub(super) grouping: Grouping,
}

/// Which tensors make an int4 tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    /// As compressed-tensors packs them (`pack-quantized`).
    CompressedTensors,
    /// GPTQ's, and as which number the version that is declared stores the zero point 8.
    Gptq { stored_zero: Option<u8> },
    /// GPTQ's as AutoRound writes them, whose versions store 7 or 8.
    AutoRound,
}

impl Packing {
    /// The name that `quant_method` has for it.
    pub(super) fn method(self) -> &'static str {
        match self {
            Packing::CompressedTensors => "compressed-tensors",
            Packing::Gptq { .. } => "gptq",
            Packing::AutoRound => "auto-round",
        }
    }
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

    /// The entries of an object; none of another value.
    fn entries(&self) -> impl Iterator<Item = (&'a str, Key<'a>)> {
        let keys = self
            .value
            .as_object()
            .into_iter()
            .flat_map(|map| map.keys());
        keys.map(|key| (key.as_str(), self.get(key)))
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

    /// A number of elements, or -1 for a whole row.
    fn grouping(&self) -> Result<Grouping, ConvertError> {
        if *self.value == json!(-1) {
            return Ok(Grouping::Row);
        }
        let size = self.value.as_u64().and_then(|n| usize::try_from(n).ok());
        let size = size.filter(|n| GROUP_RANGE.contains(n));
        size.map(Grouping::Runs).ok_or_else(|| {
            let (first, last) = (GROUP_RANGE.start(), GROUP_RANGE.end());
            self.refused(
                format!(
                    "only groups of {first} to {last} elements, or -1 for a whole row, can be \
                     imported"
                ),
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
        Some("compressed-tensors") => compressed_tensors::declared(&root),
        Some("gptq") => gptq::declared(&root),
        Some("auto-round" | "intel/auto-round") => gptq::auto_round(&root),
        _ => Err(method.refused(
            "only symmetric int4 of \"compressed-tensors\" (pack-quantized), \"gptq\" and \
             \"auto-round\" can be imported",
            REMEDY,
        )),
    }
}
