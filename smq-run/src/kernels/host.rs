//! Random inputs, the same in every run: element `i` of stream `seed` is a hash of both, so that
//! threads share the work.

use half::bf16;
use rayon::prelude::*;
use smq_engine::{Error, Result};
use smq_format::bits::pack;
use smq_format::int4::unpack;
use smq_format::scale::{ScaleFormat, Zero, round_mantissa};
use smq_format::{Levels, ScaleChoice};

/// Scales lie between this and a 32nd of it, either sign.
const LARGEST_SCALE: f32 = 0.03;
/// Standard deviation of bf16 weights.
const BF16_WEIGHT: f32 = 0.02;
const CHUNK: usize = 1 << 14;

/// A number that looks random, by Splitmix64.
fn hash(seed: u64, i: u64) -> u64 {
    let mut z = (seed << 40)
        .wrapping_add(i.wrapping_add(1))
        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Roughly normal, standard deviation 1, within 3.5: the sum of four uniform values.
fn normal(seed: u64, i: u64) -> f32 {
    let h = hash(seed, i);
    let sum: u32 = (0..4).map(|part| (h >> (16 * part)) as u32 & 0xffff).sum();
    (sum as f32 / 65536.0 - 2.0) * 1.732
}

fn generate<T: Copy + Default + Send>(len: usize, element: impl Fn(u64) -> T + Sync) -> Vec<T> {
    let mut out = vec![T::default(); len];
    out.par_chunks_mut(CHUNK).enumerate().for_each(|(c, out)| {
        for (i, v) in out.iter_mut().enumerate() {
            *v = element((c * CHUNK + i) as u64);
        }
    });
    out
}

/// Normally distributed f32 values, the same for a seed.
pub(super) fn normals(seed: u64, len: usize) -> Vec<f32> {
    generate(len, |i| normal(seed, i))
}

/// Normal values as bf16.
pub(super) fn bf16s(seed: u64, len: usize) -> Vec<bf16> {
    generate(len, |i| bf16::from_f32(normal(seed, i)))
}

/// `count` of `0..len`, in order, the first and the last among them; all where there are not more.
pub(super) fn sample(seed: u64, len: usize, count: usize) -> Vec<usize> {
    if len <= count {
        return (0..len).collect();
    }
    let part = |i: usize| i * len / count;
    let inside = |i: usize| {
        let width = (part(i + 1) - part(i)) as u64;
        part(i) + (hash(seed, i as u64) % width) as usize
    };
    let mut list: Vec<usize> = (0..count).map(inside).collect();
    list[0] = 0;
    list[count - 1] = len - 1;
    list
}

/// Token ids below `limit`, the same for a seed.
pub(super) fn ids(seed: u64, len: usize, limit: usize) -> Vec<u32> {
    generate(len, |i| (hash(seed, i) % limit as u64) as u32)
}

/// How scales of the size that is made here are stored.
///
/// # Errors
/// For widths that no [`ScaleChoice`] from text has.
pub(super) fn format_of(scales: ScaleChoice) -> Result<ScaleFormat> {
    let refused = || Error::Input(format!("{scales} is no format of scales"));
    scales.format(LARGEST_SCALE).ok_or_else(refused)
}

/// A matrix `[rows, cols]` as a file has it.
#[derive(Debug)]
pub(super) struct HostMatrix {
    pub rows: usize,
    pub cols: usize,
    /// Row-major bf16 elements or nibbles.
    pub data: Vec<u8>,
    pub scales: Option<HostScales>,
}

/// Groups that share a scale, and what their nibbles mean.
#[derive(Debug, Clone, Copy)]
pub(super) struct Groups {
    /// Columns of a group.
    pub size: usize,
    /// The code book of lut4; int4 has none.
    pub levels: Option<Levels>,
}

impl Groups {
    /// Groups of int4, which have no code book.
    pub(super) const fn int4(size: usize) -> Self {
        Self { size, levels: None }
    }
}

#[derive(Debug)]
pub(super) struct HostScales {
    pub format: ScaleFormat,
    /// Columns of a group.
    pub group: usize,
    /// The code book of lut4; int4 has none.
    pub levels: Option<Levels>,
    /// The codes as a file has them, packed without gaps.
    pub stream: Vec<u8>,
    /// What they mean, `[rows, groups]`.
    pub values: Vec<f32>,
}

impl HostMatrix {
    /// Random nibbles with random scales of groups, a few of them zero.
    pub(super) fn grouped(
        seed: u64,
        (rows, cols): (usize, usize),
        format: ScaleFormat,
        Groups {
            size: group,
            levels,
        }: Groups,
    ) -> Self {
        let words = generate((rows * cols / 2).div_ceil(8), |i| hash(seed, i));
        let mut data: Vec<u8> = bytemuck::cast_slice(&words).to_vec();
        data.truncate(rows * cols / 2);
        let codes = generate(rows * cols.div_ceil(group), |i| {
            let h = hash(seed + 1, i);
            if h.is_multiple_of(64) {
                return 0;
            }
            let octaves = (h >> 40) as f32 / (1 << 24) as f32 * 5.0;
            let value = LARGEST_SCALE * (-octaves).exp2();
            let signed = if h >> 8 & 1 == 0 { value } else { -value };
            let rounded = match format {
                ScaleFormat::Mini(m) => round_mantissa(signed, m.mantissa_bits(), Zero::Truncate),
                ScaleFormat::F16 | ScaleFormat::F32 => signed,
            };
            format.encode(rounded).code
        });
        let values = codes.iter().map(|c| format.decode(*c).unwrap_or(f32::NAN));
        let scales = HostScales {
            format,
            group,
            levels,
            values: values.collect(),
            stream: pack(codes.iter().copied(), format.width_bits()),
        };
        Self {
            rows,
            cols,
            data,
            scales: Some(scales),
        }
    }

    /// A matrix of random bf16 elements, the same for a seed.
    pub(super) fn bf16(seed: u64, rows: usize, cols: usize) -> Self {
        let elements = generate(rows * cols, |i| {
            bf16::from_f32(normal(seed, i) * BF16_WEIGHT).to_bits()
        });
        Self {
            rows,
            cols,
            data: bytemuck::cast_slice(&elements).to_vec(),
            scales: None,
        }
    }

    /// The weights of row `r`, exact in f64.
    pub(super) fn row(&self, r: usize) -> Vec<f64> {
        let bytes = self.data.len() / self.rows;
        let bytes = &self.data[r * bytes..(r + 1) * bytes];
        match &self.scales {
            None => bytes
                .chunks_exact(2)
                .map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f64())
                .collect(),
            Some(scales) => {
                let groups = self.cols.div_ceil(scales.group);
                let values = &scales.values[r * groups..(r + 1) * groups];
                let levels = scales.levels.map(Levels::bytes);
                let pairs = bytes.iter().enumerate().flat_map(|(i, b)| {
                    let (even, odd) = match levels {
                        None => unpack(*b),
                        Some(levels) => (levels[usize::from(b & 15)], levels[usize::from(b >> 4)]),
                    };
                    let scale = f64::from(values[2 * i / scales.group]);
                    [f64::from(even) * scale, f64::from(odd) * scale]
                });
                pairs.collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_spread_as_said() {
        let v = normals(3, 100_000);
        let mean = v.iter().sum::<f32>() / v.len() as f32;
        let square = v.iter().map(|v| v * v).sum::<f32>() / v.len() as f32;
        assert!(
            mean.abs() < 0.02 && (square - 1.0).abs() < 0.02,
            "{mean} {square}"
        );
        assert_eq!(v, normals(3, 100_000));
        assert_ne!(v, normals(4, 100_000));
    }

    #[test]
    fn samples_are_ordered_and_hold_the_ends() {
        let s = sample(1, 3072, 512);
        assert_eq!((s.len(), s[0], s[511]), (512, 0, 3071));
        assert!(s.windows(2).all(|w| w[0] < w[1]));
        assert_eq!(sample(1, 3, 512), [0, 1, 2]);
    }

    #[test]
    fn every_scale_is_valid_and_rows_are_what_the_format_says() {
        for (name, group) in [
            ("e5m0", 128),
            ("e5m5", 64),
            ("e4m3", 128),
            ("e8m0", 32),
            ("e2m10", 256),
            ("f16", 128),
            ("f32", 64),
        ] {
            let format = format_of(name.parse().unwrap()).unwrap();
            let m = HostMatrix::grouped(9, (16, 384), format, Groups::int4(group));
            let groups = 384_usize.div_ceil(group);
            let scales = m.scales.as_ref().unwrap();
            assert!(
                scales
                    .values
                    .iter()
                    .all(|s| s.is_finite() && s.abs() <= LARGEST_SCALE)
            );
            assert!(
                scales.values.iter().any(|s| *s > 0.0) && scales.values.iter().any(|s| *s < 0.0)
            );
            for r in 0..16 {
                let mut expected = vec![0.0; 384];
                let bytes = &m.data[r * 192..(r + 1) * 192];
                smq_format::int4::dequantize_row(
                    bytes,
                    &scales.values[groups * r..groups * (r + 1)],
                    group,
                    &mut expected,
                );
                let row: Vec<f32> = m.row(r).iter().map(|v| *v as f32).collect();
                assert_eq!(row, expected, "{name}");
            }
        }
        let no_format = ScaleChoice::e5(11);
        assert!(format_of(no_format).is_err());
    }
}
