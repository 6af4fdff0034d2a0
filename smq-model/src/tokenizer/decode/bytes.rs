//! Tokens that stand for a byte each.

/// The byte of a token such as `<0x41>`, read as the library reads it.
pub(super) fn byte_token(token: &str) -> Option<u8> {
    let inner = token.strip_prefix("<0x")?.strip_suffix('>')?;
    match inner.len() {
        2 => u8::from_str_radix(inner, 16).ok(),
        _ => None,
    }
}

/// The bytes that the characters of a byte-level token stand for; its own where one stands for
/// none.
pub(super) fn level_bytes(token: &str) -> Vec<u8> {
    let bytes: Option<Vec<u8>> = token.chars().map(level_byte).collect();
    bytes.unwrap_or_else(|| token.as_bytes().to_vec())
}

/// GPT-2's alphabet: printable characters of Latin-1 stand for themselves, the characters from
/// U+0100 on for the other bytes in their order.
fn level_byte(c: char) -> Option<u8> {
    let code = u32::from(c);
    let byte = match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => code,
        0x100..=0x120 => code - 0x100,
        0x121..=0x142 => code - 0x121 + 0x7f,
        0x143 => 0xad,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

/// UTF-8 that arrives in parts, with replacements for what is none.
#[derive(Clone, Default)]
pub(super) struct Utf8 {
    /// The beginning of a character.
    kept: Vec<u8>,
}

impl Utf8 {
    /// The text that these bytes settle.
    pub(super) fn push(&mut self, bytes: &[u8]) -> String {
        self.kept.extend_from_slice(bytes);
        let mut text = String::new();
        let mut rest = self.kept.as_slice();
        loop {
            let error = match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    self.kept.clear();
                    return text;
                }
                Err(error) => error,
            };
            let (valid, after) = rest.split_at(error.valid_up_to());
            text.push_str(std::str::from_utf8(valid).unwrap_or_default());
            let Some(length) = error.error_len() else {
                self.kept = after.to_vec();
                return text;
            };
            text.push('\u{FFFD}');
            rest = &after[length..];
        }
    }

    /// A replacement for a character that did not come to its end.
    pub(super) fn finish(&mut self) -> String {
        match std::mem::take(&mut self.kept).is_empty() {
            true => String::new(),
            false => "\u{FFFD}".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The library's own table, by what its decoder makes of a single character.
    #[test]
    fn the_alphabet_is_the_librarys() {
        let mut stands_for = Vec::new();
        for c in tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet() {
            stands_for.push(level_byte(c).unwrap());
        }
        stands_for.sort_unstable();
        assert_eq!(stands_for, (0..=255).collect::<Vec<u8>>());
        assert_eq!(level_bytes("Ġa"), b" a");
        assert_eq!(level_bytes("Ċ"), b"\n");
        assert_eq!(level_bytes("a\u{4e00}"), "a\u{4e00}".as_bytes());
    }

    #[test]
    fn parts_of_characters_are_kept_and_stray_bytes_replaced() {
        let bytes = "aé漢🦀".as_bytes();
        for cut in 0..=bytes.len() {
            let mut utf8 = Utf8::default();
            let text = utf8.push(&bytes[..cut]) + &utf8.push(&bytes[cut..]) + &utf8.finish();
            assert_eq!(text, "aé漢🦀", "{cut}");
        }
        for bytes in [
            &b"\xf0\x9f"[..],
            b"\xe6\xbcA",
            b"\x80\x80",
            b"\xf0\x9f\xff\xc3",
        ] {
            let mut utf8 = Utf8::default();
            let text: String = bytes.iter().map(|b| utf8.push(&[*b])).collect();
            assert_eq!(text + &utf8.finish(), String::from_utf8_lossy(bytes));
        }
    }
}
