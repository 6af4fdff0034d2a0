//! The decode products.

use super::copies::Copies;
use super::host::{HostMatrix, normals};
use super::lab::{Floor, Lab, of};
use super::reference::{Exact, Worst, products, swiglu};
use super::report::{Check, KernelReport};
use crate::config::ModelConfig;
use crate::cuda::gemv::{Buffers, Epilogue, Product, call};
use crate::cuda::kernels::Call;
use crate::error::Result;

/// A linear layer.
pub(super) struct Layer {
    pub name: &'static str,
    pub rows: usize,
    pub cols: usize,
    pub epilogue: Epilogue,
    /// Whether it follows a norm.
    normed: bool,
}

/// All of a model.
pub(super) fn layers(c: &ModelConfig) -> [Layer; 5] {
    let width = c.heads * c.head_dim;
    let qkv = width + 2 * c.kv_heads * c.head_dim;
    [
        ("qkv", qkv, c.hidden, Epilogue::Store, true),
        ("o", c.hidden, width, Epilogue::Residual, false),
        (
            "gate_up",
            2 * c.intermediate,
            c.hidden,
            Epilogue::Swiglu,
            true,
        ),
        ("down", c.hidden, c.intermediate, Epilogue::Residual, false),
        ("lm_head", c.vocab, c.hidden, Epilogue::Logits, true),
    ]
    .map(|(name, rows, cols, epilogue, normed)| Layer {
        name,
        rows,
        cols,
        epilogue,
        normed,
    })
}

impl Layer {
    fn product(&self, c: &ModelConfig) -> Product {
        Product {
            epilogue: self.epilogue,
            normed: self.normed,
            hidden: c.hidden,
            eps: c.rms_norm_eps,
        }
    }

    /// Random weights.
    pub fn weights(&self, lab: &Lab<'_>, int4: bool) -> HostMatrix {
        match int4 {
            true => HostMatrix::int4(10, self.rows, self.cols, lab.scales),
            false => HostMatrix::bf16(12, self.rows, self.cols),
        }
    }
}

/// Checks and times each.
pub(super) fn run(lab: &mut Lab<'_>) -> Result<()> {
    for layer in &layers(&lab.config) {
        if lab.wants("gemv", layer.name) {
            for int4 in [true, false] {
                of("gemv", layer.name, case(lab, layer, int4))?;
            }
        }
    }
    Ok(())
}

fn case(lab: &mut Lab<'_>, layer: &Layer, int4: bool) -> Result<()> {
    let host = layer.weights(lab, int4);
    let copies = Copies::new(lab, &host)?;
    let (sms, rows) = (lab.gpu.sm_count() as usize, layer.rows);
    let x = normals(20, layer.cols);
    let square_sums: Vec<f32> = normals(21, sms).iter().map(|v| v.abs()).collect();
    let (residual, norm) = (normals(22, rows), normals(23, rows));
    let (x_there, sums_there, norm_there) = (
        lab.upload(&x)?,
        lab.upload(&square_sums)?,
        lab.upload(&norm)?,
    );
    let out = match layer.epilogue {
        Epilogue::Residual => lab.upload(&residual)?,
        _ => lab.poisoned(4 * rows)?,
    };
    let next_x = lab.poisoned(4 * rows)?;
    let [next_sums, best_value, best_index] = [
        lab.poisoned(4 * sms)?,
        lab.poisoned(4 * sms)?,
        lab.poisoned(4 * sms)?,
    ];
    let buffers = Buffers {
        x: x_there.ptr(),
        square_sums: sums_there.ptr(),
        out: out.ptr(),
        next_norm: norm_there.ptr(),
        next_x: next_x.ptr(),
        next_square_sums: next_sums.ptr(),
        best_value: best_value.ptr(),
        best_index: best_index.ptr(),
    };
    let product = layer.product(&lab.config);
    let calls: Vec<Call> = copies
        .matrices
        .iter()
        .map(|w| call(&lab.kernels, &[*w], &product, &buffers))
        .collect::<Result<_>>()?;
    lab.run(&calls[0])?;

    // int4: sums of a group are exact but for 22 bits of x, then f32; bf16: x in two parts, 2^-17, then f32.
    let relative = f64::exp2(if int4 { -18.0 } else { -15.0 });
    let tolerance = if int4 {
        "2^-18 sum |w| |x|"
    } else {
        "2^-15 sum |w| |x|"
    };
    let factor = match layer.normed {
        true => {
            let sum: f64 = square_sums.iter().copied().map(f64::from).sum();
            let mean = sum / lab.config.hidden as f64;
            1.0 / (mean + f64::from(product.eps)).sqrt()
        }
        false => 1.0,
    };
    let x: Vec<f64> = x.iter().map(|v| f64::from(*v) * factor).collect();
    let all: Vec<usize> = (0..rows).collect();
    let exact: Vec<Exact> = products(&host, &all, &[x]).concat();
    let mut worst = Worst::default();
    let got: Vec<f32> = lab.download(&out, rows)?;
    let got_next: Vec<f32> = lab.download(&next_x, rows)?;
    match layer.epilogue {
        Epilogue::Swiglu => {
            for r in 0..rows / 2 {
                let (want, tolerance) = swiglu(exact[r], exact[rows / 2 + r], relative);
                worst.take(got_next[r].into(), want, tolerance, || format!("row {r}"));
            }
        }
        Epilogue::Residual => {
            let mut square_sum = 0.0;
            for (r, e) in exact.iter().enumerate() {
                // The sum is rounded once more, its product with the norm twice.
                let want = e.value + f64::from(residual[r]);
                let tolerance = relative * e.magnitude + f64::exp2(-23.0) * want.abs();
                worst.take(got[r].into(), want, tolerance, || format!("row {r}"));
                let norm = f64::from(norm[r]);
                let tolerance = 2.0 * tolerance * norm.abs();
                worst.take(got_next[r].into(), want * norm, tolerance, || {
                    format!("next_x {r}")
                });
                square_sum += f64::from(got[r]) * f64::from(got[r]);
            }
            let sums: Vec<f32> = lab.download(&next_sums, sms)?;
            let sum: f64 = sums.iter().copied().map(f64::from).sum();
            let tolerance = f64::exp2(-18.0) * square_sum;
            worst.take(sum, square_sum, tolerance, || "the sum of squares".into());
        }
        Epilogue::Store | Epilogue::Logits => {
            for (r, e) in exact.iter().enumerate() {
                let tolerance = relative * e.magnitude;
                worst.take(got[r].into(), e.value, tolerance, || format!("row {r}"));
            }
        }
    }
    if layer.epilogue == Epilogue::Logits {
        let values: Vec<f32> = lab.download(&best_value, sms)?;
        let indices: Vec<i32> = lab.download(&best_index, sms)?;
        let best = |a: (f32, usize), b: (f32, usize)| match b.0 > a.0 || (b.0 == a.0 && b.1 < a.1) {
            true => b,
            false => a,
        };
        let none = (f32::NEG_INFINITY, usize::MAX);
        let want = got.iter().copied().zip(0..).fold(none, best);
        let blocks = values.iter().zip(&indices).map(|(v, i)| (*v, *i as usize));
        let found = blocks.fold(none, best);
        worst.require(found == want, || {
            format!("the largest logit is {found:?}, not {want:?}")
        });
    }
    let check = Check::new(worst, format!("all {rows} rows"), tolerance);

    let us = lab.time(&calls)?;
    let floor: Floor = copies.floor(lab)?;
    let report = KernelReport::new("gemv", layer.name, us, check)
        .weights(&host)
        .rows(1);
    lab.report(report, &floor);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_have_the_model_s_shapes() {
        let c = ModelConfig::from_json(super::super::lab::CONFIG.as_bytes()).unwrap();
        let shapes = layers(&c).map(|l| (l.name, l.rows, l.cols));
        let expected = [
            ("qkv", 9216, 3072),
            ("o", 3072, 3072),
            ("gate_up", 16384, 3072),
            ("down", 3072, 8192),
            ("lm_head", 32064, 3072),
        ];
        assert_eq!(shapes, expected);
        assert_eq!((c.head_dim, c.rope.inv_freq(false).len()), (96, 48));
    }
}
