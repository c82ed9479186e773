"""A stage of its own for the fault tests: private stores, `kasma serve` and `kasma work`, a client, SQL, and ways to break them.

Everything lies in one temporary folder and every process is started and ended here, by its pid: the stores by stack/start and
stack/stop, the program by this file. What one test breaks is mended before the next begins (Stage.mend).
"""
import glob
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PASSED_ON = ("PATH", "HOME", "LANG", "TMPDIR", "PG_BIN", "ASAN_OPTIONS", "LSAN_OPTIONS", "UBSAN_OPTIONS", "KASMA_LUA_DIR",
             "KASMA_MIGRATIONS_DIR", "KASMA_RULES_DIR")
SANITIZER = re.compile(r"ERROR: (Address|Leak)Sanitizer|runtime error:|AddressSanitizer:DEADLYSIGNAL")
STORES = ("postgres", "redis", "mongo")


class Broken(Exception):
    """The test cannot go on."""


PATIENCE = 4  # a machine may be that much slower than the one on which the limits were chosen; who waits for nothing waits no longer


def until(seconds, what, condition, *args):
    """Asks again and again until the condition holds, and answers its value; gives up after the limit."""
    seconds *= PATIENCE
    limit = time.monotonic() + seconds
    while True:
        value = condition(*args)
        if value:
            return value
        if time.monotonic() > limit:
            raise Broken("not within %g s: %s" % (seconds, what() if callable(what) else what))
        time.sleep(0.03)


KEPT = []  # of the ports that this process was given: see stack/free-port


def free_port():
    """Nobody else's until this process ends, also while nothing listens there."""
    for _ in range(100):
        port = int(subprocess.run([ROOT + "/stack/free-port"], check=True, stdout=subprocess.PIPE, timeout=60).stdout)
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind("\0kasma-test-port-%d" % port)
        except OSError:
            claim.close()
            continue
        KEPT.append(claim)
        return port
    raise Broken("no free port")


def children(pid):
    """The pids of a process's children."""
    found = []
    for path in glob.glob("/proc/%d/task/*/children" % pid):
        try:
            with open(path) as f:
                found += [int(word) for word in f.read().split()]
        except OSError:
            pass
    return found


class Answer:
    """What a request got: status 0 = the connection was cut before an answer had come."""

    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body
        try:
            self.json = json.loads(body) if body else None
        except ValueError:
            self.json = None

    def __repr__(self):
        return "%d %s" % (self.status, self.body[:300])


class Client:
    """One connection with its cookies. Never raises for what a server does: a cut connection is status 0."""

    def __init__(self, port, tenant=None, timeout=40):
        self.port, self.tenant, self.timeout = port, tenant, timeout
        self.cookies, self.headers, self.link = {}, {}, None

    def close(self):
        if self.link:
            self.link.close()
            self.link = None

    def send(self, method, path, body=None, headers=None):
        """Writes a request and does not wait for its answer."""
        if not self.link:
            self.link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.timeout)
        sent = dict(self.headers)
        if self.tenant:
            sent["X-Tenant-Kasma-Id"] = self.tenant
        if self.cookies:
            sent["Cookie"] = "; ".join("%s=%s" % pair for pair in self.cookies.items())
        text = None
        if body is not None:
            text = json.dumps(body).encode()
            sent["Content-Type"] = "application/json"
        sent.update(headers or {})
        self.link.request(method, path, text, sent)

    def ask(self, method, path, body=None, headers=None):
        try:
            self.send(method, path, body, headers)
            response = self.link.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException) as why:
            self.close()
            return Answer(0, {}, repr(why).encode())
        for line in response.headers.get_all("Set-Cookie") or []:
            name, _, value = line.split(";")[0].partition("=")
            if value:
                self.cookies[name] = value
            else:
                self.cookies.pop(name, None)
        if response.will_close:
            self.close()
        return Answer(response.status, response.headers, text)

    def get(self, path, **more):
        return self.ask("GET", path, **more)

    def post(self, path, body=None, **more):
        return self.ask("POST", path, body if body is not None else {}, **more)

    def vanish(self):
        """Is gone as a phone without a network is: the connection is reset and nothing was read."""
        self.link.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.link.sock.close()
        self.link = None


def must(answer, status=201):
    if answer.status != status:
        raise Broken("expected %d, got %r" % (status, answer))
    return answer.json


class Lock:
    """Holds locks in PostgreSQL, so that a request stops at a known place."""

    def __init__(self, stage, sql):
        self.process = subprocess.Popen(stage.psql_words(), env=stage.psql_env(), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, text=True)
        self.process.stdin.write("begin;\n%s;\n\\echo held\n" % sql)
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.strip() == "held":
                return
        self.process.kill()
        self.process.wait()
        raise Broken("the lock was not got")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.free()

    def free(self):
        if self.process:
            self.process.communicate("rollback;\n\\q\n", timeout=20)
            self.process = None


class Stage:
    def __init__(self, binary, workers=2):
        self.binary, self.workers, self.programs = binary, workers, {}
        self.folder = tempfile.mkdtemp(prefix="kasma-faults.")
        os.chmod(self.folder, 0o755)
        self.env = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        self.env.update(DATA=self.folder, KASMA_ENV="test", LOG_ACCESS="off", DATABASE_POOL="4", WORKERS=str(workers), TRUSTED_PROXIES="127.0.0.1",
                        MAIL_DIR=self.folder + "/mail", MEDIA_DIR=self.folder + "/media")
        os.mkdir(self.folder + "/mail")
        self.port = free_port()
        self.env["PORT"] = str(self.port)
        self.users, self.words = {}, []

    # ---- starting and ending ----

    def run(self, *words, seconds=120):
        done = subprocess.run(words, env=self.env, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, timeout=seconds, check=False)
        if done.returncode != 0:
            raise Broken("%s ended with %d: %s" % (" ".join(words), done.returncode, done.stdout[-2000:]))
        return done.stdout

    def start_stores(self):
        # The servers keep the output they are given: a pipe would never end.
        with open(self.folder + "/stack.log", "ab") as log:
            code = subprocess.call([ROOT + "/stack/start", self.folder], env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        if code != 0:
            with open(self.folder + "/stack.log") as f:
                raise Broken("the stores did not start: " + f.read()[-2000:])

    def start_program(self, role):
        with open("%s/log/%s.log" % (self.folder, role), "ab") as log:
            self.programs[role] = subprocess.Popen([ROOT + "/stack/run", self.binary, role], env=self.env, cwd=ROOT,
                                                   stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    def open(self):
        self.start_stores()
        self.run(ROOT + "/stack/run", self.binary, "migrate")
        self.run(ROOT + "/stack/run", self.binary, "seed", "--users-file", self.folder + "/demo-users")
        with open(self.folder + "/demo-users") as f:
            self.users = dict(line.split()[:2] for line in f if line.strip())
        self.start_program("serve")
        self.start_program("work")
        self.wait_ready(120)

    def wait_ready(self, seconds=60):
        last = []

        def ready():
            for role, process in self.programs.items():
                if process.poll() is not None:
                    raise Broken("kasma %s ended with %d: %s" % (role, process.returncode, self.log_end(role)))
            last[:] = [Client(self.port).get("/readyz")]
            return last[0].status == 200

        # Each worker has its own connections to the stores and must be asked; who answers is chance. Many in a row are all of them.
        until(seconds, lambda: "/readyz is 200 in all workers: %r" % last, lambda: all(ready() for _ in range(8 * self.workers)))

    def log_end(self, role, count=2000):
        try:
            with open("%s/log/%s.log" % (self.folder, role), errors="replace") as f:
                return f.read()[-count:]
        except OSError:
            return ""

    def sanitizer_words(self):
        found = []
        for role in ("serve", "work"):
            text = self.log_end(role, 1 << 30)
            for match in SANITIZER.finditer(text):
                found.append("%s: %s" % (role, text[match.start():match.start() + 1500]))
        return found[:3]

    def close(self, keep=False):
        for role, process in self.programs.items():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for role, process in self.programs.items():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                for pid in children(process.pid):
                    self.kill(pid)
                process.kill()
                process.wait()
        with open(os.devnull, "wb") as nothing:
            subprocess.call([ROOT + "/stack/stop", self.folder], env=self.env, stdin=subprocess.DEVNULL, stdout=nothing, stderr=nothing)
        self.words = self.sanitizer_words()
        if keep:
            print("kept: " + self.folder)
            return
        pg = self.folder + "/pg"
        if os.path.islink(pg):
            shutil.rmtree(os.path.realpath(pg), ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    # ---- breaking and mending ----

    @staticmethod
    def kill(pid, number=signal.SIGKILL):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass

    def store_pid(self, name):
        """The pid that stack/start wrote down, when that process still runs."""
        try:
            with open("%s/run/%s.pid" % (self.folder, name)) as f:
                pid, ticks = f.read().split()
            with open("/proc/%s/stat" % pid) as f:
                fields = f.read().rpartition(")")[2].split()
            return int(pid) if fields[0] != "Z" and fields[19] == ticks else None
        except (OSError, ValueError):
            return None

    def break_store(self, name, number=signal.SIGKILL):
        pid = self.store_pid(name)
        if not pid:
            raise Broken(name + " does not run")
        self.kill(pid, number)
        until(60, name + " is gone", lambda: self.store_pid(name) is None)

    def workers_of(self, role):
        return children(self.programs[role].pid)

    def mend(self):
        """Whatever a test left broken runs again."""
        if any(self.store_pid(name) is None for name in STORES):
            self.start_stores()
        for role in ("serve", "work"):
            if self.programs[role].poll() is not None:
                self.start_program(role)
        self.wait_ready(120)

    # ---- looking ----

    def setting(self, name):
        with open(self.folder + "/env") as f:
            for line in f:
                if line.startswith(name + "="):
                    return line.rstrip("\n").partition("=")[2]
        raise Broken(name + " is not in the env file")

    def psql_env(self):
        return dict(self.env, PGHOST="127.0.0.1", PGPORT=self.setting("STACK_PG_PORT"), PGUSER="kasma_admin", PGDATABASE="kasma",
                    PGPASSWORD=self.setting("STACK_ADMIN_PASSWORD"))

    def psql_words(self):
        folder = os.environ.get("PG_BIN") or sorted(glob.glob("/usr/lib/postgresql/*/bin"))[-1]
        return [folder + "/psql", "-XqAt", "-v", "ON_ERROR_STOP=1"]

    def rows(self, sql):
        """Rows of a SELECT as dictionaries, read as the owner of the database, who sees all tenants."""
        done = subprocess.run(self.psql_words(), env=self.psql_env(), input="select coalesce(json_agg(t), '[]') from (%s) t;" % sql,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
        if done.returncode != 0:
            raise Broken("psql: " + done.stderr)
        return json.loads(done.stdout)

    def value(self, sql):
        row = self.rows(sql)[0]
        return next(iter(row.values()))

    def sql(self, text):
        done = subprocess.run(self.psql_words(), env=self.psql_env(), input=text, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              timeout=60, check=False)
        if done.returncode != 0:
            raise Broken("psql: " + done.stderr)

    def restart(self, role, **env):
        """Ends a program as an operator does and starts it with more in its environment; None takes a name out."""
        process = self.programs[role]
        process.terminate()
        process.wait(40)
        kept = self.env
        self.env = {name: value for name, value in dict(kept, **env).items() if value is not None}
        self.start_program(role)
        self.env = kept
        self.wait_ready(120)

    def mails_to(self, domain):
        """The addressees of the mails that were written, one entry a mail."""
        found = []
        for path in glob.glob(self.folder + "/mail/*.eml"):
            with open(path) as f:
                found += re.findall(r"^To: (\S+@%s)" % re.escape(domain), f.read(), re.M)
        return found

    def documents(self, collection, tenant, field, value):
        """How many documents of MongoDB have this value."""
        out = self.run(ROOT + "/stack/run", self.binary, "lua", "tests/faults/count.lua", collection, tenant, field, value)
        return int(out.split()[-1])

    def connections(self):
        """Connections of the program to PostgreSQL, and how many of them lie in a transaction."""
        return self.rows("""select count(*) as n, count(*) filter (where state like 'idle in transaction%') as open,
          count(*) filter (where wait_event_type = 'Lock') as waiting
          from pg_stat_activity where usename in ('kasma_app', 'kasma_system') and backend_type = 'client backend'""")[0]

    def metric(self, name):
        """A metric's value, summed over its series and over the workers."""
        answer = Client(self.port).get("/metrics")
        must(answer, 200)
        total = 0.0
        for line in answer.body.decode().splitlines():
            if re.match(re.escape(name) + r"(\{| )", line):
                total += float(line.rpartition(" ")[2])
        return total


class Crowd:
    """Threads that run until they are told to stop."""

    def __init__(self, count, work):
        self.stopping = threading.Event()
        self.failures = []
        self.threads = [threading.Thread(target=self.guarded, args=(work,), daemon=True) for _ in range(count)]
        for thread in self.threads:
            thread.start()

    def guarded(self, work):
        try:
            while not self.stopping.is_set():
                work()
        except Exception as why:  # told to whoever stops the crowd
            self.failures.append(repr(why))

    def stop(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join(60)
            if thread.is_alive():
                raise Broken("a request of the load has no answer after 60 s")
        if self.failures:
            raise Broken("the load failed: " + self.failures[0])
