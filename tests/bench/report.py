"""Samples in, medians and ratios out; as text for a person or as JSON for a program. Pure."""

import statistics
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

WIDTH = 110
# The share of the wall time that a process may wait for its core before a sample is called disturbed.
DISTURBED = 0.1


@dataclass(frozen=True, slots=True)
class Sample:
    """What one server did in one round.

    shape: what was asked of it, for example `50x8`. values: figures by name.
    """

    server: str
    shape: str
    round: int
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Beside:
    """The server that another one is compared with, and the median and the ends of the rounds' own ratios to it."""

    server: str
    ratio: float
    lowest: float
    highest: float


@dataclass(frozen=True, slots=True)
class Row:
    """One server at one shape, over all rounds.

    medians: of each figure. ratio: the median of the rounds' own ratios to the base, lowest and highest the
    ends of their range; None where no round has both. rounds: how many samples there are. beside: the same to
    another server, if it is measured beside one.
    """

    server: str
    shape: str
    rounds: int
    medians: Mapping[str, float]
    ratio: float | None
    lowest: float | None
    highest: float | None
    marks: tuple[str, ...] = ()
    beside: Beside | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """One figure in the text table: its name in `Sample.values`, its title, the digits behind the point."""

    key: str
    title: str
    digits: int = 1


def usage_values(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures on both processes, as shares of the wall time, from a load generator's result.

    busy: the share in which it ran; waited: the share in which it could have run, and another had its core.
    """
    return {
        f"{name}{title}": result[name][key] / result["seconds"]
        for name in ("server", "load")
        for key, title in (("cpu", "Busy"), ("waited", "Waited"))
    }


def disturbed(samples: Sequence[Sample]) -> tuple[str, ...]:
    """Return a mark if other processes took much of either core in some of these samples, else ()."""
    keys = ("serverWaited", "loadWaited")
    count = sum(any(sample.values.get(key, 0.0) > DISTURBED for key in keys) for sample in samples)
    return (f"disturbed in {count} of {len(samples)}",) if count else ()


@dataclass(frozen=True, slots=True)
class Layout:
    """How a benchmark's rows are made and shown.

    metric: the figure that the ratio is of. method: what stands above the tables. marks: remarks on the
    samples of one row.
    """

    benchmark: str
    metric: str
    columns: tuple[Column, ...]
    method: str
    marks: Callable[[Sequence[Sample]], tuple[str, ...]] = disturbed


@dataclass(frozen=True, slots=True)
class Report:
    """A finished run."""

    layout: Layout
    base: str
    samples: tuple[Sample, ...]
    settings: Mapping[str, Any]
    machine: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    beside: Mapping[str, str] = field(default_factory=dict)
    """Which server is compared with which other one, apart from the base."""

    def rows(self) -> list[Row]:
        """Return one row for each shape and server, in the order in which they were first met."""
        keys = dict.fromkeys((sample.shape, sample.server) for sample in self.samples)
        shapes = list(dict.fromkeys(shape for shape, _ in keys))
        return [self._row(*key) for key in sorted(keys, key=lambda key: shapes.index(key[0]))]

    def to_json(self) -> dict[str, Any]:
        """Return the report as an object for json.dumps: rows, every sample, settings, machine, notes."""
        return {
            "benchmark": self.layout.benchmark,
            "metric": self.layout.metric,
            "base": self.base,
            "settings": dict(self.settings),
            "machine": dict(self.machine),
            "notes": list(self.notes),
            "rows": [asdict(row) for row in self.rows()],
            "samples": [asdict(sample) for sample in self.samples],
        }

    def to_text(self) -> str:
        """Return the report as tables."""
        machine = ", ".join(f"{name} {value}" for name, value in self.machine.items())
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        rows = self.rows()
        method = textwrap.fill(f"{self.layout.benchmark}: {self.layout.method}", WIDTH)
        notes = (f"note: {note}" for note in self.notes)
        blocks = ["\n".join([method, f"settings: {settings}", f"machine: {machine}", *notes])]
        for shape in dict.fromkeys(row.shape for row in rows):
            blocks.append(self._table(shape, [row for row in rows if row.shape == shape]))
        return "\n\n".join(blocks)

    def _row(self, shape: str, server: str) -> Row:
        samples = [sample for sample in self.samples if (sample.shape, sample.server) == (shape, server)]
        ratios = paired_ratios(self.samples, shape, server, self.base, self.layout.metric)
        return Row(
            server,
            shape,
            len(samples),
            {key: statistics.median(sample.values[key] for sample in samples) for key in samples[0].values},
            statistics.median(ratios) if ratios else None,
            min(ratios, default=None),
            max(ratios, default=None),
            self.layout.marks(samples),
            self._beside(shape, server),
        )

    def _beside(self, shape: str, server: str) -> Beside | None:
        other = self.beside.get(server, "")
        ratios = paired_ratios(self.samples, shape, server, other, self.layout.metric)
        return Beside(other, statistics.median(ratios), min(ratios), max(ratios)) if ratios else None

    def _table(self, shape: str, rows: Sequence[Row]) -> str:
        columns = self.layout.columns
        lines = [[shape, "ratio", "from-to", *(column.title for column in columns), ""]]
        for row in rows:
            cells = [f"{row.medians[column.key]:,.{column.digits}f}" for column in columns]
            lines.append([row.server, _number(row.ratio), _range(row), *cells, ", ".join(row.marks)])
        besides = [_told_beside(row.server, row.beside) for row in rows if row.beside is not None]
        return "\n".join([*_aligned(lines), *besides])


def paired_ratios(samples: Iterable[Sample], shape: str, server: str, base: str, metric: str) -> list[float]:
    """Return the server's figure over the base's for each round in which this shape was asked of both."""
    figures = {(s.server, s.round): s.values[metric] for s in samples if s.shape == shape}
    rounds = sorted({number for _, number in figures})
    return [
        figures[server, number] / figures[base, number]
        for number in rounds
        if (server, number) in figures and figures.get((base, number))
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _range(row: Row) -> str:
    return f"{_number(row.lowest)}-{_number(row.highest)}" if row.ratio is not None else "-"


def _told_beside(server: str, beside: Beside) -> str:
    return f"{server} / {beside.server}: {beside.ratio:.3f}, from {beside.lowest:.3f} to {beside.highest:.3f}"


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index in (0, len(line) - 1) else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
