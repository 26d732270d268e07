"""A pytest plugin of `planted_faults.py`: writes what each test does to a file, and attributes traced code to modules.

PLANTED_FAULTS_LOG names a file of JSON lines: ``{"start": id}`` before a test, ``{"id", "when", "outcome", "seconds"}``
after each of its phases, ``{"id", "when": "collect", "outcome": "failed"}`` where a module cannot be imported.

With PLANTED_FAULTS_RECORD, caches of compiled and of computed values are cleared before the first test of a module.
Code that JAX traces once in a process would else be attributed to the first module that happens to need it.
"""

import json
import os
import sys

import pytest


class Log:
    """Writes events as they happen, so that the last test before a crash is known."""

    def __init__(self, path):
        self._file = open(path, "a", buffering=1)

    def _write(self, **event):
        self._file.write(json.dumps(event) + "\n")

    def pytest_runtest_logstart(self, nodeid):
        self._write(start=nodeid)

    def pytest_runtest_logreport(self, report):
        self._write(id=report.nodeid, when=report.when, outcome=report.outcome, seconds=report.duration)

    def pytest_unconfigure(self):
        self._file.close()

    def pytest_collectreport(self, report):
        if report.failed:
            self._write(id=report.nodeid, when="collect", outcome="failed", seconds=0.0)


class ByModule:
    """Clears caches where one module of tests ends and the next one begins."""

    def __init__(self):
        self._path = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item):
        if item.path != self._path and self._path is not None:
            clear_caches("causal_diffusion")
        self._path = item.path


def clear_caches(package):
    """Clears JAX's caches, and those of the functions of a package."""
    import jax

    jax.clear_caches()
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == package:
            for value in list(vars(module).values()):
                if hasattr(value, "cache_info") and getattr(value, "__module__", None) == name:
                    value.cache_clear()


def pytest_configure(config):
    """Registers the log in the process that reports, and the clearing in those that run tests."""
    if "PLANTED_FAULTS_LOG" in os.environ and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Log(os.environ["PLANTED_FAULTS_LOG"]))
    if "PLANTED_FAULTS_RECORD" in os.environ:
        config.pluginmanager.register(ByModule())
