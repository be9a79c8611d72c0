"""A model behind an OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tunesmith.data.collect.endpoint import Endpoint, ask_endpoint, only_model, reach
from tunesmith.data.examples import Message
from tunesmith.model.sampling import Reply, Sampling


@dataclass(frozen=True, slots=True)
class Remote:
    """A model on a server. Token counts in its replies are 0, because servers do not report them reliably."""

    url: str
    model: str = ""
    key: str = ""
    offline: bool = False

    def named(self) -> Remote:
        """Check the connection and resolve the name of the model.

        Returns:
            A copy with the model name.

        Raises:
            DataError: the server cannot be reached, or no name was given and it does not list exactly one model.
        """
        endpoint = self._endpoint(Sampling())
        if self.model:
            reach(endpoint, offline=self.offline)
            return self
        return replace(self, model=only_model(endpoint, offline=self.offline))

    def reply(self, messages: Sequence[Message], *, sampling: Sampling) -> Reply:
        """Return the completion of one chat."""
        return self.replies([messages], sampling=sampling)[0]

    def replies(self, batch: Sequence[Sequence[Message]], *, sampling: Sampling) -> list[Reply]:
        """Return the completion of each chat, in order; raise DataError if the server fails."""
        answers = dict(ask_endpoint(self._endpoint(sampling), batch, offline=self.offline))
        return [Reply(answers[i].text.strip(), 0, 0, answers[i].finished) for i in range(len(batch))]

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
