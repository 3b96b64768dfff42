"""Previews of a dataset: what training gets from its first rows.

The rows are read, and each of them is handed to the dataset by itself, as its only row: so the tokens are those that
the dataset gives to training, rows come in the order of the file, and of a dropped row the dataset says why.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, zip_longest
from typing import TYPE_CHECKING, Any

from reallm.data.datasets import Dataset, Samples, make_dataset, own_report
from reallm.data.mixture import Mixture
from reallm.data.namedarray import NamedArray
from reallm.data.preview import samples
from reallm.data.row_sources import RowSource
from reallm.data.rows import Row, iter_rows
from reallm.errors import DataError, NoSamplesError, TooFewSamplesError
from reallm.notices import silenced_notices

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

N_MEASURED = 1000
"""Number of rows whose lengths are measured, unless more are shown."""
LENGTH_LIMITS = ("max_seqlen", "max_prompt_len")
"""Arguments of a dataset beyond which it cuts sequences off."""
UNLIMITED = 2**31 - 1

Make = Callable[[Mapping[str, Any]], Samples]


@dataclass(frozen=True)
class PreviewedRow:
    """A row and its sample, or samples; of a row that gives none, the reason is in `dropped`."""

    id: str
    place: str
    """Location of the row, `train.jsonl:12`; its id if the dataset reads its rows itself."""
    sequences: tuple[samples.Sequence, ...]
    dropped: str | None = None
    notes: tuple[str, ...] = ()
    """What the row has beside its tokens: a margin, columns."""


@dataclass(frozen=True)
class Preview:
    """The first rows of a dataset, and statistics of more of them."""

    dataset: str
    """Name of the dataset."""
    rows: tuple[PreviewedRow, ...]
    report: str
    """The dataset's report about the measured rows."""
    n_measured: int
    """Number of rows, or of samples if the dataset reads its rows itself, that were measured."""
    is_whole: bool
    """Whether these are all there are."""
    lengths: tuple[int, ...]
    """Number of tokens of each sample made of the measured rows."""
    n_trained: int
    """Number of trained tokens among them."""


def preview(dataset: Dataset | Mixture, n: int, *, seed: int, tokenizer: PreTrainedTokenizerBase) -> Preview:
    """Preview the first `n` rows of a dataset, of a mixture those of its sources in turn.

    A dataset that gets a `RowSource` as `path` is only given the first rows of it. Any other dataset is made as a
    whole, as for training, and its first samples are shown.

    Raises:
        ReallmError: as training would.
    """
    if isinstance(dataset, Mixture):
        sources = {name: preview(one, n, seed=seed, tokenizer=tokenizer) for name, one in dataset.sources.items()}
        return _mixed(sources, n)

    def make(args: Mapping[str, Any]) -> Samples:
        return make_dataset(Dataset(dataset.name, args), seed=seed, tokenizer=tokenizer)

    source = dataset.args.get("path")
    if isinstance(source, RowSource):
        return _preview_rows(dataset, source, n, make, tokenizer)
    made = make(dataset.args)
    first = [made[i] for i in range(min(len(made), max(n, N_MEASURED)))]
    return _preview(
        dataset.name,
        tuple(_previewed(_id(sample, i), [sample], tokenizer) for i, sample in enumerate(first[:n])),
        made,
        first,
        is_whole=len(first) == len(made),
        n_measured=len(first),
    )


def _mixed(sources: Mapping[str, Preview], n: int) -> Preview:
    """One preview of several sources, by name; rows are called as the samples of the mixture are."""
    named = [[replace(row, id=f"{name}/{row.id}") for row in one.rows] for name, one in sources.items()]
    in_turn = [row for rows in zip_longest(*named) for row in rows if row is not None]
    return Preview(
        next(iter(sources.values())).dataset,
        tuple(in_turn[:n]),
        "; ".join(f"{name}: {one.report}" for name, one in sources.items()),
        sum(one.n_measured for one in sources.values()),
        all(one.is_whole for one in sources.values()),
        tuple(length for one in sources.values() for length in one.lengths),
        sum(one.n_trained for one in sources.values()),
    )


def _preview_rows(
    dataset: Dataset, source: RowSource, n: int, make: Make, tokenizer: PreTrainedTokenizerBase
) -> Preview:
    n_read = max(n, N_MEASURED)
    rows = list(islice(iter_rows(source), n_read + 1))
    is_whole, rows = len(rows) <= n_read, rows[:n_read]

    args = {**dataset.args, **({"cache_dir": None} if "cache_dir" in dataset.args else {})}

    def make_of(some: Sequence[Row], **changes: Any) -> Samples:
        title = str(source) if is_whole else f"{source}, first {n_read:,} rows"
        given = _FirstRows(title, some)
        try:
            with silenced_notices():  # about the rows, which were said when they were read
                return make({**args, "path": RowSource(given, source.format), **changes})
        except (NoSamplesError, TooFewSamplesError):
            raise
        except DataError as error:
            raise DataError(given.with_places(str(error))) from error

    samples_of = _SamplesOfRow(make_of, rows)
    previewed = tuple(_preview_row(dataset, row, samples_of, tokenizer) for row in rows[:n])
    try:
        made = make_of(rows)
    except NoSamplesError as error:
        return Preview(dataset.name, previewed, str(error), len(rows), is_whole, (), 0)
    return _preview(dataset.name, previewed, made, _all(made), is_whole=is_whole, n_measured=len(rows))


class _SamplesOfRow:
    """Finds the samples of a row: of a dataset of that row alone, or if it needs others, of one of all rows."""

    def __init__(self, make_of: Callable[..., Samples], rows: Sequence[Row]) -> None:
        self._make_of, self._rows = make_of, rows
        self._of_all: dict[str, list[NamedArray]] = {}

    def __call__(self, row: Row, **changes: Any) -> list[NamedArray]:
        try:
            return _all(self._make_of([row], **changes))
        except TooFewSamplesError:
            key = repr(sorted(changes.items()))
            if key not in self._of_all:
                self._of_all[key] = _all(self._make_of(self._rows, **changes))
            ids = [(sample.metadata.get("ids") or [""])[0] for sample in self._of_all[key]]
            found = zip(ids, self._of_all[key], strict=True)
            return [sample for name, sample in found if name == row.id or name.startswith(f"{row.id}/")]


def _all(made: Samples) -> list[NamedArray]:
    return [made[i] for i in range(len(made))]


def _preview_row(
    dataset: Dataset, row: Row, samples_of: _SamplesOfRow, tokenizer: PreTrainedTokenizerBase
) -> PreviewedRow:
    try:
        made = samples_of(row)
    except NoSamplesError as error:
        remarks = [re.sub(r"^([a-z]+ )?dropped: ", "", remark) for remark in error.remarks]
        return PreviewedRow(row.id, row.place, (), "; ".join(remarks) or str(error))
    if not made:
        return PreviewedRow(row.id, row.place, (), "the dataset makes no sample of it")
    found = _previewed(row.id, made, tokenizer)
    limits = [name for name in LENGTH_LIMITS if name in dataset.args]
    at_limit = any(len(one.tokens) == dataset.args[name] for name in limits for one in found.sequences)
    if at_limit:
        unpadded = {name: False for name in ("pad_to_max_length",) if name in dataset.args}
        uncut = samples_of(row, **dict.fromkeys(limits, UNLIMITED), **unpadded)
        whole = [sequence for sample in uncut for sequence in samples.sequences(sample, tokenizer)]
        if len(whole) == len(found.sequences):  # otherwise pairs were dropped that are not cut any more
            cut = tuple(one.cut_from(other) for one, other in zip(found.sequences, whole, strict=True))
            found = replace(found, sequences=cut)
    return replace(found, place=row.place)


def _previewed(name: str, made: Sequence[NamedArray], tokenizer: PreTrainedTokenizerBase) -> PreviewedRow:
    found = [sequence for sample in made for sequence in samples.sequences(sample, tokenizer)]
    notes = [note for sample in made for note in samples.notes(sample)]
    return PreviewedRow(name, name, tuple(found), notes=tuple(dict.fromkeys(notes)))


def _preview(
    dataset: str,
    rows: tuple[PreviewedRow, ...],
    made: Samples,
    measured: Sequence[NamedArray],
    *,
    is_whole: bool,
    n_measured: int,
) -> Preview:
    counts = [samples.count_tokens(sample) for sample in measured]
    lengths = tuple(n_tokens for n_tokens, _ in counts)
    n_trained = sum(n for _, n in counts)
    return Preview(dataset, rows, own_report(made) or "", n_measured, is_whole, lengths, n_trained)


def _id(sample: NamedArray, i: int) -> str:
    ids = sample.metadata.get("ids")
    return ids[0] if ids else f"sample {i}"


class _FirstRows:
    """A function that gives rows, as a source with the name of where they come from."""

    def __init__(self, name: str, rows: Sequence[Row]) -> None:
        self.__qualname__ = name
        self._rows = rows

    def __call__(self) -> list[dict[str, Any]]:
        return [{**row.original, "id": row.id} for row in self._rows]

    def with_places(self, message: str) -> str:
        """An error's message, with the places that the rows have in their file, and without the ids given here."""
        numbered = re.compile(rf"{re.escape(self.__qualname__)}, row (\d+)")
        message = numbered.sub(lambda match: self._rows[int(match[1]) - 1].place, message)
        return (
            message if any("id" in row.original for row in self._rows) else re.sub(r"'id', |, 'id'(?=\))", "", message)
        )
