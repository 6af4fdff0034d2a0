//! The gated activation between an MLP's two products (GLU variants, arXiv 2002.05202).

use rayon::prelude::*;
use smq_model::architecture::Activation;

/// sqrt(2 / pi).
const GELU_INNER: f32 = std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::FRAC_1_SQRT_2;
const GELU_CUBE: f32 = 0.044715;

/// `f(gate) * up`, where `f` is the activation; `gate_up` is `[m, 2 * intermediate]`, gates first;
/// `[m, intermediate]`.
pub(crate) fn gated(activation: Activation, gate_up: &[f32], intermediate: usize) -> Vec<f32> {
    match activation {
        Activation::Silu => rows(gate_up, intermediate, |g| g / (1.0 + (-g).exp())),
        Activation::GeluTanh => rows(gate_up, intermediate, |g| {
            0.5 * g * (1.0 + (GELU_INNER * (g + GELU_CUBE * g * g * g)).tanh())
        }),
    }
}

fn rows(gate_up: &[f32], intermediate: usize, f: impl Fn(f32) -> f32 + Sync) -> Vec<f32> {
    let mut out = vec![0.0; gate_up.len() / 2];
    let row = |(out, row): (&mut [f32], &[f32])| {
        let (gate, up) = row.split_at(intermediate);
        for ((o, g), u) in out.iter_mut().zip(gate).zip(up) {
            *o = f(*g) * u;
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
    use super::*;

    fn assert_near(found: &[f32], expected: [f32; 4]) {
        let near = |(a, b): (&f32, f32)| (a - b).abs() < 1e-6;
        assert!(found.iter().zip(expected).all(near), "{found:?}");
    }

    #[test]
    fn the_function_of_the_first_half_times_the_second() {
        let gate_up = [0.0, 1.0, 5.0, 2.0, -1.0, 0.0, 3.0, 4.0];
        let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
        let silu = gated(Activation::Silu, &gate_up, 2);
        assert_near(&silu, [0.0, 2.0 * sigmoid(1.0), -3.0 * sigmoid(-1.0), 0.0]);
        // torch.nn.functional.gelu(x, approximate="tanh") of 1 and -1.
        let gelu = gated(Activation::GeluTanh, &gate_up, 2);
        assert_near(&gelu, [0.0, 2.0 * 0.841_192, 3.0 * -0.158_808, 0.0]);
    }
}
