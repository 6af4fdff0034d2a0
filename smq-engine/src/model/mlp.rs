//! The gated activation between an MLP's two products (SwiGLU, arXiv 2002.05202).

use rayon::prelude::*;

/// `silu(gate) * up`; `gate_up` is `[m, 2 * intermediate]`, gates first; `[m, intermediate]`.
pub(crate) fn swiglu(gate_up: &[f32], intermediate: usize) -> Vec<f32> {
    let mut out = vec![0.0; gate_up.len() / 2];
    let row = |(out, row): (&mut [f32], &[f32])| {
        let (gate, up) = row.split_at(intermediate);
        for ((o, g), u) in out.iter_mut().zip(gate).zip(up) {
            *o = g / (1.0 + (-g).exp()) * u;
        }
    };
    if out.len() == intermediate {
        row((&mut out, gate_up));
    } else {
        out.par_chunks_mut(intermediate)
            .zip(gate_up.par_chunks(2 * intermediate))
            .for_each(row);
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn silu_of_the_first_half_times_the_second() {
        let out = super::swiglu(&[0.0, 1.0, 5.0, 2.0, -1.0, 0.0, 3.0, 4.0], 2);
        let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
        let want = [0.0, 2.0 * sigmoid(1.0), -3.0 * sigmoid(-1.0), 0.0];
        assert!(
            out.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-6),
            "{out:?}"
        );
    }
}
