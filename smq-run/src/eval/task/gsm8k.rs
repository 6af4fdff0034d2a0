//! `gsm8k`: the published rows (`question`, `answer`), and the harness's two ways to find the
//! number in an answer.

use std::sync::LazyLock;

use regex::Regex;
use serde::Deserialize;

use super::Request;
use crate::eval::python::is_python_space;

/// What ends an answer, beside the tokenizer's EOS token.
pub(super) const STOPS: [&str; 3] = ["Question:", "</s>", "<|im_end|>"];
/// New tokens at most: the harness's default, which its task leaves in place.
pub(crate) const MAX_NEW_TOKENS: usize = 256;
/// What stands for an answer without a number.
const INVALID: &str = "[invalid]";

#[derive(Deserialize)]
struct Row {
    question: String,
    answer: String,
}

pub(super) fn parse(line: &str) -> Result<Request, String> {
    let Row { question, answer } = serde_json::from_str(line).map_err(|e| e.to_string())?;
    Ok(Request::Answer {
        prompt: format!("Question: {question}\nAnswer:"),
        reference: answer,
    })
}

/// The number after the first `####`.
pub(super) fn strict(response: &str) -> String {
    static PATTERN: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"#### (\-?[0-9\.\,]+)").ok());
    let found = PATTERN.as_ref().and_then(|p| p.captures(response));
    stripped(found.and_then(|c| c.get(1)).map(|m| m.as_str()))
}

/// The last number of an answer.
pub(super) fn flexible(response: &str) -> String {
    static PATTERN: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"(-?[$0-9.,]{2,})|(-?[0-9]+)").ok());
    let found = PATTERN.as_ref().and_then(|p| p.find_iter(response).last());
    stripped(found.map(|m| m.as_str()))
}

fn stripped(found: Option<&str>) -> String {
    found
        .map_or(INVALID, |text| text.trim_matches(is_python_space))
        .to_owned()
}

/// The harness's `exact_match` with the task's `regexes_to_ignore`, without regard to case.
pub(super) fn exact_match(extracted: &str, reference: &str) -> bool {
    normalized(extracted) == normalized(reference)
}

/// Without `,`, without `$`, without all up to the last `#### `, without one full stop at the end.
fn normalized(text: &str) -> String {
    let text = text.replace([',', '$'], "");
    let text = text.rsplit_once("#### ").map_or(&*text, |(_, rest)| rest);
    text.strip_suffix('.').unwrap_or(text).to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_as_the_harness_finds_them() {
        // Expected values: re.findall with the task's patterns, in Python.
        for (response, strict_want, flexible_want) in [
            ("She has 3.\n#### 18", "18", "18"),
            ("#### -1,234.50 dollars", "-1,234.50", "-1,234.50"),
            ("so $12, or $13.", INVALID, "$13."),
            ("7", INVALID, "7"),
            ("#### 5\n#### 6 then 70", "5", "70"),
            ("####18", INVALID, "18"),
            ("no number", INVALID, INVALID),
            ("wait, what ..", INVALID, ".."),
            ("2-3", INVALID, "-3"),
        ] {
            assert_eq!(strict(response), strict_want, "{response}");
            assert_eq!(flexible(response), flexible_want, "{response}");
        }
    }

    #[test]
    fn numbers_match_as_the_harness_matches_them() {
        let reference = "Half of 36,000 is <<36000/2=18000>>18,000.\n#### 18,000";
        for yes in ["18000", "18,000", "$18,000.", "#### 18,000"] {
            assert!(exact_match(yes, reference), "{yes}");
        }
        for no in ["18000.0", "18000..", "1800", INVALID, ""] {
            assert!(!exact_match(no, reference), "{no}");
        }
    }
}
