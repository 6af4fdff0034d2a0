//! Renders a chat template that is arbitrary, for a conversation that is.
#![no_main]

use serde_json::Value;
use smq_fuzz::{Kind, Known, Parts, TOKENIZER, mutate_parts, scratch, weights, write_files};
use smq_model::{Error, Message, Source, Tokenizer};

/// What is put into a template.
const PIECES: &[&str] = &[
    "{% for m in messages %}",
    "{% endfor %}",
    "{% if m.role == 'user' %}",
    "{% elif not m %}",
    "{% else %}",
    "{% endif %}",
    "{{ m['content'] }}",
    "{{- ",
    " -}}",
    "{%- ",
    " -%}",
    "{% set x = ",
    " %}",
    "{% set ns = namespace(a=0) %}",
    "{% set ns.a = ns.a + 1 %}",
    "{% macro f(a, b=2) %}",
    "{% endmacro %}",
    "{{ f(1, b=messages) }}",
    "{% break %}",
    "{% continue %}",
    "{# c #}",
    "{% generation %}",
    "{% endgeneration %}",
    "{% raw %}",
    "{% endraw %}",
    "{% filter upper %}",
    "{% endfilter %}",
    "{% call f(1) %}",
    "{% endcall %}",
    " | tojson(indent=2)",
    " | trim",
    " | length",
    " | join(', ')",
    " | selectattr('role')",
    " | map(attribute='content')",
    " | list",
    " | items",
    " | dictsort",
    " | sort(reverse=true)",
    " | replace('a', 'b')",
    " | int",
    " | float",
    " | string",
    " | round(2)",
    " | indent(4)",
    " | default('d', true)",
    " | unique",
    " | first",
    " | last",
    " | batch(2)",
    " | abs",
    "[::-1]",
    "[1:]",
    "[-1]",
    "[:9223372036854775807:-3]",
    ".split('x', 1)",
    ".strip()",
    ".startswith('a')",
    ".format(1, a=2)",
    "'%s %05.2f' % (1, 2)",
    ".upper()",
    ".items()",
    ".get('a')",
    ".append(1)",
    ".lstrip('ab')",
    ".replace('', 'é')",
    "range(3)",
    "range(0, 100000)",
    "loop.index0",
    "loop.last",
    "loop.previtem",
    "loop.cycle(1, 2)",
    "cycler(1, 2)",
    "joiner(',')",
    "dict(a=1)",
    "strftime_now('%d %b %Y')",
    "raise_exception('no')",
    " is defined",
    " is mapping",
    " is iterable",
    " in ",
    " not in ",
    " and ",
    " or ",
    " ~ ",
    " ** ",
    " // ",
    " % ",
    " * 1000000",
    " - ",
    "(1, 2)",
    "{'a': [1]}",
    "['a', 'b']",
    "none",
    "true",
    "1e308",
    "9223372036854775807",
    "-1",
    "'\\n'",
    "\"\\u00e9\"",
    " if x else ",
    "bos_token",
    "eos_token",
    "add_generation_prompt",
    "tools",
];
const WORDS: &[&str] = &[
    "user",
    "assistant",
    "system",
    "role",
    "content",
    "<b>",
    "é\n",
    "{{ x }}",
];
const KNOWN: Known = &[
    ("chat_template.jinja", Kind::Text(PIECES)),
    ("messages.json", Kind::Json(WORDS)),
];

smq_fuzz::target! {
    mutate: |input, limit, random, mutate| mutate_parts(KNOWN, input, limit, random, mutate),
    run: run,
}

fn run(data: &[u8]) {
    let parts = Parts::of(KNOWN, data);
    let dir = scratch();
    let weights = weights(&[("w", &[1])]);
    write_files(
        dir.path(),
        &parts,
        &[
            ("config.json", br#"{"model_type": "llama"}"#),
            ("tokenizer.json", TOKENIZER.as_bytes()),
            (
                "tokenizer_config.json",
                br#"{"bos_token": "a", "eos_token": "b"}"#,
            ),
            ("model.safetensors", &weights[..]),
        ],
    );
    let source = Source::open(dir.path()).expect("the directory is a checkpoint");
    let Ok(tokenizer) = Tokenizer::load(&source) else {
        return;
    };
    let chat = tokenizer.chat().expect("a template that is there is found");
    let messages = messages(parts.get("messages.json").unwrap_or_default());
    for open in [false, true] {
        match chat.render(&messages, open) {
            Ok(_) => {}
            // A panic in the interpreter is caught there, and is a defect nevertheless.
            Err(Error::Template(text)) if text.starts_with("cannot be rendered: ") => {
                panic!("{text}")
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

/// The conversation of an input, and one of three turns where it gives none.
fn messages(json: &[u8]) -> Vec<Message> {
    let of = |role: &str, content: &str| Message {
        role: role.to_owned(),
        content: content.to_owned(),
    };
    match serde_json::from_slice(json) {
        Ok(Value::Array(turns)) => {
            let text = |turn: &Value, key: &str| turn[key].as_str().unwrap_or_default().to_owned();
            let turns = turns.iter();
            turns
                .map(|turn| of(&text(turn, "role"), &text(turn, "content")))
                .collect()
        }
        Ok(_) | Err(_) => vec![
            of("system", "s"),
            of("user", " a <b>\n"),
            of("assistant", "é"),
        ],
    }
}
