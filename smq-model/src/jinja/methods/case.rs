//! Upper and lower case, as Python's strings have them.

use super::super::lexer::is_space;
use super::super::unicode;

pub(crate) fn upper(text: &str) -> String {
    text.to_uppercase()
}

pub(crate) fn lower(text: &str) -> String {
    text.to_lowercase()
}

/// The first letter in upper case and the others in lower, as by Python's `str.capitalize`.
pub(crate) fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => title_char(first) + &rest_lower(text, first.len_utf8()),
        None => String::new(),
    }
}

/// `text` in lower case from a byte on; what stands before tells which sigma is a final one.
fn rest_lower(text: &str, from: usize) -> String {
    let lowered = text.to_lowercase();
    let before = text[..from].to_lowercase();
    match lowered.strip_prefix(before.as_str()) {
        Some(rest) => rest.to_owned(),
        None => text[from..].to_lowercase(),
    }
}

/// The digraphs that have a case between upper and lower, else upper case.
fn title_char(c: char) -> String {
    match c {
        'Ǆ' | 'ǅ' | 'ǆ' => "ǅ".into(),
        'Ǉ' | 'ǈ' | 'ǉ' => "ǈ".into(),
        'Ǌ' | 'ǋ' | 'ǌ' => "ǋ".into(),
        'Ǳ' | 'ǲ' | 'ǳ' => "ǲ".into(),
        'ა'..='ჺ' | 'ჽ'..='ჿ' => c.into(),
        c => {
            let mut upper = c.to_uppercase();
            match upper.next() {
                Some(first) => {
                    first.to_string() + &upper.flat_map(char::to_lowercase).collect::<String>()
                }
                None => String::new(),
            }
        }
    }
}

fn is_cased(c: char) -> bool {
    unicode::is_upper(c) || unicode::is_lower(c) || unicode::is_titlecase(c)
}

/// Python's `str.title`: a letter behind a letter is small, any other one large.
pub(super) fn title(text: &str) -> String {
    let mut out = String::new();
    let mut behind_letter = false;
    for c in text.chars() {
        match behind_letter {
            true => out.extend(c.to_lowercase()),
            false => out += &title_char(c),
        }
        behind_letter = is_cased(c);
    }
    out
}

/// Jinja's filter `title`: words begin behind white space, hyphens and opening brackets.
pub(crate) fn title_words(text: &str) -> String {
    let separates = |c: char| is_space(c) || "-({[<".contains(c);
    let mut out = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let same = |c: char| separates(c) == separates(first);
        let end = rest.find(|c: char| !same(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let (head, tail) = word.split_at(first.len_utf8());
        out += &head.to_uppercase();
        out += &tail.to_lowercase();
        rest = after;
    }
    out
}

pub(super) fn swapcase(text: &str) -> String {
    let mut out = String::new();
    for (at, c) in text.char_indices() {
        if unicode::is_upper(c) {
            // Within its text, so that a final sigma is one.
            let until = text[..at + c.len_utf8()].to_lowercase();
            match c {
                'Σ' => out.extend(until.chars().next_back()),
                c => out.extend(c.to_lowercase()),
            }
        } else if unicode::is_lower(c) {
            out.extend(c.to_uppercase());
        } else {
            out.push(c);
        }
    }
    out
}

/// Python's `str.casefold`: lower case of upper case, which makes one of `ß` and `ss`.
pub(super) fn casefold(text: &str) -> String {
    let fold = |c: char| -> String {
        match c {
            'ı' | 'İ' => c.to_lowercase().collect(),
            c => c.to_uppercase().flat_map(char::to_lowercase).collect(),
        }
    };
    text.chars().map(fold).collect()
}

/// Python's `str.isupper`: some cased characters, and all of them large.
pub(crate) fn is_all_upper(text: &str) -> bool {
    let other = |c| unicode::is_lower(c) || unicode::is_titlecase(c);
    !text.chars().any(other) && text.chars().any(unicode::is_upper)
}

/// Python's `str.islower`: some cased characters, and all of them small.
pub(crate) fn is_all_lower(text: &str) -> bool {
    let other = |c| unicode::is_upper(c) || unicode::is_titlecase(c);
    !text.chars().any(other) && text.chars().any(unicode::is_lower)
}

/// Whether each word begins with a capital letter, as Python's `str.istitle` has it.
pub(super) fn is_title(text: &str) -> bool {
    let (mut behind_letter, mut any) = (false, false);
    for c in text.chars() {
        if unicode::is_upper(c) || unicode::is_titlecase(c) {
            if behind_letter {
                return false;
            }
            (behind_letter, any) = (true, true);
        } else if unicode::is_lower(c) {
            if !behind_letter {
                return false;
            }
        } else {
            behind_letter = false;
        }
    }
    any
}
