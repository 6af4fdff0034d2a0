//! What config.json says about rotary embedding, with the precedence of transformers 5.24
//! (`modeling_rope_utils.py`, `configuration_phi3.py`).

use serde_json::{Map, Value};

use super::MAX_POSITIONS;
use super::keys::{Keys, Read};
use crate::architecture::{ARCHITECTURES, Architecture, RopeKind};
use crate::rope::{RopeConfig, RopeScaling};

const ORIGINAL: &str = "original_max_position_embeddings";
const PARTIAL: &str = "partial_rotary_factor";

/// Reads it for heads of `head_dim` elements and sequences of up to `max_positions`. What is
/// ignored, as transformers ignores it, is said in `notes`.
pub(super) fn read(
    outside: Keys<'_>,
    architecture: &Architecture,
    head_dim: usize,
    max_positions: usize,
    notes: &mut Vec<String>,
) -> Read<RopeConfig> {
    let empty = Map::new();
    let inside = dictionary(outside, &empty, notes)?;
    if let Some((key, _)) = inside.iter().find(|(_, value)| value.is_object()) {
        return Err(format!(
            "{} is an object; rotary embedding by kind of layer is not supported",
            inside.name(key)
        ));
    }
    let mut rope = Reader {
        outside,
        inside,
        notes,
    };
    let (name, kind) = rope.kind(architecture)?;
    let theta = rope.theta()?.unwrap_or(architecture.defaults.rope_theta);
    if !(theta > 0.0 && theta.is_finite()) {
        return Err(format!("rope_theta is {theta}, expected a positive number"));
    }
    let rotary_dim = match architecture.rope.partial {
        true => rope.rotary_dim(head_dim)?,
        false => {
            rope.whole_head(&name, kind)?;
            head_dim
        }
    };
    if rotary_dim == 0 || !rotary_dim.is_multiple_of(2) {
        return Err(format!(
            "the rotary part of a head has {rotary_dim} elements, expected an even number"
        ));
    }
    let scaling = match kind {
        RopeKind::Plain => RopeScaling::None,
        RopeKind::Linear => RopeScaling::Linear {
            factor: rope.factor()? as f32,
        },
        RopeKind::Llama3 => {
            let original = rope.original(architecture, max_positions)?;
            rope.llama3(original)?
        }
        RopeKind::LongRope => {
            let original = rope.original(architecture, max_positions)?;
            rope.long_rope(original, max_positions, rotary_dim / 2)?
        }
    };
    rope.note_unread(&name, kind);
    Ok(RopeConfig {
        theta: theta as f32,
        rotary_dim,
        scaling,
    })
}

/// `rope_scaling` (until transformers 4), which goes before `rope_parameters` (from 5 on) where it
/// is there and not empty.
fn dictionary<'a>(
    keys: Keys<'a>,
    empty: &'a Map<String, Value>,
    notes: &mut Vec<String>,
) -> Read<Keys<'a>> {
    let object = |key: &'static str| match keys.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(map)) if map.is_empty() => Ok(None),
        Some(Value::Object(map)) => Ok(Some((key, map))),
        Some(other) => Err(format!("{key} is {other}, expected an object or null")),
    };
    let (old, new) = (object("rope_scaling")?, object("rope_parameters")?);
    if let (Some((_, old)), Some((_, new))) = (old, new)
        && old != new
    {
        notes.push(
            "config.json has rope_scaling and rope_parameters, which differ; rope_scaling alone is used, as in \
             transformers"
                .to_owned(),
        );
    }
    let (name, map) = old.or(new).unwrap_or(("rope_parameters", empty));
    Ok(Keys::new(map, name))
}

struct Reader<'a, 'n> {
    /// config.json itself.
    outside: Keys<'a>,
    /// `rope_scaling` or `rope_parameters`.
    inside: Keys<'a>,
    notes: &'n mut Vec<String>,
}

impl Reader<'_, '_> {
    /// The name in config.json and what it means.
    fn kind(&mut self, architecture: &Architecture) -> Read<(String, RopeKind)> {
        let (new, old) = (self.inside.text("rope_type")?, self.inside.text("type")?);
        if let (Some(new), Some(old)) = (new, old) {
            self.note_disagreement(new != old, "rope_type", new, "type", old);
        }
        let name = new.or(old).unwrap_or("default");
        let key = self
            .inside
            .name(if new.is_some() { "rope_type" } else { "type" });
        let kind = architecture.rope.kinds.iter().find(|(n, _)| *n == name);
        match kind {
            Some((_, kind)) => Ok((name.to_owned(), *kind)),
            None => Err(format!(
                "{key} is {name:?}, with which {} does not run; what runs is {}",
                architecture.name,
                supported_kinds()
            )),
        }
    }

    fn theta(&mut self) -> Read<Option<f64>> {
        let (inside, outside) = (
            self.inside.number("rope_theta")?,
            self.outside.number("rope_theta")?,
        );
        if let (Some(inside), Some(outside)) = (inside, outside) {
            let name = self.inside.name("rope_theta");
            self.note_disagreement(inside != outside, &name, inside, "rope_theta", outside);
        }
        Ok(inside.or(outside))
    }

    /// Leading elements of a head that are rotated, of a family that reads it.
    fn rotary_dim(&mut self, head_dim: usize) -> Read<usize> {
        let (inside, outside) = (self.inside.number(PARTIAL)?, self.outside.number(PARTIAL)?);
        if let (Some(inside), Some(outside)) = (inside, outside) {
            let name = self.inside.name(PARTIAL);
            self.note_disagreement(inside != outside, &name, inside, PARTIAL, outside);
        }
        let partial = inside.or(outside).unwrap_or(1.0);
        if !(partial > 0.0 && partial <= 1.0) {
            return Err(format!(
                "{PARTIAL} is {partial}, expected more than 0 and at most 1"
            ));
        }
        Ok((head_dim as f64 * partial) as usize)
    }

    /// For a family that rotates whole heads: transformers does not read the factor without
    /// scaling, and with scaling it stops at the frequencies that are missing.
    fn whole_head(&mut self, name: &str, kind: RopeKind) -> Read<()> {
        let given =
            [self.inside, self.outside].map(|keys| (keys.name(PARTIAL), keys.given(PARTIAL)));
        for (key, value) in given {
            let Some(value) = value.filter(|value| value.as_f64() != Some(1.0)) else {
                continue;
            };
            match kind {
                RopeKind::Plain => self.notes.push(format!(
                    "config.json's {key} is {value}, which this architecture does not read in transformers either: \
                     whole heads are rotated"
                )),
                RopeKind::Linear | RopeKind::Llama3 | RopeKind::LongRope => {
                    return Err(format!(
                        "{key} is {value}, but this architecture rotates whole heads, and transformers fails with a \
                         part of them and rope_type {name:?}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// The context of the first training: the one outside goes before the one inside.
    fn original(&mut self, architecture: &Architecture, max_positions: usize) -> Read<usize> {
        let outside = self.outside.size(ORIGINAL, MAX_POSITIONS)?;
        let default = architecture.defaults.original_max_position_embeddings;
        let Some(used) = outside.or(default) else {
            let inside = self.inside.size(ORIGINAL, MAX_POSITIONS)?;
            return Ok(inside.unwrap_or(max_positions));
        };
        let inside = self.inside.given(ORIGINAL);
        if let Some(inside) = inside.filter(|value| value.as_u64() != Some(used as u64)) {
            let why = match outside {
                Some(_) => format!("the one outside of it, {used}, goes first"),
                None => format!(
                    "{} reads the one outside of it, which is absent and so {used}",
                    architecture.name
                ),
            };
            self.notes.push(format!(
                "config.json's {} is {inside}, but {why}, as in transformers",
                self.inside.name(ORIGINAL)
            ));
        }
        Ok(used)
    }

    fn factor(&self) -> Read<f64> {
        let name = self.inside.name("factor");
        match self.inside.number("factor")? {
            Some(f) if f > 0.0 && f.is_finite() => Ok(f),
            Some(f) => Err(format!("{name} is {f}, expected a positive number")),
            None => Err(format!("{name} is missing, expected a positive number")),
        }
    }

    fn llama3(&self, original_positions: usize) -> Read<RopeScaling> {
        let factor = self.factor()? as f32;
        let number = |key| {
            let value = self.inside.number(key)?;
            value.ok_or_else(|| format!("{} is missing, expected a number", self.inside.name(key)))
        };
        let (low_freq, high_freq) = (number("low_freq_factor")?, number("high_freq_factor")?);
        if !(low_freq > 0.0 && high_freq > low_freq && high_freq.is_finite()) {
            return Err(format!(
                "{} is {low_freq} and high_freq_factor {high_freq}, expected positive numbers, the second the larger",
                self.inside.name("low_freq_factor")
            ));
        }
        Ok(RopeScaling::Llama3 {
            factor,
            low_freq,
            high_freq,
            original_positions,
        })
    }

    /// `half`: frequencies of a head.
    fn long_rope(
        &self,
        original_positions: usize,
        max_positions: usize,
        half: usize,
    ) -> Read<RopeScaling> {
        if original_positions < 2 {
            return Err(format!(
                "{ORIGINAL} is {original_positions}, expected at least 2"
            ));
        }
        let original = original_positions as f64;
        let factor = self.inside.number_or_null("factor")?;
        let ratio = factor.unwrap_or(max_positions as f64 / original);
        let given = self.inside.number_or_null("attention_factor")?;
        let attention_factor = given.unwrap_or(if ratio <= 1.0 {
            1.0
        } else {
            (1.0 + ratio.ln() / original.ln()).sqrt()
        });
        Ok(RopeScaling::LongRope {
            short: self.factors("short_factor", half)?,
            long: self.factors("long_factor", half)?,
            original_positions,
            attention_factor: attention_factor as f32,
        })
    }

    fn factors(&self, key: &str, half: usize) -> Read<Vec<f32>> {
        let name = self.inside.name(key);
        let expected = format!("expected {half} positive numbers, half the rotary part of a head");
        let list = match self.inside.get(key) {
            None => return Err(format!("{name} is missing, {expected}")),
            Some(Value::Array(list)) => list,
            Some(other) => return Err(format!("{name} is {other}, {expected}")),
        };
        if list.len() != half {
            return Err(format!("{name} has {} values, {expected}", list.len()));
        }
        let positive = |value: &Value| value.as_f64().filter(|f| *f > 0.0 && f.is_finite());
        match list.iter().find(|value| positive(value).is_none()) {
            Some(value) => Err(format!("{name} holds {value}, {expected}")),
            None => Ok(list.iter().filter_map(positive).map(|f| f as f32).collect()),
        }
    }

    fn note_disagreement<T: std::fmt::Display>(
        &mut self,
        disagree: bool,
        used: &str,
        value: T,
        other: &str,
        other_value: T,
    ) {
        if disagree {
            self.notes.push(format!(
                "config.json's {used} is {value} and its {other} is {other_value}; {value} is used, as in transformers"
            ));
        }
    }

    /// Keys of the dictionary that this kind has no use for, in transformers either.
    fn note_unread(&mut self, name: &str, kind: RopeKind) {
        let own: &[&str] = match kind {
            RopeKind::Plain => &[],
            RopeKind::Linear => &["factor"],
            RopeKind::Llama3 => &["factor", "low_freq_factor", "high_freq_factor", ORIGINAL],
            RopeKind::LongRope => &[
                "factor",
                "attention_factor",
                "short_factor",
                "long_factor",
                ORIGINAL,
            ],
        };
        let read = |key: &str| {
            own.contains(&key) || ["rope_type", "type", "rope_theta", PARTIAL].contains(&key)
        };
        let unread = self
            .inside
            .iter()
            .filter(|(key, value)| !read(key) && !value.is_null());
        let unread: Vec<_> = unread.map(|(key, _)| self.inside.name(key)).collect();
        if !unread.is_empty() {
            self.notes.push(format!(
                "config.json's {} is not read with rope_type {name:?}, in transformers either",
                unread.join(", ")
            ));
        }
    }
}

/// Which kinds each family runs with, in words.
fn supported_kinds() -> String {
    let of = |a: &Architecture| {
        let names: Vec<_> = a.rope.kinds.iter().map(|(name, _)| *name).collect();
        format!("{} for {}", names.join(", "), a.name)
    };
    let all: Vec<_> = ARCHITECTURES.iter().map(of).collect();
    all.join("; ")
}
