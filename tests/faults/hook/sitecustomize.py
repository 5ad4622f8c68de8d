"""Processes of the service stop at a named point and wait for the harness. Inactive unless WBAR_FAULT_PLANS names a folder.

Python imports this module as it starts where its folder is on PYTHONPATH. The functions that `fault_points` names are wrapped
as their modules are imported; a wrapped call looks for the file `plan.json`. The first process that reaches the plan's point
takes the plan away (once per plan), writes `at-<id>.json`, and waits until `go-<id>` is there. In between the harness does the
fault. A plan with `kill` is one that stays: each process that reaches its point sends itself that signal.
"""

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from fault_points import PARTS, POINTS, Point

WAIT_SECONDS = 90.0  # a harness that died must not leave processes that wait for ever
ATTEMPT = "wbar_worker.attempt:run_attempt"


class _Plans:
    """The plan of the harness, as this process sees it."""

    def __init__(self, folder: Path, part: str) -> None:
        self.folder, self.part = folder, part
        self.job: str | None = None  # in a training process
        self._counted: dict[str, int] = {}
        self._lock = threading.Lock()

    def passed(self, points: Sequence[Point], when: str, arguments: tuple[Any, ...]) -> None:
        try:
            plan = json.loads((self.folder / "plan.json").read_text())
        except (OSError, ValueError):
            return
        if plan["when"] != when or not any(self._is_of(point, plan, arguments) for point in points):
            return
        with self._lock:
            self._counted[plan["id"]] = self._counted.get(plan["id"], 0) + 1
            if self._counted[plan["id"]] < plan["nth"]:
                return
        if plan["kill"]:
            os.kill(os.getpid(), plan["kill"])
            time.sleep(WAIT_SECONDS)
        self._stop(plan)

    def _is_of(self, point: Point, plan: dict[str, Any], arguments: tuple[Any, ...]) -> bool:
        if point.name != plan["point"] or self.part not in PARTS[point.where]:
            return False
        # A trainer is a fork of the worker's forkserver: it has the worker's name, and a job.
        if (point.where == "trainer") != (self.job is not None) or plan["job"] not in (None, self.job):
            return False
        return point.phase is None or arguments[1].phase == point.phase

    def _stop(self, plan: dict[str, Any]) -> None:
        try:
            os.rename(self.folder / "plan.json", self.folder / f"fired-{plan['id']}.json")
        except FileNotFoundError:
            return  # another process was first
        half = self.folder / f".at-{plan['id']}"
        half.write_text(json.dumps({"pid": os.getpid(), "part": self.part}))
        half.rename(self.folder / f"at-{plan['id']}.json")
        deadline = time.monotonic() + WAIT_SECONDS
        while not (self.folder / f"go-{plan['id']}").exists() and time.monotonic() < deadline:
            time.sleep(0.005)


class _Other:
    """A module as another one sees it: with some of its functions wrapped for that one only."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _wrapped(function: Callable[..., Any], points: Sequence[Point], plans: _Plans) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        if points[0].target == ATTEMPT:
            plans.job = arguments[0].workspace.scratch.name
        plans.passed(points, "before", arguments)
        answer = function(*arguments, **named)
        plans.passed(points, "after", arguments)
        return answer

    return call


def _wrap(module: ModuleType, plans: _Plans) -> None:
    targets: dict[str, list[Point]] = {}
    for point in POINTS:
        of, name = point.target.split(":")
        if of == module.__name__:
            targets.setdefault(name, []).append(point)
    for name, points in targets.items():
        *path, last = name.split(".")
        owner: Any = module
        for step in path:
            if isinstance(getattr(owner, step), ModuleType):
                setattr(owner, step, _Other(getattr(owner, step)))
            owner = getattr(owner, step)
        setattr(owner, last, _wrapped(getattr(owner, last), points, plans))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules that have named points, and wraps these after the import."""

    def __init__(self, plans: _Plans) -> None:
        self._plans = plans
        self._modules = {point.target.split(":")[0] for point in POINTS}
        self._finding = threading.local()

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in self._modules or getattr(self._finding, "busy", False):
            return None
        self._finding.busy = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._finding.busy = False
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                _wrap(module, self._plans)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if _folder := os.environ.get("WBAR_FAULT_PLANS"):
    sys.meta_path.insert(0, _Finder(_Plans(Path(_folder), os.environ.get("WBAR_FAULT_PART", ""))))
