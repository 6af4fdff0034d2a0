//! Tables of the rotary embedding's cosines and sines, and the rotation itself.

use smq_model::RopeConfig;

/// cos and sin of every position up to the longest one asked for, for one choice of factors.
#[derive(Debug)]
pub(super) struct RopeTable {
    inv_freq: Vec<f32>,
    attention_factor: f32,
    long: bool,
    /// `[positions, rotary_dim / 2]` each.
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    /// An empty table; `long` picks LongRoPE's factors.
    #[must_use]
    pub(super) fn new(config: &RopeConfig, long: bool) -> Self {
        Self {
            inv_freq: config.inv_freq(long),
            attention_factor: config.attention_factor(),
            long,
            cos: Vec::new(),
            sin: Vec::new(),
        }
    }

    /// Whether it holds the long factors.
    #[must_use]
    pub(super) fn is_long(&self) -> bool {
        self.long
    }

    /// Computes the positions below `len` that are not there yet.
    pub(super) fn extend_to(&mut self, len: usize) {
        let half = self.inv_freq.len();
        for position in self.cos.len() / half..len {
            for &freq in &self.inv_freq {
                let angle = position as f32 * freq;
                self.cos.push(angle.cos() * self.attention_factor);
                self.sin.push(angle.sin() * self.attention_factor);
            }
        }
    }

    /// Rotates one head in place: element `i` pairs with `i + rotary_dim / 2` (`rotate_half`).
    pub(super) fn rotate(&self, head: &mut [f32], position: usize) {
        let half = self.inv_freq.len();
        let cos = &self.cos[position * half..][..half];
        let sin = &self.sin[position * half..][..half];
        let (first, rest) = head.split_at_mut(half);
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
        table.extend_to(3);
        let mut head = [1.0, 0.0, 0.0, 1.0, 7.0];
        table.rotate(&mut head, 2);
        let (c0, s0) = (2f32.cos() * 1.5, 2f32.sin() * 1.5);
        let (c1, s1) = (0.01f32.cos() * 1.5, 0.01f32.sin() * 1.5);
        for (got, want) in head.iter().zip([c0, -s1, s0, c1, 7.0]) {
            assert!((got - want).abs() < 1e-6, "{head:?}");
        }
    }
}
