"""LangChain's client of OpenAI's interface, as docs/guides/serve.md shows it."""

from __future__ import annotations

from pathlib import Path

import pytest
from langchain_openai import ChatOpenAI
from tiny_models import save_tiny
from tiny_server import L, serving

pytestmark = pytest.mark.slow


def test_chats_of_langchain(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tiny", n_layers=L, max_position_embeddings=512)
    with serving(folder) as server:
        chat = ChatOpenAI(
            base_url=f"{server.url}/v1", api_key="none", model="tiny:fast", temperature=0, max_tokens=12, max_retries=0
        )
        answer = chat.invoke([("system", "Be brief."), ("user", "Hi")])
        asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
        own = server.openai.chat.completions.create(model="tiny:fast", messages=asked, max_tokens=12, temperature=0)
        assert answer.content == own.choices[0].message.content
        assert answer.usage_metadata["output_tokens"] == 12
        pieces = list(chat.stream([("system", "Be brief."), ("user", "Hi")]))
        assert "".join(str(each.content) for each in pieces) == answer.content
        newer = chat.model_copy(update={"use_responses_api": True}).invoke("Hi")
        assert newer.usage_metadata["output_tokens"] == 12
