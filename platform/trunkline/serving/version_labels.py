"""Which versions have metrics of their own: the most used ones, a bounded number."""

from __future__ import annotations

from collections import Counter

OTHER = "other"
"""The label of all versions that have none of their own."""

_TIMES_MORE = 2
_USES_PER_LABEL = 100


class VersionLabels:
    """The versions with labels of their own. For one thread at a time.

    A version gets a label while there are free ones. Then it takes the label of the least used
    version once it was used more than twice as often, so labels change rarely. Uses are halved
    from time to time: a version that is not used any more loses its label to others, and memory
    stays bounded.

    Args:
        limit: the number of labels.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._own: set[str] = set()
        self._uses: Counter[str] = Counter()
        self._until_halved = self._period

    @property
    def _period(self) -> int:
        return _USES_PER_LABEL * max(1, self._limit)

    def of(self, version: str) -> str:
        """The label of a version: its name or :data:`OTHER`."""
        if version not in self._own:
            if len(self._own) >= self._limit:
                return OTHER
            self._own.add(version)
        return version

    def use(self, version: str) -> tuple[str, str | None]:
        """Count a request.

        Returns:
            The label of its version, and the version whose label it took over, if any.
        """
        self._uses[version] += 1
        self._until_halved -= 1
        if not self._until_halved:
            self._until_halved = self._period
            self._uses = Counter({one: uses // 2 for one, uses in self._uses.items() if uses > 1})
        label = self.of(version)
        if label != OTHER or not self._own:
            return label, None
        least = min(self._own, key=lambda one: self._uses[one])
        if self._uses[version] <= _TIMES_MORE * self._uses[least]:
            return OTHER, None
        self._own.remove(least)
        self._own.add(version)
        return version, least
