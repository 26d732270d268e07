"""A pytest plugin for the second tier: a test whose oracle is missing fails instead of being skipped.

    PYTHONPATH=.ci pytest -p oracle_gate -m "full or oracle"

Refused: a skipped test marked `oracle`, a skipped module that mentions one, any skip for want of an import
(every extra is installed here), and a run in which no oracle test passed at all.
"""

import pytest

PASSED = pytest.StashKey[int]()


def pytest_configure(config):
    config.stash[PASSED] = 0


def _refuse(report, why):
    report.outcome, report.longrepr = "failed", f"skipped, though every extra is installed here: {why}"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item):
    report = yield
    is_oracle = item.get_closest_marker("oracle") is not None
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2]
        if is_oracle or "could not import" in reason:
            _refuse(report, reason)
    elif is_oracle and report.passed and report.when == "call":
        item.config.stash[PASSED] += 1
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report(collector):
    report = yield
    if report.skipped and isinstance(collector, pytest.Module):
        reason = report.longrepr[2]
        if "oracle" in collector.path.read_text(encoding="utf-8") or "could not import" in reason:
            _refuse(report, reason)
    return report


def pytest_sessionfinish(session, exitstatus):
    if exitstatus == pytest.ExitCode.OK and not session.config.stash[PASSED]:
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED


def pytest_terminal_summary(terminalreporter, config):
    terminalreporter.write_line(f"oracle tests passed: {config.stash[PASSED]} (at least one is needed)")
