//! What the kernels should give: plain sums in f64, and how far from them a value may be.

use rayon::prelude::*;

/// A sum of products and the sum of their magnitudes, which rounding errors are relative to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Exact {
    pub value: f64,
    pub magnitude: f64,
}

/// The product `a . b`, summed in f64.
pub(super) fn dot(a: &[f64], b: &[f64]) -> Exact {
    // Eight sums at a time, for the sake of speed.
    let (mut value, mut magnitude) = ([0.0; 8], [0.0; 8]);
    for (a, b) in a.chunks(8).zip(b.chunks(8)) {
        for (i, (a, b)) in a.iter().zip(b).enumerate() {
            value[i] += a * b;
            magnitude[i] += (a * b).abs();
        }
    }
    Exact {
        value: value.iter().sum(),
        magnitude: magnitude.iter().sum(),
    }
}

/// A matrix by its rows.
pub(super) type Rows<'a> = &'a (dyn Fn(usize) -> Vec<f64> + Sync);

/// Products of some rows of `w` with each of `x`: `[row][x]`.
pub(super) fn products(w: Rows<'_>, rows: &[usize], x: &[Vec<f64>]) -> Vec<Vec<Exact>> {
    let of_row = |r: &usize| {
        let row = w(*r);
        x.iter().map(|x| dot(&row, x)).collect()
    };
    rows.par_iter().map(of_row).collect()
}

pub(super) fn silu(v: f64) -> f64 {
    v / (1.0 + (-v).exp())
}

/// `silu(gate) up` and its tolerance, where gate and up may be off by `relative` of their
/// magnitude: silu's slope is below 1.1, and the f32 arithmetic of it is good to 2^-20.
pub(super) fn swiglu(gate: Exact, up: Exact, relative: f64) -> (f64, f64) {
    let (off_gate, off_up) = (1.1 * relative * gate.magnitude, relative * up.magnitude);
    let (s, u) = (silu(gate.value), up.value);
    let tolerance = off_gate * u.abs() + s.abs() * off_up + off_gate * off_up;
    (s * u, tolerance + (s * u).abs() * f64::exp2(-20.0))
}

/// One query over keys and values `[n, d]`: the output, its tolerance for f32 arithmetic, and
/// `sum p |v|`.
///
/// A score of magnitude S (the sum of its products' magnitudes) is off by a few 2^-24 S, a weight
/// by as much relative to itself and by the exponential's 2 ulp; two weights enter each output, its
/// own and the whole. 2^-19 (1 + S) leaves room for the sums.
pub(super) fn attend(
    q: &[f64],
    keys_and_values: impl Iterator<Item = (Vec<f64>, Vec<f64>)>,
) -> Vec<Attended> {
    let scale = 1.0 / (q.len() as f64).sqrt();
    let (mut largest, mut whole, mut score_magnitude) = (f64::NEG_INFINITY, 0.0, 0.0f64);
    let mut sums = vec![(0.0, 0.0); q.len()];
    for (k, v) in keys_and_values {
        let score = dot(q, &k);
        score_magnitude = score_magnitude.max(scale * score.magnitude);
        let score = scale * score.value;
        if score > largest {
            let rescale = (largest - score).exp();
            whole *= rescale;
            for s in &mut sums {
                *s = (s.0 * rescale, s.1 * rescale);
            }
            largest = score;
        }
        let p = (score - largest).exp();
        whole += p;
        for (s, v) in sums.iter_mut().zip(&v) {
            *s = (s.0 + p * v, s.1 + p * v.abs());
        }
    }
    let relative = f64::exp2(-19.0) * (1.0 + score_magnitude);
    let finish = |(value, magnitude): (f64, f64)| Attended {
        value: value / whole,
        magnitude: magnitude / whole,
        tolerance: relative * magnitude / whole,
    };
    sums.into_iter().map(finish).collect()
}

/// One element of [`attend`]'s output.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attended {
    pub value: f64,
    pub magnitude: f64,
    pub tolerance: f64,
}

/// The largest error over its tolerance, so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Worst {
    ratio: f64,
    failure: Option<String>,
}

impl Worst {
    /// Takes one value; `what` names it if it is the first that is too far off.
    pub(super) fn take(
        &mut self,
        got: f64,
        expected: f64,
        tolerance: f64,
        what: impl FnOnce() -> String,
    ) {
        let error = (got - expected).abs();
        let ratio = if error == 0.0 { 0.0 } else { error / tolerance };
        // A NaN is as wrong as can be.
        let ratio = if ratio.is_nan() { f64::INFINITY } else { ratio };
        if ratio > 1.0 && self.failure.is_none() {
            self.failure = Some(format!("{} is {got:e}, not {expected:e}", what()));
        }
        self.ratio = self.ratio.max(ratio);
    }

    /// Takes what has to hold to the bit.
    pub(super) fn require(&mut self, holds: bool, failure: impl FnOnce() -> String) {
        if !holds {
            self.ratio = f64::INFINITY;
            self.failure.get_or_insert_with(failure);
        }
    }

    /// The worse of two.
    pub(super) fn or(self, other: Self) -> Self {
        Self {
            ratio: self.ratio.max(other.ratio),
            failure: self.failure.or(other.failure),
        }
    }

    /// Error over tolerance, and what failed.
    pub(super) fn finish(self) -> (f64, Option<String>) {
        (self.ratio, self.failure)
    }
}

/// Column `k`'s place in a row in int4 order (`common.cuh`).
pub(super) fn int4_order(k: usize) -> usize {
    let (t, u, half, i) = (k % 128 / 32, k % 32 / 8, k % 8 / 4, k % 4);
    k / 128 * 128 + 16 * (2 * u + i / 2) + 8 * (i & 1) + 2 * t + half
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attention_of_two_tokens_by_hand() {
        let (q, keys) = ([2.0, 0.0], [[0.0, 1.0], [f64::sqrt(2.0) / 2.0, 0.0]]);
        let values = [[1.0, -4.0], [3.0, 0.0]];
        let tokens = keys
            .iter()
            .zip(&values)
            .map(|(k, v)| (k.to_vec(), v.to_vec()));
        let got = attend(&q, tokens);
        // Scores 0 and 1.
        let p = 1.0 / (1.0 + f64::exp(1.0));
        let expected = [p + 3.0 * (1.0 - p), -4.0 * p];
        for (got, expected) in got.iter().zip(expected) {
            assert!((got.value - expected).abs() < 1e-12);
        }
        assert!((got[1].magnitude - 4.0 * p).abs() < 1e-12);
    }

    #[test]
    fn the_worst_is_kept_and_nan_is_worse() {
        let mut w = Worst::default();
        w.take(1.0, 1.0, 0.0, String::new);
        w.take(1.5, 1.0, 1.0, String::new);
        assert_eq!(w.clone().finish(), (0.5, None));
        w.take(f64::NAN, 1.0, 1.0, || "y[3]".into());
        w.take(9.0, 1.0, 1.0, || "y[4]".into());
        assert_eq!(
            w.finish(),
            (f64::INFINITY, Some("y[3] is NaN, not 1e0".into()))
        );
    }

    #[test]
    fn int4_order_permutes_each_group() {
        let mut seen = [false; 256];
        for k in 0..256 {
            let to = int4_order(k);
            assert!(to / 128 == k / 128 && !seen[to]);
            seen[to] = true;
        }
        // A lane's words hold pairs four apart.
        assert_eq!([0, 4, 1, 5, 2, 32].map(int4_order), [0, 1, 8, 9, 16, 2]);
    }
}
