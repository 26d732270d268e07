"""A pytest plugin for the second tier: a test whose oracle is missing fails instead of being skipped.

    PYTHONPATH=.ci pytest -p oracle_gate -m "full or oracle"

Refused: a skipped test marked `oracle`, a skipped module that mentions one, any skip for want of an import
(every extra is installed here), and a run in which no oracle test passed at all. With `pytest -n` the reports of all
processes come to the first one, which counts.
"""

import pytest


def pytest_configure(config):
    config.pluginmanager.register(Counter(), "oracle_counter")


def _refuse(report, why):
    report.outcome, report.longrepr = "failed", f"skipped, though every extra is installed here: {why}"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item):
    report = yield
    report.oracle = item.get_closest_marker("oracle") is not None
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2]
        if report.oracle or "could not import" in reason:
            _refuse(report, reason)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report(collector):
    report = yield
    if report.skipped and isinstance(collector, pytest.Module):
        reason = report.longrepr[2]
        if "oracle" in collector.path.read_text(encoding="utf-8") or "could not import" in reason:
            _refuse(report, reason)
    return report


class Counter:
    """Counts the oracle tests that passed."""

    passed = 0

    def pytest_runtest_logreport(self, report):
        self.passed += report.when == "call" and report.passed and report.oracle

    def pytest_sessionfinish(self, session, exitstatus):
        one_of_several = hasattr(session.config, "workerinput")  # which may have had no oracle test
        if exitstatus == pytest.ExitCode.OK and not self.passed and not one_of_several:
            session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED

    def pytest_terminal_summary(self, terminalreporter):
        terminalreporter.write_line(f"oracle tests passed: {self.passed} (at least one is needed)")
