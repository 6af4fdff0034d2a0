//! Code books: 4-bit indices into 16 signed bytes of the tensor, two a byte as int4 has them (low
//! half = even column).
//!
//! int4 is the case of the levels -8 to 7, but for its nibbles, which are two's complement there
//! and indices here.

use std::fmt;

use crate::nf4;

/// Levels of a code book.
pub const LEVELS: usize = 16;

/// The levels of a tensor, strictly increasing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Levels([i8; LEVELS]);

impl Levels {
    /// `None` where a level is not above the one before.
    #[must_use]
    pub const fn new(levels: [i8; LEVELS]) -> Option<Self> {
        match first_disorder(&levels) {
            Some(_) => None,
            None => Some(Self(levels)),
        }
    }

    /// int4's: -8 to 7.
    #[must_use]
    pub const fn int4() -> Self {
        let mut levels = [0; LEVELS];
        let mut i = 0;
        while i < LEVELS {
            levels[i] = i as i8 - 8;
            i += 1;
        }
        Self(levels)
    }

    /// NF4's values times 127, rounded to integers.
    #[must_use]
    pub const fn nf4() -> Self {
        let mut levels = [0; LEVELS];
        let mut i = 0;
        while i < LEVELS {
            let scaled = nf4::VALUES[i] * 127.0;
            // None is halfway, so adding a half before the cut rounds to nearest.
            levels[i] = (scaled + if scaled < 0.0 { -0.5 } else { 0.5 }) as i8;
            i += 1;
        }
        Self(levels)
    }

    /// The levels as the file stores them, in ascending order.
    #[must_use]
    pub const fn bytes(self) -> [i8; LEVELS] {
        self.0
    }

    /// The levels as numbers, exactly.
    #[must_use]
    pub fn values(self) -> [f32; LEVELS] {
        self.0.map(f32::from)
    }

    /// Midpoints of neighbouring levels, exactly: the code of a quotient is the number of those
    /// below it.
    #[must_use]
    pub fn midpoints(self) -> [f32; LEVELS - 1] {
        let values = self.values();
        std::array::from_fn(|i| (values[i] + values[i + 1]) / 2.0)
    }

    /// The level of largest magnitude; of two with the same, the negative one.
    #[must_use]
    pub fn largest(self) -> i8 {
        let (first, last) = (self.0[0], self.0[LEVELS - 1]);
        if i16::from(last) > -i16::from(first) {
            last
        } else {
            first
        }
    }

    /// The code of 0, or of the level that is nearest to it.
    #[must_use]
    pub fn zero_code(self) -> u8 {
        self.midpoints().iter().map(|m| u8::from(0.0 > *m)).sum()
    }

    /// Reads 32 lower-case hexadecimal digits, as [`Levels`] is written.
    ///
    /// # Errors
    /// What is wrong with them, to follow the word "levels".
    pub fn from_hex(digits: &str) -> Result<Self, String> {
        let value = |digit: &u8| match digit {
            b'0'..=b'9' => Some(digit - b'0'),
            b'a'..=b'f' => Some(digit - b'a' + 10),
            _ => None,
        };
        let read = || {
            let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
            let pairs: &[[u8; 2]; LEVELS] = pairs.try_into().ok().filter(|_| rest.is_empty())?;
            let mut levels = [0; LEVELS];
            for (level, [high, low]) in levels.iter_mut().zip(pairs) {
                *level = (value(high)? << 4 | value(low)?) as i8;
            }
            Some(levels)
        };
        let levels = read().ok_or("are not 32 lower-case hexadecimal digits")?;
        match first_disorder(&levels) {
            Some(i) => Err(format!(
                "are not strictly increasing: {} is followed by {}",
                levels[i],
                levels[i + 1]
            )),
            None => Ok(Self(levels)),
        }
    }
}

/// The bytes in ascending order of the levels, each as two lower-case hexadecimal digits.
impl fmt::Display for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|level| write!(f, "{level:02x}"))
    }
}

/// Index of the first level that the next one is not above.
const fn first_disorder(levels: &[i8; LEVELS]) -> Option<usize> {
    let mut i = 0;
    while i + 1 < LEVELS {
        if levels[i] >= levels[i + 1] {
            return Some(i);
        }
        i += 1;
    }
    None
}

/// Dequantizes one row: `out[c] = levels[code[c]] * scales[c / group]` in f32. `scales` holds the
/// row's groups.
pub fn dequantize_row(
    nibbles: &[u8],
    scales: &[f32],
    group: usize,
    levels: Levels,
    out: &mut [f32],
) {
    if !group.is_multiple_of(2) {
        return dequantize_row_naive(nibbles, scales, group, levels, out);
    }
    // A group of an even length starts at a byte, and has but 16 values.
    let values = levels.values();
    let groups = out.chunks_mut(group).zip(nibbles.chunks(group / 2));
    for ((out, nibbles), &scale) in groups.zip(scales) {
        let values = values.map(|v| v * scale);
        let mut pairs = out.chunks_exact_mut(2);
        for (pair, &byte) in (&mut pairs).zip(nibbles) {
            pair[0] = values[usize::from(byte & 15)];
            pair[1] = values[usize::from(byte >> 4)];
        }
        if let ([last], Some(&byte)) = (pairs.into_remainder(), nibbles.last()) {
            *last = values[usize::from(byte & 15)];
        }
    }
}

/// The definition of [`dequantize_row`], column by column.
pub fn dequantize_row_naive(
    nibbles: &[u8],
    scales: &[f32],
    group: usize,
    levels: Levels,
    out: &mut [f32],
) {
    for (column, out) in out.iter_mut().enumerate() {
        let code = nibbles[column / 2] >> (column % 2 * 4) & 15;
        *out = f32::from(levels.bytes()[usize::from(code)]) * scales[column / group];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::int4;
    use proptest::prelude::*;

    #[test]
    fn the_two_fixed_books() {
        assert_eq!(Levels::int4().bytes(), std::array::from_fn(|i| i as i8 - 8));
        let nf4 = nf4::VALUES.map(|v| (v * 127.0).round() as i8);
        assert_eq!(Levels::nf4().bytes(), nf4);
        assert_eq!(Levels::new(nf4), Some(Levels::nf4()));
        assert_eq!(
            Levels::nf4().to_string(),
            "81a8bdcedce9f4000a141f2b38475c7f"
        );
    }

    #[test]
    fn what_is_no_book() {
        let wrong = "are not 32 lower-case hexadecimal digits";
        let good = Levels::int4().to_string();
        for digits in [
            "",
            &good[2..],
            &format!("{good}7f"),
            &good.to_uppercase(),
            &good.replace("f8", "é"),
        ] {
            assert_eq!(Levels::from_hex(digits), Err(wrong.to_owned()), "{digits}");
        }
        let equal = Levels::from_hex(&good.replace("0607", "0707")).unwrap_err();
        assert_eq!(equal, "are not strictly increasing: 7 is followed by 7");
        assert_eq!(Levels::new([0; 16]), None);
    }

    #[test]
    fn the_largest_and_the_code_of_zero() {
        assert_eq!(
            (Levels::int4().largest(), Levels::int4().zero_code()),
            (-8, 8)
        );
        assert_eq!(
            (Levels::nf4().largest(), Levels::nf4().zero_code()),
            (-127, 7)
        );
        let high = Levels::new(std::array::from_fn(|i| 10 + i as i8)).unwrap();
        assert_eq!((high.largest(), high.zero_code()), (25, 0));
        let low = Levels::new(std::array::from_fn(|i| i as i8 + i8::MIN)).unwrap();
        assert_eq!((low.largest(), low.zero_code()), (-128, 15));
    }

    fn levels() -> impl Strategy<Value = Levels> {
        prop::collection::btree_set(any::<i8>(), 16).prop_map(|set| {
            let levels: Vec<i8> = set.into_iter().collect();
            Levels::new(levels.try_into().unwrap()).unwrap()
        })
    }

    proptest! {
        #[test]
        fn is_read_as_it_is_written(levels in levels()) {
            prop_assert_eq!(Levels::from_hex(&levels.to_string()), Ok(levels));
        }

        #[test]
        fn dequantizes(
            row in prop::collection::vec(0i8..16, 1..300), group in 1usize..140, levels in levels(),
        ) {
            let mut bytes = vec![0xff; int4::row_bytes(row.len())];
            int4::pack_row(&row, &mut bytes);
            let scales: Vec<f32> = (0..row.len().div_ceil(group)).map(|g| 0.3 - g as f32).collect();
            let book = levels.bytes();
            let value = |(c, q): (usize, &i8)| f32::from(book[*q as usize]) * scales[c / group];
            let expected: Vec<f32> = row.iter().enumerate().map(value).collect();
            for dequantize in [dequantize_row, dequantize_row_naive] {
                let mut out = vec![f32::NAN; row.len()];
                dequantize(&bytes, &scales, group, levels, &mut out);
                prop_assert_eq!(&out, &expected);
            }
        }

        /// The same integers, as int4 and as a code book.
        #[test]
        fn int4_is_the_book_of_equal_steps(row in prop::collection::vec(-8i8..=7, 1..300)) {
            let bytes = int4::row_bytes(row.len());
            let (mut as_int4, mut as_lut4) = (vec![0; bytes], vec![0; bytes]);
            int4::pack_row(&row, &mut as_int4);
            int4::pack_row(&row.iter().map(|q| q + 8).collect::<Vec<_>>(), &mut as_lut4);
            let scales = vec![-0.37; row.len().div_ceil(64)];
            let mut out = [vec![0.0; row.len()], vec![1.0; row.len()]];
            int4::dequantize_row(&as_int4, &scales, 64, &mut out[0]);
            dequantize_row(&as_lut4, &scales, 64, Levels::int4(), &mut out[1]);
            let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&out[0]), bits(&out[1]));
        }
    }
}
