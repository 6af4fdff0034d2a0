//! Attention of a decode step.

use half::bf16;
use rayon::prelude::*;

use super::host::{bf16s, normals};
use super::lab::{Floor, Lab, of};
use super::reference::{Attended, Worst, attend};
use super::report::{Check, KernelReport};
use smq_engine::cuda::{Buffers, Cache, Call, Decoder, DeviceBuffer, Phase, Span, State, Uses};
use smq_engine::{KvCode, Result};

pub(super) const LAYER: &str = "attention";
/// With caches of fewer bits.
const CACHES: [(KvCode, &str); 3] = [
    (KvCode::Fp8, "attention, fp8 cache"),
    (KvCode::Int8, "attention, int8 cache"),
    (KvCode::Int4, "attention, int4 cache"),
];
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
    for (code, layer) in [(KvCode::Bf16, LAYER)].into_iter().chain(CACHES) {
        if lab.wants("decode", layer) {
            for cached in CACHED {
                of("decode", layer, decode(lab, layer, code, cached))?;
            }
        }
    }
    Ok(())
}

/// Keys or values of a layer: what is stored, and what is read of it.
struct Side {
    codes: Vec<u8>,
    scales: Vec<u8>,
    read: Vec<bf16>,
}

impl Side {
    /// `rows` random ones, of which those from `cached` on in each head of `capacity` are poison.
    fn random(code: KvCode, seed: u64, d: usize, [capacity, cached, rows]: [usize; 3]) -> Self {
        let elements: Vec<f32> = bf16s(seed, rows * d).iter().map(|v| v.to_f32()).collect();
        let encoded: Vec<_> = elements
            .par_chunks(d)
            .enumerate()
            .map(|(row, elements)| {
                let mut both = code.encode(elements);
                if row % capacity >= cached {
                    both.iter_mut().for_each(|bytes| bytes.fill(0xff));
                }
                both
            })
            .collect();
        let part = |i: usize| encoded.iter().flat_map(|both| &both[i]).copied().collect();
        Self::of(code, d, part(0), part(1))
    }

    fn of(code: KvCode, d: usize, codes: Vec<u8>, scales: Vec<u8>) -> Self {
        let read = code.decode(d, &codes, &scales);
        let read = read.into_iter().map(bf16::from_f32).collect();
        Self {
            codes,
            scales,
            read,
        }
    }

    /// Whether the first `cached` rows of each head are still what they were.
    fn is_kept(&self, after: &Self, [capacity, cached, rows]: [usize; 3]) -> bool {
        let same = |a: &[u8], b: &[u8]| {
            let width = a.len() / rows;
            let mut heads = a
                .chunks((capacity * width).max(1))
                .zip(b.chunks((capacity * width).max(1)));
            heads.all(|(a, b)| a[..cached * width] == b[..cached * width])
        };
        same(&self.codes, &after.codes) && same(&self.scales, &after.scales)
    }
}

/// By how much an element may be rounded in a row, or a group, of which `max` is the largest.
fn rounding(code: KvCode, element: f64, max: f64) -> f64 {
    match code {
        KvCode::Bf16 => f64::exp2(-8.0) * element.abs(),
        // The last bit may be another one, where the rotation's differs.
        KvCode::Fp8 => f64::exp2(-3.0) * element.abs() + f64::exp2(-15.0) * max,
        KvCode::Int8 => f64::exp2(-5.0) * max,
        KvCode::Int4 => 0.4 * max,
    }
}

fn decode(lab: &mut Lab<'_>, layer: &'static str, code: KvCode, cached: usize) -> Result<()> {
    let mut c = lab.config.clone();
    let (d, heads) = (c.head_dim, c.kv_heads);
    let width = heads * d;
    let state = State::new(&lab.gpu, &c)?;
    let decoder = Decoder::with_cache(&lab.kernels, &c, &[], code)?;
    let capacity = (cached + 1).next_multiple_of(CAPACITY_STEP);
    let counts = [capacity, cached, heads * capacity];
    // What is not yet in the cache must not count.
    let sides = [50, 51].map(|seed| Side::random(code, seed, d, counts));
    let side_bytes = sides[0].codes.len() + sides[0].scales.len();
    let bytes = 2 * side_bytes / capacity * cached;
    let layers = lab.copies_of(bytes);
    c.layers = layers;
    let size = Cache::bytes(&c, code, capacity);
    let memory = DeviceBuffer::new(&lab.gpu, size, "a check's cache")?;
    let cache = Cache::new(memory.span(), &c, code, capacity);
    for (i, side) in sides.iter().enumerate() {
        memory.upload(lab.stream(), i * side_bytes, &side.codes)?;
        memory.upload(
            lab.stream(),
            i * side_bytes + side.codes.len(),
            &side.scales,
        )?;
    }
    let first = memory.span().part(0, 2 * side_bytes)?;
    let qkv = normals(52, 3 * width);
    let inv_freq = c.rope.inv_freq(false);
    let table = rope(&inv_freq, cached);
    // SAFETY: every part is inside memory that lives as long as this function, and the copies are
    // waited for.
    unsafe {
        for i in 1..layers {
            let to = memory.span().part(2 * side_bytes * i, 2 * side_bytes)?;
            to.copy_within(lab.stream(), first)?;
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
            let scales = cache.scales(&c, i).unwrap_or_default();
            let phase = Phase::attention(cache.layer(i), capacity, &buffers, uses);
            phase.scaled(scales)
        })
        .collect();
    let program = decoder.program(&lab.gpu, phases)?;
    let calls: Vec<Call> = (0..layers)
        .map(|i| {
            let nowhere = [Span::at(0, 0); 3];
            Ok(decoder.call(program.phases(i, 1)?, false, &c, &state, nowhere))
        })
        .collect::<Result<_>>()?;
    lab.run(&calls[0])?;

    let mut got = vec![0.0f32; width];
    // SAFETY: as above.
    unsafe { state.attended.copy_to(lab.stream(), &mut got)? };
    lab.stream().synchronize()?;
    let download = |i: usize| -> Result<Side> {
        let (mut codes, mut scales) = (sides[i].codes.clone(), sides[i].scales.clone());
        memory.download(lab.stream(), i * side_bytes, &mut codes)?;
        memory.download(lab.stream(), i * side_bytes + codes.len(), &mut scales)?;
        Ok(Side::of(code, d, codes, scales))
    };
    let after = [download(0)?, download(1)?];
    let mut worst = Worst::default();
    let values = &qkv[2 * width..];
    let qkv: Vec<f64> = qkv.iter().copied().map(f64::from).collect();
    let outputs: Vec<_> = (0..heads)
        .into_par_iter()
        .map(|h| {
            let q = rotate(&qkv[h * d..(h + 1) * d], &table);
            let q: Vec<f64> = q.iter().map(|(v, _)| *v).collect();
            let head = h * capacity * d..(h + 1) * capacity * d;
            let [keys, values] = [0, 1].map(|i| &after[i].read[head.clone()]);
            attend_head(&q, keys, values, cached + 1)
        })
        .collect();
    for h in 0..heads {
        let row = h * capacity + cached;
        let key = rotate(&qkv[width + h * d..width + (h + 1) * d], &table);
        let largest = key.iter().fold(0.0f64, |max, (v, _)| max.max(v.abs()));
        for (i, (want, magnitude)) in key.into_iter().enumerate() {
            // f32, then bf16, then fewer bits.
            let tolerance = rounding(code, want, largest) + f64::exp2(-20.0) * magnitude;
            worst.take(after[0].read[row * d + i].to_f64(), want, tolerance, || {
                format!("new key {h}, {i}")
            });
        }
        let [codes, scales] = code.encode(&values[h * d..(h + 1) * d]);
        let stored = (
            &after[1].codes[row * codes.len()..][..codes.len()],
            &after[1].scales[row * scales.len()..][..scales.len()],
        );
        worst.require(stored == (&codes[..], &scales[..]), || {
            format!("new value {h} is {stored:?}, not {codes:?}, {scales:?}")
        });
        for (i, o) in outputs[h].iter().enumerate() {
            let got = f64::from(got[h * d + i]);
            worst.take(got, o.value, o.tolerance, || format!("head {h}, {i}"));
        }
    }
    let mut both = sides.iter().zip(&after);
    let untouched = both.all(|(before, after)| before.is_kept(after, counts));
    worst.require(untouched, || "older cache rows changed".into());
    let check = Check::new(
        worst,
        format!("all {heads} heads"),
        "2^-19 (1 + |q| |k|) sum p |v|",
    );

    let us = lab.time(&calls)?;
    let places: Vec<u64> = (0..layers).map(|i| cache.layer(i).0).collect();
    let floor = Floor::Read(bytes, lab.read_floor(&places, bytes)?);
    let report = KernelReport::new("decode", layer, us, check).rows(1);
    let cached = Some(cached);
    lab.report(KernelReport { cached, ..report }, &floor);
    Ok(())
}
