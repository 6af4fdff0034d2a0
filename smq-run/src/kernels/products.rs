//! Checks and times the products of decode.

use smq_convert::Method;
use smq_format::{Family, Levels};

use super::coded::Coded;
use super::copies::Copies;
use super::host::{Groups, HostMatrix, normals};
use super::lab::{Floor, Lab, of};
use super::reference::{Exact, Rows, Worst, products, swiglu};
use super::report::{Check, KernelReport};
use smq_engine::Result;
use smq_engine::cuda::{Buffers, COPIES, Call, Decoder, DeviceMatrix, Epilogue, Span, State, Uses};
use smq_engine::linear::QuantizedX;
use smq_model::ModelConfig;

/// Products that one launch has, so that its start does not count.
const IN_A_ROW: usize = 64;

/// A linear layer of the model whose shapes are taken.
#[derive(Clone, Copy)]
pub(super) struct Layer {
    pub name: &'static str,
    pub rows: usize,
    pub cols: usize,
    pub epilogue: Epilogue,
    /// Whether it follows a norm.
    normed: bool,
}

/// Rows that end in half a group of 128, as SmolLM2's do.
pub(super) const RAGGED: Layer = Layer {
    name: "576 columns",
    rows: 1536,
    cols: 576,
    epilogue: Epilogue::Store,
    normed: true,
};

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

/// FP8 rows that end within a line of 128 bytes: SmolLM2's, and ones that take two slots of the
/// ring.
pub(super) fn short_lines() -> [Layer; 2] {
    let short = Layer {
        rows: 576,
        ..RAGGED
    };
    let two_slots = Layer {
        name: "1568 columns",
        cols: 1568,
        ..short
    };
    [short, two_slots]
}

impl Layer {
    /// Random weights, int4 or lut4 in groups, or bf16.
    pub(super) fn weights(&self, lab: &Lab<'_>, groups: Option<Groups>) -> HostMatrix {
        match groups {
            Some(groups) => HostMatrix::grouped(10, (self.rows, self.cols), lab.scales, groups),
            None => HostMatrix::bf16(12, self.rows, self.cols),
        }
    }

    /// Groups that int4 is checked with, then lut4's: with a book that fits bytes as it is, and one
    /// that is shifted.
    pub(super) fn groups(&self) -> Vec<Groups> {
        let sizes = match self.name == RAGGED.name {
            true => &[128, 64, 32][..],
            false => &[128, 64],
        };
        let int4 = sizes.iter().copied().map(Groups::int4);
        let books = [(128, Levels::nf4()), (128, shifted())];
        let books = books
            .into_iter()
            .chain(sizes[1..].iter().map(|size| (*size, shifted())));
        let lut4 = books.map(|(size, levels)| Groups {
            size,
            levels: Some(levels),
        });
        int4.chain(lut4).collect()
    }
}

/// A book whose eighth level is negative and whose last is 127, as one that is learned may be.
fn shifted() -> Levels {
    let mut levels = Levels::nf4().bytes();
    (levels[6], levels[7], levels[8]) = (-17, -6, 5);
    Levels::new(levels).unwrap_or(Levels::nf4())
}

/// Checks and times each.
pub(super) fn run(lab: &mut Lab<'_>) -> Result<()> {
    for layer in layers(&lab.config).iter().chain([&RAGGED]) {
        if lab.wants("decode", layer.name) {
            for group in layer.groups().into_iter().map(Some).chain([None]) {
                of("decode", layer.name, case(lab, layer, group))?;
            }
        }
    }
    for layer in &short_lines() {
        if lab.wants("decode", layer.name) {
            of("decode", layer.name, fp8(lab, layer))?;
        }
    }
    Ok(())
}

/// x as given to a kernel, times what it divides by.
type Activations<'a> = &'a dyn Fn(&[f32]) -> Vec<f64>;

/// An error over the sum of the terms' magnitudes, and that in words. int4, lut4: sums of a group
/// are exact but for 22 bits of x, then f32; bf16: x in two parts, 2^-17, then f32, in tensor cores
/// that truncate; FP8: codes are exact, then as bf16.
const INT4: (f64, &str) = (1.0 / 262_144.0, "2^-18 sum |w| |x|");
const WIDE: (f64, &str) = (1.0 / 32_768.0, "2^-15 sum |w| |x|");

fn case(lab: &mut Lab<'_>, layer: &Layer, groups: Option<Groups>) -> Result<()> {
    let host = layer.weights(lab, groups);
    let int4 = groups.is_some();
    let copies = Copies::new(lab, &host)?;
    let factors: (Rows<'_>, Activations<'_>) = (&|r| host.row(r), &|x| {
        x.iter().copied().map(f64::from).collect()
    });
    let tolerance = if int4 { INT4 } else { WIDE };
    let (us, check) = product(lab, layer, &copies.matrices, factors, tolerance)?;
    let floor: Floor = copies.floor(lab)?;
    let report = KernelReport::new("decode", layer.name, us, check)
        .weights(&host)
        .rows(1);
    lab.report(report, &floor);
    Ok(())
}

fn fp8(lab: &mut Lab<'_>, layer: &Layer) -> Result<()> {
    let coded = Coded::new(lab, layer, Method::Fp8)?;
    let w = |r: usize| coded.row(r).into_iter().map(f64::from).collect();
    let x = |x: &[f32]| {
        // The kernel takes the lowest bits for tags.
        let x: Vec<f32> = x.iter().map(|v| f32::from_bits(v.to_bits() & !3)).collect();
        let codes = QuantizedX::new(&x, layer.cols);
        let scale = f64::from(codes.scales[0]);
        codes.values.iter().map(|v| f64::from(*v) * scale).collect()
    };
    let (us, check) = product(lab, layer, &coded.matrices, (&w, &x), WIDE)?;
    let mut report = KernelReport::new("decode", layer.name, us, check).rows(1);
    report.weights = Some(Family::Fp8.name());
    lab.report(report, &Floor::None);
    Ok(())
}

/// Microseconds of a product with one of `matrices`, and whether that with the first is right.
fn product(
    lab: &Lab<'_>,
    layer: &Layer,
    matrices: &[DeviceMatrix],
    (w_row, x_seen): (Rows<'_>, Activations<'_>),
    (relative, tolerance): (f64, &'static str),
) -> Result<(f64, Check)> {
    let c = lab.config.clone();
    let (sms, rows) = (lab.gpu.sm_count() as usize, layer.rows);
    let x = normals(20, layer.cols);
    let square_sums: Vec<f32> = normals(21, sms).iter().map(|v| v.abs()).collect();
    let norm = normals(23, rows);
    let (x_there, sums_there, norm_there) = (
        lab.upload(&x)?,
        lab.upload(&square_sums)?,
        lab.upload(&norm)?,
    );
    let state = State::new(&lab.gpu, &c)?;
    let (out, out_sums) = (lab.poisoned(4 * COPIES * rows)?, lab.poisoned(8 * sms)?);
    let buffers = Buffers {
        x: x_there.ptr(),
        sums: sums_there.ptr(),
        next_norm: norm_there.ptr(),
        out: out.ptr(),
        out_sums: out_sums.ptr(),
    };
    // Many products in a row. The head's is its kernel's last: others of its shape go before it.
    let head = layer.epilogue == Epilogue::Logits;
    let epilogues = [
        if head {
            Epilogue::Store
        } else {
            layer.epilogue
        },
        layer.epilogue,
    ];
    let one = &matrices[..1];
    let kinds = epilogues.map(|e| (one, e));
    let decoder = Decoder::new(&lab.kernels, &c, &kinds[..1 + usize::from(head)])?;
    let phase = |i: usize, epilogue| {
        let uses = Uses {
            input: None,
            output: 0,
        };
        let w = matrices[i % matrices.len()];
        decoder.product(&[w], epilogue, &buffers, uses)
    };
    let same = (0..IN_A_ROW).map(|i| phase(i, epilogues[0]));
    let row = same.chain([phase(IN_A_ROW, layer.epilogue)]);
    let program = decoder.program(&lab.gpu, row.collect::<Result<Vec<_>>>()?)?;
    let nowhere = Span::at(0, 0);
    let call = |first: usize, count: usize| -> Result<Call> {
        let tables = [nowhere, nowhere, norm_there.span()];
        Ok(decoder.call(program.phases(first, count)?, false, &c, &state, tables))
    };
    lab.run(&call(IN_A_ROW, 1)?)?;

    let factor = match layer.normed {
        true => {
            let sum: f64 = square_sums.iter().copied().map(f64::from).sum();
            let mean = sum / c.hidden as f64;
            1.0 / (mean + f64::from(c.rms_norm_eps)).sqrt()
        }
        false => 1.0,
    };
    let x: Vec<f64> = x_seen(&x).into_iter().map(|v| v * factor).collect();
    let all: Vec<usize> = (0..rows).collect();
    let exact: Vec<Exact> = products(w_row, &all, &[x]).concat();
    // A tag takes 2^-21 of the result.
    let mut worst = Worst::default();
    let got: Vec<f32> = lab.download(&out, rows)?;
    match layer.epilogue {
        Epilogue::Swiglu => {
            for r in 0..rows / 2 {
                let (want, tolerance) = swiglu(exact[r], exact[rows / 2 + r], relative);
                worst.take(got[r].into(), want, tolerance, || format!("row {r}"));
            }
        }
        Epilogue::Residual => {
            let mut square_sum = 0.0;
            for (r, e) in exact.iter().enumerate() {
                // The product with the norm is rounded, too.
                let norm = f64::from(norm[r]);
                let tolerance = 2.0 * (relative * e.magnitude + f64::exp2(-21.0) * e.value.abs());
                worst.take(
                    got[r].into(),
                    e.value * norm,
                    tolerance * norm.abs(),
                    || format!("row {r}"),
                );
                square_sum += e.value * e.value;
            }
            let sums: Vec<f32> = lab.download(&out_sums, sms)?;
            let sum: f64 = sums.iter().copied().map(f64::from).sum();
            let tolerance = f64::exp2(-12.0) * square_sum;
            worst.take(sum, square_sum, tolerance, || "the sum of squares".into());
        }
        Epilogue::Store | Epilogue::Logits => {
            for (r, e) in exact.iter().enumerate() {
                let tolerance = relative * e.magnitude + f64::exp2(-21.0) * e.value.abs();
                worst.take(got[r].into(), e.value, tolerance, || format!("row {r}"));
            }
        }
    }
    if head {
        let best = |a: (f32, u32), b: (f32, u32)| if b.0 > a.0 { b } else { a };
        let none = (f32::NEG_INFINITY, u32::MAX);
        let (_, id) = got.iter().copied().zip(0..).fold(none, best);
        let mut after = [0u32; 4];
        // SAFETY: the array outlives the copy, which is waited for.
        unsafe { state.state.copy_to(lab.stream(), &mut after)? };
        lab.stream().synchronize()?;
        worst.require(after == [1, 1, id, 0], || {
            format!("the state is {after:?}, not [1, 1, {id}, 0]")
        });
        let message = state.mailbox.as_slice::<u64>()[0];
        worst.require(message == 1 << 32 | u64::from(id), || {
            format!("the mailbox has {message:#x}, not token {id}")
        });
    }
    let check = Check::new(worst, format!("all {rows} rows"), tolerance);

    let us = if head {
        lab.time(&[call(0, IN_A_ROW + 1)?])? - lab.time(&[call(0, IN_A_ROW)?])?
    } else {
        lab.time(&[call(0, IN_A_ROW)?])? / IN_A_ROW as f64
    };
    Ok((us, check))
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
