"""`Replicas`: the copies of a role's model, one for each layout in which it is called."""

from __future__ import annotations

from collections.abc import Mapping

from reallm.engine.real_model import ReaLModel
from reallm.parallel.layout import Layout
from reallm.parallel.mesh import Mesh
from reallm.training.engine import TrainEngine


class Replicas:
    """The copies of a role's model, one for each layout in which it is called.

    The home is loaded, trained and saved. The others are made when they are first needed, and get the home's weights
    again, by reallocation, when these have changed. All ranks of a job make the same calls of `weights_changed` and
    `move`, so that all know which copies are behind; in a move, ranks that hold nothing of either copy do nothing.

    Args:
        home: the home.
        engine: the engine that trains it, on the ranks that do.
        meshes: the meshes of the layouts.
    """

    def __init__(
        self, home: ReaLModel, engine: TrainEngine | None = None, meshes: Mapping[Layout, Mesh] | None = None
    ) -> None:
        self.home = home
        self._engine = engine
        self._meshes = meshes or {}
        self._copies: dict[Layout, ReaLModel] = {}
        self._version = 0
        """Number of times that the home's weights have changed."""
        self._versions: dict[Layout, int] = {}
        """The version of the weights that each copy has, whichever ranks hold it."""
        self._home_is_offloaded = False
        self._leaving: list[ReaLModel | TrainEngine] = []
        """What is on its way to host memory, and still has its memory on the device."""

    def weights_changed(self) -> None:
        """Note that the home's weights have changed, so that the copies are behind."""
        self._version += 1

    @property
    def behind(self) -> list[Layout]:
        """The layouts of the copies that have not the home's weights, whichever ranks hold them."""
        return [one for one in self._meshes if not self._is_home(one) and self._versions.get(one) != self._version]

    def at(self, layout: Layout) -> ReaLModel:
        """The copy in a layout; this rank belongs to it."""
        if self._is_home(layout):
            self._home_is_offloaded = False
            return self.home
        return self._copies[layout]

    def move(self, layout: Layout) -> int:
        """Move the home's weights to the copy in a layout; returns the bytes that this rank received.

        Raises:
            PeerError: another rank is missing or stuck.
        """
        mesh = self._meshes[layout]
        self._versions[layout] = self._version
        assert self.home.mesh is not None
        if not (mesh.is_member or self.home.mesh.is_member):
            return 0
        copy = self._copies[layout] = self.home.reallocate(mesh, into=self._copies.get(layout))
        self.home_was_used()
        assert copy.moved is not None
        return copy.moved.bytes_received

    def home_was_used(self) -> None:
        """Move the home to host memory again, if that is where it was: reading its weights has brought them back."""
        if self._home_is_offloaded:
            self._start(self.home)

    def offload(self, layout: Layout, *, trained: bool = False) -> int:
        """Start to move the copy in a layout to host memory, from where its next use brings it back; returns its bytes.

        Args:
            layout: the layout; this rank belongs to it.
            trained: whether the optimizer's state moves as well.
        """
        if not self._is_home(layout):
            return self._start(self._copies[layout])
        self._home_is_offloaded = True
        return self._start(self._engine if trained and self._engine is not None else self.home)

    def start_reload(self, layout: Layout, *, trained: bool = False) -> int:
        """Start to bring the copy in a layout back from host memory; returns its bytes, 0 if it is not there.

        Args:
            layout: the layout; this rank belongs to it.
            trained: whether the optimizer's state is needed as well.
        """
        copy = self.at(layout)
        one = self._engine if trained and copy is self.home and self._engine is not None else copy
        if not one.offloaded_bytes:
            return 0
        one.start_reload()
        return one.offloaded_bytes

    def wait_for_offload(self) -> None:
        """Wait until what has started to move is in host memory, and free its memory on the device."""
        for one in self._leaving:
            one.wait_for_offload()
        self._leaving.clear()

    def _start(self, one: ReaLModel | TrainEngine) -> int:
        one.async_offload()
        self._leaving.append(one)
        return one.offloaded_bytes

    def _is_home(self, layout: Layout) -> bool:
        return self.home.mesh is None or layout == self.home.mesh.layout
