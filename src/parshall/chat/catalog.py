"""The models on offer, which provider answers for each, and what stands in for an unknown one."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from parshall.chat.ports import ModelCard, Provider, ProviderFailure
from parshall.kernel.errors import Invalid, Unavailable
from parshall.kernel.metrics import OTHER

LABELS_MAX = 100
"""Models that metrics tell apart; a server may list more."""


class UnknownModel(Invalid):
    """A model id that is not on offer, in a deployment without a fallback."""

    code = "unknown_model"
    title = "Unknown model"
    default = "No such model is on offer."


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The model that will answer."""

    card: ModelCard
    provider: Provider
    fallback_applied: bool


class Catalog:
    """Providers in order of preference, and the models that stand in for unknown or failing ones."""

    def __init__(self, providers: Sequence[Provider], *, fallbacks: Sequence[str]) -> None:
        """`fallbacks` are model ids in the order in which they are tried; without one unknown ids are refused."""
        self._providers = tuple(providers)
        self._fallbacks = tuple(fallbacks)
        self._listed: set[str] = set()
        self._labels: set[str] = set()

    async def cards(self) -> list[ModelCard]:
        """Every model that can be named now; a provider that cannot say has none."""
        return [card for card, _ in await self._offers()]

    async def choose(self, model_id: str | None) -> Choice:
        """The model for a request. Raises UnknownModel where no fallback is set, Unavailable where none is on offer."""
        offers = await self._offers()
        if not offers and model_id is None:
            raise Unavailable("No model is available now; try again shortly.", retry_after=5)
        found = self._find(offers, model_id or offers[0][0].id)
        if found is not None:
            return Choice(card=found[0], provider=found[1], fallback_applied=False)
        stand_in = self._stand_in(offers, tried=())
        if stand_in is None:
            ids = ", ".join(card.id for card, _ in offers) or "none now"
            raise UnknownModel(f"No such model is on offer; choose one of: {ids}.")
        return stand_in

    async def stand_in(self, tried: Collection[str]) -> Choice | None:
        """The first fallback on offer that is not among the models `tried`."""
        if all(model_id in tried for model_id in self._fallbacks):
            return None
        return self._stand_in(await self._offers(), tried=tried)

    async def recommend(self, *, task: str | None, priority: str | None) -> tuple[ModelCard, str]:
        """A model for a task, by its capabilities, and why. `priority` is quality, speed or cost."""
        cards = await self.cards()
        if not cards:
            raise Unavailable("No model is available now; try again shortly.", retry_after=5)
        able = [card for card in cards if task and task.lower() in card.capabilities] or cards
        if priority == "quality":
            best = max(able, key=lambda card: card.context_tokens)
            return best, "It has the largest context of the models on offer."
        local = [card for card in able if card.provider == "embedded"]
        if local and priority in ("speed", "cost"):
            return local[0], "It runs on this machine, without a network in between, at the lowest price."
        return able[0], "It is the first choice of this deployment."

    def label(self, model_id: str) -> str:
        """How metrics name a model: an id that a provider lists, else `other`, since a client may send any."""
        if model_id not in self._labels:
            if model_id not in self._listed or len(self._labels) >= LABELS_MAX:
                return OTHER
            self._labels.add(model_id)
        return model_id

    async def close(self) -> None:
        """Stop every provider."""
        for provider in self._providers:
            await provider.close()

    async def _offers(self) -> list[tuple[ModelCard, Provider]]:
        offers: list[tuple[ModelCard, Provider]] = []
        for provider in self._providers:
            try:
                offers += [(card, provider) for card in await provider.models()]
            except ProviderFailure:
                continue
        self._listed = {card.id for card, _ in offers}
        return offers

    def _stand_in(self, offers: Sequence[tuple[ModelCard, Provider]], *, tried: Collection[str]) -> Choice | None:
        for model_id in self._fallbacks:
            found = None if model_id in tried else self._find(offers, model_id)
            if found is not None:
                return Choice(card=found[0], provider=found[1], fallback_applied=True)
        return None

    def _find(self, offers: Sequence[tuple[ModelCard, Provider]], wanted: str) -> tuple[ModelCard, Provider] | None:
        """The offer of that id, else a provider that takes ids which it does not list."""
        for card, provider in offers:
            if card.id == wanted:
                return card, provider
        for provider in self._providers:
            unlisted = provider.unlisted(wanted)
            if unlisted is not None:
                return unlisted, provider
        return None
