"""Chat templates in the manner of well-known models: their constructions, in words of our own."""

REAL = {
    "ChatML": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|system|>\nBe of help<|end|>\n' }}"
        "{% endif %}{{'<|' + message['role'] + '|>\n' + message['content'] + '<|end|>' + '\n'}}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    "Llama 2": (
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
        "{% set system_message = messages[0]['content'] %}"
        "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
        "{% for message in loop_messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate user/assistant') }}"
        "{% endif %}{% if loop.index0 == 0 and system_message != false %}"
        "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n'"
        " + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}"
        "{% if message['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}"
        "{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "Llama 3": (
        "{% set loop_messages = messages %}{% for message in loop_messages %}"
        "{% set content = '<|user|>' + message['role'] + '<|end|>\n\n'"
        "+ message['content'] | trim + '</s>' %}{% if loop.index0 == 0 %}"
        "{% set content = bos_token + content %}{% endif %}{{ content }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|user|>assistant<|end|>\n\n' }}{% endif %}"
    ),
    "Llama 3.2": (
        "{{- bos_token }}\n{%- if custom_tools is defined %}\n    {%- set tools = custom_tools %}\n"
        "{%- endif %}\n"
        "{%- if not tools_in_user_message is defined %}\n"
        "    {%- set tools_in_user_message = true %}\n{%- endif %}\n"
        '{%- if not date_string is defined %}\n        {%- set date_string = "26 Jul 2024" %}\n'
        "{%- endif %}\n"
        "{%- if not tools is defined %}\n    {%- set tools = none %}\n{%- endif %}\n"
        "{%- if messages[0]['role'] == 'system' %}\n"
        "    {%- set system_message = messages[0]['content']|trim %}\n"
        '    {%- set messages = messages[1:] %}\n{%- else %}\n    {%- set system_message = "" %}\n'
        "{%- endif %}\n"
        '{{- "<|system|>\\n\\n" }}\n{%- if tools is not none %}\n'
        '    {{- "Environment: ipython\\n" }}\n{%- endif %}\n'
        '{{- "Today Date: " + date_string + "\\n\\n" }}\n{{- system_message }}\n{{- "<|end|>" }}\n'
        "{%- for message in messages %}\n"
        "    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in "
        "message) %}\n"
        "        {{- '<|' + message['role'] + '|>\\n\\n'+ message['content'] | trim + '<|end|>' }}"
        "\n"
        "    {%- elif 'tool_calls' in message %}\n"
        "        {%- if not message.tool_calls|length == 1 %}\n"
        '            {{- raise_exception("This model only supports single tool-calls at once!") }}'
        "\n        {%- endif %}\n"
        "    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n"
        "    {{- '<|assistant|>\\n\\n' }}\n{%- endif %}\n"
    ),
    "Mistral": (
        '{%- if messages[0]["role"] == "system" %}\n'
        '    {%- set system_message = messages[0]["content"] %}\n'
        "    {%- set loop_messages = messages[1:] %}\n{%- else %}\n"
        "    {%- set loop_messages = messages %}\n{%- endif %}\n"
        "{%- if not tools is defined %}\n    {%- set tools = none %}\n{%- endif %}\n"
        '{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}\n'
        "\n"
        "{%- set ns = namespace() %}\n{%- set ns.index = 0 %}\n{%- for message in loop_messages %}"
        "\n"
        '    {%- if not (message.role == "tool" or message.role == "tool_results" or '
        "(message.tool_calls is defined and message.tool_calls is not none)) %}\n"
        '        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}\n'
        '            {{- raise_exception("After the optional system message, conversation roles '
        'must alternate") }}\n        {%- endif %}\n'
        "        {%- set ns.index = ns.index + 1 %}\n    {%- endif %}\n{%- endfor %}\n\n"
        "{{- bos_token }}\n"
        '{%- for message in loop_messages %}\n    {%- if message["role"] == "user" %}\n'
        "        {%- if tools is not none and (message == user_messages[-1]) %}\n"
        '            {{- "[AVAILABLE_TOOLS] [" }}\n        {%- endif %}\n'
        "        {%- if loop.last and system_message is defined %}\n"
        '            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}'
        "\n"
        '        {%- else %}\n            {{- "[INST] " + message["content"] + "[/INST]" }}\n'
        "        {%- endif %}\n"
        '    {%- elif message["role"] == "assistant" %}\n'
        '        {{- " " + message["content"]|trim + eos_token}}\n    {%- endif %}\n{%- endfor %}\n'
    ),
    "Zephyr": (
        "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n"
        "' + message['content'] + eos_token }}\n"
        "{% elif message['role'] == 'system' %}\n{{ '<|system|>\n"
        "' + message['content'] + eos_token }}\n"
        "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n"
        "'  + message['content'] + eos_token }}\n{% endif %}\n"
        "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n"
        "{% endfor %}"
    ),
    "Phi-3.5": (
        "{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}"
        "{{'<|system|>\n' + message['content'] + '<|end|>\n'}}"
        "{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
        "{% elif message['role'] == 'assistant' %}"
        "{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}"
        "{% else %}{{ eos_token }}{% endif %}"
    ),
    "Phi-4-mini": (
        "{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message and "
        "message['tools'] is not none %}"
        "{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] + "
        "'<|/tool|>' + '<|end|>' }}{% else %}"
        "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
    ),
    "Qwen 2.5": (
        "{%- if tools %}\n    {{- '<|system|>\\n' }}\n    {%- for tool in tools %}\n"
        '        {{- "\\n" }}\n        {{- tool | tojson }}\n    {%- endfor %}\n'
        "{%- else %}\n    {%- if messages[0]['role'] == 'system' %}\n"
        "        {{- '<|system|>\\n' + messages[0]['content'] + '<|end|>\\n' }}\n"
        "    {%- else %}\n        {{- '<|system|>\\nYou are of help.<|end|>\\n' }}\n"
        "    {%- endif %}\n{%- endif %}\n"
        "{%- for message in messages %}\n"
        '    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or '
        '(message.role == "assistant" and not message.tool_calls) %}\n'
        "        {{- '<|' + message.role + '|>\\n' + message.content + '<|end|>' + '\\n' }}\n"
        '    {%- elif message.role == "tool" %}\n'
        '        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}\n'
        "            {{- '<|user|>' }}\n        {%- endif %}\n"
        "    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n"
        "    {{- '<|assistant|>\\n' }}\n{%- endif %}\n"
    ),
    "Qwen 3": (
        "{%- if messages[0].role == 'system' %}\n"
        "    {{- '<|system|>\\n' + messages[0].content + '<|end|>\\n' }}\n{%- endif %}\n"
        "{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}\n"
        "{%- for message in messages[::-1] %}\n"
        "    {%- set index = (messages|length - 1) - loop.index0 %}\n"
        '    {%- if ns.multi_step_tool and message.role == "user" and message.content is string '
        "and not(message.content.startswith('<tool_response>') and "
        "message.content.endswith('</tool_response>')) %}\n"
        "        {%- set ns.multi_step_tool = false %}\n"
        "        {%- set ns.last_query_index = index %}\n    {%- endif %}\n{%- endfor %}\n"
        "{%- for message in messages %}\n    {%- if message.content is string %}\n"
        "        {%- set content = message.content %}\n    {%- else %}\n"
        "        {%- set content = '' %}\n    {%- endif %}\n"
        '    {%- if (message.role == "user") or (message.role == "system" and not loop.first) '
        "%}\n        {{- '<|' + message.role + '|>\\n' + content + '<|end|>' + '\\n' }}\n"
        "    {%- elif message.role == \"assistant\" %}\n        {%- set reasoning_content = '' %}\n"
        "        {%- if message.reasoning_content is string %}\n"
        "            {%- set reasoning_content = message.reasoning_content %}\n"
        "        {%- else %}\n            {%- if '</think>' in content %}\n"
        "                {%- set reasoning_content = "
        "content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}\n"
        "                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}\n"
        "            {%- endif %}\n        {%- endif %}\n"
        "        {%- if loop.index0 > ns.last_query_index and (loop.last or (not loop.last and "
        "reasoning_content)) %}\n"
        "            {{- '<|' + message.role + '|>\\n<think>\\n' + reasoning_content.strip('\\n') "
        "+ '\\n</think>\\n\\n' + content.lstrip('\\n') }}\n"
        "        {%- else %}\n            {{- '<|' + message.role + '|>\\n' + content }}\n"
        "        {%- endif %}\n        {{- '<|end|>\\n' }}\n    {%- endif %}\n{%- endfor %}\n"
        "{%- if add_generation_prompt %}\n    {{- '<|assistant|>\\n' }}\n"
        "    {%- if enable_thinking is defined and enable_thinking is false %}\n"
        "        {{- '<think>\\n\\n</think>\\n\\n' }}\n    {%- endif %}\n{%- endif %}"
    ),
    "Gemma": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) "
        "%}{{ raise_exception('Conversation roles must alternate') }}"
        "{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}"
        "{% set role = message['role'] %}{% endif %}"
        "{{ '<|user|>' + role + '\n' + message['content'] | trim + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{'<|user|>model\n'}}{% endif %}"
    ),
    "DeepSeek R1": (
        "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}"
        "{% endif %}"
        "{% set ns = namespace(is_first=false, is_tool=false, is_output_first=true, "
        "system_prompt='') %}{%- for message in messages %}"
        "{%- if message['role'] == 'system' %}{% set ns.system_prompt = message['content'] %}"
        "{%- endif %}{%- endfor %}{{bos_token}}{{ns.system_prompt}}"
        "{%- for message in messages %}{%- if message['role'] == 'user' %}"
        "{%- set ns.is_tool = false -%}{{'<|user|>' + message['content']}}{%- endif %}"
        "{%- if message['role'] == 'assistant' and message['content'] is not none %}"
        "{% set content = message['content'] %}{% if '</think>' in content %}"
        "{% set content = content.split('</think>')[-1] %}{% endif %}"
        "{{'<|assistant|>' + content + '</s>'}}{%- endif %}{%- endfor -%}"
        "{% if ns.is_tool %}{{'<|end|>'}}{% endif %}"
        "{% if add_generation_prompt and not ns.is_tool %}{{'<|assistant|><think>\\n'}}{% endif %}"
    ),
    "SmolLM 3": (
        "{# defaults #}\n{%- if enable_thinking is not defined -%}\n"
        "{%- set enable_thinking = true -%}\n{%- endif -%}\n"
        '{%- if enable_thinking -%}\n  {%- set reasoning_mode = "/think" -%}\n{%- else -%}\n'
        '  {%- set reasoning_mode = "/no_think" -%}\n{%- endif -%}\n'
        '{{- "<|system|>\\n" -}}\n{%- if messages[0].role == "system" -%}\n'
        "  {%- set system_message = messages[0].content -%}\n"
        '  {%- if "/no_think" in system_message -%}\n    {%- set reasoning_mode = "/no_think" -%}\n'
        "  {%- endif -%}\n"
        '  {%- set custom_instructions = system_message.replace("/no_think", "").replace("/think", '
        '"").rstrip() -%}\n{%- endif -%}\n'
        '{{- "## Metadata\\n\\n" -}}\n{{- "Reasoning Mode: " + reasoning_mode + "\\n\\n" -}}\n'
        '{%- if custom_instructions -%}\n{{ custom_instructions + "\\n\\n" }}\n{%- endif -%}\n'
        '{{- "<|end|>\\n" -}}\n'
        "{%- for message in messages -%}\n"
        '    {%- set content = message.content if message.content is string else "" -%}\n'
        '    {%- if message.role == "user" -%}\n'
        '        {{ "<|" + message.role + "|>\\n"  + content + "<|end|>\\n" }}\n'
        '    {%- elif message.role == "assistant" -%}\n        {% generation %}\n'
        '        {{ "<|assistant|>\\n" + content.lstrip("\\n") + "<|end|>\\n" }}\n'
        "        {% endgeneration %}\n"
        "    {%- endif -%}\n{%- endfor -%}\n{%- if add_generation_prompt -%}\n"
        '{{ "<|assistant|>\\n" }}\n{%- endif -%}\n'
    ),
    "Granite": (
        "{%- set tools_system_message_prefix = 'You have tools.' %}"
        "{%- set g4_default = 'Be of help.' %}{%- set ns = namespace(found=false) %}"
        "{%- for m in messages if m.role == 'system' %}{%- set ns.found = true %}{%- endfor %}"
        "{%- if not ns.found %}{{- '<|system|>' + g4_default + '<|end|>\n' }}{%- endif %}"
        "{%- for m in messages %}{{- '<|' ~ m['role'] ~ '|>' ~ (m['content'] if m['content'] is "
        "string else (m['content'] | map(attribute='text') | join('\n'))) ~ '<|end|>\n' }}"
        "{%- endfor %}{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
    ),
    "Command R": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
        "{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}"
        "{% elif false == true %}{% set loop_messages = messages %}"
        "{% set system_message = 'You are Coral.' %}{% else %}{% set loop_messages = messages %}"
        "{% set system_message = false %}{% endif %}{% if system_message != false %}"
        "{{ '<|system|>' + system_message + '<|end|>' }}{% endif %}"
        "{% for message in loop_messages %}{% set content = message['content'] %}"
        "{% if message['role'] == 'user' %}{{ '<|user|>' + content.strip() + '<|end|>' }}"
        "{% elif message['role'] == 'assistant' %}"
        "{{ '<|assistant|>'  + content.strip() + '<|end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    ),
}
