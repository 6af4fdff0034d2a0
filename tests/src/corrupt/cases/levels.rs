//! Code books in the index.

use std::error::Error;

use smq_format::Levels;

use super::{Add, Sample};

pub(super) fn code_books(sample: &Sample, add: Add) -> Result<(), Box<dyn Error>> {
    let good = Levels::nf4().to_string();
    let levels = format!("\"levels\":\"{good}\"");
    let replace = |old: &str, new: &str| sample.index_text(old, new);
    let (first, last) = (&good[..2], &good[30..]);
    for (name, digits) in [
        ("empty", String::new()),
        ("a level short", good[2..].to_owned()),
        ("a level too many", format!("{good}{last}")),
        ("an odd number of digits", good[1..].to_owned()),
        ("in capitals", good.to_uppercase()),
        ("with another character", good.replacen(first, "8g", 1)),
        (
            "with a character of two bytes",
            good.replacen(first, "\u{e9}", 1),
        ),
        ("of one level twice", good.replacen("bdce", "bdbd", 1)),
        ("of equal ends", format!("{last}{}", &good[2..])),
        ("out of order", good.replacen("bdce", "cebd", 1)),
        (
            "as if unsigned",
            "000102030405060708090a0b0c0d0e80".to_owned(),
        ),
    ] {
        add(
            &format!("levels {name}"),
            replace(&levels, &format!("\"levels\":\"{digits}\"")),
        )?;
    }
    for (name, value) in [("a number", "1"), ("an array", "[1]"), ("null", "null")] {
        add(
            &format!("levels {name}"),
            replace(&levels, &format!("\"levels\":{value}")),
        )?;
    }
    add("levels of lut4 missing", replace(&format!(",{levels}"), ""))?;
    add(
        "levels of int4",
        replace("\"group\":4", &format!("\"group\":4,{levels}")),
    )?;
    add(
        "group of lut4 missing",
        replace("\"group\":2,\"levels", "\"levels"),
    )?;
    add("lut4 called int4", replace("lut4-f16", "int4-f16"))?;
    add("lut4 of other scales", replace("lut4-f16", "lut4-f32"))?;
    add(
        "lut4 of scales with widths",
        replace("lut4-f16", "lut4-e5mx"),
    )
}
