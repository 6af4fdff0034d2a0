"""Kind 7: what a chat template may use, as transformers' Jinja environment has it."""

import re

from checkpoints import CHAT, Checkpoint
from lib import Answer, Case, Chat, Losses, Stream  # noqa: F401

from .real_templates import REAL

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
    for text in (
        "c | tojson", "messages | tojson", "messages[0] | tojson", "messages[0] | tojson(indent=2)",
        "messages | tojson(indent=4)", "{'z': 1, 'a': 2} | tojson", "{'z': 1, 'a': 2} | tojson(sort_keys=true)",
        "{'z': [1, 2.5, 1e20, true, none], 'a': {'b': 'ü'}} | tojson", "c | tojson(ensure_ascii=true)",
        "{'a': 1, 'b': [1, 2]} | tojson(separators=(',', ':'))", "[] | tojson", "{} | tojson(indent=2)",
        "[] | tojson(indent=2)", "'\\u2028</script>' | tojson", "none | tojson", "tools | tojson", "documents | tojson",
        "1.0 | tojson", "0.1 | tojson", "1e-7 | tojson", "123456789012345678 | tojson", "(1, 2) | tojson",
        "'a' | tojson | length", "messages | map(attribute='role') | list | tojson", "'\\t\\n\\\\' | tojson",
    ):  # fmt: skip
        yield expression(text)


def variables():
    yield case("tools and documents are none, not absent",
               "{{ tools is none }},{{ tools is defined }},{{ documents is none }},{% if tools %}T{% endif %}"
               "{% if tools is not none %}N{% endif %}{% if not tools is defined or tools is none %}U{% endif %}"
               "{{ messages[0].content }}")  # fmt: skip
    for token in ("bos", "eos", "unk", "sep", "cls", "pad", "mask"):
        declared = Checkpoint(chat="{{ " + token + "_token }}{{ messages[0].content }}{{ " + token + "_token is defined }}")
        declared.tokenizer_config(**{token + "_token": "<|end|>"})
        yield Case(f"{token}_token declared", declared, CHECKS, record="template")
    absent = "{{ sep_token }}{{ pad_token is defined }}{{ mask_token or 'none' }}{{ messages[0].content }}"
    yield case("tokens that nothing declares", absent)
    yield case("names that nothing declares",
               "{{ enable_thinking is defined }}{{ date_string is defined }}{{ custom_tools is defined }}"
               "{{ builtin_tools is undefined }}{{ missing }}{{ messages[0].content }}{{ messages[0].tool_calls }}"
               "{{ messages[0]['name'] is defined }}{{ messages[0].get('name', 'nobody') }}")  # fmt: skip
    yield case("enable_thinking with a default",
               "{% set t = enable_thinking if enable_thinking is defined else true %}{{ t }}{{ thinking | default(false) }}"
               "{{ messages[0].content }}")  # fmt: skip
    yield case("add_generation_prompt", "{{ messages[0].content }}{% if add_generation_prompt %}GO{% endif %}")
    yield case("a set of the date, when it is not given",
               "{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}{{ date_string }}"
               "{{ messages[0].content }}")  # fmt: skip
    today = "{{ strftime_now('%d %b %Y') }} {{ messages[0].content }}"
    yield Case("strftime_now", Checkpoint(chat=today), (Chat(),))
    hour = "{{ strftime_now('%Y-%m-%d %H') }} {{ messages[0].content }}"
    yield Case("strftime_now in the local time zone", Checkpoint(chat=hour),
               (Chat(env={"TZ": "Pacific/Kiritimati"}), Chat(env={"TZ": "America/Anchorage"})))  # fmt: skip
    yield Case("strftime_now with names and padding", Checkpoint(chat="{{ strftime_now('%A, %B %e, %y %j %U %p %I%%') }}"
               "{{ messages[0].content }}"), (Chat(),))  # fmt: skip
    yield case("dict and namespace",
               "{% set d = dict(a=1, b='x') %}{{ d.b }}{{ d['a'] }}{% set ns = namespace(n=0, s='') %}"
               "{% for m in messages %}{% set ns.n = ns.n + 1 %}{% set ns.s = ns.s ~ m.role[0] %}{% endfor %}"
               "{{ ns.n }}{{ ns.s }}{{ messages[0].content }}")  # fmt: skip
    yield case("range, lipsum's absence, cycler and joiner",
               "{% for i in range(3) %}{{ i }}{% endfor %}{{ range(2, 9, 3) | list }}{% set j = joiner('; ') %}"
               "{% for m in messages %}{{ j() }}{{ m.role }}{% endfor %}{% set y = cycler('a', 'b') %}{{ y.next() }}"
               "{{ y.next() }}{{ messages[0].content }}")  # fmt: skip


# Methods that published templates use.
ALWAYS = (".rsplit", ".split", ".partition", ".rpartition", ".removeprefix", ".removesuffix", ".zfill", ".startswith", ".endswith",
          ".replace", ".strip", ".lstrip", ".rstrip", ".title", ".upper", ".lower", ".join", ".format(", "%", ".find", ".splitlines")  # fmt: skip


def methods():
    for text in (
        "c.rsplit('x', 1)[0]", "c.rsplit()[-1]", "c.split()", "c.split('<', 1)[-1]", "c.split('>')[0]", "c.split(None, 2)",
        "c.partition('>')[0]", "c.partition('>')[2]", "c.rpartition('<')[0]", "c.partition('@')", "c.removeprefix('Is ')",
        "c.removesuffix('!')", "c.zfill(60)", "'-7'.zfill(4)", "c.center(60, '*')", "c.ljust(60, '.')", "c.rjust(60)",
        "c.expandtabs(4)", "c.splitlines()", "'a\\n\\nb\\n'.splitlines()", "'a\\r\\nb'.splitlines(true)", "c.startswith('Is')",
        "c.startswith(('What', 'Is'))", "c.endswith('!')", "c.endswith(('?', '.'))", "c.find('b')", "c.find('@')", "c.rfind('b')",
        "c.index('s')", "c.count('x')", "c.replace('b', 'B')", "c.replace('b', 'B', 1)", "c.strip('!?.I')", "c.lstrip('IsW')",
        "c.rstrip('!?')", "'  a '.strip()", "c.title()", "c.capitalize()", "c.swapcase()", "c.casefold()", "c.upper()",
        "c.lower()", "'42'.isdigit()", "'ab'.isalpha()", "'a1'.isalnum()", "' '.isspace()", "'AB'.isupper()", "'ab'.islower()",
        "'Ab Cd'.istitle()", "'4½'.isnumeric()", "'abc'.isidentifier()", "', '.join(['a', 'b'])", "'-'.join('abc')",
        "'%s is %d and %05.2f%%' % ('a', 7, 3.14159)", "'%s' % c", "'%(a)s' % {'a': c}", "'%x %o %e %r %c' % (255, 8, 12.5, 'q', 'z')",
        "'{} {}'.format(c, 1)", "'{0}{1}{0}'.format('a', 'b')", "'{a:>5}|{b:.2f}'.format(a='x', b=2.0)", "'{:,}'.format(1234567)",
        "'a{b}'.format_map({'b': c})", "c[::-1]", "c[3:9]", "c[-4:]", "c[0]", "c[-1]", "c[:5] + c[5:]", "c * 2", "'b' in c",
        "'@' not in c", "c ~ 1 ~ none ~ true", "c | length", "'ß'.upper()", "'İ'.lower()", "c.encode('utf-8') | length",
        "'abc'.translate({97: 'x'})", "'a,b,c'.split(',')[1:]", "'x'.join(messages | map(attribute='role'))",
    ):  # fmt: skip
        yield expression(text, not any(word in text for word in ALWAYS))
    yield case("methods of lists and dictionaries",
               "{% set m = messages[0] %}{{ m.keys() | list }}{{ m.values() | list | length }}{% for k, v in m.items() %}"
               "{{ k }}={{ v }};{% endfor %}{{ m.get('x') }}{{ m.get('x', 3) }}{{ [1, 2, 1].count(1) }}{{ ['a', 'b'].index('b') }}"
               "{{ m.copy().role }}{{ dict.fromkeys(['p', 'q'], 1) | list }}", ("template",))  # fmt: skip
    refusal = "sandbox: lists do not change"
    yield refused(refusal, "{% set l = [] %}{% set _ = l.append(1) %}{{ l }}{{ messages[0].content }}")
    yield refused("sandbox: dictionaries do not change", "{% set d = {} %}{{ d.update({'a': 1}) }}{{ messages[0].content }}")
    yield refused("sandbox: no attributes with underscores", "{{ ''.__class__ | string | length > 0 }}"
                  "{{ messages.__class__.__name__ + '' }}")  # fmt: skip


def values():
    for text in (
        "true", "none", "1.0", "1e20", "1e-7", "0.1 + 0.2", "10 / 4", "10 / 5", "7 // 2", "-7 // 2", "-7 % 3", "2 ** 10",
        "2 ** 0.5", "2 ** -1", "[1, 'a', none, true, 2.0]", "{'a': 1, 'b': 'x'}", "(1, 2)", "(1,)", "['it\\'s', 'a\"b', 'a\\nb']",
        "123456789 * 987654321", "99999999999 * 99999999999", "1 == 1.0", "1 == true", "'1' == 1", "[1] == [1]", "none == false",
        "3 > 2 > 1", "not c", "c and 1", "'' or 'x'", "1 if c else 2", "('a' if false)", "[1, 2] + [3]", "messages + []",
        "'a' < 'b'", "[1, 2] < [1, 3]", "'ab' * 3", "[0] * 3", "1_000", "0x1f", "true + 1", "'a' 'b'", "1 is odd", "c is string",
    ):  # fmt: skip
        yield expression(text, may_refuse=True)


def filters():
    for text in (
        "c | trim", "c | upper", "c | lower", "c | title", "c | capitalize", "c | replace('b', 'B')", "c | length", "c | count",
        "missing | default('d')", "'' | default('d')", "'' | default('d', true)", "none | default('d')", "messages | first",
        "(messages | last).role", "messages | map(attribute='role') | join(', ')", "['b', 'a', 'B'] | sort",
        "['b', 'a', 'B'] | sort(case_sensitive=true)", "[3, 1, 2] | sort(reverse=true)", "messages | selectattr('role', 'equalto', 'user') | list | length",
        "messages | selectattr('role', '==', 'user') | list | length", "messages | rejectattr('role', 'equalto', 'user') | list | length",
        "[1, 2, 3, 4] | select('odd') | list", "[0, 1, ''] | select | list", "[1, 2] | reject('even') | list",
        "['a', 'b', 'a'] | unique | list", "[1, 2, 3] | sum", "[1, 2, 3] | min", "['a', 'c'] | max", "[1, 2] | reverse | list",
        "'abc' | reverse", "'3.7' | float", "'42' | int", "'x' | int", "'x' | int(5)", "3.7 | int", "3.14159 | round(2)", "2.5 | round",
        "2.5 | round(0, 'floor') | int", "-3 | abs", "[1, 2, 3, 4, 5] | batch(2) | list", "[1, 2, 3, 4, 5] | slice(2) | list", "c | list | length",
        "'a\\nb\\n\\nc' | indent", "'a\\nb' | indent(2, true)", "'a\\n\\nb' | indent(2, blank=true)", "c | wordcount", "c | wordwrap(10)",
        "c | truncate(12)", "c | truncate(12, true, '..')", "c | center(50)", "'%s!' | format('a')", "c | urlencode", "c | escape", "c | e",
        "c | safe", "c | striptags", "{'b': 2, 'a': 1} | dictsort", "{'b': 2, 'a': 1} | items | list", "messages[0] | attr('role')",
        "messages | groupby('role') | list | length", "c | string", "1 | string", "c | xmlattr", "13000 | filesizeformat", "c | pprint",
        "[[1, 2], [3]] | sum(start=[])", "messages | map('length') | list", "[1, 2] | map('string') | join('+')", "'a b' | map('upper') | join",
        "['x', 'y'] | join(attribute=0)", "{'a': 1} | length", "{'a': 1} | list", "'a' | first", "[] | first", "[1, [2]] | string",
    ):  # fmt: skip
        yield expression(text, may_refuse=True)


def tests():
    yield case("tests by name",
               "{{ 1 is number }}{{ 1 is integer }}{{ 1.0 is float }}{{ true is boolean }}{{ true is true }}{{ 1 is true }}{{ 'a' is string }}"
               "{{ [] is sequence }}{{ 'a' is sequence }}{{ {} is mapping }}{{ [] is iterable }}{{ 1 is iterable }}{{ none is none }}"
               "{{ x is undefined }}{{ 4 is even }}{{ 3 is odd }}{{ 6 is divisibleby 3 }}{{ 'a' is lower }}{{ 'A' is upper }}{{ 1 is eq 1 }}"
               "{{ 1 is ne 2 }}{{ 1 is lt 2 }}{{ 2 is ge 2 }}{{ 1 is in [1] }}{{ none is sameas none }}{{ range is callable }}"
               "{{ 'trim' is filter }}{{ 'odd' is test }}{{ 1 is not string }}{{ messages[0] is mapping }}{{ messages[0].content is string }}",
               ("template",))  # fmt: skip
    yield case("content that may be a list of parts",
               "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.text }}"
               "{% endfor %}{% endif %}{% endfor %}{% if messages[0].content is iterable and messages[0].content is not mapping %}I{% endif %}")  # fmt: skip


def blocks():
    loop = "{% for m in messages %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.first }}{{ loop.last }}{{ loop.length }}"
    loop += "{{ loop.previtem.role if loop.previtem }}{{ loop.nextitem.role if loop.nextitem is defined }}{{ loop.cycle('a', 'b') }}"
    yield case("what a loop knows", loop + "{{ loop.changed(m.role) }}{{ loop.depth }}{{ m.content }}{% endfor %}", ("template",))
    yield case("break and continue",
               "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.content }}{% break %}{% endfor %}")  # fmt: skip
    yield case("a loop with a condition and an else",
               "{% for m in messages if m.role == 'tool' %}{{ m }}{% else %}no tools{% endfor %}{{ messages[0].content }}")  # fmt: skip
    yield case("messages backwards", "{% for m in messages[::-1] %}{{ m.role }}:{{ m.content }}{% endfor %}")
    yield case("the first message as system, the rest after it",
               "{% if messages[0]['role'] == 'system' %}{% set s = messages[0]['content'] %}{% set rest = messages[1:] %}{% else %}"
               "{% set s = 'none' %}{% set rest = messages %}{% endif %}[{{ s }}]{% for m in rest %}{{ m['content'] | trim }}{% endfor %}")  # fmt: skip
    yield case("roles that must alternate",
               "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}"
               "{% endif %}{{ m['content'] }}{% endfor %}", ("alternate",), checks=(Chat(), Chat(system="Be brief.")))  # fmt: skip
    yield case("no system message wanted",
               "{% if messages[0].role == 'system' %}{{ raise_exception('No system role, please') }}{% endif %}{{ messages[0].content }}",
               ("No system role, please",), checks=(Chat(), Chat(system="Be brief.")))  # fmt: skip
    yield case("a macro", "{% macro turn(m, end='<|end|>') %}<|{{ m.role }}|>{{ m.content }}{{ end }}{% endmacro %}"
               "{% for m in messages %}{{ turn(m) }}{{ turn(m, end='') | length }}{% endfor %}")  # fmt: skip
    yield case("a macro that calls a block",
               "{% macro wrap() %}[{{ caller() }}]{% endmacro %}{% call wrap() %}{{ messages[0].content }}{% endcall %}", ("template",))  # fmt: skip
    yield case("a filter block, a set block, a with block",
               "{% filter upper %}{{ messages[0].content }}{% endfilter %}{% set x %}<{{ messages[0].role }}>{% endset %}{{ x }}"
               "{% with y = 3 %}{{ y }}{% endwith %}{{ y is defined }}")  # fmt: skip
    yield case("raw and comments", "{% raw %}{{ not this }}{% endraw %}{# nor this #}{{ messages[0].content }}{#- x -#}  end")
    yield case("a scope that does not leak",
               "{% set x = 1 %}{% for m in messages %}{% set x = 2 %}{% endfor %}{{ x }}{% if true %}{% set x = 3 %}{% endif %}{{ x }}"
               "{{ messages[0].content }}")  # fmt: skip
    yield case("a recursive loop", "{% for n in [1, [2, 3]] recursive %}{% if n is iterable %}({{ loop(n) }}){% else %}{{ n }}{% endif %}"
               "{% endfor %}{{ messages[0].content }}", ("template",))  # fmt: skip
    yield case("unpacking", "{% for a, b in [(1, 2), (3, 4)] %}{{ a }}-{{ b }};{% endfor %}{% set p, q = 'x', 'y' %}{{ p }}{{ q }}{{ messages[0].content }}")
    for space, text in {
        "trimmed and stripped": "\n  {% for m in messages %}\n    {{ m.content }}\n  {% endfor %}\n\n end\n",
        "kept by plus": "  {%+ if true %}\n x {%+ endif +%}\n{{ messages[0].content }}",
        "taken by minus": "a \n {%- for m in messages -%} \n {{- m.content -}} \n {%- endfor -%} \n b",
        "at the end": "{{ messages[0].content }}\n", "at the end, twice": "{{ messages[0].content }}\n\n",
        "after a comment": "{# c #}\n{{ messages[0].content }}", "before a block, a tab": "x\n\t{% if true %}\n{{ messages[0].content }}{% endif %}",
        "Windows line ends": "{% for m in messages %}\r\n{{ m.content }}\r\n{% endfor %}\r\nend\r\n", "an old Mac's": "a\rb{{ messages[0].content }}\r",
    }.items():  # fmt: skip
        yield case(f"white space {space}", text)
    yield Case("a message with white space around it", Checkpoint(), (Chat(SPACES), Chat(SPACES, system=SPACES)), record="template",
               chats=(SPACES,))  # fmt: skip


def generation_blocks():
    body = "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    checks = (*CHECKS, Losses(), Answer())
    yield case("a generation block", body, checks=checks)
    yield case("a generation block with white space taken",
               body.replace("{% generation %}", " {%- generation -%} ").replace("{% endgeneration %}", " {%- endgeneration -%} "), checks=checks)  # fmt: skip
    yield case("a generation block around the user's words", "{% generation %} {{ messages[0].content }}\n{% endgeneration %}\nend")
    yield case("a generation block that sets a name",
               "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}{{ messages[0].content }}")  # fmt: skip
    broken = "{% if messages %}{{ messages[0].content }"
    yield refused("a template that cannot be parsed", broken)
    for name, checks in {"continued as plain text": (Answer(),), "measured": (Losses(),), "streamed as plain text": (Stream(),)}.items():
        yield Case(f"a template that cannot be parsed, {name}", Checkpoint(chat=broken), checks)
    yield Case("a filter that nobody knows, continued as plain text", Checkpoint(chat="{{ messages | nosuch }}"), (Answer(), Losses()))
    yield Case("an unparsable chat_template.jinja, continued as plain text", Checkpoint().file("chat_template.jinja", broken), (Answer(), Losses()))
    yield Case("a chat_template that is a number", Checkpoint(chat=7), (Chat(),), ("chat_template",))
    for name, template, words in (
        ("an unknown filter", "{{ messages | nosuch }}", ("nosuch",)), ("an unknown test", "{{ 1 is nosuch }}", ("nosuch",)),
        ("an unknown tag", "{% do x %}", ()), ("a call of what is no function", "{{ messages[0].content() }}", ()),
        ("a member of what is not there", "{{ missing.x }}", ()), ("text and nothing", "{{ 'a' + missing }}", ()),
        ("text and a number", "{{ 'a' + 1 }}", ()), ("an include", "{% include 'x' %}", ()), ("a division by zero", "{{ 1 // 0 }}", ()),
        ("an exception of its own", "{{ raise_exception('nothing will do') }}", ("nothing will do",)),
        ("a loop over a number", "{% for x in 5 %}{% endfor %}", ()), ("an index out of range", "{{ messages[9].role }}", ()),
        ("an unknown function", "{{ nosuch() }}", ("nosuch",)), ("an unclosed block", "{% for m in messages %}", ()),
    ):  # fmt: skip
        yield refused(name, template, *words)


def several():
    named = [{"name": "default", "template": CHAT}, {"name": "tool_use", "template": "TOOLS"}]
    yield case("a list of templates", named)
    yield case("a list of templates, the default last", named[::-1])
    yield case("a dictionary of templates", {"tool_use": "TOOLS", "default": CHAT})
    for name, several in (("list", [{"name": "rag", "template": CHAT}, {"name": "tool_use", "template": CHAT}]),
                          ("dictionary", {"rag": CHAT, "tool_use": CHAT}),
                          ("list of one", [{"name": "rag", "template": CHAT}])):  # fmt: skip
        yield case(f"a {name} of templates without default", several, ("default", "rag"), checks=(Chat(),))
        yield Case(f"a {name} of templates without default, as plain text", Checkpoint(chat=several), (Answer(), Losses()))
    yield case("an empty list of templates", [], ("template",), checks=(Chat(),))
    yield Case("a null template, as plain text", Checkpoint(chat=None).tokenizer_config(chat_template=None), (Answer(),))


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
        yield case(f"in the manner of {name}", template, ("System role not supported",) if name == "Gemma" else None)
