"""What pytest prints while it runs: a line for each file as its first test ends."""

import pytest


class Progress:
    """Prints the names of files with the share of tests that are done, and what failed."""

    def __init__(self, config):
        self.config = config
        self.total = self.done = 0
        self.files = set()

    def pytest_collection_finish(self, session):
        self.total = len(session.items)

    def pytest_xdist_node_collection_finished(self, ids):
        self.total = len(ids)

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report):
        if report.failed:  # a line of its own, at once
            return "error" if report.when != "call" else "failed", f"\nFAILED {report.nodeid}\n", ""
        if report.passed:
            return report.outcome if report.when == "call" else "", "", ""

    def pytest_runtest_logreport(self, report):
        if report.when == "setup":
            file = report.location[0]
            if file not in self.files:
                self.files.add(file)
                share = 100 * self.done // max(self.total, 1)
                reporter = self.config.pluginmanager.get_plugin("terminalreporter")
                reporter.ensure_newline()
                reporter.write_line(f"[{share:3d} %] {file}")
        elif report.when == "teardown":
            self.done += 1
