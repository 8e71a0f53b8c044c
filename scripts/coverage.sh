#!/bin/sh
# Line coverage of the driver crate by its tests on the host: a table of its files, then the total. The fake device and
# the unit tests are not counted. `scripts/coverage.sh FILE` prints FILE's lines with how often each was run.
#
# A profile is read by the LLVM that its compiler has, or not at all: Debian's llvm-NN, or rustup's llvm-tools. Tests in
# the documentation are not run: stable rustdoc throws their programs away, and a profile is nothing without its program.
#
#   scripts/coverage.sh --tools      prints the folder of the tools, or `none`
set -eu
cd "$(dirname "$0")/.."

llvm=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
host=$(rustc -vV | sed -n 's/^host: //p')

# Has folder $1 the tools, and of this LLVM?
fits() {
    [ -x "$1/llvm-profdata" ] && "$1/llvm-cov" --version 2>/dev/null | grep -q "LLVM version $llvm\."
}

tools() {
    for folder in "$(rustc --print sysroot)/lib/rustlib/$host/bin" "/usr/lib/llvm-$llvm/bin" \
        "$(dirname "$(command -v llvm-cov || echo .)")"; do
        if fits "$folder"; then echo "$folder"; return; fi
    done
    echo none
}

tools=$(tools)
if [ "${1-}" = --tools ]; then echo "$tools"; exit; fi
if [ "$tools" = none ]; then
    echo "no llvm-profdata and llvm-cov of LLVM $llvm, which this rustc has: \`scripts/setup.sh coverage\`" >&2
    exit 1
fi

# A folder of its own: with other flags than the usual ones, everything in the usual one would be built again.
target=$PWD/target/coverage
profiles=$target/profiles
rm -rf "$profiles"
mkdir -p "$profiles"
export CARGO_TARGET_DIR="$target" LLVM_PROFILE_FILE="$profiles/%p-%m.profraw"
instrumented() {
    cargo test -p vringlet --all-features --lib --tests \
        --config 'build.rustflags=["-C", "instrument-coverage"]' --config profile.dev.debug=false "$@"
}
instrumented --no-run --message-format json-render-diagnostics \
    | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' >"$target/programs"
instrumented --quiet >"$target/tests.log" 2>&1 || { cat "$target/tests.log" >&2; exit 1; }
"$tools/llvm-profdata" merge --sparse -o "$target/all.profdata" "$profiles"/*.profraw
rm -rf "$profiles"

# llvm-cov takes the first program by itself and the others as options.
set -- "${1-}" $(sed '1!s/^/--object=/' "$target/programs")
wanted=$1
shift
"$tools/llvm-cov" export --format=lcov --instr-profile="$target/all.profdata" --ignore-filename-regex='src/fake/' \
    "$@" "$PWD/drivers/src" >"$target/lines"

# `SF:file`, then `DA:line,times` for each line with code.
awk -F '[:,]' -v root="$PWD/" -v wanted="$wanted" '
    # Unit tests are at the end of a file.
    function begin_of_tests(file,    line, number) {
        while ((getline line < file) > 0) {
            number++
            if (line == "#[cfg(test)]") break
        }
        close(file)
        return line == "#[cfg(test)]" ? number : number + 1
    }
    $1 == "SF" { file = substr($2, length(root) + 1); end = begin_of_tests($2); files[++count] = file }
    $1 == "DA" && $2 < end { lines[file]++; run[file] += $3 > 0; times[file, $2] = $3 }
    function row(name, lines, run) { return sprintf("%-44s %6d %6d %7.2f %%", name, lines, lines - run, 100 * run / lines) }
    END {
        if (wanted != "") {
            while ((getline line < wanted) > 0) {
                number++
                printf "%7s %5d %s\n", times[wanted, number], number, line
            }
            exit
        }
        printf "%-44s %6s %6s %9s\n", "file", "lines", "missed", "covered"
        for (i = 1; i <= count; i++) {
            file = files[i]
            if (!lines[file]) continue
            print row(file, lines[file], run[file]) | "sort"
            all += lines[file]
            hit += run[file]
        }
        close("sort")
        print row("total", all, hit)
    }' "$target/lines"
