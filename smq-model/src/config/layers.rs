//! What config.json says about single layers: how far back they see, and whether they rotate.

use serde_json::Value;

use super::keys::{Keys, Read};
use super::{MAX_LAYERS, MAX_POSITIONS, ModelConfig};
use crate::architecture::{Rotated, WindowRule, Windows};

const WINDOW: &str = "sliding_window";
const USES_WINDOW: &str = "use_sliding_window";
const TYPES: &str = "layer_types";

/// How far back the layers of `c` see.
pub(super) fn windows(keys: Keys<'_>, c: &mut ModelConfig) -> Read<Windows> {
    let name = c.architecture.name;
    match c.architecture.windows {
        WindowRule::EveryLayer => {
            let window = window(keys, c)?;
            if let (Some(window), Some(Value::Bool(false))) = (window, keys.get(USES_WINDOW)) {
                c.notes.push(format!(
                    "config.json's {USES_WINDOW} is false, which {name} does not read in \
                     transformers either: its {WINDOW} of {window} is used"
                ));
            }
            let (allowed, why): (&[&str], _) = match window {
                None => (
                    &["full_attention", "attention"],
                    "every layer sees all positions",
                ),
                Some(_) => (&["sliding_attention"], "every layer has the sliding_window"),
            };
            alike(keys, c.layers, allowed, why)?;
            Ok(Windows::Alike(window))
        }
        WindowRule::Never => {
            // transformers would cut the cache to the window, and the attention of a prompt not.
            if let Some(window) = keys.given(WINDOW) {
                return Err(format!(
                    "{WINDOW} is {window}, but {name} has no sliding window; set it to null"
                ));
            }
            let allowed = &["full_attention", "attention"];
            alike(keys, c.layers, allowed, "every layer sees all positions")?;
            Ok(Windows::Alike(None))
        }
        WindowRule::FromLayer => {
            let uses = keys.flag(USES_WINDOW)?.unwrap_or(false);
            // Checked though it may not be used, as transformers does.
            let window = window(keys, c)?.filter(|_| uses);
            let first = keys.index("max_window_layers", MAX_LAYERS)?.unwrap_or(28);
            by_type(keys, c, window, |layer| window.is_some() && layer >= first)
        }
        WindowRule::Periodic { period, key } => {
            let given = key.map(|key| keys.size(key, MAX_LAYERS)).transpose()?;
            let period = given.flatten().unwrap_or(period);
            let window = window(keys, c)?;
            by_type(keys, c, window, |layer| !(layer + 1).is_multiple_of(period))
        }
        WindowRule::NotRotated => {
            let uses = keys.flag(USES_WINDOW)?.unwrap_or(false);
            let window = window(keys, c)?;
            let rotated = rotated(keys, c)?;
            by_type(keys, c, window, |layer| {
                uses && window.is_some() && !rotated[layer]
            })
        }
    }
}

/// Which layers of `c` rotate.
pub(super) fn rotated(keys: Keys<'_>, c: &ModelConfig) -> Read<Vec<bool>> {
    const LIST: &str = "no_rope_layers";
    match c.architecture.rope.rotated {
        Rotated::EveryLayer | Rotated::ByWindow { .. } => return Ok(vec![true; c.layers]),
        Rotated::Listed => {}
    }
    let Some(list) = keys.given(LIST) else {
        let interval = keys.size("no_rope_layer_interval", MAX_LAYERS)?;
        let interval = interval.unwrap_or(4);
        let rotates = |layer: usize| !(layer + 1).is_multiple_of(interval);
        return Ok((0..c.layers).map(rotates).collect());
    };
    let numbers = list
        .as_array()
        .map(|list| list.iter().map(Value::as_i64).collect());
    let numbers: Option<Vec<i64>> = numbers.flatten();
    match numbers.filter(|numbers| numbers.len() >= c.layers) {
        Some(numbers) => Ok(numbers.iter().take(c.layers).map(|n| *n != 0).collect()),
        None => Err(format!(
            "{LIST} is {list}, expected 0 or 1 for each of {} layers, or null",
            c.layers
        )),
    }
}

/// `sliding_window`, or what stands for it where it is absent; null is none.
fn window(keys: Keys<'_>, c: &ModelConfig) -> Read<Option<usize>> {
    match keys.get(WINDOW) {
        None => Ok(c.architecture.defaults.sliding_window),
        Some(_) => keys.size_or_null(WINDOW, MAX_POSITIONS),
    }
}

/// By `layer_types`, or where there is none by `rule`, which says whether a layer has the window.
fn by_type(
    keys: Keys<'_>,
    c: &ModelConfig,
    window: Option<usize>,
    rule: impl Fn(usize) -> bool,
) -> Read<Windows> {
    let (windowed, by): (Vec<bool>, _) = match keys.given(TYPES) {
        Some(list) => (types(list, c.layers)?, TYPES),
        None => ((0..c.layers).map(rule).collect(), c.architecture.name),
    };
    if window.is_none()
        && let Some(layer) = windowed.iter().position(|windowed| *windowed)
    {
        return Err(format!(
            "layer {layer} has a sliding window by {by}, but {WINDOW} or {USES_WINDOW} says that \
             there is none; transformers fails with that"
        ));
    }
    let of = |windowed: &bool| window.filter(|_| *windowed);
    Ok(Windows::of(windowed.iter().map(of).collect()))
}

/// Whether each layer has the window.
fn types(list: &Value, layers: usize) -> Read<Vec<bool>> {
    let kind = |kind: &Value| match kind.as_str() {
        Some("sliding_attention") => Some(true),
        Some("full_attention" | "attention") => Some(false),
        Some(_) | None => None,
    };
    let kinds = list.as_array().map(|list| list.iter().map(kind).collect());
    let kinds: Option<Vec<bool>> = kinds.flatten();
    kinds.filter(|kinds| kinds.len() == layers).ok_or_else(|| {
        format!(
            "{TYPES} is {list}, expected \"sliding_attention\" or \"full_attention\" for each of \
             {layers} layers, or null"
        )
    })
}

/// Refuses layers of another type than those that are `allowed`.
fn alike(keys: Keys<'_>, layers: usize, allowed: &[&str], why: &str) -> Read<()> {
    let all_allowed = |value: &Value| {
        let list = value.as_array();
        list.is_some_and(|list| {
            let known = |kind: &Value| kind.as_str().is_some_and(|kind| allowed.contains(&kind));
            list.len() == layers && list.iter().all(known)
        })
    };
    match keys.given(TYPES) {
        Some(value) if !all_allowed(value) => Err(format!(
            "{TYPES} is {value}, but {why} in this architecture; expected {:?} for each of \
             {layers} layers, or null",
            allowed[0]
        )),
        _ => Ok(()),
    }
}
