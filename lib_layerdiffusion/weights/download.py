"""Download one file: resumed after a break, one process at a time, never half-written under its final name.

The standard library's urllib is the base, not huggingface_hub: WebUIs pin that package at versions from 0.17 to 1.x, or
lack it; across them the local-folder layout, the resume rules and the transfer back end (xet) differ, time limits are
read from the environment at import, and progress goes to tqdm only. Here a plain file in the user's own folder is
wanted, with the hub's checksum, and that takes one GET with a Range header.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import re
import shutil
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, HTTPSHandler, Request, build_opener

from filelock import BaseFileLock, FileLock, Timeout  # which torch needs, so every WebUI has it

from lib_layerdiffusion.refusal import Refusal, refuse_path
from lib_layerdiffusion.version import __version__
from lib_layerdiffusion.weights.header import describe_bytes

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], object]  # bytes done, bytes in all (0 while unknown)

SLOWEST = 1024  # bytes a second, on average over the time limit; a slower transfer counts as broken off
POLL = 0.1  # seconds between two looks at whether an answer is there
PAUSE = 1.0  # seconds before the second attempt, twice that before the third
_CHUNK = 1 << 18
_RETRIED_STATUS = (408, 425, 429, 500, 502, 503, 504)


class _BrokenTransferError(Exception):
    """The connection failed in a way that may pass: try again."""


class _SlowTransferError(_BrokenTransferError):
    """Bytes came, but too few to wait for the rest."""


@dataclass(frozen=True)
class Source:
    """What the server said about the file; kept next to the part, so that only the same file is continued."""

    validator: str  # changes when the file changes; "" when the server gives none
    sha256: str = ""  # the hub's own checksum, "" when it tells none
    size: int = 0  # bytes, 0 when unknown


@dataclass(frozen=True)
class Download:
    """One file on its way from `url` to `target`."""

    url: str
    target: Path
    size: int  # about, for messages and the check for free space until the server tells
    timeout: float = 15.0  # seconds without any byte
    attempts: int = 3  # in a row without any new byte
    patience: float = 120.0  # seconds without any byte while another process downloads the same file

    @property
    def part(self) -> Path:
        """The unfinished file."""
        return self.target.with_name(f"{self.target.name}.part")

    @property
    def note(self) -> Path:
        """The Source of the unfinished file."""
        return self.target.with_name(f"{self.target.name}.part.json")

    @property
    def cure(self) -> str:
        """What a user can do by hand."""
        return f"download {self.url} ({describe_bytes(self.size)}) in another way and put it into {self.target.parent}"

    def run(self, accept: Callable[[Path, Source], None], progress: Progress | None = None) -> None:
        """Bring the file to `target`. `accept` looks at the finished part and raises Refusal when it isn't right.

        Refusal when it can't be had; the part stays, also on Ctrl-C and when `progress` raises, and the next run goes
        on from there. A part that `accept` refuses is deleted.
        """
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            with self._alone(progress):
                if self.target.exists():
                    return  # another process was quicker
                source = self._transfer(progress)
                try:
                    accept(self.part, source)
                except Refusal:
                    self._forget()
                    raise
                self.part.replace(self.target)
                self.note.unlink(missing_ok=True)
        except (OSError, ValueError) as error:  # NUL in the name
            raise refuse_path(self.target, error) from error

    # -- transfer

    def _transfer(self, progress: Progress | None) -> Source:
        failures = 0
        most = _size_of(self.part)
        while True:
            try:
                return self._continue(progress)
            except _BrokenTransferError as broken:  # noqa: PERF203 - trying again is the point
                grew = _size_of(self.part) > most and not isinstance(broken, _SlowTransferError)
                failures = 0 if grew else failures + 1
                most = max(most, _size_of(self.part))
                if failures >= self.attempts:
                    kept = f" ({describe_bytes(most)} are kept)" if most else ""
                    raise Refusal(
                        f"The download of {self.url} broke off ({broken}): run again to go on{kept}, set HF_ENDPOINT "
                        f"to a mirror, or {self.cure}."
                    ) from broken
                logger.info("%s: %s, trying again", self.url, broken)
                time.sleep(PAUSE * failures)

    def _continue(self, progress: Progress | None) -> Source:
        """Ask for what is missing and append it; the whole file if the server can't continue or has another one."""
        known, have = self._recall()
        if have and have == known.size:
            return known
        redirects = _Redirects()
        headers = {"User-Agent": f"layerdiffusion/{__version__}", "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        with self._open(Request(self.url, headers=headers), redirects, progress, known) as response:
            source = _read_source(response, redirects.answers, self.url)
            continues = response.status == 206 and source.validator == known.validator
            if have and response.status == 206 and not (continues and _starts_at(response.headers, have)):
                self._forget()  # another file by now, or another range than asked for
                raise _BrokenTransferError("the file has changed on the server")
            if response.headers.get_content_type() == "text/html":
                raise Refusal(
                    f"{self.url} answers with a web page instead of the file: check HF_ENDPOINT and whether this "
                    f"network wants a login, or {self.cure}."
                )
            have = have if continues else 0
            self._check_space(max(source.size, 0 if source.size else self.size) - have)
            self.note.write_text(json.dumps(source.__dict__), encoding="utf-8")
            with self.part.open("ab" if have else "wb") as part:
                done = self._receive(response, part, have, source, progress)
        if source.size and done != source.size:
            if done > source.size:
                self._forget()
            raise _BrokenTransferError(f"{done:,} of {source.size:,} bytes came")
        return source

    def _receive(
        self, response: http.client.HTTPResponse, part: IO[bytes], done: int, source: Source, progress: Progress | None
    ) -> int:
        most = source.size or 2 * self.size + 2**20
        began, first = time.monotonic(), done
        while done <= most:
            if progress:
                progress(done, source.size)
            if (waited := time.monotonic() - began) > self.timeout:
                if done - first < SLOWEST * waited:
                    raise _SlowTransferError(f"fewer than {SLOWEST} bytes a second came")
                began, first = time.monotonic(), done
            try:
                chunk = response.read1(_CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise _BrokenTransferError(_reason(error)) from error
            if not chunk:
                return done
            part.write(chunk)
            done += len(chunk)
        if source.size:
            return done
        self._forget()
        raise Refusal(
            f"{self.url} sends more than twice the {describe_bytes(self.size)} that the file has: check HF_ENDPOINT, "
            f"or {self.cure}."
        )

    def _open(
        self, request: Request, redirects: _Redirects, progress: Progress | None, known: Source
    ) -> http.client.HTTPResponse:
        """The server's answer, once its headers are there; a server that sends them by drops is given up."""
        opener = build_opener(HTTPSHandler(context=_trust()), redirects)
        answer = _start(lambda: opener.open(request, timeout=self.timeout))
        try:
            return self._await(answer, progress, known)
        except HTTPError as error:
            error.close()
            if error.code == 416:  # the part is longer than the file
                self._forget()
            if error.code in (416, *_RETRIED_STATUS):
                raise _BrokenTransferError(f"the server answers {error.code} {error.reason}") from error
            raise Refusal(
                f"{self.url} answers {error.code} {error.reason}: check HF_ENDPOINT, or {self.cure}."
            ) from error
        except ValueError as error:  # of an address, here or in a redirect
            raise Refusal(f"{self.url} leads to an address that isn't one ({error}): check HF_ENDPOINT.") from error
        except (OSError, http.client.HTTPException) as error:
            cause = error.reason if isinstance(error, URLError) else error
            if isinstance(cause, socket.gaierror | ssl.SSLCertVerificationError):
                raise Refusal(
                    f"{urlsplit(self.url).netloc} can't be reached ({_reason(cause)}): connect to the internet, set "
                    f"HF_ENDPOINT to a mirror, or {self.cure}."
                ) from error
            raise _BrokenTransferError(_reason(cause)) from error

    def _await(self, answer: Future[Any], progress: Progress | None, known: Source) -> Any:
        """The result of `answer`; meanwhile `progress` is called, which may raise."""
        deadline = time.monotonic() + 2 * self.timeout
        try:
            while not wait([answer], POLL).done:
                if progress:
                    progress(_size_of(self.part), known.size)
                if time.monotonic() > deadline:
                    raise _BrokenTransferError("no answer in time")
        except BaseException:
            answer.add_done_callback(_close_late)
            raise
        return answer.result()

    # -- the part and what is known of it

    def _recall(self) -> tuple[Source, int]:
        """The part's source and length, as far as it can be continued."""
        try:
            noted = json.loads(self.note.read_text(encoding="utf-8"))
            source = Source(str(noted["validator"]), str(noted["sha256"]), int(noted["size"]))
        except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
            return Source(""), 0
        have = _size_of(self.part)
        return source, have if source.validator and (not source.size or have <= source.size) else 0

    def _forget(self) -> None:
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def _check_space(self, needed: int) -> None:
        free = shutil.disk_usage(self.target.parent).free
        if free < needed:
            raise Refusal(
                f"{self.target.parent} has {describe_bytes(free)} free, and {self.target.name} needs "
                f"{describe_bytes(needed)}: free some space, or choose another folder."
            )

    # -- one process at a time

    @contextmanager
    def _alone(self, progress: Progress | None) -> Generator[None, None, None]:
        """Hold the file's lock; while another process has it, wait and report that one's progress."""
        path = self.target.with_name(f"{self.target.name}.lock")
        lock = FileLock(path)
        seen, since = -1, time.monotonic()
        while not _take(lock):
            size = _size_of(self.part)
            if size != seen:
                seen, since = size, time.monotonic()
            if progress:
                progress(size, self._recall()[0].size)
            if time.monotonic() - since > self.patience:
                raise Refusal(
                    f"Another process has been downloading {self.target.name} without any progress: end it and run "
                    f"again, or {self.cure}."
                )
            time.sleep(0.1)
        try:
            yield
        finally:
            # Deleted while it is held, so that another process's isn't; Windows can't delete a file that is open.
            if sys.platform != "win32":
                path.unlink(missing_ok=True)
            lock.release()
            if sys.platform == "win32":
                with suppress(OSError):
                    path.unlink()


class _Redirects(HTTPRedirectHandler):
    """Follows redirects and keeps their headers: the hub tells checksum and size before it sends you to its storage."""

    def __init__(self) -> None:
        self.answers: list[Message] = []

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        self.answers.append(headers)
        return super().redirect_request(req, fp, 307 if code == 308 else code, msg, headers, newurl)

    http_error_308 = HTTPRedirectHandler.http_error_302  # Python 3.10 doesn't know 308


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def _read_source(response: http.client.HTTPResponse, answers: list[Message], url: str) -> Source:
    linked = [answer["x-linked-etag"] for answer in (*answers, response.headers) if answer["x-linked-etag"]]
    own = response.headers["etag"] or ""
    # Without a header from the hub, an ETag is a checksum only if it is the endpoint's own: storage servers use others.
    direct = urlsplit(response.url).netloc == urlsplit(url).netloc
    tag = (linked[0] if linked else own).removeprefix("W/").strip('"').lower()
    is_checksum = bool(linked or direct) and re.fullmatch(r"[0-9a-f]{64}", tag)
    length = response.headers["content-length"] or ""
    whole = re.search(r"/([0-9]+)\s*$", response.headers["content-range"] or "") if response.status == 206 else None
    return Source(
        validator=tag or response.headers["last-modified"] or "",
        sha256=tag if is_checksum else "",
        size=_read_size(whole[1] if whole else length),
    )


def _read_size(text: str) -> int:
    """Bytes that a header tells; 0 when it tells nothing that can be."""
    return int(text) if re.fullmatch(r"[0-9]{1,15}", text) else 0


def _start(work: Callable[[], Any]) -> Future[Any]:
    """Run `work` in a thread that doesn't keep the process alive."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - passed on with the result
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _close_late(answer: Future[Any]) -> None:
    """Close an answer that nobody waits for any longer."""
    if answer.exception() is None:
        answer.result().close()


def _starts_at(headers: Message, first: int) -> bool:
    return re.match(rf"\s*bytes\s+{first}-", headers["content-range"] or "") is not None


def _reason(error: object) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200] or type(error).__name__


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _trust() -> ssl.SSLContext:
    """The system's certificates, and certifi's where it is there: some Pythons on macOS come without any."""
    context = ssl.create_default_context()
    with suppress(ImportError, OSError):
        import certifi

        context.load_verify_locations(certifi.where())
    return context


def _take(lock: BaseFileLock) -> bool:
    """Whether the lock is held now; another process or thread may have it. The system frees it at a process's end."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    except NotImplementedError as error:
        logger.info("%s: this file system has no locks (%s)", lock.lock_file, error)
    return True
