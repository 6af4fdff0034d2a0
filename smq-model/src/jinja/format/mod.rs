//! Python's two ways to format text: `"%s" % x` and `"{}".format(x)`.

mod braces;
mod number;
mod percent;

pub(crate) use braces::{Fields, braces};
pub(crate) use percent::percent;

/// `text` in a field of `width` characters: `<` left, `>` right, `^` in the middle, `=` with the
/// fill between the sign and the digits.
fn pad(text: &str, fill: char, align: char, width: usize) -> String {
    let missing = width.saturating_sub(text.chars().count());
    let fill = |count: usize| fill.to_string().repeat(count);
    match align {
        '>' => fill(missing) + text,
        '^' => fill(missing / 2) + text + &fill(missing - missing / 2),
        '=' => {
            let digits = text.trim_start_matches(['-', '+', ' ']);
            let sign = &text[..text.len() - digits.len()];
            format!("{sign}{}{digits}", fill(missing))
        }
        _ => text.to_owned() + &fill(missing),
    }
}
