//! Templates against what transformers makes of them.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value as Json, json};

use super::*;

/// tokens-templates.json: renderings of transformers 5.24.0 (record_templates.py beside it).
#[derive(Deserialize)]
struct Recorded {
    tokens: BTreeMap<String, String>,
    conversations: BTreeMap<String, Vec<(String, String)>>,
    cases: Vec<(String, String, bool, Option<String>)>,
}

fn render(
    template: &str,
    turns: &[(String, String)],
    prompt: bool,
    tokens: &BTreeMap<String, String>,
) -> Result<String> {
    let choice = Choice::Template {
        origin: "template",
        source: template.to_owned(),
    };
    let message = |(role, content): &(String, String)| Message {
        role: role.clone(),
        content: content.clone(),
    };
    let messages: Vec<Message> = turns.iter().map(message).collect();
    let tokens = tokens.clone().into_iter().collect();
    ChatTemplate::new(choice, tokens).render(&messages, prompt)
}

fn one(template: &str) -> Result<String> {
    let turns = [("user".to_owned(), "Hi".to_owned())];
    render(template, &turns, true, &BTreeMap::new())
}

fn refusal(template: &str) -> String {
    one(template).unwrap_err().to_string()
}

#[test]
fn templates_render_as_in_transformers() {
    let json = include_str!("../../tests/fixtures/tokens-templates.json");
    let recorded: Recorded = serde_json::from_str(json).unwrap();
    assert!(recorded.cases.len() > 1000);
    let mut wrong = Vec::new();
    for (template, conversation, prompt, text) in &recorded.cases {
        let turns = &recorded.conversations[conversation];
        let found = render(template, turns, *prompt, &recorded.tokens);
        if found.as_ref().ok() != text.as_ref() {
            wrong.push(format!("{template}\n  want {text:?}\n  have {found:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_refusal_carries_the_templates_words_and_the_line() {
    let message =
        refusal("{% if true %}\n{{ raise_exception('roles must alternate') }}{% endif %}");
    assert_eq!(
        message,
        "chat template: template: roles must alternate (line 2)"
    );
    assert!(refusal("\n\n{{ nothing.here }}").ends_with("'nothing' is undefined (line 3)"));
    assert!(refusal("{% if %}").contains("line 1"));
    assert!(refusal("{{ ['a'].append('b') }}").contains("is unsafe"));
    assert!(refusal("{{ 'a' | nope }}").contains("No filter named 'nope'"));
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    for (template, name) in [
        ("{{ 'a' | wordwrap(3) }}", "the filter 'wordwrap'"),
        ("{{ [1] | random }}", "the filter 'random'"),
        ("{{ 'a'.encode() }}", "the method 'encode' of a str"),
        ("{{ 'a'.translate({}) }}", "the method 'translate'"),
        ("{% autoescape true %}{% endautoescape %}", "'autoescape'"),
        ("{{ self.title() }}", "'self'"),
        ("{{ lipsum() }}", "'lipsum'"),
        ("{{ (-8) ** 0.5 }}", "a complex number"),
        ("{{ '\\N{DASH}' }}", "the \\N escape"),
    ] {
        let message = refusal(template);
        assert!(message.contains(name), "{template}: {message}");
        assert!(message.contains("not supported"), "{template}: {message}");
    }
}

/// Templates come with models: none of them may take the process down or hold it up.
#[test]
fn a_hostile_template_is_stopped() {
    let deep = format!("{{{{ {}1{} }}}}", "(".repeat(5000), ")".repeat(5000));
    let chain = format!("{{{{ 1{} }}}}", " + 1".repeat(5000));
    let nested = format!(
        "{{{{ {}1{} }}}}",
        "(".repeat(100),
        &(" + 1".repeat(150) + ")").repeat(100)
    );
    let unary = format!("{{{{ {}1 }}}}", "-".repeat(5000));
    let nots = format!("{{{{ {}1 }}}}", "not ".repeat(5000));
    let ifs = format!(
        "{}{}",
        "{% if 1 %}".repeat(5000),
        "{% endif %}".repeat(5000)
    );
    let dots = format!("{{{{ messages{} }}}}", "[0]".repeat(5000));
    let targets = format!("{{% set {}a = 1 %}}", "(".repeat(5000));
    let long = format!("{{# {} #}}", "x".repeat(1 << 20));
    assert!(refusal(&long).contains("over the limit of 1048576"));
    for template in [&deep, &chain, &nested, &unary, &nots, &ifs, &dots, &targets] {
        assert!(one(template).is_err());
    }
    for template in [
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f() %}{% call f() %}{{ caller() }}{% endcall %}{% endmacro %}{{ f() }}",
        "{% for i in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
        "{{ 'a' * 10 ** 20 }}",
        "{{ [0] * 10 ** 12 }}",
        "{{ 'a'.center(10 ** 15) }}",
        "{{ '%1000000000000d' % 1 }}",
        "{{ '%*d' % (10 ** 12, 1) }}",
        "{{ '{:>1000000000000}'.format(1) }}",
        "{{ '%.100000f' % 1 }}",
        "{{ '%.1000000000000d' % 1 }}",
        "{{ '{:.99999999f}'.format(1.5) }}",
        "{{ 'a'.zfill(10 ** 25) }}",
        "{{ range(10 ** 9) }}",
        "{{ 'aaaa'.replace('', 'b' * 60000000) }}",
        "{{ 10 ** 10 ** 10 }}",
        "{{ messages | tojson(indent=10 ** 12) }}",
        "{{ 'a' | indent(10 ** 12) }}",
        "{{ [1] | batch(10 ** 12, 0) | list }}",
        "{{ '\u{0}' ~ x.y }}",
        "{% set x = 'ab' * 1000000 %}{% for i in range(9999) %}{{ x }}{% endfor %}",
        "{{ 'a\\tb'.expandtabs(10 ** 15) }}",
        "{{ (10 ** 30) * (10 ** 30) }}",
        "{{ -(2 ** 126) * 4 }}",
        "{% set ns = namespace(x=[]) %}{% for i in range(90000) %}{% set ns.x = ns.x + ['ab' * 9999999] %}{% endfor %}",
        "{% set ns = namespace(x=[]) %}{% for i in range(90000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x|tojson }}",
        "{% set ns = namespace(x=1, y=1) %}{% for i in range(90000) %}{% set ns.x = (ns.x, 1) %}{% set ns.y = (ns.y, 1) %}{% endfor %}{{ ns.x < ns.y }}",
    ] {
        assert!(one(template).is_err(), "{template}");
    }
}

/// Steps that each look at every character of long texts: time is what ends them.
#[test]
fn a_slow_template_is_stopped_in_time() {
    let begun = std::time::Instant::now();
    for template in [
        "{% set x = 'ab' * 3000000 %}{% set y = 'ab' * 3000000 %}{{ ([x, y] * 100000) | sort | length }}",
        "{% set x = 'a' * 7000000 %}{% set y = 'a' * 6999999 ~ 'b' %}{{ y in ([x] * 500000) }}",
        "{{ (range(99999) | list + range(99999) | list) | unique | list | length }}",
        "{% set x = 'ab' * 3000000 %}{% for i in range(99999) %}{% set y = x | upper | length %}{% endfor %}",
    ] {
        let refused = refusal(template);
        let time = refused.contains("takes more than 10 seconds");
        assert!(
            time || refused.contains("values take more than"),
            "{refused}"
        );
    }
    assert!(begun.elapsed().as_secs() < 90, "{:?}", begun.elapsed());
}

/// The caller's stack may be small, as that of a server's thread is.
#[test]
fn a_deep_template_needs_no_stack_of_the_callers() {
    let nested = format!("{{{{ {}1{} }}}}", "[".repeat(100), "]".repeat(100));
    let recursive =
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}ok";
    let small = std::thread::Builder::new().stack_size(64 << 10);
    let render = move || (one(&nested).unwrap(), one(recursive).unwrap());
    let (nested, recursive) = small.spawn(render).unwrap().join().unwrap();
    assert_eq!((nested.len(), recursive.trim()), (201, "ok"));
}

/// Values that hold each other, or hold one another ever deeper, are dropped all the same.
#[test]
fn deep_values_do_no_harm() {
    let deep = |step: &str| {
        let head = "{% set ns = namespace(x=0) %}";
        format!("{head}{{% for i in range(90000) %}}{{% set ns.x = {step} %}}{{% endfor %}}ok")
    };
    for step in [
        "[ns.x]",
        "(ns.x, 1)",
        "{'a': ns.x}",
        "namespace(x=ns.x)",
        "[ns.x]|select|list",
        "[ns.x]|map('default')",
        "[ns.x].index",
        "joiner(ns.x)",
        "cycler(ns.x)",
        "{'a': ns.x}.items()",
        "loop if i % 2 else [ns.x]",
    ] {
        assert_eq!(one(&deep(step)).unwrap(), "ok", "{step}");
    }
    for template in [
        "{% set ns = namespace() %}{% set ns.x = ns %}ok",
        "{% set ns = namespace() %}{% set ns.x = [ns] %}{% set text = ns ~ '' %}ok",
        "{% macro f() %}{{ f is callable }}{% set g = f %}{% endmacro %}{% set x = f() %}ok",
        "{% set ns = namespace(c=0) %}{% macro f() %}{% set ns.c = caller %}{% endmacro %}\
         {% for i in range(20000) %}{% set p = ns.c %}{% call f() %}{{ p }}{% endcall %}{% endfor %}ok",
        "{% set ns = namespace(x=[]) %}{% for i in range(90000) %}{% set ns.x = [ns.x] %}{% endfor %}\
         {% set shown = ns.x == [ns.x] %}{% set text = ns.x ~ '' %}ok",
    ] {
        assert_eq!(one(template).unwrap(), "ok", "{template}");
    }
}

/// The part of a template between two points is seldom a template, and must not be more than that.
#[test]
fn no_part_of_a_template_brings_the_parser_down() {
    let template = "a {%- for k, v in {'a': 1.5e3}.items() if v is not none %}\n {{ loop.index ~ \
        k[1:-1]|default('é', true) }}{% set ns.x = (1, [2], -3 ** 2) %}{% endfor -%}{# c #}\
        {% raw %} {{ }} {% endraw %}{% macro f(a, b='\\x41\\'') %}{{ caller(*a, **b) }}{% endmacro %}";
    let ends: Vec<usize> = template.char_indices().map(|(at, _)| at).collect();
    for from in &ends {
        for to in ends.iter().filter(|to| *to >= from).step_by(3) {
            let _ = one(&template[*from..*to]);
        }
    }
}

fn choice(files: &[(&str, &str)], config: Json) -> Option<Choice> {
    let files = files.iter().map(|(name, text)| (*name, text.as_bytes()));
    Choice::of(files, Some(&config))
}

fn chosen(files: &[(&str, &str)], config: Json) -> std::result::Result<String, String> {
    let choice = choice(files, config).unwrap();
    choice
        .source()
        .map(str::to_owned)
        .map_err(|e| e.to_string())
}

/// `PreTrainedTokenizerBase._from_pretrained` and `get_chat_template`: files win over
/// tokenizer_config.json altogether, and several templates need one named default.
#[test]
fn the_template_is_the_one_that_transformers_takes() {
    let file = ("chat_template.jinja", "F");
    let more = ("additional_chat_templates/rag.jinja", "R");
    let named = json!([{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]);
    assert_eq!(chosen(&[], json!("c")), Ok("c".into()));
    assert_eq!(chosen(&[], named.clone()), Ok("d".into()));
    assert_eq!(
        chosen(&[], json!({"default": "d", "rag": "r"})),
        Ok("d".into())
    );
    assert_eq!(chosen(&[file], named), Ok("F".into()));
    assert_eq!(chosen(&[file, more], json!("c")), Ok("F".into()));
    let default = ("additional_chat_templates/default.jinja", "D");
    assert_eq!(chosen(&[file, default], json!("c")), Ok("D".into()));
    assert!(choice(&[], Json::Null).is_none());
    assert!(choice(&[("config.json", "{}")], Json::Null).is_none());
    for (files, config, names) in [
        (&[more][..], json!("c"), "they are: rag"),
        (&[], json!({"b": "1", "a": "2"}), "they are: a, b"),
        (&[], json!([{"name": "x", "template": "t"}]), "they are: x"),
        (&[], json!([]), "they are: )"),
    ] {
        let refusal = chosen(files, config).unwrap_err();
        assert!(
            refusal.contains(names) && refusal.contains("--raw"),
            "{refusal}"
        );
    }
    for broken in [
        json!(5),
        json!([{"name": "default"}]),
        json!({"default": 1}),
    ] {
        assert!(
            chosen(&[], broken)
                .unwrap_err()
                .contains("tokenizer_config.json")
        );
    }
}

#[test]
fn a_broken_template_fails_when_it_is_rendered() {
    let messages = [Message {
        role: "user".to_owned(),
        content: "Hi".into(),
    }];
    let broken = ChatTemplate::new(choice(&[], json!("{% nope %}")).unwrap(), Vec::new());
    for _ in 0..2 {
        let error = broken.render(&messages, true).unwrap_err().to_string();
        assert!(
            error.contains("tokenizer_config.json: encountered unknown tag"),
            "{error}"
        );
    }
    let fine = ChatTemplate::new(choice(&[], json!("x")).unwrap(), Vec::new());
    assert!(fine.render(&[], true).is_err());
}
