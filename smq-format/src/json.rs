//! Canonical JSON: the one byte sequence that stands for a value (`spec/format.md`, "Index").

use serde_json::Value;

/// Serialises `value` with keys sorted bytewise, no white space and minimal escapes.
///
/// Sorting is explicit, so that no crate feature elsewhere in a build can change the bytes.
pub(crate) fn canonical(value: &Value) -> String {
    let mut out = String::new();
    write(value, &mut out);
    out
}

fn write(value: &Value, out: &mut String) {
    match value {
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write(item, out);
            }
            out.push(']');
        }
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by(|a, b| a.0.as_bytes().cmp(b.0.as_bytes()));
            out.push('{');
            for (i, (key, item)) in entries.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push(':');
                write(item, out);
            }
            out.push('}');
        }
        // Scalars: serde_json already escapes only what JSON requires.
        scalar => out.push_str(&scalar.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sorts_bytewise_and_escapes_minimally() {
        let value = json!({"b": [1, -2], "a/": "é\u{7f}\n\u{1}\"\\", "A": {"z": "", "\u{ffff}": 0, "😀": 1}});
        let expected = "{\"A\":{\"z\":\"\",\"\u{ffff}\":0,\"😀\":1},\"a/\":\"é\u{7f}\\n\\u0001\\\"\\\\\",\"b\":[1,-2]}";
        assert_eq!(canonical(&value), expected);
    }
}
