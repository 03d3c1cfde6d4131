"""Chat with a cluster through the official OpenAI client: a whole answer, then a streamed one.

make serve                                           # prints the base URL
python examples/openai_client.py http://127.0.0.1:8000/v1
"""

from __future__ import annotations

import sys

from openai import OpenAI

base_url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"
client = OpenAI(base_url=base_url, api_key="none", timeout=60)
model = client.models.list().data[0].id
messages = [
    {"role": "system", "content": "You know all about caches, and answer in one sentence."},
    {"role": "user", "content": "Why is the second answer about one document sooner there?"},
]

answer = client.chat.completions.create(model=model, messages=messages, max_tokens=32)
print(answer.choices[0].message.content)

# The next turn starts from the blocks of this one: its prompt is what was said so far, and more.
messages += [
    {"role": "assistant", "content": answer.choices[0].message.content},
    {"role": "user", "content": "And the third?"},
]
stream = client.chat.completions.create(
    model=model,
    messages=messages,
    max_tokens=32,
    stream=True,
    stream_options={"include_usage": True},
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    if chunk.usage:
        cached = chunk.usage.prompt_tokens_details.cached_tokens
        print(f"\n{cached} of {chunk.usage.prompt_tokens} prompt tokens were cached")
