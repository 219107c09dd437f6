"""Questions to a server with OpenAI's chat completions, many at a time.

A busy, silent or failing server costs a question another try, at the next endpoint and after a pause. A question that
fails at its last try is a rejected row if the server has answered others meanwhile; else nobody answers, and the run
stops with what is finished kept.
"""

import os
import ssl
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import httpx

from cirray.core.environ import variable
from cirray.core.errors import ConfigError, GenerationError, reason_of, unknown_name
from cirray.generators.engines.base import Defect, Question, Reply, Tries
from cirray.generators.engines.config import ENGINES, HttpConfig
from cirray.types import stable_id

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
_BUSY = (408, 409, 425, 429, 500, 502, 503, 504)
_STOPS = (401, 403, 404)
_SCHEMA_WORDS = ("response_format", "json_schema", "guided", "structured", "grammar")
_REFUSED_AT_FIRST = 8
"""When so many questions are refused and none was answered, all will be: the run stops."""


class _Failed(Exception):
    """One try without an answer. `wait_s`: the pause that the server asked for; `final`: no other try will help."""

    def __init__(self, reason: str, wait_s: float = 0.0, final: bool = False) -> None:
        super().__init__(reason)
        self.wait_s, self.final = wait_s, final


@ENGINES.register("http")
class HttpEngine:
    """One client of one or more servers of the same model."""

    def __init__(self, settings: HttpConfig, device: str) -> None:
        """Ask the first server that answers for its models.

        Raises:
            GenerationError: nobody answers, the key is refused, or the model is not served.
        """
        self._settings, self._key = settings, variable(settings.key_variable, "").strip()
        self._http = httpx.Client(
            timeout=httpx.Timeout(settings.timeout_s, connect=min(10.0, settings.timeout_s)), headers=self._headers(),
            limits=httpx.Limits(max_connections=settings.open_requests), verify=_trusted(settings.certificates),
        )  # fmt: skip
        self._lock = threading.Lock()
        self._schemas = settings.structured == "auto"
        self._sight: str | None = None
        self._answered_at, self._answered, self._refused, self._turn = float("-inf"), 0, 0, 0
        self._check_served()

    @cached_property
    def digest(self) -> str:
        """Over the model's name and how it answers; a server does not tell its weights."""
        settings = self._settings
        return stable_id(
            "http engine", self._settings.model, settings.max_tokens, settings.temperature, settings.structured
        )

    def ask(self, questions: Sequence[Question], defect: Defect) -> list[Reply]:
        """See `Engine.ask`."""
        self._check_sight(questions)
        with ThreadPoolExecutor(min(self._settings.open_requests, max(1, len(questions)))) as pool:
            futures = [pool.submit(self._answer, question, defect) for question in questions]
            try:
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _check_sight(self, questions: Sequence[Question]) -> None:
        """Refuse a server that drops pictures and answers all the same, as some do for models without vision.

        A picture that is read makes the question longer in tokens; where these are not told, nothing is known.
        """
        shown = next((question for question in questions if question.pictures), None)
        if self._sight is None and shown is not None:
            content = shown.content(False)
            said = [part for part in content if isinstance(part, dict) and part["type"] == "text"]
            whole = self._length(content)
            words = self._length(said) if whole else 0
            self._sight = (
                f"The server does not read pictures: a question of {self._settings.model!r} has {whole} tokens with "
                f"{shown.pictures} of them and without. Name a model with vision, or let this one read captions."
                if words and whole <= words
                else ""
            )
        if shown is not None and self._sight:
            raise GenerationError(self._sight)

    def _length(self, content: str | list[dict[str, Any]]) -> int:
        """Tokens of a question by the first server that tells them; 0: none does."""
        body = {
            "model": self._settings.model, "max_tokens": 1, "temperature": 0.0,
            "messages": [{"role": "user", "content": content}],
        }  # fmt: skip
        for url in self._settings.endpoints:
            try:
                return int(self._send("POST", url, "/chat/completions", json=body).json()["usage"]["prompt_tokens"])
            except (_Failed, ValueError, KeyError, TypeError):
                continue
        return 0

    def _answer(self, question: Question, defect: Defect) -> Reply:
        begun, turn, urls = time.monotonic(), self._next_turn(), self._settings.endpoints
        most, own, reason = self._settings.tries, Tries(), ""
        for attempt in range(most):
            last = attempt + 1 == most
            try:
                reply = self._try(question, urls[(turn + attempt) % len(urls)], own.least)
                if settled := own.settled(reply, defect, most, last):
                    return settled
            except _Failed as failed:
                if failed.final:
                    return self._refuse(str(failed))
                reason = str(failed)
                if not last:
                    time.sleep(min(LONGEST_PAUSE_S, max(failed.wait_s, FIRST_PAUSE_S * 2**attempt)))
        if self._answered_at < begun:
            raise GenerationError(
                f"{reason}, {most} times. What is finished is kept: run again when the server answers."
            )
        return Reply("", f"{reason} ({most} tries)", own.read, own.written)

    def _try(self, question: Question, url: str, least: float) -> Reply:
        """One request, at no lower temperature than `least`."""
        asks_schema = self._schemas and question.schema is not None
        reply = self._send("POST", url, "/chat/completions", json=self._body(question, asks_schema, least))
        if reply.status_code != 200:
            self._raise(reply, url, asks_schema)
        try:
            body = reply.json()
            choice, usage = body["choices"][0], body.get("usage") or {}
            text, cut = str(choice["message"]["content"] or ""), choice.get("finish_reason") == "length"
            tokens = (int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise _Failed(f"{url} sent no chat completion: {self._hidden(reply.text)[:80]!r}") from None
        with self._lock:
            self._answered_at, self._answered = time.monotonic(), self._answered + 1
        return Reply(text, "", *tokens, cut=self._settings.max_tokens if cut else 0)

    def _raise(self, reply: httpx.Response, url: str, asked_schema: bool) -> None:
        status, said = reply.status_code, self._hidden(_said(reply))
        if asked_schema and status in (400, 422, 501) and any(word in said.lower() for word in _SCHEMA_WORDS):
            self._schemas = False
            raise _Failed(f"{url} takes no JSON schema")
        if status in _STOPS:
            raise GenerationError(self._stopped(status, url, said))
        if status in _BUSY:
            raise _Failed(f"{url} answered {status} ({said})", _retry_after(reply))
        raise _Failed(f"the server refused the question, {status}: {said}", final=True)

    def _stopped(self, status: int, url: str, said: str) -> str:
        if status == 404:
            return f"{url} knows no model {self._settings.model!r} or no chat completions (404: {said})."
        name = self._settings.key_variable
        there = f"the key in {name} is not accepted" if self._key else f"a key is needed; put it into {name}"
        return f"{url} refuses us ({status}: {said}): {there}."

    def _refuse(self, reason: str) -> Reply:
        """A rejected question, or the end of the run where the server takes none."""
        with self._lock:
            self._refused += 1
            if not self._answered and self._refused >= _REFUSED_AT_FIRST:
                raise GenerationError(f"The first {self._refused} questions were all refused: {reason}.")
        return Reply("", reason)

    def _body(self, question: Question, with_schema: bool, least: float) -> dict[str, Any]:
        settings = self._settings
        body: dict[str, Any] = {
            "model": settings.model, "max_tokens": settings.max_tokens,
            "temperature": max(settings.temperature, least),
            "messages": [{"role": "user", "content": question.content(settings.picture_ids)}],
        }  # fmt: skip
        if with_schema:
            schema = {"name": "answer", "schema": dict(question.schema or {}), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body

    def _next_turn(self) -> int:
        """Which endpoint a question tries first."""
        with self._lock:
            self._turn += 1
            return self._turn

    def _send(self, method: str, url: str, path: str, **content: Any) -> httpx.Response:
        try:
            return self._http.request(method, url + path, **content)
        except httpx.TimeoutException:
            raise _Failed(f"{url} gave no answer within {self._settings.timeout_s:g} s") from None
        except (httpx.TransportError, httpx.InvalidURL) as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                why = str(error).partition("verify failed: ")[2].partition(" (_ssl")[0] or "certificate verify failed"
                raise _Failed(
                    f"{url} has a certificate that is not trusted ({why}); name its authority's file in `certificates`",
                    final=True,
                ) from None
            raise _Failed(f"{url} cannot be reached ({self._hidden(reason_of(error, 100))})") from None

    def _check_served(self) -> None:
        """Ask the first server that answers whether it has the model."""
        reasons = []
        for url in self._settings.endpoints:
            try:
                reply = self._send("GET", url, "/models")
            except _Failed as failed:
                reasons.append(str(failed))
                continue
            if reply.status_code in (401, 403):
                raise GenerationError(self._stopped(reply.status_code, url, self._hidden(_said(reply))))
            names = _names(reply)
            if names and self._settings.model not in names:
                raise GenerationError(f"{url}: {unknown_name('model', self._settings.model, names)}")
            return
        raise GenerationError(f"No server answers: {'; '.join(reasons)}. Start one, or name it in `endpoints`.")

    def _headers(self) -> dict[str, str]:
        if not self._key.isascii() or any(letter.isspace() for letter in self._key):
            raise ConfigError(f"The key in {self._settings.key_variable} holds blanks or letters that no header takes.")
        return {"authorization": f"Bearer {self._key}"} if self._key else {}

    def _hidden(self, text: str) -> str:
        """A text of the server's, without our key."""
        return text.replace(self._key, "***") if self._key else text


def _names(reply: httpx.Response) -> list[str]:
    """Names of the models that a server says it has; none where it has no such list."""
    try:
        return [str(item["id"]) for item in reply.json()["data"]] if reply.status_code == 200 else []
    except (ValueError, KeyError, TypeError):
        return []


def _said(reply: httpx.Response) -> str:
    """What a server says about its refusal, in one line."""
    try:
        body = reply.json()
        found = body.get("error", body.get("detail", body)) if isinstance(body, dict) else body
        text = str(found.get("message", found)) if isinstance(found, dict) else str(found)
    except ValueError:
        text = reply.text
    return " ".join(text.split())[:160].rstrip(". ") or "no reason given"


def _retry_after(reply: httpx.Response) -> float:
    try:
        return min(LONGEST_PAUSE_S, max(0.0, float(reply.headers.get("retry-after", 0))))
    except ValueError:
        return 0.0


def _trusted(certificates: str) -> ssl.SSLContext | bool:
    if not certificates:
        return True
    try:
        return ssl.create_default_context(cafile=os.path.expanduser(certificates))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"certificates {certificates!r} cannot be read: {reason_of(error)}.") from None
