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
    again, by reallocation, when these have changed. All ranks of a job make the same calls of all methods but `offload`
    and `wait_for_offload`, so that all know which copies are behind; ranks that hold nothing of a copy do nothing.

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

    def at(self, layout: Layout) -> ReaLModel:
        """The copy in a layout, with the home's weights; on ranks outside of both layouts the home, to be left alone.

        Raises:
            PeerError: another rank is missing or stuck.
        """
        if self._is_home(layout):
            self._home_is_offloaded = False
            return self.home
        is_behind = self._versions.get(layout) != self._version
        self._versions[layout] = self._version
        mesh = self._meshes[layout]
        assert self.home.mesh is not None
        if not (mesh.is_member or self.home.mesh.is_member):
            return self.home
        if is_behind:
            self._copies[layout] = self.home.reallocate(mesh, into=self._copies.get(layout))
            if self._home_is_offloaded:  # reading its weights has brought them back
                self._start(self.home)
        return self._copies[layout]

    def offload(self, layout: Layout, *, trained: bool = False) -> None:
        """Start to move the copy in a layout to host memory; its next use brings it back.

        Args:
            layout: the layout; this rank belongs to it.
            trained: whether the optimizer's state moves as well.
        """
        if not self._is_home(layout):
            self._start(self._copies[layout])
            return
        self._home_is_offloaded = True
        self._start(self._engine if trained and self._engine is not None else self.home)

    def wait_for_offload(self) -> None:
        """Wait until what has started to move is in host memory, and free its memory on the device."""
        for one in self._leaving:
            one.wait_for_offload()
        self._leaving.clear()

    def _start(self, one: ReaLModel | TrainEngine) -> None:
        one.async_offload()
        self._leaving.append(one)

    def _is_home(self, layout: Layout) -> bool:
        return self.home.mesh is None or layout == self.home.mesh.layout
