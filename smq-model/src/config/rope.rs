//! What config.json says about rotary embedding, with the precedence of transformers 5.24
//! (`modeling_rope_utils.py`, `configuration_phi3.py`).

mod by_window;
mod scaling;

use serde_json::{Map, Value};

use super::keys::{Keys, Read};
use super::{MAX_POSITIONS, ModelConfig, layers};
use crate::architecture::{ARCHITECTURES, Architecture, RopeKind, Rotated, Rotations};
use crate::rope::{RopeConfig, RopeScaling};

const ORIGINAL: &str = "original_max_position_embeddings";
const PARTIAL: &str = "partial_rotary_factor";

/// Reads it into `c`, whose heads and windows are known. What is ignored, as transformers ignores
/// it, is said in its notes.
pub(super) fn read(outside: Keys<'_>, c: &mut ModelConfig) -> Read<()> {
    let architecture = c.architecture;
    let mut notes = Vec::new();
    let (head_dim, positions) = (c.head_dim, c.max_positions);
    let of = |source: Place<'_>, notes: &mut Vec<String>| {
        let reader = Reader {
            outside,
            place: source,
            architecture,
            max_positions: positions,
            notes,
        };
        reader.read(head_dim)
    };
    match architecture.rope.rotated {
        Rotated::EveryLayer | Rotated::Listed => {
            let empty = Map::new();
            let inside = dictionary(outside, &empty, &mut notes)?;
            if let Some((key, _)) = inside.iter().find(|(_, value)| value.is_object()) {
                return Err(format!(
                    "{} is an object; rotary embedding by kind of layer is not what {} has",
                    inside.name(key),
                    architecture.name
                ));
            }
            let place = Place {
                inside,
                theta_key: Some("rope_theta"),
                theta: architecture.defaults.rope_theta,
                by_window: false,
            };
            c.rope = of(place, &mut notes)?;
            let rotated = layers::rotated(outside, c)?;
            c.rotations = match rotated.iter().all(|rotates| *rotates) {
                true => Rotations::Alike,
                false => Rotations::Listed(rotated),
            };
        }
        Rotated::ByWindow { theta_key, theta } => {
            let [full, windowed] = by_window::dictionaries(outside, &mut notes)?;
            let place = Place {
                inside: Keys::new(&full.map, full.name),
                theta_key: Some("rope_theta"),
                theta: architecture.defaults.rope_theta,
                by_window: true,
            };
            c.rope = of(place, &mut notes)?;
            let place = Place {
                inside: Keys::new(&windowed.map, windowed.name),
                theta_key,
                theta,
                by_window: true,
            };
            let windowed = of(place, &mut notes)?;
            c.rotations = match windowed == c.rope {
                true => Rotations::Alike,
                false => Rotations::Windowed(windowed),
            };
        }
    }
    c.notes.append(&mut notes);
    c.max_positions = scaling::longest_context(&c.rope, positions);
    Ok(())
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
            "config.json has rope_scaling and rope_parameters, which differ; rope_scaling alone is \
             used, as in transformers"
                .to_owned(),
        );
    }
    let (name, map) = old.or(new).unwrap_or(("rope_parameters", empty));
    Ok(Keys::new(map, name))
}

/// Where one rotary embedding is described.
struct Place<'a> {
    /// `rope_scaling`, `rope_parameters`, or a part of the latter.
    inside: Keys<'a>,
    /// The key of config.json itself that gives the base where the dictionary does not.
    theta_key: Option<&'static str>,
    /// The base where neither does.
    theta: f64,
    /// Whether the family has one embedding by kind of layer: then transformers looks for less
    /// outside of the dictionary.
    by_window: bool,
}

struct Reader<'a, 'n> {
    /// The keys of config.json itself, outside the dictionary of the rotary embedding.
    outside: Keys<'a>,
    place: Place<'a>,
    architecture: &'static Architecture,
    max_positions: usize,
    notes: &'n mut Vec<String>,
}

impl<'a> Reader<'a, '_> {
    fn inside(&self) -> Keys<'a> {
        self.place.inside
    }

    /// Reads the rotary embedding of heads with `head_dim` elements.
    fn read(mut self, head_dim: usize) -> Read<RopeConfig> {
        let (name, kind) = self.kind()?;
        let theta = self.theta()?.unwrap_or(self.place.theta);
        if !(theta > 0.0 && theta.is_finite()) {
            return Err(format!("rope_theta is {theta}, expected a positive number"));
        }
        let rotary_dim = match self.architecture.rope.partial {
            true => self.rotary_dim(head_dim)?,
            false => {
                self.whole_head(&name, kind)?;
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
                factor: self.factor()? as f32,
            },
            RopeKind::Llama3 => {
                let original = self.original()?;
                self.llama3(original)?
            }
            RopeKind::Dynamic => self.dynamic(rotary_dim)?,
            RopeKind::Yarn => {
                let original = self.original()?;
                self.yarn(original, theta, rotary_dim)?
            }
            RopeKind::LongRope => {
                let original = self.original()?;
                self.long_rope(original, rotary_dim / 2)?
            }
        };
        self.note_unread(&name, kind);
        Ok(RopeConfig {
            theta: theta as f32,
            rotary_dim,
            scaling,
        })
    }

    /// The name in config.json and what it means.
    fn kind(&mut self) -> Read<(String, RopeKind)> {
        let architecture = self.architecture;
        let (new, old) = (
            self.inside().text("rope_type")?,
            self.inside().text("type")?,
        );
        if let (Some(new), Some(old)) = (new, old) {
            self.note_disagreement(new != old, "rope_type", new, "type", old);
        }
        let name = new.or(old).unwrap_or("default");
        let key = self
            .inside()
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
        let inside = self.inside().number("rope_theta")?;
        let Some(key) = self.place.theta_key else {
            return Ok(inside);
        };
        let outside = self.outside.number(key)?;
        if let (Some(inside), Some(outside)) = (inside, outside) {
            let name = self.inside().name("rope_theta");
            self.note_disagreement(inside != outside, &name, inside, key, outside);
        }
        Ok(inside.or(outside))
    }

    /// Leading elements of a head that are rotated, of a family that reads it.
    fn rotary_dim(&mut self, head_dim: usize) -> Read<usize> {
        let (inside, outside) = (
            self.inside().number(PARTIAL)?,
            self.outside.number(PARTIAL)?,
        );
        if let (Some(inside), Some(outside)) = (inside, outside) {
            let name = self.inside().name(PARTIAL);
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
            [self.inside(), self.outside].map(|keys| (keys.name(PARTIAL), keys.given(PARTIAL)));
        for (key, value) in given {
            let Some(value) = value.filter(|value| value.as_f64() != Some(1.0)) else {
                continue;
            };
            match kind {
                RopeKind::Plain => self.notes.push(format!(
                    "config.json's {key} is {value}, which this architecture does not read in \
                     transformers either: whole heads are rotated"
                )),
                RopeKind::Linear
                | RopeKind::Llama3
                | RopeKind::Dynamic
                | RopeKind::Yarn
                | RopeKind::LongRope => {
                    return Err(format!(
                        "{key} is {value}, but this architecture rotates whole heads, and \
                         transformers fails with a part of them and rope_type {name:?}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// The context of the first training: the one outside goes before the one inside.
    fn original(&mut self) -> Read<usize> {
        let (architecture, max_positions) = (self.architecture, self.max_positions);
        let outside = match self.place.by_window {
            true => None,
            false => self.outside.size(ORIGINAL, MAX_POSITIONS)?,
        };
        let default = architecture.defaults.original_max_position_embeddings;
        let Some(used) = outside.or(default) else {
            let inside = self.inside().size(ORIGINAL, MAX_POSITIONS)?;
            return Ok(inside.unwrap_or(max_positions));
        };
        let inside = self.inside().given(ORIGINAL);
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
                self.inside().name(ORIGINAL)
            ));
        }
        Ok(used)
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
                "config.json's {used} is {value} and its {other} is {other_value}; {value} is \
                 used, as in transformers"
            ));
        }
    }

    /// Keys of the dictionary that this kind has no use for, in transformers either.
    fn note_unread(&mut self, name: &str, kind: RopeKind) {
        let own: &[&str] = match kind {
            RopeKind::Plain => &[],
            RopeKind::Linear => &["factor"],
            RopeKind::Llama3 => &["factor", "low_freq_factor", "high_freq_factor", ORIGINAL],
            RopeKind::Dynamic => &["factor"],
            RopeKind::Yarn => &[
                "factor",
                "attention_factor",
                "mscale",
                "mscale_all_dim",
                "beta_fast",
                "beta_slow",
                "truncate",
                ORIGINAL,
            ],
            RopeKind::LongRope => &[
                "factor",
                "attention_factor",
                "short_factor",
                "long_factor",
                ORIGINAL,
            ],
        };
        let read = |key: &str| {
            let unread = key == "truncate" && self.place.by_window;
            !unread && own.contains(&key)
                || ["rope_type", "type", "rope_theta", PARTIAL].contains(&key)
        };
        let unread = self
            .inside()
            .iter()
            .filter(|(key, value)| !read(key) && !value.is_null());
        let unread: Vec<_> = unread.map(|(key, _)| self.inside().name(key)).collect();
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
