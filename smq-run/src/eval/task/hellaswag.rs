//! `hellaswag`: the published rows (`ind`, `activity_label`, `ctx_a`, `ctx_b`, `endings`, `label`).

use std::sync::LazyLock;

use regex::Regex;
use serde::Deserialize;

use super::{Request, choice};
use crate::eval::python::is_python_space;

#[derive(Deserialize)]
struct Row {
    activity_label: String,
    ctx_a: String,
    ctx_b: String,
    endings: Vec<String>,
    label: Label,
}

/// A number in the published files, a string in Hugging Face's.
#[derive(Deserialize)]
#[serde(untagged)]
enum Label {
    Number(usize),
    Text(String),
}

pub(super) fn parse(line: &str) -> Result<Request, String> {
    let row: Row = serde_json::from_str(line).map_err(|e| e.to_string())?;
    let gold = match row.label {
        Label::Number(n) => n,
        Label::Text(text) => text
            .trim()
            .parse()
            .map_err(|_| format!("the label is {text:?}, expected a number"))?,
    };
    let (label, a, b) = (&row.activity_label, &row.ctx_a, capitalize(&row.ctx_b));
    let context = clean(&format!("{label}: {a} {b}"));
    choice(
        context,
        row.endings.iter().map(|e| clean(e)).collect(),
        gold,
    )
}

/// The harness's `preprocess`: WikiHow's markers go.
fn clean(text: &str) -> String {
    // `.` matches no newline, as in Python.
    static BRACKETS: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"\[.*?\]").ok());
    let text = text.trim_matches(is_python_space).replace(" [title]", ". ");
    let text = match &*BRACKETS {
        Some(brackets) => brackets.replace_all(&text, "").into_owned(),
        None => text,
    };
    text.replace("  ", " ")
}

/// A word with its first letter in upper case and the others in lower, as by Python's
/// `str.capitalize`.
fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(char::to_uppercase);
    first
        .into_iter()
        .flatten()
        .chain(chars.as_str().to_lowercase().chars())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_cleaned_as_the_harness_does() {
        let row = serde_json::json!({
            "activity_label": "Baking", "ctx_a": "[header] How to bake [title] Mix.", "ctx_b": "then HE stirs",
            "endings": [" and eats  it. ", "[step] waits", "c", "d"], "label": "1"
        });
        let Request::Choice {
            context,
            choices,
            gold,
        } = parse(&row.to_string()).unwrap()
        else {
            panic!("not a choice")
        };
        assert_eq!(context, "Baking: How to bake. Mix. Then he stirs");
        assert_eq!(choices, ["and eats it.", " waits", "c", "d"]);
        assert_eq!(gold, 1);
        let mut wrong = row.clone();
        wrong["label"] = 4.into();
        assert_eq!(
            parse(&wrong.to_string()).unwrap_err(),
            "the answer is choice 4, there are 4"
        );
        wrong["label"] = "".into();
        assert!(
            parse(&wrong.to_string())
                .unwrap_err()
                .contains("expected a number")
        );
    }
}
