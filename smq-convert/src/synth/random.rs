//! Hashing and distributions, from IEEE basic operations only.

/// Degrees of freedom of the Student-t distribution; even, so that its distribution function is
/// algebraic. 10 gives a kurtosis of 4, amid the 3.2 to 6 of trained linears.
const T_DEGREES: u32 = 10;
/// Size of the quantile table: one entry for each 16-bit number, so that no look-up needs a bounds
/// check.
pub(super) const QUANTILES: usize = 1 << 16;

/// `bf16::from_f32` for finite values. Without its branch for NaN the loop is three times as fast.
pub(super) fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// The increment of SplitMix64's counter.
pub(super) const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// The output function of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number
/// generators", 2014).
pub(super) fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(GOLDEN_GAMMA);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A 64-bit key for `name` under `key` (FNV-1a, then mixed).
pub(super) fn hash_name(key: u64, name: &str) -> u64 {
    let fnv = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    mix(mix(key) ^ fnv)
}

/// Nearly normal, mean 0 and variance 1: the centred sum of four 16-bit uniforms, within +-3.5.
pub(super) fn normal(bits: u64) -> f32 {
    let sum: u64 = (0..4).map(|lane| bits >> (16 * lane) & 0xffff).sum();
    (sum as f32 / 65536.0 - 2.0) * 1.732_050_8
}

/// e^x for |x| up to about 2, to 1e-5 relative. The standard library's `exp` may differ in the last
/// bit between platforms; this is IEEE multiplications and additions only.
pub(super) fn exp(x: f32) -> f32 {
    let y = x / 64.0;
    let mut power = 1.0 + y * (1.0 + y * (0.5 + y / 6.0));
    for _ in 0..6 {
        power *= power;
    }
    power
}

/// The quantiles of Student's t at (i + 1/2) / 65536, scaled to variance 1.
///
/// With `x = t / sqrt(n + t^2)` and n even, the distribution function is the polynomial
/// `1/2 + x/2 * sum_{j < n/2} c_j (1 - x^2)^j`, `c_j = (2j)! / (4^j j!^2)` (Abramowitz and Stegun
/// 26.7.4); it is inverted by bisection.
pub(super) fn student_t_quantiles() -> Box<[f32; QUANTILES]> {
    let upper_half = |x: f64| {
        let (mut term, mut sum) = (1.0, 0.0);
        for j in 1..=T_DEGREES / 2 {
            sum += term;
            term *= (1.0 - x * x) * f64::from(2 * j - 1) / f64::from(2 * j);
        }
        x / 2.0 * sum
    };
    let n = f64::from(T_DEGREES);
    let quantiles: Vec<f64> = (0..QUANTILES / 2)
        .map(|i| {
            let probability = (i as f64 + 0.5) / QUANTILES as f64;
            let (mut low, mut high) = (0.0, 1.0);
            for _ in 0..48 {
                let middle = (low + high) / 2.0;
                if upper_half(middle) < probability {
                    low = middle;
                } else {
                    high = middle;
                }
            }
            low * (n / (1.0 - low * low)).sqrt()
        })
        .collect();
    let mean_square = quantiles.iter().map(|t| t * t).sum::<f64>() / quantiles.len() as f64;
    let std = mean_square.sqrt();
    let mut table = Box::new([0.0; QUANTILES]);
    let (lower, upper) = table.split_at_mut(QUANTILES / 2);
    let pairs = lower.iter_mut().rev().zip(upper);
    for ((lower, upper), t) in pairs.zip(quantiles) {
        *upper = (t / std) as f32;
        *lower = -*upper;
    }
    table
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn bf16_bits_matches_the_library() {
        // Every bf16 with its neighbours in f32, its rounding ties and their neighbours.
        for high in (0..=u16::MAX).filter(|&high| bf16::from_bits(high).is_finite()) {
            for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits(u32::from(high) << 16 | low);
                let expected = bf16::from_f32(value).to_bits();
                assert_eq!(bf16_bits(value), expected, "{value:e}");
            }
        }
    }

    #[test]
    fn quantiles_are_those_of_student_t() {
        let table = student_t_quantiles();
        assert_eq!(table.len(), 65536);
        assert!(table.is_sorted());
        assert!(table.iter().zip(table.iter().rev()).all(|(a, b)| *a == -*b));
        let moment = |k: i32| table.iter().map(|t| f64::from(*t).powi(k)).sum::<f64>() / 65536.0;
        assert!((moment(2) - 1.0).abs() < 1e-6, "{}", moment(2));
        // Kurtosis is 3 + 6 / (10 - 4) = 4, less what lies beyond the outermost quantile.
        assert!((3.9..4.0).contains(&moment(4)), "{}", moment(4));
        // t_10 at 0.975 is 2.228139 and at 0.9995 4.586894 (published tables); the variance is 10 /
        // 8.
        let at = |p: f64| f64::from(table[(p * 65536.0) as usize]) * (10.0_f64 / 8.0).sqrt();
        assert!((at(0.975) / 2.228_139 - 1.0).abs() < 1e-3, "{}", at(0.975));
        assert!(
            (at(0.9995) / 4.586_894 - 1.0).abs() < 1e-2,
            "{}",
            at(0.9995)
        );
    }

    #[test]
    fn exp_matches_the_standard_library() {
        for i in -200..=200 {
            let x = i as f32 / 100.0;
            assert!((exp(x) / x.exp() - 1.0).abs() < 1e-5, "{x}");
        }
    }

    #[test]
    fn normal_has_unit_variance() {
        let values: Vec<f32> = (0..100_000).map(|i| normal(mix(i))).collect();
        let mean = values.iter().sum::<f32>() / 1e5;
        let variance = values.iter().map(|z| z * z).sum::<f32>() / 1e5;
        // Five standard errors: 5 / sqrt(1e5) = 0.016, and sqrt(2) times that for the variance.
        assert!(mean.abs() < 0.016 && (variance - 1.0).abs() < 0.023);
    }
}
