"""A stream is read wherever it is split, in Chromium."""

from __future__ import annotations

from watched import Watched


async def test_events_are_read_wherever_they_are_split(web: Watched) -> None:
    page = await web.open()
    told = await page.evaluate(
        """async () => {
          const { Events } = await import("/page/sse.js");
          const text = ': keep-alive\\n\\ndata: {"a": "ä\\u2028🙂"}\\r\\n\\r\\n'
            + ': x\\rdata:one\\r\\ndata: two\\r\\revent: no\\n\\ndata\\n\\ndata: last\\n';
          const found = new Set();
          for (let size = 1; size <= text.length; size++) {
            const events = new Events();
            const data = [];
            for (let at = 0; at < text.length; at += size) data.push(...events.push(text.slice(at, at + size)));
            found.add(JSON.stringify(data));
          }
          return [...found].map((data) => JSON.parse(data));
        }"""
    )
    assert told == [['{"a": "ä\u2028🙂"}', "one\ntwo", ""]]


async def test_bytes_are_read_wherever_they_are_split(web: Watched) -> None:
    page = await web.open()
    told = await page.evaluate(
        """async () => {
          const { dataOf } = await import("/page/sse.js");
          const bytes = new TextEncoder().encode("data: größer 🙂\\n\\ndata: [DONE]\\n\\n");
          const data = [];
          const body = new ReadableStream({
            start(to) {
              for (const byte of bytes) to.enqueue(Uint8Array.of(byte));
              to.close();
            },
          });
          for await (const one of dataOf(body)) data.push(one);
          return data;
        }"""
    )
    assert told == ["größer 🙂", "[DONE]"]
