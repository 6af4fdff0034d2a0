//! Attention of a decode step.

use half::bf16;
use rayon::prelude::*;

use super::host::{bf16s, normals};
use super::lab::{Floor, Lab, of};
use super::reference::{Attended, Worst, attend};
use super::report::{Check, KernelReport};
use smq_engine::Result;
use smq_engine::cuda::{Buffers, Cache, Call, Decoder, DeviceBuffer, Phase, Span, State, Uses};

pub(super) const LAYER: &str = "attention";
const CACHED: [usize; 5] = [128, 400, 2048, 8192, 32768];
/// Positions by which the engine's cache grows.
pub(super) const CAPACITY_STEP: usize = 256;

/// Cosine and sine of a position, `[2, half]`, as f32 angles have them.
pub(super) fn rope(inv_freq: &[f32], position: usize) -> Vec<f64> {
    let angles = inv_freq.iter().map(|f| f64::from(position as f32 * f));
    let (cos, sin): (Vec<f64>, Vec<f64>) = angles.map(|a| (a.cos(), a.sin())).unzip();
    [cos, sin].concat()
}

/// Rotates pairs half a head apart; also each result's magnitude.
pub(super) fn rotate(v: &[f64], rope: &[f64]) -> Vec<(f64, f64)> {
    let half = rope.len() / 2;
    let rotated = (0..2 * half).map(|i| {
        let (cos, sin) = (rope[i % half], rope[half + i % half]);
        let other = v[(i + half) % (2 * half)] * if i < half { -sin } else { sin };
        (v[i] * cos + other, (v[i] * cos).abs() + other.abs())
    });
    rotated
        .chain(v[2 * half..].iter().map(|v| (*v, 0.0)))
        .collect()
}

pub(super) fn wide(v: &[bf16]) -> Vec<f64> {
    v.iter().map(|v| v.to_f64()).collect()
}

/// One query over the first `len` tokens of a head `[tokens, d]`.
pub(super) fn attend_head(q: &[f64], keys: &[bf16], values: &[bf16], len: usize) -> Vec<Attended> {
    let d = q.len();
    let tokens = keys.chunks(d).zip(values.chunks(d)).take(len);
    attend(q, tokens.map(|(k, v)| (wide(k), wide(v))))
}

/// Checks and times a decode step's attention.
pub(super) fn run(lab: &mut Lab<'_>) -> Result<()> {
    if lab.wants("decode", LAYER) {
        for cached in CACHED {
            of("decode", LAYER, decode(lab, cached))?;
        }
    }
    Ok(())
}

fn decode(lab: &mut Lab<'_>, cached: usize) -> Result<()> {
    let c = lab.config.clone();
    let (d, heads) = (c.head_dim, c.kv_heads);
    let width = heads * d;
    let state = State::new(&lab.gpu, &c)?;
    let decoder = Decoder::new(&lab.kernels, &c, &[])?;
    let capacity = (cached + 1).next_multiple_of(CAPACITY_STEP);
    let side = heads * capacity * d;
    let bytes = 4 * width * cached;
    let layers = lab.copies_of(bytes);
    let memory = DeviceBuffer::new(&lab.gpu, 4 * side * layers, "a check's cache")?;
    let (mut keys, mut values) = (bf16s(50, side), bf16s(51, side));
    // What is not yet in the cache must not count.
    for side in [&mut keys, &mut values] {
        for head in side.chunks_mut(capacity * d) {
            head[cached * d..].fill(bf16::NAN);
        }
    }
    memory.upload(lab.stream(), 0, &keys)?;
    memory.upload(lab.stream(), 2 * side, &values)?;
    let cache = Cache {
        span: memory.span(),
        capacity,
        side_bytes: 2 * side,
    };
    let layer = memory.span().part(0, 4 * side)?;
    let qkv = normals(52, 3 * width);
    let inv_freq = c.rope.inv_freq(false);
    let table = rope(&inv_freq, cached);
    // SAFETY: every part is inside memory that lives as long as this function, and the copies are
    // waited for.
    unsafe {
        for i in 1..layers {
            let to = memory.span().part(4 * side * i, 4 * side)?;
            to.copy_within(lab.stream(), layer)?;
        }
        state.qkv.copy_from(lab.stream(), &qkv)?;
        state.inv_freq[0].copy_from(lab.stream(), &inv_freq)?;
        state.state.copy_from(lab.stream(), &[cached as u32])?;
        state.attended.fill(lab.stream(), 0xff)?;
    }
    let buffers = Buffers {
        x: state.qkv.ptr(),
        sums: state.attention_parts.ptr(),
        out: state.attended.ptr(),
        ..Buffers::default()
    };
    // A kernel each: what a phase overwrites, the products between two of them protect.
    let phases: Vec<_> = (0..layers)
        .map(|i| {
            let uses = Uses {
                input: None,
                output: i,
            };
            Phase::attention(cache.layer(i), capacity, &buffers, uses).0
        })
        .collect();
    let program = lab.upload(&phases)?;
    let calls: Vec<Call> = (0..layers)
        .map(|i| {
            let bytes = size_of_val(&phases[0]);
            let part = program.span().part(i * bytes, bytes)?;
            Ok(decoder.call((part, 1), false, &c, &state, [Span::at(0, 0); 3]))
        })
        .collect::<Result<_>>()?;
    lab.run(&calls[0])?;

    let mut got = vec![0.0f32; width];
    // SAFETY: as above.
    unsafe { state.attended.copy_to(lab.stream(), &mut got)? };
    lab.stream().synchronize()?;
    let (mut keys_after, mut values_after) = (keys.clone(), values.clone());
    memory.download(lab.stream(), 0, &mut keys_after)?;
    memory.download(lab.stream(), 2 * side, &mut values_after)?;
    let mut worst = Worst::default();
    let qkv: Vec<f64> = qkv.iter().copied().map(f64::from).collect();
    let outputs: Vec<_> = (0..heads)
        .into_par_iter()
        .map(|h| {
            let q = rotate(&qkv[h * d..(h + 1) * d], &table);
            let q: Vec<f64> = q.iter().map(|(v, _)| *v).collect();
            let head = h * capacity * d..(h + 1) * capacity * d;
            attend_head(
                &q,
                &keys_after[head.clone()],
                &values_after[head],
                cached + 1,
            )
        })
        .collect();
    for h in 0..heads {
        let new = h * capacity * d + cached * d;
        let key = rotate(&qkv[width + h * d..width + (h + 1) * d], &table);
        for (i, (want, magnitude)) in key.into_iter().enumerate() {
            // f32, then bf16.
            let tolerance = f64::exp2(-8.0) * want.abs() + f64::exp2(-20.0) * magnitude;
            worst.take(keys_after[new + i].to_f64(), want, tolerance, || {
                format!("new key {h}, {i}")
            });
            let want = bf16::from_f64(qkv[2 * width + h * d + i]);
            let got = values_after[new + i];
            worst.require(got == want, || {
                format!("new value {h}, {i} is {got}, not {want}")
            });
        }
        for (i, o) in outputs[h].iter().enumerate() {
            let got = f64::from(got[h * d + i]);
            worst.take(got, o.value, o.tolerance, || format!("head {h}, {i}"));
        }
    }
    let same = |before: &[bf16], after: &[bf16]| {
        let heads = before.chunks(capacity * d).zip(after.chunks(capacity * d));
        heads
            .into_iter()
            .all(|(b, a)| b[..cached * d] == a[..cached * d])
    };
    let untouched = same(&keys, &keys_after) && same(&values, &values_after);
    worst.require(untouched, || "older cache rows changed".into());
    let check = Check::new(
        worst,
        format!("all {heads} heads"),
        "2^-19 (1 + |q| |k|) sum p |v|",
    );

    let us = lab.time(&calls)?;
    let places: Vec<u64> = (0..layers).map(|i| cache.layer(i).0).collect();
    let floor = Floor::Read(bytes, lab.read_floor(&places, bytes)?);
    let report = KernelReport::new("decode", LAYER, us, check).rows(1);
    let cached = Some(cached);
    lab.report(KernelReport { cached, ..report }, &floor);
    Ok(())
}
