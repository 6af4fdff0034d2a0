//! `strftime_now`: the local time as Python's `datetime.now().strftime(format)` writes it.

use jiff::Zoned;
use jiff::civil::DateTime;
use jiff::fmt::strtime;

use crate::jinja::Result;

/// The local time as `format` asks for it.
pub(crate) fn now(format: &str) -> Result<String> {
    Ok(written(Zoned::now().datetime(), format))
}

/// A time by a format of the C library's, in its plain locale. What it does not know, it leaves
/// as it is, and so does this.
fn written(time: DateTime, format: &str) -> String {
    let mut out = String::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        out += &rest[..at];
        let directive = &rest[at + 1..];
        let flags = directive.trim_start_matches(['-', '_', '0', '^', '#']);
        let kind = flags.trim_start_matches(|c: char| c.is_ascii_digit());
        let (Some(letter), before) = (kind.chars().next(), directive.len() - kind.len()) else {
            return out + &rest[at..];
        };
        let end = before + letter.len_utf8();
        match one(time, &directive[..before], letter) {
            Some(text) => out += &text,
            None => out += &rest[at..at + 1 + end],
        }
        rest = &directive[end..];
    }
    out + rest
}

/// One directive with its flags and width; `None` if there is none of this letter.
fn one(time: DateTime, flags: &str, letter: char) -> Option<String> {
    let whole = |format: &str| Some(written(time, format));
    match letter {
        'c' => return whole("%a %b %e %H:%M:%S %Y"),
        'x' | 'D' => return whole("%m/%d/%y"),
        'X' | 'T' => return whole("%H:%M:%S"),
        'r' => return whole("%I:%M:%S %p"),
        'R' => return whole("%H:%M"),
        'F' => return whole("%Y-%m-%d"),
        'h' => return one(time, flags, 'b'),
        // Python's own: microseconds.
        'f' => return Some(format!("{:06}", time.subsec_nanosecond() / 1000)),
        // The time has no zone.
        'z' | 'Z' => return Some(String::new()),
        's' => {
            let zoned = time.to_zoned(jiff::tz::TimeZone::system()).ok()?;
            return Some(zoned.timestamp().as_second().to_string());
        }
        'n' => return Some("\n".into()),
        't' => return Some("\t".into()),
        '%' => return Some("%".into()),
        'a' | 'A' | 'b' | 'B' | 'C' | 'd' | 'e' | 'g' | 'G' | 'H' | 'I' | 'j' | 'k' | 'l' | 'm'
        | 'M' | 'p' | 'P' | 'S' | 'u' | 'U' | 'V' | 'w' | 'W' | 'y' | 'Y' => {}
        _ => return None,
    }
    strtime::format(format!("%{flags}{letter}"), time).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by Python 3.11 on Linux: `datetime(2024, 3, 7, 5, 9, 8, 120034).strftime(format)`.
    #[test]
    fn a_time_is_written_as_python_writes_it() {
        let time = jiff::civil::date(2024, 3, 7).at(5, 9, 8, 120_034_000);
        for (format, text) in [
            ("%d %b %Y", "07 Mar 2024"),
            ("%Y-%m-%d", "2024-03-07"),
            ("%-d %B %y, %A", "7 March 24, Thursday"),
            ("%e|%k|%l|%j|%U|%W|%V|%u|%w", " 7| 5| 5|067|09|10|10|4|4"),
            ("%H:%M:%S.%f %I %p %P", "05:09:08.120034 05 AM am"),
            (
                "%c|%x|%X|%D|%F|%T|%R|%r",
                "Thu Mar  7 05:09:08 2024|03/07/24|05:09:08|03/07/24|2024-03-07|05:09:08|05:09|05:09:08 AM",
            ),
            ("[%z][%Z]%%%n%t", "[][]%\n\t"),
            ("%^a %^B", "THU MARCH"),
            ("%!|%Q|%", "%!|%Q|%"),
            ("%G-%g %C %h", "2024-24 20 Mar"),
            ("%_d|%_m|%-H|%-I|%-M", " 7| 3|5|5|9"),
        ] {
            assert_eq!(written(time, format), text, "{format}");
        }
    }
}
