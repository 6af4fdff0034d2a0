//! Calls that a model writes in its text, taken apart in the format that its chat template shows
//! it.

use serde_json::{Deserializer, Value, json};

use super::state::random;
use super::vocabulary::Vocabulary;
use smq_model::Tokenizer;

/// How models write calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `<tool_call>{"name": …, "arguments": …}</tool_call>`, any number of them in a text: Hermes,
    /// Qwen 2.5 and 3, SmolLM3.
    Tagged,
    /// The whole text is `{"name": …, "parameters": …}`, or several with semicolons between: Llama
    /// 3.1 to 3.3.
    Bare,
    /// `[TOOL_CALLS] [{"name": …, "arguments": …}, …]` up to the end: Mistral.
    Listed,
}

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
const LIST: &str = "[TOOL_CALLS]";
/// In templates whose calls begin alike and are no JSON: Qwen3-Coder, GLM-4.5, Mistral from version
/// 11 of its formats on.
const OTHERS: [&str; 3] = ["<function=", "<arg_key>", "[ARGS]"];

impl Kind {
    /// The format of a template, by what it writes itself where a call is part of the chat.
    fn of(has: impl Fn(&str) -> bool) -> Option<Self> {
        if OTHERS.iter().any(|other| has(other)) {
            return None;
        }
        if has(OPEN) {
            return Some(Self::Tagged);
        }
        if has(LIST) {
            return Some(Self::Listed);
        }
        (has("{\"name\": ") && has("\"parameters\": ")).then_some(Self::Bare)
    }

    fn markers(self) -> &'static [&'static str] {
        match self {
            Self::Tagged => &[OPEN, CLOSE],
            Self::Listed => &[LIST],
            Self::Bare => &[],
        }
    }
}

/// The format of a model's calls.
#[derive(Debug)]
pub(super) struct Format {
    kind: Kind,
    /// Tokens that are shown in the text though they are special ones, which it leaves out
    /// otherwise.
    pub(super) shown: Vec<(u32, &'static str)>,
}

impl Format {
    /// Of a model; `None` where its template has none that is known here.
    pub(super) fn of(tokenizer: &Tokenizer, vocabulary: &Vocabulary) -> Option<Self> {
        let chat = tokenizer.chat()?;
        let kind = Kind::of(|text| chat.contains(text))?;
        let markers = kind.markers().iter();
        let shown = markers.filter_map(|marker| {
            let id = tokenizer.token_id(marker)?;
            vocabulary.is_special(id).then_some((id, *marker))
        });
        Some(Self {
            kind,
            shown: shown.collect(),
        })
    }

    pub(super) fn parser(&self) -> Parser {
        Parser {
            kind: self.kind,
            held: String::new(),
            stage: Stage::Text,
            has_called: false,
        }
    }
}

/// A call of a tool, as the model wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Call {
    id: String,
    name: String,
    /// A JSON object, as a text.
    arguments: String,
}

impl Call {
    /// What a model wrote as a call; `None` if it is not one.
    fn of(kind: Kind, value: &Value) -> Option<Self> {
        let name = value
            .get("name")?
            .as_str()
            .filter(|name| !name.is_empty())?;
        let given = value.get("arguments").or_else(|| value.get("parameters"));
        let arguments = match given {
            Some(Value::Object(_)) => given?.to_string(),
            // Some models write the arguments as OpenAI sends them.
            Some(Value::String(text)) => match serde_json::from_str(text) {
                Ok(Value::Object(_)) => text.clone(),
                Ok(_) | Err(_) => return None,
            },
            // Without a marker before it, any object with a name would be a call.
            Some(Value::Null) | None if kind != Kind::Bare => "{}".to_owned(),
            Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_)) | None => {
                return None;
            }
        };
        Some(Self {
            id: id(kind),
            name: name.to_owned(),
            arguments,
        })
    }

    /// The call in the form of `message.tool_calls`.
    pub(super) fn value(&self) -> Value {
        json!({
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        })
    }

    /// The call in the form of a stream's `delta.tool_calls`.
    pub(super) fn delta(&self, index: usize) -> Value {
        let mut value = json!({"index": index});
        if let (Value::Object(delta), Value::Object(call)) = (&mut value, self.value()) {
            delta.extend(call);
        }
        value
    }
}

/// A name for a call. Mistral's templates refuse any that has not nine letters or digits.
fn id(kind: Kind) -> String {
    let random = format!("{:016x}", random());
    match kind {
        Kind::Listed => random[..9].to_owned(),
        Kind::Tagged | Kind::Bare => format!("call_{random}"),
    }
}

/// Finds the calls of a text that comes in pieces. What may be the beginning of one is held back,
/// and what turns out to be none stays text, to the letter.
#[derive(Debug)]
pub(super) struct Parser {
    kind: Kind,
    held: String,
    stage: Stage,
    has_called: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// `held` may be white space or the beginning of a marker.
    Text,
    /// `held` is a call from its marker on, behind the white space before it: where the search for
    /// its end goes on, and where its JSON begins.
    Call { from: usize, json: usize },
    /// There is no call any more.
    Rest,
}

impl Parser {
    /// The text and the calls that `piece` completes.
    pub(super) fn push(&mut self, piece: &str) -> (String, Vec<Call>) {
        self.held.push_str(piece);
        let (mut text, mut calls) = (String::new(), Vec::new());
        while self.go_on(&mut text, &mut calls) {}
        (text, calls)
    }

    /// One stage further; whether there may be another.
    fn go_on(&mut self, text: &mut String, calls: &mut Vec<Call>) -> bool {
        match (self.stage, self.kind) {
            (Stage::Rest, Kind::Tagged | Kind::Bare | Kind::Listed) => {
                text.push_str(&std::mem::take(&mut self.held));
                false
            }
            (Stage::Text, Kind::Bare) => {
                match self.held.trim_start().chars().next() {
                    None => return false,
                    Some('{') => self.stage = Stage::Call { from: 0, json: 0 },
                    Some(_) => self.stage = Stage::Rest,
                }
                true
            }
            (Stage::Text, Kind::Tagged | Kind::Listed) => {
                let marker = self.kind.markers()[0];
                let found = self.held.find(marker);
                let end = found.unwrap_or_else(|| self.held.len() - overlap(&self.held, marker));
                // White space before a call is no part of the text.
                let keep = self.held[..end].trim_end().len();
                text.extend(self.held.drain(..keep));
                if let Some(at) = found {
                    let json = at - keep + marker.len();
                    self.stage = Stage::Call { from: json, json };
                }
                found.is_some()
            }
            (Stage::Call { from, json }, Kind::Tagged) => {
                let Some(at) = self.held[from..].find(CLOSE) else {
                    return false;
                };
                let (at, end) = (from + at, from + at + CLOSE.len());
                match serde_json::from_str::<Value>(&self.held[json..at]) {
                    // The marker is within a string.
                    Err(error) if error.is_eof() => {
                        self.stage = Stage::Call { from: end, json };
                    }
                    read => {
                        let call = read.ok().and_then(|value| Call::of(self.kind, &value));
                        let raw: String = self.held.drain(..end).collect();
                        self.stage = Stage::Text;
                        self.put(raw, call.map(|call| vec![call]), text, calls);
                    }
                }
                true
            }
            // They end with the text.
            (Stage::Call { .. }, Kind::Bare | Kind::Listed) => false,
        }
    }

    /// What is left when the text is complete.
    pub(super) fn finish(&mut self) -> (String, Vec<Call>) {
        let (mut text, mut calls) = (String::new(), Vec::new());
        let held = std::mem::take(&mut self.held);
        let found = match self.stage {
            Stage::Text | Stage::Rest => None,
            Stage::Call { json, .. } => all(self.kind, &held[json..]),
        };
        self.stage = Stage::Rest;
        self.put(held, found, &mut text, &mut calls);
        (text, calls)
    }

    /// Calls, or the text that they were looked for in. Nothing but white space behind a call is
    /// no text.
    fn put(
        &mut self,
        raw: String,
        found: Option<Vec<Call>>,
        text: &mut String,
        calls: &mut Vec<Call>,
    ) {
        match found {
            Some(found) => {
                self.has_called = true;
                calls.extend(found);
            }
            None if self.has_called && raw.trim().is_empty() => {}
            None => text.push_str(&raw),
        }
    }
}

/// The calls of a text that is nothing else.
fn all(kind: Kind, text: &str) -> Option<Vec<Call>> {
    let mut values = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let mut stream = Deserializer::from_str(rest).into_iter::<Value>();
        let value = stream.next()?.ok()?;
        rest = rest[stream.byte_offset()..].trim_start();
        if kind == Kind::Bare {
            rest = rest.trim_start_matches(|c: char| c == ';' || c.is_whitespace());
        }
        match value {
            Value::Array(list) if kind == Kind::Listed => values.extend(list),
            value => values.push(value),
        }
    }
    let calls = values.iter().map(|value| Call::of(kind, value));
    let calls: Option<Vec<Call>> = calls.collect();
    calls.filter(|calls| !calls.is_empty())
}

/// Bytes at the end of `text` that may be the beginning of `marker`.
fn overlap(text: &str, marker: &str) -> usize {
    let lengths = (1..marker.len()).rev();
    // Markers are ASCII, so that any of their beginnings ends at a character.
    let mut fitting = lengths.filter(|n| text.ends_with(&marker[..*n]));
    fitting.next().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parser(kind: Kind) -> Parser {
        let format = Format {
            kind,
            shown: Vec::new(),
        };
        format.parser()
    }

    /// The text, and names and arguments of the calls, however the text is cut into pieces.
    fn parsed(kind: Kind, text: &str) -> (String, Vec<(String, String)>) {
        let whole = pieces(kind, &[text]);
        for (at, _) in text.char_indices() {
            assert_eq!(pieces(kind, &[&text[..at], &text[at..]]), whole, "{at}");
        }
        let each: Vec<String> = text.chars().map(String::from).collect();
        let each: Vec<&str> = each.iter().map(String::as_str).collect();
        assert_eq!(pieces(kind, &each), whole);
        whole
    }

    fn pieces(kind: Kind, pieces: &[&str]) -> (String, Vec<(String, String)>) {
        let mut parser = parser(kind);
        let mut all: Vec<_> = pieces.iter().map(|piece| parser.push(piece)).collect();
        all.push(parser.finish());
        let text = all.iter().map(|(text, _)| text.as_str()).collect();
        let calls = all.into_iter().flat_map(|(_, calls)| calls);
        (text, calls.map(|c| (c.name, c.arguments)).collect())
    }

    fn call(name: &str, arguments: &str) -> (String, String) {
        (name.to_owned(), arguments.to_owned())
    }

    #[test]
    fn tagged_calls_stand_anywhere_in_a_text() {
        let text = "Let me see.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"b\": 1, \"a\": \
                    \"é\"}}\n</tool_call>\n<tool_call>{\"name\": \"g\"}</tool_call>\n";
        let (rest, calls) = parsed(Kind::Tagged, text);
        assert_eq!(rest, "Let me see.");
        let expected = [call("f", "{\"b\":1,\"a\":\"é\"}"), call("g", "{}")];
        assert_eq!(calls, expected);
        // Arguments as OpenAI sends them, a marker in a string, and no end.
        for text in [
            r#"<tool_call>{"name": "f", "arguments": "{\"x\": \"</tool_call>\"}"}</tool_call>"#,
            r#"<tool_call>{"name": "f", "arguments": "{\"x\": \"</tool_call>\"}"}"#,
        ] {
            let (rest, calls) = parsed(Kind::Tagged, text);
            assert_eq!(rest, "");
            assert_eq!(calls, [call("f", "{\"x\": \"</tool_call>\"}")]);
        }
        let (rest, calls) = parsed(
            Kind::Tagged,
            "<tool_call>{\"name\": \"f\"}</tool_call> and so on",
        );
        assert_eq!((rest.as_str(), calls.len()), (" and so on", 1));
    }

    #[test]
    fn what_is_no_call_stays_text() {
        for text in [
            "",
            " \n",
            "a < b, <tool",
            "Nothing to do. \n",
            "<tool_call>{\"name\": 7}</tool_call>",
            "<tool_call>{\"name\": \"f\", \"arguments\": [1]}</tool_call> \n",
            "<tool_call>{\"name\": \"f\", \"arguments\": {\"x\"",
            "  <tool_call>f(1)</tool_call>",
        ] {
            assert_eq!(parsed(Kind::Tagged, text), (text.to_owned(), Vec::new()));
        }
        for text in [
            "{\"name\": \"Ann\", \"age\": 3}",
            "{\"name\": \"f\", \"parameters\": {}} Done.",
            " {\"name\": \"f\", \"param",
            "So {\"name\": \"f\", \"parameters\": {}}",
            " ",
        ] {
            assert_eq!(parsed(Kind::Bare, text), (text.to_owned(), Vec::new()));
        }
        for text in ["[TOOL_CALLS] []", "[TOOL_CALLS] [1]", "x [TOOL_CALLS", "[]"] {
            assert_eq!(parsed(Kind::Listed, text), (text.to_owned(), Vec::new()));
        }
    }

    #[test]
    fn bare_and_listed_calls_are_the_end_of_a_text() {
        let one = "\n{\"name\": \"f\", \"parameters\": {\"x\": 1}}";
        assert_eq!(
            parsed(Kind::Bare, one),
            (String::new(), vec![call("f", "{\"x\":1}")])
        );
        let two = format!("{one}; {{\"name\": \"g\", \"parameters\": {{}}}}\n");
        assert_eq!(parsed(Kind::Bare, &two).1.len(), 2);
        let listed = "Wait. [TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"x\": 1}}, {\"name\": \
                      \"g\", \"arguments\": {}}]";
        let (text, calls) = parsed(Kind::Listed, listed);
        assert_eq!(text, "Wait.");
        assert_eq!(calls, [call("f", "{\"x\":1}"), call("g", "{}")]);
    }

    #[test]
    fn names_of_calls_are_those_that_templates_take() {
        let short = id(Kind::Listed);
        assert!(short.len() == 9 && short.chars().all(|c| c.is_ascii_alphanumeric()));
        assert!(id(Kind::Tagged).starts_with("call_"));
    }

    #[test]
    fn a_template_tells_its_format() {
        let of = |template: &str| Kind::of(|text| template.contains(text));
        assert_eq!(of("'<tool_call>\\n{\"name\": \"'"), Some(Kind::Tagged));
        assert_eq!(of("{{ '[TOOL_CALLS] [' }}"), Some(Kind::Listed));
        let llama = "{{- '{\"name\": \"' + tool_call.name + '\", ' }}{{- '\"parameters\": ' }}";
        assert_eq!(of(llama), Some(Kind::Bare));
        assert_eq!(of("<tool_call>\n<function=f>"), None);
        assert_eq!(of("{{ message.content }}"), None);
    }
}
