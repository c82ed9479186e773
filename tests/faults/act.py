"""How a fault test that is a program of its own runs: functions one after another on one stage, told like those of test_faults."""
import os
import signal
import sys
import time
import traceback

from stage import ROOT, Broken, Client, Stage, must


class Check:
    """What one test found. `expect` notes and goes on, so that one run tells all."""

    def __init__(self, stage, long):
        self.stage, self.long = stage, long
        self.failures, self.facts = [], []

    def expect(self, condition, text):
        if not condition:
            self.failures.append(text)

    def equal(self, wanted, found, what):
        self.expect(wanted == found, "%s: expected %r, found %r" % (what, wanted, found))

    def fact(self, text):
        self.facts.append(text)

    def script(self, name, *words, env=None, seconds=60):
        """Runs tests/faults/NAME inside `kasma lua`; answers its output."""
        kept = self.stage.env
        self.stage.env = dict(kept, **(env or {}))
        try:
            return self.stage.run(ROOT + "/stack/run", self.stage.binary, "lua", "tests/faults/" + name, *words, seconds=seconds)
        finally:
            self.stage.env = kept


def with_packages(file):
    """Goes on in the venv of tests/python when what the test imports is not there."""
    try:
        import aiosmtpd  # noqa: F401
        import standardwebhooks  # noqa: F401
    except ImportError:
        os.execv(ROOT + "/tests/python", [ROOT + "/tests/python", os.path.abspath(file)] + sys.argv[1:])


def sign_in(stage, name="owner@platform.test"):
    """By a bearer token, so that the client needs no cookies."""
    client = Client(stage.port)
    must(client.post("/auth/login", {"identifier": name, "password": stage.users[name]}), 200)
    client.headers = {"Authorization": "Bearer " + client.cookies["access_token"]}
    client.cookies = {}
    return client


def run_one(fn, stage, long):
    check = Check(stage, long)
    began = time.monotonic()
    try:
        fn(check)
    except Broken as why:
        check.failures.append(str(why))
    except Exception:  # a mistake of the test itself must not hide the others
        check.failures.append(traceback.format_exc())
    name = fn.__name__.replace("_", " ")
    print("%s %s (%.1f s)" % ("FAILED" if check.failures else "ok    ", name, time.monotonic() - began))
    for line in check.facts + ["- " + failure for failure in check.failures]:
        print("         " + line)
    sys.stdout.flush()
    return not check.failures


def main(tests, env, setup=None, workers=1):
    words = sys.argv[1:]
    long, keep = "--long" in words or bool(os.environ.get("LONG")), "--keep" in words
    binary = os.environ.get("BINARY") or ROOT + "/build/test/kasma"
    names = [word for word in words if not word.startswith("--")]
    chosen = [fn for fn in tests if not names or any(name in fn.__name__ for name in names)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # asked to end: through the same clean-up as always
    passed = failed = 0
    stage = Stage(os.path.abspath(binary), workers)
    stage.env.update(env)
    try:
        if setup:
            setup(stage)
        stage.open()
        for fn in chosen:
            good = run_one(fn, stage, long)
            passed, failed = passed + good, failed + (not good)
    except Broken as why:
        print("FAILED the stage: %s" % why)
        failed += 1
    finally:
        stage.close(keep)
    for text in stage.words:
        print("FAILED a sanitizer speaks: " + text)
        failed += 1
    print("%d passed, %d failed" % (passed, failed))
    return 1 if failed else 0
