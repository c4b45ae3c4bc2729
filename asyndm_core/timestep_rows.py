"""A timestep of its own for every token of any diffusion transformer: a tensor that stands for one per distinct timestep.

A transformer reads its timestep as a vector that it embeds, projects (adaLN, Peebles & Xie 2022, arXiv 2212.09748) and
broadcasts over its tokens. ``TimestepRows`` goes through that code in the vector's place: a row for each distinct timestep,
computed all at once, until the code lets it meet tokens. There each token gets the row of its own timestep, as an ordinary
tensor. What meets no image token is a timestep as it always was: the reference row. So no network's code is written again.

Where the tokens lie a ``Layout`` knows. An expansion that it cannot place raises ``UnplacedError``; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from types import GetSetDescriptorType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from .errors import AsynDMError

TABLE = 8
"""A vector that is expanded to at most so many entries meets a table of parameters (the 6 of adaLN-single), not tokens."""


class UnplacedError(AsynDMError):
    """A network spreads its timestep over something that is not known to be tokens or anything else."""


class Slice(NamedTuple):
    """What part of a longer sequence a tensor is a view of: the whole's length, and where the part begins."""

    whole: int | torch.SymInt
    start: int | torch.SymInt


class Layout:
    """Where the tokens of a picture or clip lie in a network's tensors in one call, and which row each of them has.

    pixels: (B or 1, *size) long, the row of every latent pixel, the same within each patch; one map for all pictures of
    the batch, or one for each. size: (H, W), of clips (T, H, W). patch: its extent along each of the dimensions. batch: B,
    the pictures of the call. opens: the stream of the picture opens every sequence that it is a part of; otherwise it closes
    them. head, tail: how many tokens come before and after the picture's own in its stream (padding, reference pictures);
    they have the reference row, 0. UnplacedError for a picture of so few tokens that they could be a table of parameters.
    """

    def __init__(
        self, pixels: Tensor, patch: Sequence[int], batch: int, opens: bool = False, tail: int = 0, head: int = 0
    ) -> None:  # fmt: skip
        self.pixels, self.patch, self.batch = pixels, tuple(patch), batch
        self.opens, self.head, self.tail = opens, head, tail
        firsts = [slice(None), *(slice(None, None, extent) for extent in patch)]
        self.places = pixels[tuple(firsts)]
        self.grid = tuple(self.places.shape[1:])
        self.tokens = prod(self.grid)
        self.frames = self.grid[0] if len(self.grid) > 2 else 1
        if self.tokens <= TABLE:
            raise UnplacedError(
                f"The picture has {self.tokens} tokens ({' x '.join(map(str, self.grid))}): at least {TABLE + 1} are needed. "
                "Use a larger picture."
            )
        self._indices: dict[Any, Tensor | None] = {}
        self._interleaved: dict[Any, Tensor] = {}

    def sequence(self, length: Any) -> Tensor:
        """The row of each token (B or 1, length) of a sequence with the picture in it, or of all that follows the picture."""
        if length == self.tokens:
            return self.places.flatten(1)
        if length == self.tail:
            return self.places.new_zeros(1, length)
        before = self.head if self.opens else length - self.tokens - self.tail
        after = length - self.tokens - before
        if before < 0 or after < 0:
            raise UnplacedError(
                f"A sequence of {length} tokens cannot hold the picture's {self.tokens}, the {self.head} before it and the "
                f"{self.tail} that follow."
            )
        return torch.nn.functional.pad(self.places.flatten(1), (before, after))

    def index(self, extents: tuple[int, ...], part: Slice | None, images: int) -> Tensor | None:
        """Where to take what a tensor is expanded to over dimensions of these extents; None: a table of parameters.

        part: what the dimension is a slice of. images: 1, or B where the rows differ between the pictures. The index is flat
        (images or 1 x extents), into rows that are listed picture by picture (row 0 of each picture, row 1 ...).
        """
        key = (extents, part, images)
        if key not in self._indices:
            self._indices[key] = self._index(extents, part, images)
        return self._indices[key]

    def interleaved(self, images: int, frames: int, times: Any, length: Any) -> Tensor:
        """Where to take the tokens of a sequence, so many of each frame, from rows that each have a timestep for every frame.

        The index is flat (images x length), into rows that are listed row by row, picture by picture and frame by frame.
        """
        key = (images, frames, times, length)
        if key not in self._interleaved:
            row = self.sequence(length).expand(images, -1)
            picture = torch.arange(images, device=row.device)[:, None]
            frame = torch.arange(length, device=row.device) // times
            self._interleaved[key] = ((row * images + picture) * frames + frame).flatten()
        return self._interleaved[key]

    def _index(self, extents: tuple[int, ...], part: Slice | None, images: int) -> Tensor | None:
        index = self._rows(extents, part)
        if index is None:
            return None
        if images > 1:
            picture = torch.arange(images, device=index.device)
            index = index * images + picture.view(-1, *[1] * len(extents))
        return index.flatten()

    def _rows(self, extents: tuple[int, ...], part: Slice | None) -> Tensor | None:
        """The row (B or 1, *extents) of everything along the dimensions that are expanded; None: a table."""
        if len(extents) == 1:
            if part is not None and part.whole >= self.tokens:
                return self.sequence(part.whole)[:, part.start : part.start + extents[0]]
            if extents[0] >= self.tokens or extents[0] == self.tail > TABLE:
                return self.sequence(extents[0])
            if self.frames > 1 and extents[0] in (self.frames, self.pixels.shape[1]):
                return None  # each frame is told a timestep of its own
        elif extents == self.grid:
            return self.places
        elif extents[1:] == self.grid:
            return self.places[:, None].expand(-1, *extents)
        elif self._in_pixels(extents):
            return self._padded(extents)
        elif self._in_pixels(extents[1:]):
            return self._padded(extents[1:])[:, None].expand(-1, *extents)
        if prod(extents) <= TABLE:
            return None
        raise UnplacedError(
            f"The timestep is spread over {' x '.join(map(str, extents))} places, and the picture has {self.tokens} tokens "
            f"({' x '.join(map(str, self.grid))}): it is not known which are whose."
        )

    def _in_pixels(self, extents: tuple[int, ...]) -> bool:
        """Whether these are the extents of the latents, padded up to whole patches or not."""
        size = self.pixels.shape[1:]
        return len(extents) == len(size) and all(
            s <= e < s + p for e, s, p in zip(extents, size, self.patch, strict=True)
        )  # fmt: skip

    def _padded(self, extents: tuple[int, ...]) -> Tensor:
        """The rows of the latents' pixels (B or 1, *extents); those of the padding are their neighbours'."""
        pixels = self.pixels
        for dim, extent in enumerate(extents, start=1):
            if extent != pixels.shape[dim]:
                take = torch.arange(extent, device=pixels.device).clamp(max=pixels.shape[dim] - 1)
                pixels = pixels.index_select(dim, take)
        return pixels


class Columns(NamedTuple):
    """Entries that only ever modulate text, where one projection serves text and picture: from start to stop along ``dim``,
    which is counted from the end (-1 the last)."""

    dim: int
    start: int
    stop: int


class TimestepRows(Tensor):
    """A tensor for each distinct timestep of a map. Itself it is the reference row: whatever lets go of the rest sees that.

    every: (n, *shape), every[0] the reference. layout: where tokens lie. columns: what of it is text's, or None.
    """

    every: Tensor
    places: Layout
    columns: Columns | None

    @staticmethod
    def of(every: Tensor, places: Layout, columns: Columns | None = None) -> TimestepRows:
        """The rows ``every`` (n, *shape)."""
        with torch._C.DisableTorchFunctionSubclass():
            rows = every[0].as_subclass(TimestepRows)
        rows.every, rows.places, rows.columns = every, places, columns
        return rows

    def split(self, split_size: Any, dim: int = 0) -> Any:
        """See ``torch.split``. PyTorch's own method, as the next, is Python: torch.compile would look into it, and past us."""
        return torch.split(self, split_size, dim=dim)

    def unflatten(self, dim: int, sizes: Any) -> Any:
        """See ``torch.unflatten``."""
        return torch.unflatten(self, dim, sizes)

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """What a function of PyTorch makes of rows: see ``RULES``."""
        rule = RULES.get(func)
        if rule is None:
            rule = _by_name(func)
        with torch._C.DisableTorchFunctionSubclass():
            return rule(func, args, kwargs or {})


def reference(value: Any) -> Any:
    """The reference row of rows, as an ordinary tensor; everything else as it is."""
    if not isinstance(value, TimestepRows):
        return value
    with torch._C.DisableTorchFunctionSubclass():
        return value.every[0]


def as_reference(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """A forward pre-hook (with_kwargs) of modules that modulate text alone: they are called with the reference row."""
    return tuple(map(reference, args)), {key: reference(value) for key, value in kwargs.items()}


def levels_of(values: Tensor, index: Tensor) -> Tensor:
    """The noise levels that rows stand for, of every picture (n + 1, B): its noisiest, the reference; then each distinct one.

    values (n,): the distinct levels. index (B, *size): the map of them; in a ``Layout`` it is one more.
    """
    noisiest = values[index].flatten(1).amax(dim=1)
    return torch.cat([noisiest[None], values[:, None].expand(-1, index.shape[0])])


def folded(rows: TimestepRows) -> Tensor:
    """Rows (n, B, ...) as one ordinary batch (n B, ...): for a layer that must see nothing else. ``unfolded`` undoes it."""
    with torch._C.DisableTorchFunctionSubclass():
        return rows.every.flatten(0, 1)


def unfolded(batch: Tensor, like: TimestepRows) -> TimestepRows:
    """What a layer made of ``folded(like)``, as rows again."""
    return TimestepRows.of(batch.unflatten(0, (like.every.shape[0], -1)), like.places, like.columns)


def parted(rows: TimestepRows, most: int) -> list[TimestepRows]:
    """Rows, at most so many at a time: for a layer that holds much for each. ``joined`` undoes it. Each part is the first of
    its own rows, so what the layer makes of them must be rows too."""
    with torch._C.DisableTorchFunctionSubclass():
        return [TimestepRows.of(every, rows.places, rows.columns) for every in rows.every.split(most)]


def joined(parts: Sequence[TimestepRows]) -> TimestepRows:
    """What a layer made of the parts of ``parted``, as rows again."""
    return TimestepRows.of(torch.cat([part.every for part in parts]), parts[0].places, parts[0].columns)


def with_columns(rows: Any, columns: Columns) -> Any:
    """The same rows, of which these columns are text's; what is no rows stays as it is."""
    return TimestepRows.of(rows.every, rows.places, columns) if isinstance(rows, TimestepRows) else rows


# --- the rules: what each kind of function makes of rows ------------------------------------------------------------------

Rule = Callable[[Callable, Sequence[Any], dict[str, Any]], Any]


def _wrapped(result: Any, like: TimestepRows) -> Any:
    """A result with a row for each of ``like``'s, in the first dimension; of a tuple or list each."""
    if isinstance(result, Tensor):
        return TimestepRows.of(result, like.places, like.columns)
    if isinstance(result, (tuple, list)):
        return type(result)([_wrapped(each, like) for each in result])
    return result


def _aligned(value: Any, rank: int) -> Any:
    """The rows of a tensor with its own shape brought to ``rank`` dimensions from the left; other values as they are."""
    if not isinstance(value, TimestepRows):
        return value
    rows = value.every
    missing = rank + 1 - rows.ndim
    return rows.reshape(rows.shape[0], *[1] * missing, *rows.shape[1:]) if missing else rows


def _slice(view: Tensor | None, dim: int) -> Slice | None:
    """What slice along ``dim`` a tensor is a view of, or None. By its strides: in inference mode it does not know its base."""
    if view is None or dim == 0 or view.stride(dim) == 0 or view.stride(dim - 1) % view.stride(dim):
        return None
    whole = view.stride(dim - 1) // view.stride(dim)
    if whole <= view.shape[dim] or view.stride(dim) < view.shape[-1]:
        return None
    start = view.storage_offset() // view.stride(dim) % whole
    return Slice(whole, start) if start + view.shape[dim] <= whole else None


def _gathered(
    rows: TimestepRows, shape: Sequence[int], beside: Tensor | None, written: bool = False
) -> Tensor | None:  # fmt: skip
    """Rows as an ordinary tensor that broadcasts to ``shape``, each token's own; None where they meet no tokens there.

    beside: the tensor that they meet, or None; written: in place. Then, or where it is shorter than the picture or as long as
    what follows it, it may be a part of a sequence. (torch.compile cannot see that; it has no need to where the length says
    it all.)
    The dimensions along which rows have one entry and ``shape`` has more are tokens, unless it is only the last (features:
    timesteps times frequencies) or a table.
    """
    rank, layout = len(shape), rows.places
    data = _aligned(rows, rank)
    size = data.shape[1:]
    spread = [d for d in range(rank) if size[d] == 1 and shape[d] > 1]
    if not spread or spread == [rank - 1]:
        return None
    extents = tuple(shape[d] for d in spread)
    if layout.frames > 1 and prod(extents) * layout.frames == layout.tokens > TABLE * layout.frames:
        own = tuple(size[: spread[0]])
        if own in ((layout.batch, layout.frames), (layout.batch * layout.frames,)):  # each frame of each picture has its own
            frames = data.reshape(data.shape[0], layout.batch, layout.frames, *size[spread[-1] + 1 :])
            return _interleaved(frames, layout, layout.tokens // layout.frames, layout.tokens).view(*own, *extents, -1)
    kept = [d for d in range(rank) if d not in spread]
    batch = next((d for d in kept if size[d] == layout.batch), None) if layout.batch > 1 else None
    images = 1 if batch is None else layout.batch
    follows = extents[0] == layout.tail
    sure = follows and layout.tail != layout.tokens and torch.compiler.is_compiling()
    apart = len(spread) == 1 and (written or (not sure and (extents[0] < layout.tokens or follows)))
    index = layout.index(extents, _slice(beside, spread[0]) if apart else None, images)
    if index is None:
        return None
    if batch is None and layout.batch > 1:
        raise UnplacedError(f"A timestep of shape {tuple(size)} is not one for each of {layout.batch} pictures.")
    rest = [d for d in kept if d != batch]
    first = [] if batch is None else [batch]
    listed = data.permute(0, *(d + 1 for d in (*first, *rest, *spread))).reshape(-1, *(size[d] for d in rest))
    picked = listed.index_select(0, index).view(*(size[d] for d in first), *extents, *(size[d] for d in rest))
    order = [*first, *spread, *rest]
    return picked.permute(*(order.index(d) for d in range(rank)))


def _interleaved(data: Tensor, layout: Layout, times: Any, length: Any) -> Tensor:
    """Rows (n, B, frames, *rest) of a timestep for each frame, to a sequence (B, length, *rest) of so many tokens for each."""
    images, frames = data.shape[1:3]
    index = layout.interleaved(images, frames, times, length)
    return data.flatten(0, 2).index_select(0, index).view(images, length, *data.shape[3:])


def _plain(func: Callable, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Shapes, types, Python's own numbers, new tensors like it: the reference row's."""
    return func(*[reference(a) for a in args], **{key: reference(value) for key, value in kwargs.items()})


def _each(func: Callable, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Functions of every number, or of vectors along the last dimensions: the same of all rows."""
    rows = args[0]
    if not isinstance(rows, TimestepRows):  # x.to(rows)
        return _plain(func, args, kwargs)
    made = func(rows.every, *[reference(a) for a in args[1:]], **{key: reference(value) for key, value in kwargs.items()})
    return rows if made is rows.every else _wrapped(made, rows)


def _linear(func: Callable, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """A linear layer of all rows, in one batch."""
    return _each(func, args, kwargs) if isinstance(args[0], TimestepRows) else _others(func, args, kwargs)


def _broadcast(func: Callable, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Functions that broadcast: where that spreads rows over tokens, each token gets its own."""
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    ours = [value for value in tensors if isinstance(value, TimestepRows)]
    shape = torch.broadcast_shapes(*[t.every.shape[1:] if isinstance(t, TimestepRows) else t.shape for t in tensors])
    plain = [value for value in tensors if not isinstance(value, TimestepRows)]
    if plain:
        beside = next((value for value in plain if value.shape == shape), None)
        found = {id(rows): _gathered(rows, shape, beside, _writes(func)) for rows in ours}
        met = [value for value in found.values() if value is not None]
        if met:
            if len(met) < len(found):
                raise UnplacedError("Of two timesteps that meet the same tokens, one is not spread over them.")
            taken = lambda value: found.get(id(value), value) if isinstance(value, TimestepRows) else value  # noqa: E731
            return func(*[taken(a) for a in args], **{key: taken(value) for key, value in kwargs.items()})
        if _writes(func) and not isinstance(args[0], TimestepRows):
            raise UnplacedError(f"A timestep is written into a tensor of shape {tuple(args[0].shape)} without tokens.")
    rank = len(shape)
    made = func(*[_aligned(a, rank) for a in args], **{key: _aligned(value, rank) for key, value in kwargs.items()})
    return args[0] if _writes(func) else _wrapped(made, ours[0])


def _pieces(func: Callable, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """chunk, split and the like: a piece that is text's alone is the reference row."""
    rows, how, dim = args[0], args[1:2], kwargs.get("dim", args[2] if len(args) > 2 else 0)
    rank = rows.every.ndim - 1
    dim = dim % rank
    made = func(rows.every, *how, dim=dim + 1, **{key: value for key, value in kwargs.items() if key != "dim"})
    columns = rows.columns
    if columns is None or dim != rank + columns.dim:
        return _wrapped(made, rows)
    pieces, start = [], 0
    for piece in made:
        stop = start + piece.shape[dim + 1]
        pieces.append(_part_of(rows, piece, start, stop))
        start = stop
    return tuple(pieces)


def _part_of(rows: TimestepRows, part: Tensor, start: int, stop: int) -> Tensor:
    """A part, start to stop, of rows with columns: an ordinary tensor if it is text's alone; UnplacedError if both's."""
    columns = rows.columns
    if columns is None or stop <= columns.start or columns.stop <= start:
        return TimestepRows.of(part, rows.places)
    if columns.start <= start and stop <= columns.stop:
        return part[0]
    raise UnplacedError(
        f"The entries {start} to {stop} of a modulation are in part text's ({columns.start} to {columns.stop})."
    )


def _item(func: Callable, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """rows[key]."""
    rows, key = args
    if not isinstance(rows, TimestepRows):
        return _others(func, args, kwargs)
    rank, columns = rows.every.ndim - 1, rows.columns
    key = _explicit(key, rank)
    behind = (slice(None), *key)
    part = rows.every[behind]
    at = None if columns is None else _indexed_at(key, rank + columns.dim)
    if columns is not None and at is not None:
        extent = rows.every.shape[1 + rank + columns.dim]
        start, stop, _ = at.indices(extent) if isinstance(at, slice) else (at % extent, at % extent + 1, 1)
        if (start, stop) != (0, extent):
            return _part_of(rows, part, start, stop)
    return TimestepRows.of(part, rows.places, columns)


def _explicit(key: Any, rank: int) -> tuple[Any, ...]:
    """A key of a tensor of ``rank`` dimensions without an ellipsis."""
    key = key if isinstance(key, tuple) else (key,)
    place = next((place for place, each in enumerate(key) if each is Ellipsis), None)
    if place is None:
        return key
    named = sum(each is not None for each in key) - 1
    return key[:place] + (slice(None),) * (rank - named) + key[place + 1 :]


def _indexed_at(key: tuple[Any, ...], dim: int) -> slice | int | None:
    """What an explicit key takes of dimension ``dim``: a slice, an index, or None for all of it."""
    own = [each for each in key if each is not None]
    return own[dim] if dim < len(own) and isinstance(own[dim], (slice, int)) else None


def _assignment(func: Callable, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """rows[key] = value, and tokens[key] = rows."""
    target, key, value = args
    if isinstance(target, TimestepRows):
        behind = (slice(None), *_explicit(key, target.every.ndim - 1))
        target.every[behind] = value.every if isinstance(value, TimestepRows) else value
        return
    part = target[key]
    found = _gathered(value, part.shape, part, written=True)
    if found is None:
        raise UnplacedError(f"A timestep is written into a tensor of shape {tuple(part.shape)} without tokens.")
    target[key] = found


def _joined(func: Callable, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """cat: of features or pictures all rows; as a token of its own beside others it is the reference row."""
    tensors, dim = args[0], kwargs.get("dim", args[1] if len(args) > 1 else 0)
    ours = next(t for t in tensors if isinstance(t, TimestepRows))
    rank = ours.every.ndim - 1
    dim = dim % rank
    if 0 < dim < rank - 1 and any(not isinstance(t, TimestepRows) and t.shape[dim] > TABLE for t in tensors):
        return func([reference(t) for t in tensors], dim=dim)
    count = ours.every.shape[0]
    return _wrapped(
        func([t.every if isinstance(t, TimestepRows) else t.expand(count, *t.shape) for t in tensors], dim=dim + 1), ours
    )


def _expanded(func: Callable, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """expand, expand_as."""
    rows = args[0]
    if not isinstance(rows, TimestepRows):
        return _plain(func, args, kwargs)
    asked = tuple(args[1].shape) if isinstance(args[1], Tensor) else _sizes(args[1:])
    own = rows.every.shape[1:]
    missing = len(asked) - len(own)
    shape = tuple(own[d - missing] if extent == -1 else extent for d, extent in enumerate(asked))
    found = _gathered(rows, shape, None)
    if found is not None:
        return found.expand(shape)
    return _wrapped(_aligned(rows, len(shape)).expand(rows.every.shape[0], *shape), rows)


def _sizes(args: Sequence[Any]) -> tuple[int, ...]:
    """Sizes that came as one sequence, or each for itself."""
    return tuple(args[0]) if len(args) == 1 and isinstance(args[0], (tuple, list)) else tuple(args)


def _reshaped(func: Callable, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """reshape, view."""
    rows = args[0]
    size = list(_sizes(args[1:])) if len(args) > 1 else list(kwargs.get("shape", kwargs.get("size", ())))
    if size and isinstance(size[0], torch.dtype):
        return _each(func, args, kwargs)
    count = rows.every.shape[0]
    if -1 in size:
        size[size.index(-1)] = rows.every.numel() // count // max(1, -prod(size))
    return _wrapped(rows.every.reshape(count, *size), rows)


def _repeated(func: Callable, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """repeat."""
    size = _sizes(args[1:])
    return _wrapped(_aligned(args[0], len(size)).repeat(1, *size), args[0])


def _interleaving(func: Callable, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """repeat_interleave: of a timestep for each frame, each token of a frame gets its own."""
    rows, times = args[0], args[1] if len(args) > 1 else kwargs["repeats"]
    dim = kwargs.get("dim", args[2] if len(args) > 2 else None)
    data, layout = rows.every, rows.places
    if dim == 1 and data.ndim > 3 and isinstance(times, (int, torch.SymInt)) and times * data.shape[2] >= layout.tokens:
        if data.shape[1] != layout.batch:
            raise UnplacedError(f"Timesteps of shape {tuple(data.shape[1:])} are none of {layout.batch} pictures.")
        return _interleaved(data, layout, times, times * data.shape[2])
    return _others(func, args, kwargs)


def _unflattened(func: Callable, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """unflatten."""
    rows = args[0]
    dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
    sizes = kwargs.get("sizes", args[2] if len(args) > 2 else None)
    return _wrapped(rows.every.unflatten(dim % (rows.every.ndim - 1) + 1, sizes), rows)


def _outer(func: Callable, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """outer: timesteps times frequencies."""
    rows, vector = args
    if not isinstance(rows, TimestepRows) or isinstance(vector, TimestepRows):
        return _others(func, args, kwargs)
    return _wrapped(rows.every[..., None] * vector, rows)


def _dims(count: int, added: int = 0) -> Rule:
    """For functions whose first ``count`` arguments are dimensions: the same dimensions behind that of the rows.

    added: how many dimensions the result has more.
    """

    def rule(func: Callable, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        rows = args[0]
        rank = rows.every.ndim - 1 + added

        def behind(dim: Any) -> Any:
            return type(dim)(map(behind, dim)) if isinstance(dim, (tuple, list)) else dim % rank + 1

        named = {key: behind(value) if key in DIMENSIONS else value for key, value in kwargs.items()}
        return _wrapped(func(rows.every, *map(behind, args[1 : count + 1]), *args[count + 1 :], **named), rows)

    return rule


DIMENSIONS = ("dim", "dim0", "dim1", "source", "destination")


def _permuted(func: Callable, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """permute."""
    rows = args[0]
    rank = rows.every.ndim - 1
    dims = _sizes(args[1:]) if len(args) > 1 else tuple(kwargs["dims"])
    return _wrapped(rows.every.permute(0, *(d % rank + 1 for d in dims)), rows)


def _flattened(func: Callable, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """flatten."""
    rows = args[0]
    rank = rows.every.ndim - 1
    first, last = (
        (args[1] if len(args) > 1 else kwargs.get("start_dim", 0)),
        (args[2] if len(args) > 2 else kwargs.get("end_dim", -1)),
    )
    return _wrapped(rows.every.flatten(first % rank + 1, last % rank + 1) if rank else rows.every[:, None], rows)


def _others(func: Callable, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Everything else: the function of each row, by ``torch.func.vmap``."""
    leaves, form = tree_flatten((args, kwargs))
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, TimestepRows)]

    def of_one(*rows: Tensor) -> Any:
        given = list(leaves)
        for place, row in zip(places, rows, strict=True):
            given[place] = row
        own_args, own_kwargs = tree_unflatten(given, form)
        return func(*own_args, **own_kwargs)

    made = torch.func.vmap(of_one)(*[leaves[place].every for place in places])
    return _wrapped(made, leaves[places[0]])


def _writes(func: Callable) -> bool:
    """Whether a function writes into its first argument."""
    return func in WRITERS


def _by_name(func: Callable) -> Rule:
    """The rule of a function that is in no table: one of another library, known by its name, or any other."""
    name = getattr(func, "__name__", "")
    if name == "__get__" or name.startswith(("is_", "_is_", "_has_", "_get_", "has_")):
        return _plain
    return BY_NAME.get(name, _others)


BY_NAME: dict[str, Rule] = {
    name: rule
    for rule, names in {
        _plain: """
            size dim ndimension numel nelement stride storage_offset is_contiguous is_floating_point is_complex element_size
            data_ptr untyped_storage item tolist __bool__ __float__ __int__ __index__ __len__ __repr__ __format__ __hash__ numpy
            zeros_like ones_like empty_like full_like rand_like randn_like new_zeros new_ones new_empty new_full new_tensor
            is_inference get_device is_same_size is_nonzero is_pinned __contains__""",
        _broadcast: """
            add sub subtract mul multiply div divide true_divide rsub pow float_power maximum minimum where lerp addcmul addcdiv
            fmod remainder floor_divide eq ne lt le gt ge logical_and logical_or add_ sub_ mul_ div_ addcmul_ addcdiv_ lerp_
            copy_ __add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__ __rtruediv__ __floordiv__ __mod__ __pow__
            __rpow__ __eq__ __ne__ __lt__ __le__ __gt__ __ge__ __and__ __or__ __iadd__ __isub__ __imul__ __itruediv__
            rms_adaln adaln""",
        _each: """
            silu gelu tanh sigmoid exp log cos sin neg __neg__ sqrt rsqrt square abs reciprocal clamp clip clamp_min clamp_max
            float double half bfloat16 long int to type type_as contiguous clone detach relu softplus dropout nan_to_num
            layer_norm rms_norm silu_ tanh_ sigmoid_ clamp_ round floor ceil cpu cuda frac sign expm1 log1p selu elu mish
            hardswish requires_grad_""",
        _linear: "linear",
        _pieces: "chunk split tensor_split",
        _dims(1): "unbind select narrow",
        _dims(1, added=1): "unsqueeze",
        _dims(2): "transpose swapaxes movedim moveaxis",
        _permuted: "permute",
        _flattened: "flatten",
        _reshaped: "reshape view",
        _outer: "outer ger",
        _unflattened: "unflatten",
        _repeated: "repeat",
        _interleaving: "repeat_interleave",
        _expanded: "expand expand_as",
        _item: "__getitem__",
        _assignment: "__setitem__",
        _joined: "cat concat concatenate",
    }.items()
    for name in names.split()
}

PROPERTIES = {
    name: descriptor
    for name in dir(Tensor)
    for descriptor in [getattr(Tensor, name, None)]
    if isinstance(descriptor, GetSetDescriptorType)
}
TURNED = ("T", "mT", "H", "mH", "real", "imag", "data")
"""Properties that are tensors made of all rows; the rest tells what kind of tensor it is."""

HOMES = (Tensor, torch, torch.nn.functional, torch.special)

RULES: dict[Any, Rule] = {
    getattr(home, name): rule
    for name, rule in BY_NAME.items()
    for home in HOMES
    if callable(getattr(home, name, None)) and not name.startswith("__r")  # torch.compile takes those for other functions
} | {owner.__get__: _others if name in TURNED else _plain for name, owner in PROPERTIES.items()}
"""The rule of every function by the function itself: torch.compile follows that without a break."""

WRITERS = {
    getattr(Tensor, name)
    for name, rule in BY_NAME.items()
    if rule is _broadcast and (name.startswith("__i") or name.strip("_") + "_" == name)
}
