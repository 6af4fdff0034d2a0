//! cuBLASLt's products against sums in f64.

use smq_engine::cuda::{
    Activations, Blas, DeviceBuffer, DeviceMatrix, Form, Format, Gpu, Graph, Input, Kernels,
    MatMul, Output, RowCount, RowProducts, Target, scratch_bytes,
};

use super::{Outcome, equal};

/// Numbers in -1 .. 1 that bf16 holds exactly, as bf16 and as f64.
fn random(count: usize, seed: u64) -> (Vec<u16>, Vec<f64>) {
    let mut state = seed;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let value = (state >> 33) as f32 / (1_u64 << 30) as f32 - 1.0;
        half::bf16::from_f32(value)
    };
    (0..count)
        .map(|_| next())
        .map(|v| (v.to_bits(), v.to_f64()))
        .unzip()
}

pub(crate) fn match_f64(gpu: &Gpu) -> Outcome {
    let blas = Blas::new(gpu, 32 << 20)?;
    let shapes = [
        (1, 64, 96),
        (7, 576, 576),
        (33, 192, 1536),
        (128, 256, 768),
        (300, 320, 64),
        (64, 96, 3072),
    ];
    for (case, (m, n, k)) in shapes.into_iter().enumerate() {
        for (form, input, output, accumulate, gap) in [
            (Form::XWt, Input::Bf16, Output::F32, false, 0),
            (Form::XWt, Input::Bf16, Output::F32, true, 8),
            (Form::XWt, Input::Bf16, Output::Bf16, false, 8),
            (Form::XWt, Input::Bf16, Output::Bf16, true, 0),
            (Form::XW, Input::F32, Output::F32, false, 0),
            (Form::XW, Input::F32, Output::F32, true, 8),
            (Form::XtW, Input::Bf16, Output::F32, false, 8),
            (Form::XtW, Input::Bf16, Output::F32, true, 0),
        ] {
            // A matrix's rows are of 16 bytes.
            if form == Form::XtW && m % 8 != 0 {
                continue;
            }
            let [x_columns, w_columns] = match form {
                Form::XWt => [k, k],
                Form::XW => [k, n],
                Form::XtW => [m, n],
            };
            let product = MatMul {
                m,
                n,
                k,
                form,
                x_stride: x_columns + gap,
                w_stride: w_columns,
                y_stride: n + gap,
                input,
                output,
                accumulate,
            };
            check_product(gpu, &blas, &product, case as u64)
                .map_err(|e| format!("{product:?}: {}", e.message().unwrap_or("")))?;
        }
    }
    Ok(())
}

fn check_product(gpu: &Gpu, blas: &Blas, p: &MatMul, seed: u64) -> Outcome {
    let stream = gpu.main();
    let (x_rows, w_rows) = match p.form {
        Form::XWt => (p.m, p.n),
        Form::XW => (p.m, p.k),
        Form::XtW => (p.k, p.k),
    };
    let (x, x64) = random(x_rows * p.x_stride, seed);
    let (w, w64) = random(w_rows * p.w_stride, seed + 100);
    // One y for both types: as bf16, widened for f32.
    let (y, y64) = random(p.m * p.y_stride, seed + 200);
    let wide = |v: &[u16]| -> Vec<u32> { v.iter().map(|&v| u32::from(v) << 16).collect() };
    let y32 = wide(&y);
    let (dx, dw) = (
        DeviceBuffer::new(gpu, 4 * x.len(), "x")?,
        DeviceBuffer::new(gpu, 4 * w.len(), "w")?,
    );
    let dy = DeviceBuffer::new(gpu, 4 * y.len(), "y")?;
    for (to, values) in [(&dx, &x), (&dw, &w)] {
        match p.input {
            Input::F32 => to.upload(stream, 0, &wide(values))?,
            Input::Bf16 | Input::Fp8 => to.upload(stream, 0, values)?,
        }
    }
    match p.output {
        Output::Bf16 => dy.upload(stream, 0, &y)?,
        Output::F32 => dy.upload(stream, 0, &y32)?,
    }
    let plan = blas.plan(p)?;
    // SAFETY: the buffers are as large as the product says.
    let graph = Graph::capture(stream, |s| unsafe {
        blas.run(s, &plan, dw.ptr(), dx.ptr(), dy.ptr())
    })?;
    graph.launch(stream)?;
    let got: Vec<f32> = match p.output {
        Output::Bf16 => {
            let mut got = vec![0_u16; y.len()];
            dy.download(stream, 0, &mut got)?;
            got.into_iter()
                .map(|v| half::bf16::from_bits(v).to_f32())
                .collect()
        }
        Output::F32 => {
            let mut got = vec![0_f32; y.len()];
            dy.download(stream, 0, &mut got)?;
            got
        }
    };
    let tolerance = if p.output == Output::Bf16 {
        1.0 / 256.0
    } else {
        1e-6
    };
    for (row, got) in got.chunks(p.y_stride).enumerate() {
        for (column, &got) in got.iter().enumerate() {
            let before = y64[row * p.y_stride + column];
            let (expected, size) = if column < p.n {
                let term = |k: usize| {
                    let (x, w) = match p.form {
                        Form::XWt => ((row, k), (column, k)),
                        Form::XW => ((row, k), (k, column)),
                        Form::XtW => ((k, row), (k, column)),
                    };
                    x64[x.0 * p.x_stride + x.1] * w64[w.0 * p.w_stride + w.1]
                };
                let sum: f64 = (0..p.k).map(term).sum();
                let size: f64 = (0..p.k).map(|k| term(k).abs()).sum();
                let added = if p.accumulate { before } else { 0.0 };
                // In bf16 the product may be rounded before it is added, too.
                let product = if p.accumulate { sum.abs() } else { 0.0 };
                let tolerated = ((sum + added).abs() + product) * tolerance;
                (sum + added, size * 1e-6 + tolerated)
            } else {
                (before, 0.0)
            };
            let error = (f64::from(got) - expected).abs();
            if error.is_nan() || error > size {
                return Err(format!(
                    "[{row}, {column}] is {got}, expected {expected} within {size}"
                )
                .into());
            }
        }
    }
    Ok(())
}

pub(crate) fn repeat_to_the_bit(gpu: &Gpu) -> Outcome {
    let stream = gpu.main();
    let shapes = [
        (16, 9216, 3072),
        (64, 3072, 8192),
        (512, 16384, 3072),
        (2048, 3072, 3072),
    ];
    for (m, n, k) in shapes {
        let product = MatMul {
            m,
            n,
            k,
            form: Form::XWt,
            x_stride: k,
            w_stride: k,
            y_stride: n,
            input: Input::Bf16,
            output: Output::F32,
            accumulate: false,
        };
        let ((x, _), (w, _)) = (random(m * k, 1), random(n * k, 2));
        let (dx, dw) = (
            DeviceBuffer::new(gpu, 2 * x.len(), "x")?,
            DeviceBuffer::new(gpu, 2 * w.len(), "w")?,
        );
        let dy = DeviceBuffer::new(gpu, 4 * m * n, "y")?;
        dx.upload(stream, 0, &x)?;
        dw.upload(stream, 0, &w)?;
        let mut first: Option<Vec<u32>> = None;
        for _ in 0..3 {
            // A new handle each time: nothing is remembered.
            let blas = Blas::new(gpu, 32 << 20)?;
            dy.fill(stream, 0xff)?;
            // SAFETY: the buffers are as large as the product says.
            unsafe { blas.run(stream, &*blas.plan(&product)?, dw.ptr(), dx.ptr(), dy.ptr()) }?;
            let mut got = vec![0_u32; m * n];
            dy.download(stream, 0, &mut got)?;
            equal(first.as_ref().is_none_or(|f| *f == got), true)?;
            first = Some(got);
        }
    }
    Ok(())
}

/// Rows of FP8 products at the shapes of Phi-3.5-mini: the same bits alone, among a few and among
/// many, wherever among them.
pub(crate) fn fp8_rows_do_not_depend_on_others(_: &Gpu) -> Outcome {
    const ROWS: usize = 300;
    let gpu = Gpu::open(0)?;
    let kernels = Kernels::new(gpu.clone());
    let stream = gpu.main();
    for (n, k) in [(9216, 3072), (3072, 3072), (16384, 3072), (3072, 8192)] {
        let (x, _) = random(ROWS * k, 1);
        let codes = random(n * k, 2).0.into_iter();
        // Any code but NaN.
        let codes: Vec<u8> = codes.map(|v| (v ^ (v >> 8)) as u8 & 0xf7).collect();
        let scales: Vec<f32> = (0..n).map(|i| 1e-3 * (1 + i % 7) as f32).collect();
        let dx = DeviceBuffer::new(&gpu, 2 * x.len(), "x")?;
        let dw = DeviceBuffer::new(&gpu, codes.len(), "w")?;
        let ds = DeviceBuffer::new(&gpu, 4 * n, "scales")?;
        let dy = DeviceBuffer::new(&gpu, 4 * ROWS * n, "y")?;
        dx.upload(stream, 0, &x)?;
        dw.upload(stream, 0, &codes)?;
        ds.upload(stream, 0, &scales)?;
        let w = DeviceMatrix {
            rows: n,
            cols: k,
            data: dw.span(),
            format: Format::Fp8 { scales: ds.span() },
        };
        let scratch = DeviceBuffer::new(&gpu, scratch_bytes(&[w], ROWS), "scratch")?;
        let products = RowProducts::new(Blas::new(&gpu, 32 << 20)?, scratch.span());
        for is_sum in [false, true] {
            let run = |from: usize, m: usize| -> Result<Vec<u32>, libtest_mimic::Failed> {
                let x = Activations {
                    span: dx.span().part(2 * from * k, 2 * m * k)?,
                    capacity: m,
                    stride: k,
                };
                let target = match is_sum {
                    true => Target::Add(dy.ptr()),
                    false => Target::Bf16(dy.ptr(), n),
                };
                dy.fill(stream, 0)?;
                let count = RowCount { m, alike: true };
                // SAFETY: the buffers are as large as the product says.
                unsafe { products.run(&kernels, stream, &[w], count, &x, target)? };
                // f32, or pairs of bf16.
                let words = if is_sum { m * n } else { m * n / 2 };
                let mut y = vec![0_u32; words];
                dy.download(stream, 0, &mut y)?;
                Ok(y)
            };
            let all = run(0, ROWS)?;
            let row = all.len() / ROWS;
            equal(all.iter().any(|word| *word != 0), true)?;
            for m in [1, 2, 7, 8, 9, 33, 63, 64, 65, 128, 129, 256] {
                let from = (37 * m) % (ROWS - m);
                if run(from, m)? != all[from * row..][..m * row] {
                    return Err(format!(
                        "[{n}, {k}]: {m} rows from row {from} are other bits than among {ROWS}"
                    )
                    .into());
                }
            }
        }
    }
    Ok(())
}
