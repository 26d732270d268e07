"""From a source to batches, in an order and with augmentations that depend on the global sample index alone.

    elements 0 .. n-1 -> shuffle (anew every epoch) -> repeat -> rows of `batch` = global batch 0, 1, 2, ...

Sample g = m * batch + row is row `row` of global batch m, whoever loads it; epochs follow each other without
a gap, so a batch may span two. Only then does each process take its contiguous rows. Hence batches do not
change with the number of processes or threads, and the whole state of the iterator is one integer, equal on
every process: the number of global batches consumed. Up to the slicing only indices travel, so no process
loads a row that is not its own.
"""

from collections.abc import Callable

import grain
import jax
import numpy as np

from causal_diffusion.errors import UserError

Augment = Callable[[dict[str, np.ndarray], np.random.Generator], dict[str, np.ndarray]]

INDEX_PERIOD = 2**31  # 'index' is int32, the widest integer of JAX by default: it starts over after these


class Loader:
    """An endless iterator of batches: dicts of numpy arrays [b, ...], b = batch / process_count rows.

    Besides the source's arrays a batch holds 'index', int32 [b]: the global sample index (modulo 2^31), from
    which later randomness can be keyed.

    Args:
        source: a random-access source (see sources.py).
        batch: rows of a global batch, over all processes.
        seed: of the order and of the augmentation.
        shuffle: a new permutation of the source every epoch; without it, the source's own order.
        augment: maps (element, random generator) to an element; the generator is keyed by seed and global
            sample index.
        process_index: this process; it loads rows process_index * b and the b - 1 after it.
        process_count: number of processes.
        threads: threads that load batches ahead; 0 loads each batch when it is asked for.
        prefetch: batches loaded ahead; they count as consumed only when they are handed out.

    Raises:
        UserError: a batch that the processes cannot share evenly or that is larger than the source.
    """

    def __init__(self, source, *, batch: int, seed: int = 0, shuffle: bool = True,
                 augment: Augment | None = None, process_index: int = 0, process_count: int = 1,
                 threads: int = 2, prefetch: int = 4):
        if not 0 <= process_index < process_count:
            raise ValueError(f"process_index {process_index} is not below process_count {process_count}")
        if batch < 1 or batch % process_count:
            raise UserError(f"batch {batch} cannot be shared by {process_count} processes: "
                            f"make it a multiple of {process_count}")
        if len(source) < batch:
            raise UserError(f"the data has {len(source)} clips, fewer than one batch of {batch}: "
                            f"set batch to at most {len(source)}, or add data (for videos, a smaller stride)")
        self._source, self._batch, self._seed, self._augment = source, batch, seed, augment
        rows = batch // process_count
        self._mine = slice(process_index * rows, (process_index + 1) * rows)
        order = grain.MapDataset.range(len(source)).seed(seed)
        if shuffle:
            order = order.shuffle()
        self._batches = order.repeat().batch(batch).map_with_index(self._load)
        self._options = grain.ReadOptions(num_threads=min(threads, prefetch), prefetch_buffer_size=prefetch)
        self._iterator = None
        self.seek(0)

    @property
    def position(self) -> int:
        """Global batches consumed: the whole state. `seek(position)` in a later run continues bit for bit."""
        return self._position

    def seek(self, position: int) -> None:
        """Makes global batch `position` the next one."""
        if position < 0:
            raise ValueError(f"position must be at least 0, got {position}")
        self.close()
        self._position = position
        self._iterator = iter(self._batches[position:].to_iter_dataset(self._options))

    def close(self) -> None:
        """Ends the threads. `seek` opens the loader again."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self._iterator is None:
            raise ValueError("the loader is closed: call seek first")
        try:
            batch = next(self._iterator)
        except BaseException:  # Ctrl-C included: the batch in hand is lost to grain, so ask for it again
            self.seek(self._position)
            raise
        self._position += 1
        return batch

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _load(self, position: int, element_B: np.ndarray) -> dict[str, np.ndarray]:
        """This process's rows of global batch `position`, whose elements of the source are element_B."""
        sample_B = position * self._batch + np.arange(self._batch)
        samples, elements = sample_B[self._mine], element_B[self._mine]
        rows = [self._element(int(g), int(i)) for g, i in zip(samples, elements, strict=True)]
        batch = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
        batch["index"] = (samples % INDEX_PERIOD).astype(np.int32)
        return batch

    def _element(self, sample: int, i: int) -> dict[str, np.ndarray]:
        element = self._source[i]
        if self._augment is not None:
            element = self._augment(element, np.random.default_rng([self._seed, sample]))
        return element


def batch_spec(element_spec: dict[str, jax.ShapeDtypeStruct], batch: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a Loader's batch of `batch` rows, from those of an element."""
    spec = {key: jax.ShapeDtypeStruct((batch, *s.shape), s.dtype) for key, s in element_spec.items()}
    return spec | {"index": jax.ShapeDtypeStruct((batch,), np.int32)}


def random_crop(size: int) -> Augment:
    """Augmentation: a square of ``size`` x ``size`` pixels of the whole clip, anywhere."""

    def crop(element: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        height, width = element["video"].shape[1:3]
        y, x = rng.integers(height - size + 1), rng.integers(width - size + 1)
        return element | {"video": element["video"][:, y : y + size, x : x + size]}

    return crop


def in_turn(*augments: Augment | None) -> Augment | None:
    """One augmentation after the other; None where there is none."""
    augments = [augment for augment in augments if augment is not None]

    def all_of_them(element: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        for augment in augments:
            element = augment(element, rng)
        return element

    return all_of_them if augments else None


def horizontal_flip(element: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Augmentation: mirrors the whole clip left to right, with probability one half.

    Raises:
        UserError: the element has an action, whose meaning a mirror would change.
    """
    if "action" in element:
        raise UserError("a mirrored clip would no longer fit its actions: do not flip, or drop the actions")
    if rng.random() < 0.5:
        element = element | {"video": element["video"][:, :, ::-1]}
    return element
