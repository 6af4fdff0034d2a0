//! `lambada_openai`, whose lines are `{"text": ...}`.

use serde::Deserialize;

use super::Request;

#[derive(Deserialize)]
struct Row {
    text: String,
}

pub(super) fn parse(line: &str) -> Result<Request, String> {
    let Row { text } = serde_json::from_str(line).map_err(|e| e.to_string())?;
    let (context, word) = text.rsplit_once(' ').unwrap_or(("", &text));
    Ok(Request::Continuation {
        context: context.to_owned(),
        continuation: format!(" {word}"),
        distance: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_takes_its_space() {
        let of = |text: &str| parse(&serde_json::json!({ "text": text }).to_string()).unwrap();
        let pair = |context: &str, continuation: &str| Request::Continuation {
            context: context.into(),
            continuation: continuation.into(),
            distance: None,
        };
        assert_eq!(
            of("He said:\n\"go  now home"),
            pair("He said:\n\"go  now", " home")
        );
        assert_eq!(of("alone"), pair("", " alone"));
        assert_eq!(of("ends "), pair("ends", " "));
        assert!(parse("{\"question\": 1}").is_err());
    }
}
