//! Rows of a cache of fewer bits than bf16: into codes and back, to the bit as the CPU has them.

use half::bf16;
use rayon::prelude::*;

use super::attention::CAPACITY_STEP;
use super::host::bf16s;
use super::lab::{Floor, Lab, of};
use super::reference::Worst;
use super::report::{Check, KernelReport};
use smq_engine::cuda::{Cache, DeviceBuffer};
use smq_engine::{KvCacheFormat, KvCode, Result};

/// Formats, with what a report calls the layer.
pub(super) const CODES: [(KvCode, &str); 3] = [
    (KvCode::Fp8, "fp8 cache"),
    (KvCode::Int8, "int8 cache"),
    (KvCode::Int4, "int4 cache"),
];
/// Positions before those that are encoded, and these.
const FIRST: usize = 105;
const ROWS: usize = 2048;

/// Checks and times rows on their way into a cache, and out of it.
pub(super) fn run(lab: &mut Lab<'_>) -> Result<()> {
    for (code, layer) in CODES {
        if lab.wants("kv_cache", layer) {
            of("kv_cache", layer, rows(lab, code, layer))?;
        }
    }
    Ok(())
}

/// Rows of every size: each 16th is scaled by another power of two, some are zero or not finite.
fn inputs(seed: u64, rows: usize, d: usize) -> Vec<bf16> {
    let mut all = bf16s(seed, rows * d);
    for (i, row) in all.chunks_mut(d).enumerate() {
        let factor = match i % 16 {
            0 => 0.0,
            1 => f32::from_bits(1 << 16),
            kind => f32::exp2((i / 16 % 60) as f32 - 30.0) * (1.0 + kind as f32 / 16.0),
        };
        for v in &mut *row {
            *v = bf16::from_f32(v.to_f32() * factor);
        }
        match i % 97 {
            5 => row[i % d] = bf16::NAN,
            6 => row[i % d] = bf16::NEG_INFINITY,
            7 => row[i % d] = bf16::MAX,
            8 => (row[0], row[1]) = (bf16::from_f32(-64.0), bf16::from_f32(64.0)),
            _ => {}
        }
    }
    all
}

/// A buffer's bf16.
fn numbers(bytes: &[u8]) -> Vec<f32> {
    let pairs = bytes.chunks_exact(2);
    pairs
        .map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32())
        .collect()
}

/// Whether all are alike; the sign of a NaN is not told.
fn same(a: &[f32], b: &[f32]) -> bool {
    let mut pairs = a.iter().zip(b);
    pairs.all(|(a, b)| a == b || (a.is_nan() && b.is_nan()))
}

fn rows(lab: &mut Lab<'_>, code: KvCode, layer: &'static str) -> Result<()> {
    let mut c = lab.config.clone();
    c.layers = 1;
    let (d, heads) = (c.head_dim, c.kv_heads);
    let capacity = (FIRST + ROWS).next_multiple_of(CAPACITY_STEP);
    let memory = DeviceBuffer::new(
        &lab.gpu,
        Cache::bytes(&c, code, capacity),
        "a check's cache",
    )?;
    memory.fill(lab.stream(), 0xff)?;
    let cache = Cache::new(memory.span(), &c, code, capacity);
    let Some(there) = cache.coded(&c, 0) else {
        return Ok(());
    };
    let side = heads * capacity;
    let input = inputs(70, 2 * side, d);
    let wide_at = 2 * cache.side_bytes;
    memory.upload(lab.stream(), wide_at, &input)?;
    let encode = there.encode(&lab.kernels, &c, code, (FIRST, ROWS))?;
    lab.run(&encode)?;
    let download = |len: usize, at: usize| -> Result<Vec<u8>> {
        let mut out = vec![0u8; len];
        memory.download(lab.stream(), at, &mut out)?;
        Ok(out)
    };
    let (stored, after) = (download(wide_at, 0)?, download(4 * side * d, wide_at)?);
    // What the CPU makes of it.
    let [codes, scales] = code.encode(&vec![0.0; d]).map(|v| v.len());
    let is_written = |row: usize| (FIRST..FIRST + ROWS).contains(&(row % capacity));
    let of_row = |row: usize| {
        let elements: Vec<f32> = input[row * d..(row + 1) * d]
            .iter()
            .map(|v| v.to_f32())
            .collect();
        let [own, scale] = code.encode(&elements);
        let read = code.decode(d, &own, &scale);
        (own, scale, read)
    };
    let mut worst = Worst::default();
    let failures: Vec<String> = (0..2 * side)
        .into_par_iter()
        .filter_map(|row| {
            let base = row / side * cache.side_bytes;
            let row_in_side = row % side;
            let got = &stored[base + row_in_side * codes..][..codes];
            let got_scales = &stored[base + side * codes + row_in_side * scales..][..scales];
            let wide = numbers(&after[2 * row * d..2 * (row + 1) * d]);
            let fine = if is_written(row) {
                let (own, scale, read) = of_row(row);
                got == own && got_scales == scale && same(&wide, &read)
            } else {
                let was = &input[row * d..(row + 1) * d];
                let was: Vec<f32> = was.iter().map(|v| v.to_f32()).collect();
                got.iter().chain(got_scales).all(|b| *b == 0xff) && same(&wide, &was)
            };
            (!fine).then(|| {
                let (own, scale, _) = of_row(row);
                format!(
                    "row {row} has {got:?}, {got_scales:?}, not {own:?}, {scale:?}, and is read as \
                     {wide:?}"
                )
            })
        })
        .collect();
    worst.require(failures.is_empty(), || {
        format!("{} rows differ, {}", failures.len(), failures[0])
    });

    // Back again, into what was overwritten.
    let poison = vec![0xffu8; 4 * side * d];
    memory.upload(lab.stream(), wide_at, &poison)?;
    let widen = there.widen(&lab.kernels, &c, code, FIRST + ROWS)?;
    lab.run(&widen)?;
    let read_back = download(4 * side * d, wide_at)?;
    let written = (0..2 * side).filter(|row| is_written(*row));
    for row in written {
        let at = 2 * row * d..2 * (row + 1) * d;
        let (a, b) = (numbers(&read_back[at.clone()]), numbers(&after[at]));
        worst.require(same(&a, &b), || {
            format!("row {row} is widened to {a:?}, not {b:?}")
        });
    }
    let format = KvCacheFormat::Coded(code);
    let check = Check::new(
        worst,
        format!("all {} rows, {format}", 2 * side),
        "the same bits",
    );
    let us = lab.time(&[encode])?;
    let report = KernelReport::new("encode_rows", layer, us, check.clone()).rows(ROWS);
    lab.report(report, &Floor::None);
    let us = lab.time(&[widen])?;
    let report = KernelReport::new("widen_rows", layer, us, check).rows(FIRST + ROWS);
    lab.report(report, &Floor::None);
    Ok(())
}
