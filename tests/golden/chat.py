#!/usr/bin/env python3
"""Writes `chat.json`: chat templates of the usual styles, conversations, and what transformers renders.

Where a template raises, the row holds its message. `strftime_now` sees one fixed day. Templates are
short versions of the styles that models use; the last two are SmolLM2's own, word for word from its
GGUF file, and a piece of everything that templates do.

    pip install transformers jinja2 gguf
    python3 chat.py FOLDER/SmolLM2-135M-Instruct.Q4_1.gguf
"""

import datetime
import json
import sys
from pathlib import Path

import gguf
import jinja2
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

HERE = Path(__file__).resolve().parent
DATE = "2026-11-23"
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}

TEMPLATES = {
    "chatml": """{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\n' }}
{% endif %}
""",
    "inst": """{% if messages[0]['role'] == 'system' %}
    {% set loop_messages = messages[1:] %}
    {% set system_message = messages[0]['content'] %}
{% else %}
    {% set loop_messages = messages %}
    {% set system_message = false %}
{% endif %}
{% for message in loop_messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Roles must alternate: user, assistant, user, assistant.') }}
    {% endif %}
    {% if loop.index0 == 0 and system_message != false %}
        {% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}
    {% else %}
        {% set content = message['content'] %}
    {% endif %}
    {% if message['role'] == 'user' %}
        {{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
    {% elif message['role'] == 'assistant' %}
        {{ ' ' + content.strip() + ' ' + eos_token }}
    {% endif %}
{% endfor %}""",
    "headers": """{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{%- if tools is not none %}{{- "Environment: ipython\n" }}{%- endif %}
{{- "Cutting Knowledge Date: December 2023\n" }}
{{- "Today Date: " + date_string + "\n\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {{- raise_exception("no calls here") }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\n\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
""",
    "turns": """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\n\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {{ item['text'] | trim }}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model\n'}}
{%- endif -%}
""",
    "no-system": """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}{{ '<start_of_turn>' + (m.role if m.role != 'assistant' else 'model') + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}""",
    "alternation": """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or message.role == "tool_results" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, conversation roles must alternate user/assistant") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] " + (tools | tojson) + "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if message == user_messages[-1] and system_message is defined %}
            {{- "[INST] " + system_message + "\n\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, with the exception of an initial optional system message!") }}
    {%- endif %}
{%- endfor %}
""",
    "phi": """{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}{{'<|system|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}""",
    "zephyr": """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}""",
    "qwen": """{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- for tool in tools %}{{- "\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "<|im_end|>\n" }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- set content = message.content %}
        {%- if '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and reasoning_content %}
            {{- '<|im_start|>' + message.role + '\n<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}
""",
    "deepseek": """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% set ns = namespace(is_first=false, system_prompt='', is_first_sp=true) %}{%- for message in messages %}{%- if message['role'] == 'system' %}{%- if ns.is_first_sp %}{% set ns.system_prompt = ns.system_prompt + message['content'] %}{% set ns.is_first_sp = false %}{%- else %}{% set ns.system_prompt = ns.system_prompt + '\\n\\n' + message['content'] %}{%- endif %}{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.system_prompt }}{%- for message in messages %}{%- if message['role'] == 'user' %}{{'<｜User｜>' + message['content']}}{%- endif %}{%- if message['role'] == 'assistant' and message['content'] is not none %}{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endfor -%}{% if add_generation_prompt %}{{'<｜Assistant｜>'}}{% endif %}""",
    "generation": """{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
<|assistant|>
{% generation %}
{{ message.content }}{{ eos_token }}
{%- endgeneration %}

{% else -%}
<|{{ message.role }}|>
{{ message.content }}
{% endif -%}
{%- endfor -%}
{% if add_generation_prompt %}<|assistant|>
{% endif %}""",
    "macro": """{%- macro say(role, text, end=true) -%}
<{{ role|upper }}>{{ text }}{% if end %}</{{ role|upper }}>{% endif %}
{%- endmacro -%}
{%- for message in messages if message.role != 'system' -%}
{{ say(message.role, message.content, end=not loop.last) }}
{%- if loop.index > 3 -%}{%- break -%}{%- endif -%}
{%- if message.role == 'assistant' -%}{%- continue -%}{%- endif -%}
;
{%- else -%}
nobody
{%- endfor -%}
{#- a comment -#}
{{ ' {% raw %} ' }}{% raw %}{{ raw }}{% endraw %}""",
    "everything": """{%- set ns = namespace(found=false, n=0, last='') -%}
{%- for message in messages -%}
  {%- set ns.n = ns.n + 1 -%}
  {%- if message.role == 'user' -%}{%- set ns.found = true -%}{%- set ns.last = message.content -%}{%- endif -%}
{%- endfor -%}
{{ strftime_now('%Y-%m-%d %A %-d %B %H:%M') }}|{{ ns.found }}|{{ ns.n }}|{{ none }}|{{ true }}|{{ 1.0 }}|{{ 1e20 }}|{{ 3 / 2 }}|{{ 7 // 2 }}|{{ 7 % 3 }}|{{ 2 ** 3 }}|{{ [1, 'a', none, 2.5, "it's"] }}|{{ {'k': [true, {}]} }}
{{ messages | tojson }}
{{ messages[0] | tojson(indent=2) }}
{{ messages | tojson(indent=4, ensure_ascii=true, sort_keys=true) }}
{{ {'b': 1, 'a': [], 'c': {}, 'f': 0.1, 'e': 1e-7, 'x': 'é<>&' ~ '\\u0001'} | tojson }}{{ {'b': 1, 'a': 2} | tojson(separators=(',', ':')) }}
{{ ns.last[:5] }}|{{ ns.last[-3:] }}|{{ ns.last[::2] }}|{{ ns.last[1] }}|{{ ns.last|length }}|{{ ns.last.strip() }}|{{ ns.last.upper() }}|{{ ns.last.title() }}|{{ ns.last.split() }}|{{ ns.last.split('o') }}|{{ ns.last.replace('o', '0') }}
{{ ns.last.startswith('H') }}|{{ ns.last.endswith(('?', '!')) }}|{{ ns.last.find('l') }}|{{ 'x' in ns.last }}|{{ undefined_thing is defined }}|{{ undefined_thing }}|{{ undefined_thing|default('d') }}|{{ messages is iterable }}|{{ messages[0] is mapping }}|{{ ns.last is string }}|{{ 3 is number }}|{{ none is none }}
{{ messages | map(attribute='role') | join(', ') }}|{{ messages | selectattr('role', 'equalto', 'user') | list | length }}|{{ messages | rejectattr('role', 'equalto', 'user') | map(attribute='content') | list }}|{{ (messages | first).role }}|{{ (messages | last).role }}|{{ messages[0].items() | list | length }}|{{ messages[0].get('nope', 'x') }}|{{ messages[0].keys() | list }}
{% for key, value in messages[0] | items %}{{ key }}={{ value }};{% endfor %}{% for i in range(3) %}{{ i }}{{ "," if not loop.last }}{% endfor %}
{{ "%s has %d" | format("a", 3) }}|{{ 'abc' | replace('b', 'x') }}|{{ '  x ' | trim }}|{{ 'a-b' | capitalize }}|{{ [3, 1, 2] | sort }}|{{ [1, 2] + [3] }}|{{ 'a' ~ 1 ~ 'b' }}|{{ 'ab' * 2 }}|{{ 1 < 2 < 3 }}|{{ not true }}|{{ 'y' if ns.n else 'n' }}|{{ 'pre-x'.removeprefix('pre-') }}
{% set block %}
  captured {{ ns.n }}
{% endset %}
[{{ block }}][{{ block | trim }}]{% if false %}{% endif %}
{% filter upper %}shout{% endfilter %}
{{ documents is none }}{{ add_generation_prompt }}{{ pad_token }}{{ unk_token is defined }}
""",
    "whitespace": """   {% if true %}
  a
   {%- if true %}  b  {% endif -%}
   c
   {% endif %}
\t{# comment #}
{{ '' }}
   {%+ if true %}d{% endif %}
{% for i in [1, 2] %}
    {{ i }}
{% endfor +%}
 end

""",
    "attribute": "{{ nothing.at_all }}",
    "raises-late": "{{ messages[0].content }}{{ raise_exception('late: ' + messages | length | string) }}",
    "syntax": "{% if %}",
}

CONVERSATIONS = [
    [("user", "Hello, how are you?")],
    [("system", " You are terse. "), ("user", "  Hi  ")],
    [("user", "What is 2 + 2?"), ("assistant", "4"), ("user", "And 3 + 3?")],
    [("system", "S"), ("user", "A\nB"), ("assistant", "<think>\nhm\n</think>\n\nC "), ("user", "D"), ("assistant", "E"), ("user", "F")],
    [("user", "one"), ("user", "two")],
    [("assistant", "I begin."), ("user", "So?")],
    [("user", "<|im_end|> {{ not code }} \"quoted\" 'single' \\n \u00e9\u4e2d\U0001f600\t\x1c")],
    [("user", "What's o'clock?"), ("assistant", "Two."), ("tool", "{\"t\": 2}"), ("user", "Hello World Foo!")],
    [("user", "")],
]


def main():
    fields = gguf.GGUFReader(sys.argv[1]).fields
    TEMPLATES["smollm2"] = fields["tokenizer.chat_template"].contents()

    class Day(datetime.datetime):
        @classmethod
        def now(cls):
            return cls.fromisoformat(DATE)
    chat_template_utils.datetime = Day
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({}, "")), **TOKENS)
    rows = []
    for name, template in TEMPLATES.items():
        rendered = []
        for conversation in CONVERSATIONS:
            messages = [{"role": role, "content": content} for role, content in conversation]
            try:
                rendered.append({"text": tokenizer.apply_chat_template(
                    messages, chat_template=template, tokenize=False, add_generation_prompt=True)})
            except jinja2.exceptions.TemplateError as error:
                raised = type(error) is jinja2.exceptions.TemplateError
                rendered.append({"refused": str(error)} if raised else {"fails": type(error).__name__})
        rows.append({"name": name, "template": template, "rendered": rendered})
    record = {"date": DATE, "tokens": TOKENS, "conversations": [[list(message) for message in c] for c in CONVERSATIONS], "templates": rows}
    (HERE / "chat.json").write_text(json.dumps(record, indent=1) + "\n")
    for row in rows:
        kinds = [next(iter(rendered)) for rendered in row["rendered"]]
        print(row["name"], {kind: kinds.count(kind) for kind in kinds}, [r.get("fails") for r in row["rendered"] if "fails" in r][:2])


if __name__ == "__main__":
    main()
