//! Code books as the kernels take them.

use smq_format::Levels;

/// Bytes before a tensor's scales that hold its book for `decode.cu`.
pub const BOOK_BYTES: usize = 32;

/// A code book in halves, each as `decode_lut4.cuh` looks nibbles up in it.
///
/// A nibble of the other half finds the sign of a half's byte, 0 or -1, at its three low bits. The
/// kernel adds both halves, so each byte is its level less the sign that the other half gives
/// there. `shift` is what all levels are less, 0 or 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Halves {
    lower: [i8; 8],
    upper: [i8; 8],
    shift: u8,
}

impl Halves {
    /// `None` where no byte does: of some levels from -128 to 127 of which the eighth is negative.
    pub(super) fn of(levels: Levels) -> Option<Self> {
        [0, 1]
            .into_iter()
            .find_map(|shift| Self::shifted(levels.bytes(), shift))
    }

    fn shifted(levels: [i8; 16], shift: u8) -> Option<Self> {
        let mut halves = Self {
            lower: [0; 8],
            upper: [0; 8],
            shift,
        };
        for i in 0..8 {
            let level = |at: usize| i16::from(levels[at]) - i16::from(shift);
            let (low, high) = (level(i), level(8 + i));
            // What each half gives where the other is meant.
            let signs = [(0, 0), (-1, 0), (0, -1), (-1, -1)];
            let fits = signs.into_iter().find_map(|(of_lower, of_upper)| {
                let lower = i8::try_from(low - of_upper).ok()?;
                let upper = i8::try_from(high - of_lower).ok()?;
                let sign = |byte: i8| -i16::from(byte < 0);
                ((sign(lower), sign(upper)) == (of_lower, of_upper)).then_some((lower, upper))
            });
            (halves.lower[i], halves.upper[i]) = fits?;
        }
        Some(halves)
    }

    /// Whether all levels are one less.
    pub(super) fn is_shifted(&self) -> bool {
        self.shift != 0
    }

    /// As they lie before a tensor's scales.
    fn bytes(&self) -> [u8; BOOK_BYTES] {
        let halves = self.lower.iter().chain(&self.upper);
        let all = halves
            .map(|byte| byte.cast_unsigned())
            .chain([self.shift; 4]);
        let mut out = [0; BOOK_BYTES];
        out.iter_mut().zip(all).for_each(|(to, byte)| *to = byte);
        out
    }
}

/// What has to lie before a tensor's scales; `None` of a book that `--device cuda` does not run.
#[must_use]
pub fn book_bytes(levels: Levels) -> Option<[u8; BOOK_BYTES]> {
    Halves::of(levels).map(|halves| halves.bytes())
}

/// The levels as four words, each byte plus `offset`.
pub(super) fn words(levels: Levels, offset: u8) -> [u32; 4] {
    let bytes = levels
        .bytes()
        .map(|level| level.cast_unsigned().wrapping_add(offset));
    let (words, _) = bytes.as_chunks::<4>();
    std::array::from_fn(|i| u32::from_le_bytes(words[i]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `prmt` of a half with one nibble.
    fn look_up(half: &[i8; 8], nibble: u8) -> i32 {
        let byte = half[usize::from(nibble & 7)];
        match nibble < 8 {
            true => i32::from(byte),
            false => -i32::from(byte < 0),
        }
    }

    fn check(levels: Levels) -> Halves {
        let halves = Halves::of(levels).unwrap();
        for (nibble, level) in (0..16).zip(levels.bytes()) {
            let sum = look_up(&halves.lower, nibble) + look_up(&halves.upper, nibble ^ 8);
            assert_eq!(
                sum + i32::from(halves.shift),
                i32::from(level),
                "{levels} {nibble}"
            );
        }
        let bytes = halves.bytes();
        assert_eq!(bytes[..8], halves.lower.map(i8::cast_unsigned));
        assert_eq!(bytes[8..16], halves.upper.map(i8::cast_unsigned));
        assert_eq!(bytes[16..20], [halves.shift; 4]);
        halves
    }

    #[test]
    fn the_halves_of_a_book_add_up_to_it() {
        assert!(!check(Levels::int4()).is_shifted());
        assert!(!check(Levels::nf4()).is_shifted());
        let mut learned = Levels::nf4().bytes();
        learned[7] = -3;
        assert!(check(Levels::new(learned).unwrap()).is_shifted());
        learned[0] = -128;
        assert_eq!(Halves::of(Levels::new(learned).unwrap()), None);
        learned[7] = 1;
        check(Levels::new(learned).unwrap());
    }

    #[test]
    fn words_are_little_endian() {
        let words = words(Levels::int4(), 128);
        assert_eq!(words, [0x7b7a_7978, 0x7f7e_7d7c, 0x8382_8180, 0x8786_8584]);
    }

    proptest! {
        #[test]
        fn all_but_the_widest_have_halves(set in prop::collection::btree_set(any::<i8>(), 16)) {
            let levels: Vec<i8> = set.into_iter().collect();
            let levels: [i8; 16] = levels.try_into().unwrap();
            let widest = (levels[0], levels[15]) == (-128, 127) && levels[7] < 0;
            let levels = Levels::new(levels).unwrap();
            match Halves::of(levels) {
                Some(_) => { check(levels); }
                None => prop_assert!(widest, "{levels}"),
            }
        }
    }
}
