//! Tokenizers, chat templates and streaming.

use serde_json::Value;
use smq_model::{Message, Result, Source, Tokenizer};

use super::cases::{Case, Cases};

#[test]
fn a_text_has_the_ids_that_transformers_gives_it() {
    let cases = Cases::read("tokenizer");
    cases.check(|case| checked(case, |tokenizer| ids(case, &cases.top, tokenizer)));
}

#[test]
fn a_conversation_is_rendered_as_transformers_does() {
    let cases = Cases::read("template");
    cases.check(|case| checked(case, |tokenizer| chats(case, &cases.top, tokenizer)));
}

#[test]
fn what_streams_is_the_whole_text() {
    let cases = Cases::read("streaming");
    cases.check(|case| {
        checked(case, |tokenizer| {
            let v = case.value;
            streamed(tokenizer, &list(&v["ids"]), v["text"].as_str().unwrap())
        })
    });
}

#[test]
fn random_ids_stream_whole_texts() {
    let cases = Cases::read("streaming");
    let mut loaded: Vec<(String, Tokenizer)> = Vec::new();
    for case in cases.top["random"].as_array().unwrap() {
        let name = case["tokenizer"].as_str().unwrap();
        if loaded.iter().all(|(known, _)| known != name) {
            let dir = tempfile::tempdir().unwrap();
            let of_name = |c: &Case<'_>| c.value["files"]["tokenizer.json"]["$tokenizer"] == name;
            let any = cases.iter().find(|c| of_name(c)).unwrap();
            any.write_checkpoint(dir.path());
            let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
                .join(format!("../tests/fixtures/hf/tokenizers/{name}.json"));
            std::fs::copy(path, dir.path().join("tokenizer.json")).unwrap();
            let source = Source::open(dir.path()).unwrap();
            loaded.push((name.to_owned(), Tokenizer::load(&source).unwrap()));
        }
        let tokenizer = &loaded.iter().find(|(known, _)| known == name).unwrap().1;
        let different = streamed(
            tokenizer,
            &list(&case["ids"]),
            case["text"].as_str().unwrap(),
        );
        assert_eq!(different.unwrap(), None, "{case}");
    }
}

/// Runs `compare`, which says what differs, on a case's tokenizer.
fn checked(
    case: &Case<'_>,
    compare: impl FnOnce(&Tokenizer) -> Result<Option<String>>,
) -> std::result::Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    case.write_checkpoint(dir.path());
    let tokenizer = Source::open(dir.path()).and_then(|source| Tokenizer::load(&source));
    match tokenizer.and_then(|tokenizer| compare(&tokenizer)) {
        Ok(None) => case.taken(),
        Ok(Some(different)) => case.taken().and(Err(different)),
        Err(refusal) => case.refused(&refusal.to_string()),
    }
}

fn ids(case: &Case<'_>, top: &Value, tokenizer: &Tokenizer) -> Result<Option<String>> {
    let v = case.value;
    let texts = strings(&top["texts"]).chain(strings(&v["texts"]));
    for (i, (text, expected)) in texts
        .zip(v["plain"].as_array().unwrap_or(&vec![]))
        .enumerate()
    {
        let plain = tokenizer.encode(text, false)?;
        if plain != list(expected) {
            return Ok(Some(format!(
                "{text:?} is {plain:?}, transformers has {expected}"
            )));
        }
        if i == 0 {
            let special = tokenizer.encode(text, true)?;
            if special != list(&v["special"]) {
                let expected = &v["special"];
                return Ok(Some(format!(
                    "with special tokens {special:?}, transformers has {expected}"
                )));
            }
        }
    }
    for decoded in v["decoded"].as_array().into_iter().flatten() {
        let text = tokenizer.decode(&list(&decoded["ids"]))?;
        if text != decoded["text"].as_str().unwrap() {
            return Ok(Some(format!(
                "decoded {text:?}, transformers has {}",
                decoded["text"]
            )));
        }
    }
    let conversations = top["conversations"].as_array().unwrap();
    for (conversation, expected) in conversations
        .iter()
        .zip(v["chat"].as_array().unwrap_or(&vec![]))
    {
        let (messages, open) = turns(conversation);
        let Some(chat) = tokenizer.chat() else {
            match expected["error"].is_null() {
                true => return Ok(Some("there is no chat template".to_owned())),
                false => continue,
            }
        };
        let (text, refusal) = match chat.render(&messages, open) {
            Ok(text) => (text, None),
            Err(e) => (String::new(), Some(e.to_string())),
        };
        match (refusal, expected["error"].is_null()) {
            (Some(_), false) => continue,
            (Some(refusal), true) => return Ok(Some(format!("refused: {refusal}"))),
            (None, false) => return Ok(Some(format!("rendered {text:?}, transformers refuses"))),
            (None, true) => {}
        }
        let found = tokenizer.encode(&text, false)?;
        if text != expected["text"].as_str().unwrap() || found != list(&expected["ids"]) {
            return Ok(Some(format!(
                "{text:?} {found:?}, transformers has {expected}"
            )));
        }
    }
    Ok(None)
}

fn chats(case: &Case<'_>, top: &Value, tokenizer: &Tokenizer) -> Result<Option<String>> {
    let v = case.value;
    let own = v["conversations"].as_array();
    let conversations = own.or(top["conversations"].as_array()).unwrap();
    for (conversation, expected) in conversations.iter().zip(v["chat"].as_array().unwrap()) {
        let (messages, open) = turns(conversation);
        let rendered = tokenizer.chat().map(|chat| chat.render(&messages, open));
        let (found, refused) = match rendered {
            Some(Ok(text)) => (text, false),
            Some(Err(e)) => (e.to_string(), true),
            None => ("no template".to_owned(), true),
        };
        let error = expected.get("error").is_some();
        let text = expected.as_str().or(expected["text"].as_str());
        if refused != error || (!error && Some(found.as_str()) != text) {
            let conversation = conversation.to_string();
            let what = if refused && v["may_refuse"] == true {
                // Right only if it is in the case's words, which the caller looks at.
                return Err(smq_model::Error::Template(found));
            } else {
                format!("{found:?}, transformers has {expected} of {conversation}")
            };
            return Ok(Some(what));
        }
    }
    Ok(None)
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32], expected: &str) -> Result<Option<String>> {
    let mut stream = tokenizer.stream();
    let mut shown = String::new();
    for id in ids {
        shown += &stream.push(*id)?;
    }
    let (rest, whole) = stream.finish()?;
    shown += &rest;
    Ok((shown != expected || whole != expected)
        .then(|| format!("streamed {shown:?}, whole {whole:?}, transformers has {expected:?}")))
}

fn turns(conversation: &Value) -> (Vec<Message>, bool) {
    let turn = |m: &Value| Message {
        role: m["role"].as_str().unwrap().to_owned(),
        content: m["content"].as_str().unwrap().to_owned(),
    };
    let messages = conversation["messages"].as_array().unwrap();
    let open = conversation["add_generation_prompt"] == true;
    (messages.iter().map(turn).collect(), open)
}

fn strings(value: &Value) -> impl Iterator<Item = &str> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
}

fn list(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap_or_default()
}
