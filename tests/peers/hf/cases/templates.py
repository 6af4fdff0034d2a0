"""Kind 7: what a chat template may use, as transformers' Jinja environment has it."""

import re

from checkpoints import CHAT, Checkpoint
from lib import Answer, Case, Chat, Losses, Stream

from .real_templates import REAL
from .template_expressions import ALWAYS, FILTERS, METHODS, TO_JSON, VALUES

MARKUP = "Is <b>5 > 3</b> & 'x' \"y\"? Grüße, 日本!"
SPACES = "  two lines,\n\ttabbed \n"
CHECKS = (Chat(), Chat(MARKUP), Chat(MARKUP, system="Be <brief> & kind."))
# `c` is the first message's text in the expressions below.
WITH_C = "{% set c = messages[0]['content'] %}"


def case(name, template, words=None, **more):
    checkpoint = Checkpoint(chat=template)
    return Case(name, checkpoint, more.pop("checks", CHECKS), words, record="template", **more)


def expression(text, may_refuse=False):
    """A case of one expression over `c`; a refusal must name the method or filter that it lacks."""
    named = re.findall(r"\.(\w+)\(|\| ?(\w+)", text)
    words = ("template", *(["".join(named[0])] if named else [])) if may_refuse else None
    return case("{{ " + text + " }}", WITH_C + "{{ " + text + " }}|{{ c }}", words)


def refused(name, template, *words, checks=(Chat(),)):
    return case(name, template, ("template", *words), checks=checks)


def to_json():
    for text in TO_JSON:
        yield expression(text)


def variables():
    yield case(
        "tools and documents are none, not absent",
        "{{ tools is none }},{{ tools is defined }},{{ documents is none }},{% if tools %}"
        "T{% endif %}"
        "{% if tools is not none %}N{% endif %}{% if not tools is defined or tools is none %}"
        "U{% endif %}"
        "{{ messages[0].content }}",
    )
    for token in ("bos", "eos", "unk", "sep", "cls", "pad", "mask"):
        declared = Checkpoint(
            chat="{{ "
            + token
            + "_token }}{{ messages[0].content }}{{ "
            + token
            + "_token is defined }}"
        )
        declared.tokenizer_config(**{token + "_token": "<|end|>"})
        yield Case(f"{token}_token declared", declared, CHECKS, record="template")
    absent = (
        "{{ sep_token }}{{ pad_token is defined }}{{ mask_token or 'none' }}"
        "{{ messages[0].content }}"
    )
    yield case("tokens that nothing declares", absent)
    yield case(
        "names that nothing declares",
        "{{ enable_thinking is defined }}{{ date_string is defined }}{{ custom_tools is defined }}"
        "{{ builtin_tools is undefined }}{{ missing }}{{ messages[0].content }}"
        "{{ messages[0].tool_calls }}"
        "{{ messages[0]['name'] is defined }}{{ messages[0].get('name', 'nobody') }}",
    )
    yield case(
        "enable_thinking with a default",
        "{% set t = enable_thinking if enable_thinking is defined else true %}{{ t }}"
        "{{ thinking | default(false) }}"
        "{{ messages[0].content }}",
    )
    yield case(
        "add_generation_prompt",
        "{{ messages[0].content }}{% if add_generation_prompt %}GO{% endif %}",
    )
    yield case(
        "a set of the date, when it is not given",
        "{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}"
        "{{ date_string }}"
        "{{ messages[0].content }}",
    )
    today = "{{ strftime_now('%d %b %Y') }} {{ messages[0].content }}"
    yield Case("strftime_now", Checkpoint(chat=today), (Chat(),))
    hour = "{{ strftime_now('%Y-%m-%d %H') }} {{ messages[0].content }}"
    yield Case(
        "strftime_now in the local time zone",
        Checkpoint(chat=hour),
        (Chat(env={"TZ": "Pacific/Kiritimati"}), Chat(env={"TZ": "America/Anchorage"})),
    )
    yield Case(
        "strftime_now with names and padding",
        Checkpoint(
            chat="{{ strftime_now('%A, %B %e, %y %j %U %p %I%%') }}{{ messages[0].content }}"
        ),
        (Chat(),),
    )
    yield case(
        "dict and namespace",
        "{% set d = dict(a=1, b='x') %}{{ d.b }}{{ d['a'] }}{% set ns = namespace(n=0, s='') %}"
        "{% for m in messages %}{% set ns.n = ns.n + 1 %}{% set ns.s = ns.s ~ m.role[0] %}"
        "{% endfor %}"
        "{{ ns.n }}{{ ns.s }}{{ messages[0].content }}",
    )
    yield case(
        "range, lipsum's absence, cycler and joiner",
        "{% for i in range(3) %}{{ i }}{% endfor %}{{ range(2, 9, 3) | list }}"
        "{% set j = joiner('; ') %}"
        "{% for m in messages %}{{ j() }}{{ m.role }}{% endfor %}{% set y = cycler('a', 'b') %}"
        "{{ y.next() }}"
        "{{ y.next() }}{{ messages[0].content }}",
    )


def methods():
    for text in METHODS:
        yield expression(text, not any(word in text for word in ALWAYS))
    yield case(
        "methods of lists and dictionaries",
        "{% set m = messages[0] %}{{ m.keys() | list }}{{ m.values() | list | length }}"
        "{% for k, v in m.items() %}"
        "{{ k }}={{ v }};{% endfor %}{{ m.get('x') }}{{ m.get('x', 3) }}{{ [1, 2, 1].count(1) }}"
        "{{ ['a', 'b'].index('b') }}"
        "{{ m.copy().role }}{{ dict.fromkeys(['p', 'q'], 1) | list }}",
        ("template",),
    )
    refusal = "sandbox: lists do not change"
    yield refused(
        refusal, "{% set l = [] %}{% set _ = l.append(1) %}{{ l }}{{ messages[0].content }}"
    )
    yield refused(
        "sandbox: dictionaries do not change",
        "{% set d = {} %}{{ d.update({'a': 1}) }}{{ messages[0].content }}",
    )
    yield refused(
        "sandbox: no attributes with underscores",
        "{{ ''.__class__ | string | length > 0 }}{{ messages.__class__.__name__ + '' }}",
    )


def values():
    for text in VALUES:
        yield expression(text, may_refuse=True)


def filters():
    for text in FILTERS:
        yield expression(text, may_refuse=True)


def tests():
    yield case(
        "tests by name",
        "{{ 1 is number }}{{ 1 is integer }}{{ 1.0 is float }}{{ true is boolean }}"
        "{{ true is true }}{{ 1 is true }}{{ 'a' is string }}"
        "{{ [] is sequence }}{{ 'a' is sequence }}{{ {} is mapping }}{{ [] is iterable }}"
        "{{ 1 is iterable }}{{ none is none }}"
        "{{ x is undefined }}{{ 4 is even }}{{ 3 is odd }}{{ 6 is divisibleby 3 }}"
        "{{ 'a' is lower }}{{ 'A' is upper }}{{ 1 is eq 1 }}"
        "{{ 1 is ne 2 }}{{ 1 is lt 2 }}{{ 2 is ge 2 }}{{ 1 is in [1] }}{{ none is sameas none }}"
        "{{ range is callable }}"
        "{{ 'trim' is filter }}{{ 'odd' is test }}{{ 1 is not string }}{{ messages[0] is mapping }}"
        "{{ messages[0].content is string }}",
        ("template",),
    )
    yield case(
        "content that may be a list of parts",
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for p in m.content %}{{ p.text }}"
        "{% endfor %}{% endif %}{% endfor %}"
        "{% if messages[0].content is iterable and messages[0].content is not mapping %}"
        "I{% endif %}",
    )


def blocks():
    loop = (
        "{% for m in messages %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}"
        "{{ loop.first }}{{ loop.last }}{{ loop.length }}"
        "{{ loop.previtem.role if loop.previtem }}"
        "{{ loop.nextitem.role if loop.nextitem is defined }}{{ loop.cycle('a', 'b') }}"
    )
    yield case(
        "what a loop knows",
        loop + "{{ loop.changed(m.role) }}{{ loop.depth }}{{ m.content }}{% endfor %}",
        ("template",),
    )
    yield case(
        "break and continue",
        "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.content }}"
        "{% break %}{% endfor %}",
    )
    yield case(
        "a loop with a condition and an else",
        "{% for m in messages if m.role == 'tool' %}{{ m }}{% else %}no tools{% endfor %}"
        "{{ messages[0].content }}",
    )
    yield case(
        "messages backwards",
        "{% for m in messages[::-1] %}{{ m.role }}:{{ m.content }}{% endfor %}",
    )
    yield case(
        "the first message as system, the rest after it",
        "{% if messages[0]['role'] == 'system' %}{% set s = messages[0]['content'] %}"
        "{% set rest = messages[1:] %}{% else %}"
        "{% set s = 'none' %}{% set rest = messages %}{% endif %}[{{ s }}]{% for m in rest %}"
        "{{ m['content'] | trim }}{% endfor %}",
    )
    yield case(
        "roles that must alternate",
        "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Roles must alternate') }}"
        "{% endif %}{{ m['content'] }}{% endfor %}",
        ("alternate",),
        checks=(Chat(), Chat(system="Be brief.")),
    )
    yield case(
        "no system message wanted",
        "{% if messages[0].role == 'system' %}{{ raise_exception('No system role, please') }}"
        "{% endif %}{{ messages[0].content }}",
        ("No system role, please",),
        checks=(Chat(), Chat(system="Be brief.")),
    )
    yield case(
        "a macro",
        "{% macro turn(m, end='<|end|>') %}<|{{ m.role }}|>{{ m.content }}{{ end }}{% endmacro %}"
        "{% for m in messages %}{{ turn(m) }}{{ turn(m, end='') | length }}{% endfor %}",
    )
    yield case(
        "a macro that calls a block",
        "{% macro wrap() %}[{{ caller() }}]{% endmacro %}{% call wrap() %}{{ messages[0].content }}"
        "{% endcall %}",
        ("template",),
    )
    yield case(
        "a filter block, a set block, a with block",
        "{% filter upper %}{{ messages[0].content }}{% endfilter %}{% set x %}"
        "<{{ messages[0].role }}>{% endset %}{{ x }}"
        "{% with y = 3 %}{{ y }}{% endwith %}{{ y is defined }}",
    )
    yield case(
        "raw and comments",
        "{% raw %}{{ not this }}{% endraw %}{# nor this #}{{ messages[0].content }}{#- x -#}  end",
    )
    yield case(
        "a scope that does not leak",
        "{% set x = 1 %}{% for m in messages %}{% set x = 2 %}{% endfor %}{{ x }}{% if true %}"
        "{% set x = 3 %}{% endif %}{{ x }}"
        "{{ messages[0].content }}",
    )
    yield case(
        "a recursive loop",
        "{% for n in [1, [2, 3]] recursive %}{% if n is iterable %}({{ loop(n) }}){% else %}{{ n }}"
        "{% endif %}"
        "{% endfor %}{{ messages[0].content }}",
        ("template",),
    )
    yield case(
        "unpacking",
        "{% for a, b in [(1, 2), (3, 4)] %}{{ a }}-{{ b }};{% endfor %}{% set p, q = 'x', 'y' %}"
        "{{ p }}{{ q }}{{ messages[0].content }}",
    )
    for space, text in {
        "trimmed and stripped": "\n  {% for m in messages %}\n    {{ m.content }}\n  {% endfor %}\n"
        "\n end\n",
        "kept by plus": "  {%+ if true %}\n x {%+ endif +%}\n{{ messages[0].content }}",
        "taken by minus": "a \n {%- for m in messages -%} \n {{- m.content -}} \n {%- endfor -%} \n"
        " b",
        "at the end": "{{ messages[0].content }}\n",
        "at the end, twice": "{{ messages[0].content }}\n\n",
        "after a comment": "{# c #}\n{{ messages[0].content }}",
        "before a block, a tab": "x\n\t{% if true %}\n{{ messages[0].content }}{% endif %}",
        "Windows line ends": (
            "{% for m in messages %}\r\n{{ m.content }}\r\n{% endfor %}\r\nend\r\n"
        ),
        "an old Mac's": "a\rb{{ messages[0].content }}\r",
    }.items():
        yield case(f"white space {space}", text)
    yield Case(
        "a message with white space around it",
        Checkpoint(),
        (Chat(SPACES), Chat(SPACES, system=SPACES)),
        record="template",
        chats=(SPACES,),
    )


def generation_blocks():
    body = (
        "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
        "{% endfor %}"
    )
    checks = (*CHECKS, Losses(), Answer())
    yield case("a generation block", body, checks=checks)
    yield case(
        "a generation block with white space taken",
        body.replace("{% generation %}", " {%- generation -%} ").replace(
            "{% endgeneration %}", " {%- endgeneration -%} "
        ),
        checks=checks,
    )
    yield case(
        "a generation block around the user's words",
        "{% generation %} {{ messages[0].content }}\n{% endgeneration %}\nend",
    )
    yield case(
        "a generation block that sets a name",
        "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}"
        "{{ messages[0].content }}",
    )
    broken = "{% if messages %}{{ messages[0].content }"
    yield refused("a template that cannot be parsed", broken)
    for name, checks in {
        "continued as plain text": (Answer(),),
        "measured": (Losses(),),
        "streamed as plain text": (Stream(),),
    }.items():
        yield Case(f"a template that cannot be parsed, {name}", Checkpoint(chat=broken), checks)
    yield Case(
        "a filter that nobody knows, continued as plain text",
        Checkpoint(chat="{{ messages | nosuch }}"),
        (Answer(), Losses()),
    )
    yield Case(
        "an unparsable chat_template.jinja, continued as plain text",
        Checkpoint().file("chat_template.jinja", broken),
        (Answer(), Losses()),
    )
    yield Case(
        "a chat_template that is a number", Checkpoint(chat=7), (Chat(),), ("chat_template",)
    )
    for name, template, words in (
        ("an unknown filter", "{{ messages | nosuch }}", ("nosuch",)),
        ("an unknown test", "{{ 1 is nosuch }}", ("nosuch",)),
        ("an unknown tag", "{% do x %}", ()),
        ("a call of what is no function", "{{ messages[0].content() }}", ()),
        ("a member of what is not there", "{{ missing.x }}", ()),
        ("text and nothing", "{{ 'a' + missing }}", ()),
        ("text and a number", "{{ 'a' + 1 }}", ()),
        ("an include", "{% include 'x' %}", ()),
        ("a division by zero", "{{ 1 // 0 }}", ()),
        (
            "an exception of its own",
            "{{ raise_exception('nothing will do') }}",
            ("nothing will do",),
        ),
        ("a loop over a number", "{% for x in 5 %}{% endfor %}", ()),
        ("an index out of range", "{{ messages[9].role }}", ()),
        ("an unknown function", "{{ nosuch() }}", ("nosuch",)),
        ("an unclosed block", "{% for m in messages %}", ()),
    ):
        yield refused(name, template, *words)


def several():
    named = [{"name": "default", "template": CHAT}, {"name": "tool_use", "template": "TOOLS"}]
    yield case("a list of templates", named)
    yield case("a list of templates, the default last", named[::-1])
    yield case("a dictionary of templates", {"tool_use": "TOOLS", "default": CHAT})
    for name, several in (
        ("list", [{"name": "rag", "template": CHAT}, {"name": "tool_use", "template": CHAT}]),
        ("dictionary", {"rag": CHAT, "tool_use": CHAT}),
        ("list of one", [{"name": "rag", "template": CHAT}]),
    ):
        yield case(
            f"a {name} of templates without default", several, ("default", "rag"), checks=(Chat(),)
        )
        yield Case(
            f"a {name} of templates without default, as plain text",
            Checkpoint(chat=several),
            (Answer(), Losses()),
        )
    yield case("an empty list of templates", [], ("template",), checks=(Chat(),))
    yield Case(
        "a null template, as plain text",
        Checkpoint(chat=None).tokenizer_config(chat_template=None),
        (Answer(),),
    )


def cases():
    yield from to_json()
    yield from variables()
    yield from methods()
    yield from values()
    yield from filters()
    yield from tests()
    yield from blocks()
    yield from generation_blocks()
    yield from several()
    for name, template in REAL.items():
        yield case(
            f"in the manner of {name}",
            template,
            ("System role not supported",) if name == "Gemma" else None,
        )
