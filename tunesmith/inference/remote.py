"""Any OpenAI-compatible server as a responder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tunesmith.data.collect.endpoint import Endpoint, ask_endpoint, only_model, reach
from tunesmith.data.examples import Message
from tunesmith.model.sampling import Reply, Sampling


@dataclass(frozen=True, slots=True)
class Remote:
    """A server's model; it tells no token counts that could be relied on, so they are 0."""

    url: str
    model: str = ""
    key: str = ""
    offline: bool = False

    def named(self) -> Remote:
        """The same with the name of its model, asked for if none was given. Raises DataError where nobody answers."""
        endpoint = self._endpoint(Sampling())
        if self.model:
            reach(endpoint, offline=self.offline)
            return self
        return replace(self, model=only_model(endpoint, offline=self.offline))

    def reply(self, messages: Sequence[Message], *, sampling: Sampling) -> Reply:
        """One answer."""
        return self.replies([messages], sampling=sampling)[0]

    def replies(self, batch: Sequence[Sequence[Message]], *, sampling: Sampling) -> list[Reply]:
        """An answer to each, in order. Raises DataError."""
        found = dict(ask_endpoint(self._endpoint(sampling), batch, offline=self.offline))
        return [Reply(found[place].text.strip(), 0, 0, found[place].finished) for place in range(len(batch))]

    def _endpoint(self, sampling: Sampling) -> Endpoint:
        return Endpoint(
            self.url,
            self.model,
            self.key,
            sampling.temperature,
            sampling.max_new_tokens,
            sampling.seed,
            naming="its name after the address: URL#MODEL",
        )
