//! `arc_challenge` and `arc_easy`: Hugging Face's rows, the original ones, or choices as a plain
//! list.

use serde::Deserialize;

use super::{Request, choice, position};

#[derive(Deserialize)]
#[serde(untagged)]
enum Row {
    /// `allenai/ai2_arc` at Hugging Face.
    #[serde(rename_all = "camelCase")]
    Columns {
        question: String,
        choices: Columns,
        answer_key: String,
    },
    /// The files that AI2 publishes itself.
    #[serde(rename_all = "camelCase")]
    Nested { question: Stem, answer_key: String },
    /// A list, and the right one's index.
    List {
        question: String,
        choices: Vec<String>,
        answer: usize,
    },
}

#[derive(Deserialize)]
struct Columns {
    text: Vec<String>,
    label: Vec<String>,
}

#[derive(Deserialize)]
struct Stem {
    stem: String,
    choices: Vec<Labelled>,
}

#[derive(Deserialize)]
struct Labelled {
    text: String,
    label: String,
}

pub(super) fn parse(line: &str) -> Result<Request, String> {
    let row: Row = serde_json::from_str(line).map_err(|e| match e.is_data() {
        true => "expected question, choices (text and label) and answerKey".to_owned(),
        false => e.to_string(),
    })?;
    let (question, choices, gold) = match row {
        Row::Columns {
            question,
            choices: Columns { text, label },
            answer_key,
        } => {
            if text.len() != label.len() {
                return Err(format!(
                    "{} choices have {} labels",
                    text.len(),
                    label.len()
                ));
            }
            (question, text, position(label, &answer_key)?)
        }
        Row::Nested {
            question: Stem { stem, choices },
            answer_key,
        } => {
            let (text, label): (_, Vec<_>) = choices.into_iter().map(|c| (c.text, c.label)).unzip();
            (stem, text, position(label, &answer_key)?)
        }
        Row::List {
            question,
            choices,
            answer,
        } => (question, choices, answer),
    };
    choice(format!("Question: {question}\nAnswer:"), choices, gold)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_forms_are_one_item() {
        let want = Request::Choice {
            context: "Question: Why?\nAnswer:".into(),
            choices: vec!["a".into(), "b".into(), "c".into()],
            gold: 2,
        };
        for row in [
            r#"{"id":"x","question":"Why?","choices":{"text":["a","b","c"],"label":["1","2","3"]},"answerKey":"3"}"#,
            r#"{"question":{"stem":"Why?","choices":[{"text":"a","label":"A"},{"text":"b","label":"B"},{"text":"c","label":"C"}]},"answerKey":"C"}"#,
            r#"{"idx":0,"question":"Why?","choices":["a","b","c"],"answer":2}"#,
        ] {
            assert_eq!(parse(row).unwrap(), want, "{row}");
        }
    }

    #[test]
    fn bad_rows_say_what_is_wrong() {
        let error = |row: &str| parse(row).unwrap_err();
        assert!(
            error(r#"{"question":"q","choices":["a"],"answer":1}"#)
                .contains("choice 1, there are 1")
        );
        assert!(
            error(r#"{"question":"q","choices":{"text":["a"],"label":["A"]},"answerKey":"B"}"#)
                .contains("the answer B is none of the choices")
        );
        assert!(
            error(r#"{"question":"q","choices":{"text":["a"],"label":[]},"answerKey":"B"}"#)
                .contains("1 choices have 0 labels")
        );
        assert!(error(r#"{"text":"q"}"#).contains("expected question"));
        assert!(error("{").contains("EOF"));
    }
}
