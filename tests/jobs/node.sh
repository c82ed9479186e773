# For the tests of queues: installs Node's side once into build/node-jobs, from the lock file, and copies the programs of these tests
# beside it. Sets NODE_DIR, SOURCE_ROOT and BINARY. Needs REDIS_URL (stack/run gives it).
SOURCE_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
NODE_DIR=${NODE_TESTS_DIR:-$SOURCE_ROOT/build/node-jobs}
BINARY=${BINARY:-$SOURCE_ROOT/build/test/kasma}
export SOURCE_ROOT BINARY NODE_DIR
: "${REDIS_URL:?run this by stack/run}"
(
    source=$SOURCE_ROOT/tests/jobs/node
    mkdir -p "$NODE_DIR"
    exec 9>"$NODE_DIR/.lock"
    flock 9
    if ! cmp -s "$source/package-lock.json" "$NODE_DIR/.installed"; then
        cp "$source/package.json" "$source/package-lock.json" "$NODE_DIR/"
        (cd "$NODE_DIR" && npm ci --ignore-scripts --no-audit --no-fund --silent)
        cp "$source/package-lock.json" "$NODE_DIR/.installed"
    fi
    # In one step each: another test may be starting a program of these.
    for file in "$source"/*.mjs; do
        cp "$file" "$NODE_DIR/.new" && mv "$NODE_DIR/.new" "$NODE_DIR/$(basename "$file")"
    done
)
