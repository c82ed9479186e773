# What the scripts of the private stores share. Sourced, never run. A caller sets DATA (the data folder) first.
#
# Everything private lies in one data folder: pg/ redis/ mongo/ (the stores' files), log/, run/ (pid files), env (secrets
# and URLs, mode 600). A process is only ever stopped by the pid that its start wrote down, and only while that pid still
# is the process that was started: the start time of /proc/<pid>/stat stands beside it, because pids are used again.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
DATA=${DATA:-$ROOT/var}
case $DATA in /*) ;; *) DATA=$PWD/$DATA ;; esac
PG_BIN=${PG_BIN:-$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -1 || true)}

say() { printf '%s\n' "$*"; }
die() { printf '%s\n' "$*" >&2; exit 1; }

# When a process was started, in ticks since boot; empty when it is gone.
started_at() {
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
    # The second field is the name in brackets and may hold blanks; the state is the first word after it.
    set -- ${stat##*) }
    [ "$1" = Z ] || printf '%s' "${20}"
}

# pid_keep NAME PID: remembers a started process.
pid_keep() { printf '%s %s\n' "$2" "$(started_at "$2")" >"$DATA/run/$1.pid"; }

# pid_of NAME: the pid when the process that was started still runs, or the one that took over from it (an upgrade): that has another
# pid, which it writes into the PID_FILE that it was started with, NAME.own, and it has the same PID_FILE in its environment.
pid_of() {
    local pid ticks own=$DATA/run/$1.own
    [ -f "$DATA/run/$1.pid" ] || return 1
    read -r pid ticks <"$DATA/run/$1.pid" || return 1
    if [ -n "$pid" ] && [ "$(started_at "$pid")" = "$ticks" ]; then
        printf '%s' "$pid"
        return 0
    fi
    pid=$(cat "$own" 2>/dev/null) || return 1
    [ -n "$pid" ] && [ -n "$(started_at "$pid")" ] && tr '\0' '\n' 2>/dev/null <"/proc/$pid/environ" | grep -qxF "PID_FILE=$own" &&
        printf '%s' "$pid"
}

# wait_for SECONDS WHAT COMMAND...: until the command succeeds. With WATCH=NAME it gives up when that process is gone.
wait_for() {
    local limit=$(($(date +%s) + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        { [ "$(date +%s)" -lt "$limit" ] && { [ -z "${WATCH:-}" ] || pid_of "$WATCH" >/dev/null; }; } || { printf '%s did not come up\n' "$what" >&2; return 1; }
        sleep 0.05
    done
}

# pid_stop NAME SIGNAL SECONDS: stops what was started and waits for its end.
pid_stop() {
    local pid ticks limit
    if pid=$(pid_of "$1"); then
        ticks=$(started_at "$pid")
        kill -s "$2" "$pid" 2>/dev/null || true
        limit=$(($(date +%s) + $3))
        while [ -n "$ticks" ] && [ "$(started_at "$pid")" = "$ticks" ]; do
            if [ "$(date +%s)" -ge "$limit" ]; then
                kill -s KILL "$pid" 2>/dev/null || true
                limit=$((limit + 5))
            fi
            sleep 0.05
        done
        say "stopped $1 ($pid)"
    fi
    rm -f "$DATA/run/$1.pid" "$DATA/run/$1.own"
}

# A free port of 127.0.0.1.
free_port() { "$ROOT/stack/free-port"; }

# port_busy PORT: something listens there.
port_busy() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

secret() { head -c "$1" /dev/urandom | base64 -w0 | tr '+/' '-_' | tr -d '='; }

# env_keep NAME VALUE: writes a line of the env file unless the name stands there; env_set also replaces.
env_keep() { grep -q "^$1=" "$DATA/env" 2>/dev/null || (umask 077 && printf '%s=%s\n' "$1" "$2" >>"$DATA/env"); }
env_set() {
    [ ! -f "$DATA/env" ] || sed -i "/^$1=/d" "$DATA/env"
    env_keep "$1" "$2"
}
env_get() { sed -n "s/^$1=//p" "$DATA/env" 2>/dev/null | head -1; }

# What every installation must have and nobody else may know. Made once, never changed.
keep_secrets() {
    env_keep JWT_SECRET "$(secret 48)"
    env_keep SERVER_KEY "$(head -c 32 /dev/urandom | base64 -w0)"
    env_keep OTP_PEPPER "$(secret 32)"
    env_keep INTERNAL_WEBHOOK_SECRET "$(secret 32)"
    env_keep SOCKET_INTERNAL_API_KEY "$(secret 32)"
    env_keep MESSAGE_ENCRYPTION_KEY "$(secret 32)"
    env_keep MAIL_DIR "$DATA/mail"
}

# All five URLs given: the stores are somebody else's and nothing private is started. Only some: refused.
own_stores() {
    local given=0 name
    for name in DATABASE_URL DATABASE_OWNER_URL DATABASE_SYSTEM_URL REDIS_URL MONGODB_URL; do
        [ -z "${!name:-}" ] || given=$((given + 1))
    done
    [ "$given" = 0 ] && return 1
    [ "$given" = 5 ] || die "Own stores need DATABASE_URL, DATABASE_OWNER_URL, DATABASE_SYSTEM_URL, REDIS_URL and MONGODB_URL, all or none."
}

# PostgreSQL refuses to run as root: root runs it as the user postgres.
as_postgres() {
    if [ "$(id -u)" = 0 ]; then runuser -u postgres -- "$@"; else "$@"; fi
}
