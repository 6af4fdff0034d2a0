//! Where each word of a phase is: told here, and passed to `decode.cu` as macros.

use crate::cuda::contract::Defines;

/// Words of a phase.
pub(super) const WORDS: usize = 32;
/// The kind of an attention phase: no kind of product has this number.
pub(super) const ATTENTION: u32 = 255;
/// Where the word of a product's scales has the bits of a code; the format is below.
pub(super) const SCALES_WIDTH_AT: u32 = 8;
/// And where its bits of mantissa.
pub(super) const SCALES_MANTISSA_AT: u32 = 16;

/// Declares where each word of a phase is, and the macros by which `decode.cu` (`enum Word`) knows
/// it.
macro_rules! words {
    ($($(#[$doc:meta])* $name:ident = $at:literal, $words:literal;)*) => {
        $($(#[$doc])* pub(super) const $name: usize = $at;)*
        /// Macro, place and number of words of each.
        const PLACES: &[(&str, usize, usize)] = &[
            $((concat!("WORD_", stringify!($name)), $at, $words)),*
        ];
    };
}
words! {
    /// Of the plan's kinds of product, or [`ATTENTION`].
    KIND = 0, 1;
    /// Which use of its buffer, in the step, the input is.
    USE_IN = 1, 1;
    /// And the output.
    USE_OUT = 2, 1;
    /// The bits of the input's values that are a tag.
    CHECK = 3, 1;
    /// Three addresses.
    WEIGHTS = 4, 6;
    /// Three addresses.
    SCALES_AT = 10, 6;
    /// Index of the second segment's first scale; attention: the cache's capacity.
    FIRST1 = 16, 1;
    /// Three.
    BIAS = 17, 3;
    /// Format, width and bits of mantissa of a scale.
    SCALES = 20, 1;
    /// Bytes copied for one run of scale codes.
    RUN_BYTES = 21, 1;
    /// An address, as all that follow.
    X = 22, 2;
    SUMS = 24, 2;
    NEXT_NORM = 26, 2;
    OUT = 28, 2;
    OUT_SUMS = 30, 2;
}

/// The macros that tell `decode.cu` how a phase is written.
pub(super) fn defines() -> Defines {
    let mut defines = vec![
        ("PHASE_WORDS", WORDS as i64),
        ("ATTENTION_KIND", ATTENTION.into()),
        ("SCALES_WIDTH_AT", SCALES_WIDTH_AT.into()),
        ("SCALES_MANTISSA_AT", SCALES_MANTISSA_AT.into()),
    ];
    defines.extend(PLACES.iter().map(|&(name, at, _)| (name, at as i64)));
    defines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_has_a_place_of_its_own() {
        let mut end = 0;
        for &(name, at, words) in PLACES {
            assert_eq!(at, end, "{name}");
            end = at + words;
        }
        assert_eq!(end, WORDS);
    }
}
