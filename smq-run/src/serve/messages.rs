//! The turns and tools of a chat, as the model's template gets them.

use serde_json::{Map, Value, json};

use super::error::{ApiError, ApiResult};
use super::fields::Fields;
use super::state::App;

/// Most turns; a template may take time in the square of their number.
const MAX_MESSAGES: usize = 4096;
const MAX_TOOLS: usize = 128;

/// Takes `messages` out of the fields and checks each.
pub(super) fn messages(fields: &mut Fields) -> ApiResult<Vec<Map<String, Value>>> {
    let Some(list) = fields.list("messages")? else {
        return Err(ApiError::field("messages", "the request has no messages"));
    };
    if list.is_empty() || list.len() > MAX_MESSAGES {
        let count = list.len();
        let message = format!("messages has {count} turns, expected 1 to {MAX_MESSAGES}");
        return Err(ApiError::field("messages", message));
    }
    let turns = list.into_iter().enumerate();
    turns.map(|(place, turn)| one(place, turn)).collect()
}

/// A turn. Parts become one text; arguments of calls, which are JSON in a text, become what they
/// say, as templates expect them.
fn one(place: usize, turn: Value) -> ApiResult<Map<String, Value>> {
    let name = |key: &str| match key {
        "" => format!("messages[{place}]"),
        key => format!("messages[{place}].{key}"),
    };
    let wrong = |key: &str, expected: &str| {
        let name = name(key);
        let message = format!("{name}: expected {expected}");
        ApiError::field(name, message)
    };
    let Value::Object(mut turn) = turn else {
        return Err(wrong("", "an object with role and content"));
    };
    turn.retain(|key, value| !value.is_null() || key == "content");
    let role = match turn.get("role").and_then(Value::as_str) {
        // What the newer name is for; no template knows it.
        Some("developer") => "system",
        Some("system") => "system",
        Some("user") => "user",
        Some("assistant") => "assistant",
        Some("tool") => "tool",
        Some(_) | None => {
            let expected = "system, developer, user, assistant or tool";
            return Err(wrong("role", expected));
        }
    };
    let mut out = Map::new();
    out.insert("role".to_owned(), role.into());
    let content = match turn.shift_remove("content") {
        Some(Value::String(text)) => Value::String(text),
        Some(Value::Array(parts)) => {
            let text = |part: &Value| {
                let is_text = part["type"] == "text";
                part["text"].as_str().filter(|_| is_text).map(str::to_owned)
            };
            let texts: Option<Vec<String>> = parts.iter().map(text).collect();
            let joined = texts.map(|texts| texts.join("\n"));
            let joined = joined.ok_or_else(|| wrong("content", "text parts and no others"))?;
            Value::String(joined)
        }
        Some(Value::Null) | None if role == "assistant" && turn.contains_key("tool_calls") => {
            Value::Null
        }
        Some(_) | None => return Err(wrong("content", "a string or a list of text parts")),
    };
    out.insert("content".to_owned(), content);
    for (key, value) in turn {
        let value = match (key.as_str(), value) {
            ("role", _) => continue,
            ("name" | "tool_call_id" | "reasoning_content", Value::String(text)) => {
                Value::String(text)
            }
            ("tool_calls", Value::Array(calls)) if role == "assistant" => {
                let calls = calls.into_iter().map(call).collect::<Option<Vec<Value>>>();
                let expected = "calls, each with a function's name and its arguments as JSON";
                calls.ok_or_else(|| wrong("tool_calls", expected))?.into()
            }
            ("refusal" | "name" | "tool_call_id" | "tool_calls" | "reasoning_content", _) => {
                return Err(wrong(&key, "what OpenAI's API has there"));
            }
            (_, _) => {
                let name = name(&key);
                let message = format!("{name} is not a field that this server knows; leave it out");
                return Err(ApiError::unsupported(name, message));
            }
        };
        out.insert(key, value);
    }
    Ok(out)
}

/// A call with its arguments read; `None` if it is not one.
fn call(mut call: Value) -> Option<Value> {
    let function = call.get_mut("function")?;
    function.get("name")?.as_str()?;
    let arguments = function.get_mut("arguments")?;
    if let Value::String(text) = arguments {
        let read = match text.trim() {
            "" => json!({}),
            text => serde_json::from_str(text).ok()?,
        };
        *arguments = read;
    }
    Some(call)
}

/// Takes `tools` and what belongs to them; `None` where the template is to see none.
pub(super) fn tools(app: &App, fields: &mut Fields) -> ApiResult<Option<Vec<Value>>> {
    let tools = fields.list("tools")?.filter(|tools| !tools.is_empty());
    let why = "the model decides whether it calls";
    let is_none = match fields.take("tool_choice") {
        None => false,
        Some(choice) if choice == "none" => true,
        Some(choice) if choice == "auto" => false,
        Some(choice) => {
            let shown: String = choice.to_string().chars().take(100).collect();
            let message = format!(
                "tool_choice is {shown}; auto and none are served, since {why}: name the tool in \
                 the messages, or ask for its arguments by response_format"
            );
            return Err(ApiError::unsupported("tool_choice", message));
        }
    };
    fields.only("parallel_tool_calls", &[json!(true)], why)?;
    for name in ["functions", "function_call"] {
        fields.only(name, &[], "it was replaced by tools")?;
    }
    let Some(tools) = tools else {
        return Ok(None);
    };
    let is_function =
        |tool: &Value| tool["type"] == "function" && tool["function"]["name"].is_string();
    if tools.len() > MAX_TOOLS || !tools.iter().all(is_function) {
        let message =
            format!("tools expects at most {MAX_TOOLS} objects of type function, each with a name");
        return Err(ApiError::field("tools", message));
    }
    if is_none {
        return Ok(None);
    }
    if app
        .tokenizer
        .chat()
        .is_some_and(|chat| !chat.names("tools"))
    {
        let message = "the model's chat template does not show tools to the model";
        return Err(ApiError::unsupported("tools", message));
    }
    Ok(Some(tools))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(json: Value) -> ApiResult<Vec<Map<String, Value>>> {
        let body = json!({"messages": json}).to_string();
        messages(&mut Fields::parse(body.as_bytes()).unwrap())
    }

    #[test]
    fn turns_become_what_templates_expect() {
        let turns = taken(json!([
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [
                {"type": "text", "text": "a"},
                {"type": "text", "text": "b"},
            ]},
            {"role": "assistant", "content": null, "tool_calls": [{"id": "1", "type": "function",
                "function": {"name": "f", "arguments": "{\"z\": 1, \"a\": 2}"}}]},
            {"role": "tool", "content": "3", "tool_call_id": "1", "name": null},
        ]))
        .unwrap();
        let shown = Value::Array(turns.into_iter().map(Value::Object).collect()).to_string();
        assert_eq!(
            shown,
            r#"[{"role":"system","content":"be brief"},{"role":"user","content":"a\nb"},"#
                .to_owned()
                + r#"{"role":"assistant","content":null,"tool_calls":[{"id":"1","type":"function","#
                + r#""function":{"name":"f","arguments":{"z":1,"a":2}}}]},"#
                + r#"{"role":"tool","content":"3","tool_call_id":"1"}]"#
        );
    }

    #[test]
    fn turns_that_cannot_be_shown_are_refused() {
        for turns in [
            json!([]),
            json!(["hello"]),
            json!([{"role": "user"}]),
            json!([{"role": "narrator", "content": "x"}]),
            json!([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
            json!([{"role": "user", "content": 7}]),
            json!([{"role": "user", "content": "x", "mood": "glad"}]),
            json!([{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}]),
            json!([{"role": "assistant", "tool_calls": [
                {"function": {"name": "f", "arguments": "{"}},
            ]}]),
        ] {
            assert_eq!(taken(turns.clone()).unwrap_err().status(), 400, "{turns}");
        }
    }
}
