"""A service of the demonstration bundle in this process, and the browser its page is tested in."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

from radvlm_edge.runtime.reader import Options, Reader
from radvlm_edge.serve.app import Service
from radvlm_edge.serve.server import address, listen, make_server
from radvlm_edge.serve.settings import Settings

PLACES = ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")


def chromium() -> str | None:
    """A browser for playwright; `None` where there is none."""
    named = os.environ.get("RADVLM_EDGE_CHROMIUM")
    found = [named] if named else [place for place in PLACES if Path(place).exists()]
    return found[0] if found else shutil.which("chromium")


class Running:
    """A service under test."""

    def __init__(self, url: str, service: Service, server: uvicorn.Server) -> None:
        self.url, self.service, self.server = url, service, server

    def client(self, **options: Any) -> OpenAI:
        """The official client, without the retries that would hide a refusal."""
        return OpenAI(
            base_url=f"{self.url}/v1", api_key=options.pop("api_key", "none"), max_retries=0, **options
        )

    def metric(self, name: str, **labels: str) -> float:
        """A sample of the metrics page, 0 where there is none yet."""
        families = text_string_to_metric_families(self.service.metrics.page())
        samples = (sample for family in families for sample in family.samples)
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


@contextlib.contextmanager
def serving(reader: Reader | None = None, *, max_tokens: int = 64, **settings: Any) -> Iterator[Running]:
    """Serve the demonstration bundle on a free port of 127.0.0.1 until the block is left."""
    wanted = Settings(**{"port": 0, "shutdown_s": 30.0, **settings})
    wanted.check()
    with contextlib.ExitStack() as stack:
        opened = reader or stack.enter_context(Reader.open(options=Options(max_tokens=max_tokens, threads=1)))
        listener = stack.enter_context(contextlib.closing(listen(wanted)))
        ready = threading.Event()
        service = Service(opened, wanted)
        server = make_server(service, ready.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="service")
        thread.start()
        try:
            assert ready.wait(60), "the service did not start"
            yield Running(address(wanted, listener), service, server)
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive(), "the service did not stop"
