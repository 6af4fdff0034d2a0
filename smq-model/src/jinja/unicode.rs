//! Classes of characters that Python's string methods ask for and Rust's `char` has not.

use std::sync::LazyLock;

use regex::Regex;

/// A class that cannot be compiled holds nothing.
fn class(pattern: &str) -> Option<Regex> {
    Regex::new(pattern).ok()
}

fn holds(class: &LazyLock<Option<Regex>>, c: char) -> bool {
    let mut buffer = [0; 4];
    let text: &str = c.encode_utf8(&mut buffer);
    class.as_ref().is_some_and(|class| class.is_match(text))
}

static UNPRINTABLE: LazyLock<Option<Regex>> = LazyLock::new(|| class(r"[\p{C}\p{Zl}\p{Zp}\p{Zs}]"));
static LETTER: LazyLock<Option<Regex>> = LazyLock::new(|| class(r"\p{L}"));
static DECIMAL: LazyLock<Option<Regex>> = LazyLock::new(|| class(r"\p{Nd}"));
/// Digits that do not make decimal numbers: superscripts, digits in circles.
static DIGIT: LazyLock<Option<Regex>> = LazyLock::new(|| {
    class(
        "[²³¹፩-፱᧚⁰⁴-⁹₀-₉①-⑨⑴-⑼⒈-⒐⓪⓵-⓽⓿❶-❾➀-➈➊-➒\
         \u{10a40}-\u{10a43}\u{10e60}-\u{10e68}\u{11052}-\u{1105a}\u{1f100}-\u{1f10a}]",
    )
});
/// Ideographs that are numerals.
const NUMERALS: &str = "㐅㒃㠪㭍一七万三九二五亖亿什仟仨伍佰億兆兩八六十千卄卅卌叁参參叄四壱壹幺廾廿弌弍弎弐拾捌柒漆玖百肆萬貮貳贰阡陆陌陸零\
     \u{f96b}\u{f973}\u{f978}\u{f9b2}\u{f9d1}\u{f9d3}\u{f9fd}𠀁𠁤𠃢𠄡𠤪𠦃𠦌𠦜𠫪𠫽𠬙𢎐𢦘𣬛𦉭\u{2f890}";
static TITLECASE: LazyLock<Option<Regex>> = LazyLock::new(|| class(r"\p{Lt}"));
static UPPER: LazyLock<Option<Regex>> = LazyLock::new(|| class(r"\p{Uppercase}"));
static LOWER: LazyLock<Option<Regex>> = LazyLock::new(|| class(r"\p{Lowercase}"));

/// Control, unassigned, private and separating characters, which `repr` escapes.
pub(crate) fn is_unprintable(c: char) -> bool {
    holds(&UNPRINTABLE, c)
}

pub(crate) fn is_letter(c: char) -> bool {
    c.is_ascii_alphabetic() || (!c.is_ascii() && holds(&LETTER, c))
}

pub(crate) fn is_decimal(c: char) -> bool {
    c.is_ascii_digit() || (!c.is_ascii() && holds(&DECIMAL, c))
}

pub(crate) fn is_digit(c: char) -> bool {
    is_decimal(c) || (!c.is_ascii() && holds(&DIGIT, c))
}

pub(crate) fn is_titlecase(c: char) -> bool {
    !c.is_ascii() && holds(&TITLECASE, c)
}

pub(crate) fn is_upper(c: char) -> bool {
    c.is_ascii_uppercase() || (!c.is_ascii() && holds(&UPPER, c))
}

pub(crate) fn is_lower(c: char) -> bool {
    c.is_ascii_lowercase() || (!c.is_ascii() && holds(&LOWER, c))
}

pub(crate) fn is_numeric(c: char) -> bool {
    c.is_numeric() || (!c.is_ascii() && NUMERALS.contains(c))
}

/// The digit that a decimal of any script stands for.
pub(crate) fn decimal(c: char) -> Option<u32> {
    if c.is_ascii() || !is_decimal(c) {
        return c.to_digit(10);
    }
    // They come in runs from zero to nine, some of which follow each other.
    let code = u32::from(c);
    let is_run = |code: &u32| char::from_u32(*code).is_some_and(is_decimal);
    let before = (0..code).rev().take_while(is_run).count();
    u32::try_from(before % 10).ok()
}
