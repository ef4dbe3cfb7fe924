"""The sandbox put together: providers, control endpoint and S3 behind real sockets.

Owns starting and stopping, also in a thread of a test's process. Must not know any provider's
rules.
"""

import asyncio
import importlib
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from .bedrock_data import JobData
from .bedrock_jobs import Jobs
from .bedrock_service import BedrockService, StsService
from .client import Control
from .clock import Clock
from .control import ControlService
from .faults import Faults
from .gateway import Gateway
from .lifecycle import Lifecycle
from .openai_batches import Batches
from .openai_files import Files
from .openai_service import OpenAIService
from .options import Options
from .settings import BedrockSettings, InForce, OpenAISettings, change
from .workers import Workers

_SERVICE_KEY = "SANDBOXSERVICEROLE"
_MAX_BODY = 1 << 30
_STOP_S = 10.0


class Server:
    """One sandbox on the running event loop."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.url = ""
        self.s3_url = ""
        self._folder = Path(options.data_dir or tempfile.mkdtemp(prefix="sandbox-"))
        self._s3: subprocess.Popen[str] | None = None
        self._runner: web.AppRunner | None = None
        self._lifecycle = Lifecycle(Clock())
        self._workers = Workers(options.worker_processes)
        self._jobs: Jobs | None = None

    async def start(self) -> None:
        """Start everything; when it returns all ports listen."""
        options = self.options
        initial = InForce(
            change(OpenAISettings(), dict(options.openai)),
            change(BedrockSettings(), dict(options.bedrock)),
        )
        files_folder = self._folder / "files"
        files_folder.mkdir(parents=True, exist_ok=True)
        if options.s3:
            self._start_s3()
        await asyncio.to_thread(importlib.import_module, f"{__package__}.openai_types")
        if options.s3:
            await asyncio.to_thread(self._await_s3)
        clock = self._lifecycle.clock
        settings = InForce(initial.openai, initial.bedrock)
        faults = Faults()
        gateway = Gateway(clock, faults)
        files = Files(clock, files_folder, settings)
        batches = Batches(self._lifecycle, files, self._workers, settings)
        data = JobData(self.s3_url, _SERVICE_KEY, self._folder / "jobs")
        jobs = self._jobs = Jobs(self._lifecycle, self._workers, settings, data)
        accounts = dict(options.accounts)
        openai = OpenAIService(clock, settings, files, batches, dict(options.api_keys))
        bedrock = BedrockService(settings, jobs, accounts)
        control = ControlService(
            lifecycle=self._lifecycle,
            settings=settings,
            initial=initial,
            faults=faults,
            gateway=gateway,
            files=files,
            batches=batches,
            jobs=jobs,
            openai=openai,
            s3_url=self.s3_url,
        )
        app = web.Application(client_max_size=_MAX_BODY)
        app.add_routes(openai.routes(gateway))
        app.add_routes(bedrock.routes(gateway))
        app.add_routes(StsService(accounts).routes(gateway))
        app.add_routes(control.routes())
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", options.port, backlog=1024)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"

    def _start_s3(self) -> None:
        with self._s3_log.open("w", encoding="utf-8") as chatter:
            self._s3 = subprocess.Popen(
                [sys.executable, "-m", "batchinference.sandbox.s3"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=chatter,
                text=True,
            )
        assert self._s3.stdin is not None
        options = {
            "port": self.options.s3_port,
            "access_keys": list(self.options.accounts),
            "buckets": self.options.s3_buckets,
        }
        self._s3.stdin.write(json.dumps(options) + "\n")
        self._s3.stdin.flush()

    @property
    def _s3_log(self) -> Path:
        return self._folder / "s3.log"

    def _await_s3(self) -> None:
        assert self._s3 is not None
        assert self._s3.stdout is not None
        answer = self._s3.stdout.readline()
        if not answer:
            self._s3.wait()
            said = self._s3_log.read_text(encoding="utf-8").strip().splitlines()
            reason = said[-1] if said else "no reason given"
            raise RuntimeError(f"S3 did not start on port {self.options.s3_port}: {reason}")
        self.s3_url = f"http://127.0.0.1:{json.loads(answer)['port']}"

    def describe(self) -> dict[str, Any]:
        """Return the URLs for the ready file."""
        return {
            "url": self.url,
            "openaiBaseURL": f"{self.url}/v1",
            "bedrockURL": self.url,
            "stsURL": self.url,
            "s3URL": self.s3_url,
            "controlURL": f"{self.url}/_sandbox",
            "buckets": list(self.options.s3_buckets),
        }

    async def stop(self) -> None:
        """Stop everything that was started."""
        if self._runner is not None:
            await self._runner.cleanup()
        await self._lifecycle.stop()
        await asyncio.to_thread(self._stop_rest)

    def _stop_rest(self) -> None:
        if self._jobs is not None:
            self._jobs.close()
        self._workers.close()
        if self._s3 is not None:
            self._s3.communicate()  # closes its input, which ends it
        if self.options.data_dir is None:
            shutil.rmtree(self._folder, ignore_errors=True)


class Sandbox:
    """A sandbox in a thread of this process, for tests: `with Sandbox.start() as sandbox: ...`."""

    def __init__(self, options: Options) -> None:
        self._server = Server(options)
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="sandbox", daemon=True)

    @classmethod
    def start(cls, options: Options | None = None, **changes: Any) -> Self:
        """Start a sandbox and return it when all ports listen.

        `changes` are members of `Options`, for brevity.

        Raises:
            OSError: a port is taken.
            RuntimeError: S3 did not start.
        """
        sandbox = cls(options if options is not None else Options(**changes))
        sandbox._thread.start()
        sandbox._ready.wait()
        if sandbox._error is not None:
            sandbox._thread.join()
            raise sandbox._error
        return sandbox

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        try:
            await self._server.start()
        except BaseException as error:  # noqa: BLE001  # raised again by start()
            self._error = error
            await self._server.stop()
            return
        finally:
            self._ready.set()
        await self._stopping.wait()
        await self._server.stop()

    def stop(self) -> None:
        """Stop the sandbox and wait until it is gone."""
        if self._loop is not None and self._stopping is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(_STOP_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Return the URL everything but S3 is under."""
        return self._server.url

    @property
    def openai_base_url(self) -> str:
        """Return what an OpenAI client takes as `base_url`."""
        return f"{self.url}/v1"

    @property
    def bedrock_url(self) -> str:
        """Return the endpoint of Bedrock (and of STS)."""
        return self.url

    @property
    def sts_url(self) -> str:
        """Return the endpoint of STS."""
        return self.url

    @property
    def s3_url(self) -> str:
        """Return the endpoint of S3."""
        return self._server.s3_url

    @property
    def control(self) -> Control:
        """Return a client of the control endpoint."""
        return Control(self.url)
