//! What vLLM loads as one module has to have one scheme.

use std::collections::BTreeMap;

use smq_format::{SmqFile, TensorView};

use crate::error::ConvertError;
use crate::products::product;
use crate::target::Kinds;

/// Refuses a file in which only some of the matrices are quantized that vLLM loads as one: q, k and
/// v, gate and up, or the experts of a layer.
///
/// # Errors
/// The names of all such matrices.
pub(super) fn check_alike(file: &SmqFile) -> Result<(), ConvertError> {
    let mut modules: BTreeMap<String, Vec<TensorView>> = BTreeMap::new();
    for view in file.tensors().filter(|view| view.shape().len() == 2) {
        if view.name().ends_with(".weight") {
            modules.entry(fused(view.name())).or_default().push(view);
        }
    }
    let (mut quantized, mut left) = (Kinds::default(), Kinds::default());
    for members in modules.values() {
        let is_quantized = |view: &TensorView| view.scheme().is_quantized();
        let count = members.iter().filter(|view| is_quantized(view)).count();
        if count == 0 || count == members.len() {
            continue;
        }
        for view in members {
            match is_quantized(view) {
                true => quantized.add(view.name()),
                false => left.add(view.name()),
            }
        }
    }
    if left.is_empty() {
        return Ok(());
    }
    Err(ConvertError::Export {
        path: file.path().to_path_buf(),
        problem: format!(
            "vLLM loads q, k and v, gate and up, and the experts of a layer as one module each, \
             which must have one scheme, but {quantized} are quantized and not {left}; convert \
             the checkpoint again with a --target that takes all of these or none"
        ),
    })
}

/// What stands for the module that vLLM makes of a tensor's.
fn fused(name: &str) -> String {
    let parts: Vec<&str> = name.split('.').collect();
    let expert = parts.windows(2).position(|pair| {
        pair[0] == "experts" && pair[1].bytes().all(|digit| digit.is_ascii_digit())
    });
    match expert {
        Some(at) => parts[..=at].join("."),
        None => product(name),
    }
}
