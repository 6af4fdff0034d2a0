//! Tables of the rotary embedding's cosines and sines, and the rotation itself.

use smq_model::architecture::Rotations;
use smq_model::{ModelConfig, RopeConfig};

/// The tables of a sequence: one, or two where layers with a window have another.
#[derive(Debug)]
pub(super) struct RopeTables {
    main: RopeTable,
    windowed: Option<RopeTable>,
}

/// cos and sin of positions, for one choice of frequencies.
#[derive(Debug)]
struct RopeTable {
    config: RopeConfig,
    inv_freq: Vec<f32>,
    long: bool,
    /// Whether the frequencies are those of a sequence of one length alone.
    grown: bool,
    /// The position of the first row.
    first: usize,
    /// `[positions, rotary_dim / 2]` each.
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// The rows of a table from a position on, which a layer's new tokens are rotated with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rotation<'a> {
    rotary_dim: usize,
    cos: &'a [f32],
    sin: &'a [f32],
}

impl RopeTables {
    /// Empty tables; `long` picks LongRoPE's factors.
    #[must_use]
    pub(super) fn new(config: &ModelConfig, long: bool) -> Self {
        let windowed = match &config.rotations {
            Rotations::Alike | Rotations::Listed(_) => None,
            Rotations::Windowed(rope) => Some(RopeTable::new(rope, long)),
        };
        Self {
            main: RopeTable::new(&config.rope, long),
            windowed,
        }
    }

    /// Whether they hold the long factors.
    #[must_use]
    pub(super) fn is_long(&self) -> bool {
        self.main.long
    }

    /// Computes the positions from `past` to `len` that are not there yet, of a sequence of `len`
    /// tokens.
    pub(super) fn extend_to(&mut self, past: usize, len: usize) {
        for table in [Some(&mut self.main), self.windowed.as_mut()]
            .into_iter()
            .flatten()
        {
            table.extend_to(past, len);
        }
    }

    /// What `layer` rotates the tokens behind `past` others with; `None` where it does not rotate.
    pub(super) fn of_layer(
        &self,
        config: &ModelConfig,
        layer: usize,
        past: usize,
    ) -> Option<Rotation<'_>> {
        let table = match (&config.rotations, &self.windowed) {
            (Rotations::Listed(rotated), _) if !rotated[layer] => return None,
            (Rotations::Windowed(_), Some(windowed)) if config.windows.layer(layer).is_some() => {
                windowed
            }
            (Rotations::Alike | Rotations::Listed(_) | Rotations::Windowed(_), _) => &self.main,
        };
        Some(table.from(past))
    }
}

impl RopeTable {
    fn new(config: &RopeConfig, long: bool) -> Self {
        Self {
            config: config.clone(),
            inv_freq: config.inv_freq(long),
            long,
            grown: false,
            first: 0,
            cos: Vec::new(),
            sin: Vec::new(),
        }
    }

    fn extend_to(&mut self, past: usize, len: usize) {
        let half = self.inv_freq.len();
        let rows = self.cos.len() / half;
        // Frequencies that depend on the length are those of the tokens that come now; what is in
        // the cache stays as it was rotated, and so its rows are not asked for any more.
        let grows = self.config.grows(len);
        let restart = grows || self.grown || past < self.first;
        if restart {
            self.inv_freq = match grows {
                true => self.config.grown_inv_freq(len),
                false => self.config.inv_freq(self.long),
            };
            self.grown = grows;
            self.first = past;
            self.cos.clear();
            self.sin.clear();
        }
        let next = if restart { past } else { self.first + rows };
        let factor = self.config.attention_factor();
        for position in next..len {
            for &freq in &self.inv_freq {
                let angle = position as f32 * freq;
                self.cos.push(angle.cos() * factor);
                self.sin.push(angle.sin() * factor);
            }
        }
    }

    fn from(&self, position: usize) -> Rotation<'_> {
        let at = (position - self.first) * self.inv_freq.len();
        Rotation {
            rotary_dim: 2 * self.inv_freq.len(),
            cos: &self.cos[at..],
            sin: &self.sin[at..],
        }
    }
}

impl Rotation<'_> {
    /// Rotates a head of the token `index` in place: element `i` pairs with `i + rotary_dim / 2`
    /// (`rotate_half`), and what follows the rotary part stays.
    pub(super) fn rotate(&self, head: &mut [f32], index: usize) {
        let half = self.rotary_dim / 2;
        let cos = &self.cos[index * half..][..half];
        let sin = &self.sin[index * half..][..half];
        let (first, rest) = head[..self.rotary_dim].split_at_mut(half);
        for i in 0..half {
            let (a, b) = (first[i], rest[i]);
            first[i] = a * cos[i] - b * sin[i];
            rest[i] = b * cos[i] + a * sin[i];
        }
    }
}

#[cfg(test)]
mod tests {
    use smq_model::RopeScaling;

    use super::*;

    fn long_rope() -> RopeConfig {
        RopeConfig {
            theta: 10_000.0,
            rotary_dim: 4,
            scaling: RopeScaling::LongRope {
                short: vec![1.0, 2.0],
                long: vec![4.0, 8.0],
                original_positions: 16,
                attention_factor: 1.5,
            },
        }
    }

    #[test]
    fn rotation_pairs_the_halves_and_leaves_the_rest() {
        let mut table = RopeTable::new(&long_rope(), false);
        table.extend_to(0, 3);
        let mut head = [1.0, 0.0, 0.0, 1.0, 7.0];
        table.from(1).rotate(&mut head, 1);
        let (c0, s0) = (2f32.cos() * 1.5, 2f32.sin() * 1.5);
        let (c1, s1) = (0.01f32.cos() * 1.5, 0.01f32.sin() * 1.5);
        for (got, want) in head.iter().zip([c0, -s1, s0, c1, 7.0]) {
            assert!((got - want).abs() < 1e-6, "{head:?}");
        }
    }

    /// A sequence that has grown past its context, and is then cut back.
    #[test]
    fn tables_of_growing_frequencies_follow_the_length() {
        let config = RopeConfig {
            theta: 10_000.0,
            rotary_dim: 4,
            scaling: RopeScaling::Dynamic {
                factor: 2.0,
                original_positions: 4,
            },
        };
        let mut table = RopeTable::new(&config, false);
        let sin = |table: &RopeTable, position: usize| table.from(position).sin[1];
        let expected =
            |len: usize, position: usize| (position as f32 * config.grown_inv_freq(len)[1]).sin();
        for (past, len) in [(0, 4), (4, 6), (6, 7), (0, 6), (2, 3), (3, 5)] {
            table.extend_to(past, len);
            assert_eq!(sin(&table, past), expected(len, past), "{past} to {len}");
            assert_eq!(
                sin(&table, len - 1),
                expected(len, len - 1),
                "{past} to {len}"
            );
        }
        assert_ne!(expected(6, 4), expected(4, 4));
    }
}
