"""A run's checkpoints: what was saved before, and what is saved while it goes on."""

import contextlib
import shutil
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vernal import _stored
from vernal._encode import decode, encode
from vernal._errors import CheckpointError, first_line
from vernal._jit import pack
from vernal._leaves import check_alike, described, named_arrays, on_host
from vernal._state import TrainState, counts, put_counts, with_data_state
from vernal.checkpoint import Checkpoints, orbax

_RECORD = "record."  # begins the names of arrays that are not the state's


class Saved(NamedTuple):
    """A run as it was saved."""

    state: TrainState
    epoch: int  # that the run began with
    data: dict[str, Any]  # how the data was cut into batches
    recorder: dict[str, Any]
    callbacks: list[tuple[str, Any]]  # of those that keep anything, its class, and what
    pending: bool  # the last epoch is not validated yet, nor seen by the callbacks
    stopped: bool  # a callback ended the run


class Saver:
    """Reads a run's checkpoints, and writes them.

    **Arguments:**

    - `choices`: how often, and where.
    - `state`: what the run begins with where there is no checkpoint.

    **Attributes:** `saved`, the run as its newest good checkpoint has it; `None` if there is none.

    **Raises:** `CheckpointError` if the directory cannot be used, holds checkpoints of another run,
    or only damaged ones.
    """

    def __init__(self, choices: Checkpoints, state: TrainState):
        self._choices, self.path = choices, choices.path
        self._template = pack(with_data_state(state, None))
        self._began = list(counts(self._template.arrays))
        ocp = orbax()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            options = ocp.CheckpointManagerOptions(
                max_to_keep=choices.keep, cleanup_tmp_directories=True
            )
            self._manager = ocp.CheckpointManager(self.path, options=options)
        except Exception as error:
            raise CheckpointError(
                f"{self.path} cannot hold checkpoints: {first_line(error)}."
                "\n  Pass a directory that you may write to."
            ) from error
        self.saved = self._restored()
        latest = self.saved.state if self.saved else state
        # When, at which step and epoch, the latest was begun; and what it was a checkpoint of.
        self._latest = time.monotonic(), int(latest.step), int(latest.epoch)
        self._mark = self.saved and (int(latest.step), self.saved.pending, self.saved.stopped)

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind, *_) -> None:
        # An error on its way is not hidden by one of a checkpoint.
        with contextlib.suppress(*([Exception] if kind else [])):
            self.wait()
        with contextlib.suppress(Exception):
            self._manager.close()

    def due(self, state: TrainState) -> bool:
        """Whether it is time to save; `CheckpointError` if what was begun has failed."""
        if not self._manager.is_saving_in_progress():
            self.wait()
        when, step, epoch = self._latest
        choices = self._choices
        passed = lambda every, last, now: every is not None and int(now) // every > last // every
        return (
            passed(choices.every_steps, step, state.step)
            or passed(choices.every_epochs, epoch, state.epoch)
            or (
                choices.every_seconds is not None
                and time.monotonic() - when >= choices.every_seconds
                and not self._manager.is_saving_in_progress()
            )
        )

    def go_on(self, data: dict[str, Any], callbacks: list[Any]) -> None:
        """Give callbacks back what they kept; `CheckpointError` if they, or the data, are others."""
        assert self.saved is not None
        names = [name for name, _ in self.saved.callbacks]
        keeping = [callback for callback in callbacks if hasattr(callback, "state_dict")]
        now = {**data, "callbacks": [type(callback).__name__ for callback in keeping]}
        for what, before in {**self.saved.data, "callbacks": names}.items():
            if before != now[what]:
                raise CheckpointError(
                    f"the run in {self.path} was trained with {what} = {before!r}; now it is "
                    f"{now[what]!r}.\n  Go on as it was, or pass another directory for another run."
                )
        for callback, (_, kept) in zip(keeping, self.saved.callbacks, strict=True):
            callback.load_state_dict(kept)
        for callback in callbacks:
            if callback not in keeping and hasattr(callback, "start"):
                callback.start()

    def save(
        self,
        state: TrainState,
        recorder: dict[str, Any],
        data: dict[str, Any],
        callbacks: list[Any],
        *,
        pending: bool = False,
        stopped: bool = False,
    ) -> None:
        """Begin to write a checkpoint, in the background, if there is anything new.

        **Arguments:** as in `Saved`; `callbacks` themselves.

        **Raises:** `CheckpointError` if it cannot be written, or the one before could not.
        """
        step, epoch, batch = map(int, (state.step, state.epoch, state.batch))
        mark = step, bool(pending), stopped
        if mark == self._mark:
            return
        self._latest, self._mark = (time.monotonic(), step, epoch), mark
        extra: list[np.ndarray] = []
        said = {
            "began": self._began,
            "counts": [step, epoch, batch],
            "data": data,
            "data_state": encode(state.data_state, extra, "the data loader's state"),
            "recorder": encode(recorder, extra, "the history"),
            "callbacks": [
                [name := type(callback).__name__, encode(callback.state_dict(), extra, name)]
                for callback in callbacks
                if hasattr(callback, "state_dict")
            ],
            "pending": bool(pending),
            "stopped": stopped,
        }
        arrays = named_arrays(with_data_state(state, None))
        arrays |= {f"{_RECORD}{place}": array for place, array in enumerate(extra)}
        try:
            self._manager.wait_until_finished()
            number = max(self._manager.all_steps(), default=0) + 1
            self._manager.save(number, args=_stored.parts(arrays, said), force=True)
        except CheckpointError:
            raise
        except Exception as error:
            raise self._unwritten(error) from error

    def wait(self) -> None:
        """Wait for what is being written; `CheckpointError` if it cannot be."""
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise self._unwritten(error) from error

    def _unwritten(self, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"the checkpoint of step {self._latest[1]:,} could not be written to {self.path}: "
            f"{first_line(error)}.\n  Those before it are as they were. Make room, or see to the "
            "directory, and start the script again: it goes on from the last one."
        )

    def _restored(self) -> Saved | None:
        """The run as its newest good checkpoint has it. Newer ones are put aside."""
        numbers = sorted(self._manager.all_steps(), reverse=True)
        damaged: list[tuple[Path, str]] = []
        for number in numbers:
            path = self.path / str(number)
            try:
                saved = self._read(path)
            except CheckpointError:
                raise
            except Exception as error:
                damaged.append((path, first_line(error)))
                continue
            self._put_aside(damaged, path)
            return saved
        if damaged:
            raise CheckpointError(
                f"of the checkpoints in {self.path} none is whole: {damaged[0][0].name} is damaged "
                f"({damaged[0][1]}).\n  Pass another directory, to begin anew."
            )
        return None

    def _put_aside(self, damaged: list[tuple[Path, str]], used: Path) -> None:
        for path, why in damaged:
            aside = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            warnings.warn(
                f"the checkpoint {path} is damaged ({why}): it is {aside.name} now, and training "
                f"goes on from {used.name}, the one before.",
                RuntimeWarning,
                stacklevel=5,
            )
        if damaged:
            self._manager.reload()

    def _read(self, path: Path) -> Saved:
        """A run as a checkpoint has it; `CheckpointError` if it is another than this one."""
        said = _stored.description(path)
        template = named_arrays(self._template.unpack())
        mend = (
            "Pass the model and the optimizer of that run, or another directory for this one. To "
            f"take over that model alone: vernal.load({str(self.path)!r}, model)."
        )
        of_state = [leaf for leaf in said.leaves if not leaf.name.startswith(_RECORD)]
        check_alike(of_state, described(template), f"the checkpoint {path}", mend)
        run = said.run
        if run["began"] != self._began:
            raise CheckpointError(
                f"the checkpoint {path} is of a run that began with step {run['began'][0]}, and this "
                f"one begins with step {self._began[0]}.\n  Pass another directory for another run."
            )
        arrays = _stored.arrays(path, said, template)
        if not np.array_equal(on_host(arrays["key"]), on_host(template["key"])):
            raise CheckpointError(
                f"the checkpoint {path} is of a run with another key.\n  Pass the key of that run, or "
                "another directory for another run."
            )
        names = [name for name in arrays if name.startswith(_RECORD)]
        extra = [np.asarray(arrays.pop(name)) for name in names]
        packed = replace(self._template, arrays=[arrays[name] for name in template])
        put_counts(packed.arrays, *run["counts"])
        again = lambda part: decode(part, extra, self._template)
        return Saved(
            with_data_state(packed.unpack(), again(run["data_state"])),
            run["began"][1],
            run["data"],
            again(run["recorder"]),
            [(name, again(kept)) for name, kept in run["callbacks"]],
            run["pending"],
            run["stopped"],
        )
