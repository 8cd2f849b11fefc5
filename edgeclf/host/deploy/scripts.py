"""The shell scripts that a deploy runs on a board: POSIX sh and coreutils, arguments as $1, $2 …, nothing pasted in."""

from __future__ import annotations

# $1 target, $2 SHA-256, $3 mode; the file on standard input. Whole or not at all, also when the connection or the power goes.
PUT = """
set -eu; umask 022
mkdir -p "${1%/*}"
part=$(mktemp "${1%/*}/.part-XXXXXX"); trap 'rm -f "$part"' EXIT; trap 'exit 1' HUP INT TERM PIPE
cat >"$part"
if ! printf '%s  %s\\n' "$2" "$part" | sha256sum -c --status; then echo "it arrived cut or altered" >&2; exit 65; fi
chmod "$3" "$part"; sync "$part"; mv -f "$part" "$1"
"""

# $1 folder of this name: what it holds. Also removes what an interrupted deploy left, for nobody else is at work there.
STATE = """
set -eu
[ -d "$1" ] || exit 0
find "$1" -name '.part-*' -exec rm -f {} + 2>/dev/null
rm -rf "$1"/releases/.new-*
for env in "$1"/envs/*; do [ ! -d "$env" ] || [ -f "$env/complete" ] || rm -rf "$env"; done
[ ! -L "$1/current" ] || printf 'current=%s\\n' "$(basename "$(readlink "$1/current")")"
[ ! -f "$1/current/key" ] || printf 'key=%s\\n' "$(cat "$1/current/key")"
for env in "$1"/envs/*/complete; do [ ! -f "$env" ] || printf 'env=%s\\n' "$(basename "${env%/complete}")"; done
find "$1/wheels" -name '*.whl' -exec sha256sum {} + 2>/dev/null | sed 's/^/wheel=/' || :
"""

# The same without removing anything, for --dry-run.
STATE_ONLY = "\n".join(line for line in STATE.splitlines() if "rm -" not in line)

# $1 environment, $2 interpreter, $3 yes|no: sees the system's packages, $4 pip's wheel or nothing, $5 edgeclf's wheel,
# the rest: what it needs there, wheels with $4; without it pip comes with the interpreter and packages from its index.
INSTALL = """
set -eu; umask 022
env=$1; python=$2; system=$3; pip=$4; own=$5; shift 5
rm -rf "$env"; trap '[ -f "$env/complete" ] || rm -rf "$env"' EXIT; trap 'exit 1' HUP INT TERM PIPE
mkdir -p "${env%/*}"
flags=; [ "$system" = no ] || flags=--system-site-packages
if [ -n "$pip" ]; then
  "$python" -m venv --without-pip $flags "$env"
  "$env/bin/python" "$pip/pip" --disable-pip-version-check install --quiet --no-cache-dir --no-index --no-deps "$own" "$@"
else
  "$python" -m venv $flags "$env" ||
    { echo "no environment could be made; on the board: sudo apt-get install python3-venv" >&2; exit 1; }
  "$env/bin/python" -m pip --disable-pip-version-check install --quiet --only-binary=:all: "$@"
  "$env/bin/python" -m pip --disable-pip-version-check install --quiet --no-index --no-deps "$own"
fi
"$env/bin/edgeclf" --version
: >"$env/complete"; sync "$env/complete"
"""

# 32-bit: apt's numpy and OpenCV must be there, and wheels are put beside them without asking what they need.
OLD_SYSTEM = """
"$1" -c 'import sys, numpy, cv2; sys.exit(int(numpy.__version__.split(".")[0]) > 1)' 2>/dev/null ||
  { echo "on the board: sudo apt-get install python3-numpy python3-opencv" >&2; exit 1; }
"""

# $1 the new release, still hidden, $2 its name, $3 its key, $4 the environment it runs in.
SEAL = """
set -eu
ln -s "../../envs/$4" "$1/env"
printf '%s' "$3" >"$1/key"
sync "$1/key"
mv -T "$1" "${1%/*}/$2"
"""

# $1 folder of this name, $2 a release: the switch is one rename, so there is always a current one.
SWITCH = """
set -eu
rm -f "$1/.current"; ln -s "releases/$2" "$1/.current"; mv -T "$1/.current" "$1/current"; sync "$1"
"""

# $1 folder of this name, $2 the release before or nothing, the rest: wheels that were carried, if any. All but that release
# and the current one go, and what only they needed.
PRUNE = """
set -eu
root=$1; before=$2; shift 2; kept=" $* "
now=$(basename "$(readlink "$root/current")")
for r in "$root"/releases/*; do
  name=${r##*/}; [ "$name" = "$now" ] || [ "$name" = "$before" ] || rm -rf "$r"
done
for e in "$root"/envs/*; do
  used=; for l in "$root"/releases/*/env; do [ "$(basename "$(readlink "$l")")" != "${e##*/}" ] || used=1; done
  [ -n "$used" ] || rm -rf "$e"
done
for w in "$root"/wheels/*; do
  name=${w##*/}
  if [ -d "$w" ]; then [ -d "$root/envs/$name" ] || rm -rf "$w"
  elif [ $# -gt 0 ]; then case $kept in *" $name "*) ;; *) rm -f "$w";; esac; fi
done
"""

# $1 edgeclf there, $2 the file.
VERIFY = '"$1" verify "$2"'
BENCH = """
out=$(mktemp -d); trap 'rm -rf "$out"' EXIT
"$1" bench "$2" --device-report "$out/report.json" >&2 && cat "$out/report.json"
"""
DOCTOR = '"$1" doctor 2>&1'

SUDO = 's="sudo -n"; command -v sudo >/dev/null || s='
MAY_SUDO = f"""
{SUDO}
{{ command -v systemctl && [ "$(systemctl is-system-running 2>/dev/null)" != offline ]; }} >/dev/null || exit 3
$s true
"""

# $1 the unit's file, $2 its name: installed, enabled, started afresh; Type=notify makes `restart` wait until labels flow.
SERVICE = f"""
set -eu; {SUDO}
$s install -m 0644 -o root -g root "$1" "/etc/systemd/system/$2"
$s systemctl daemon-reload
$s systemctl enable --quiet "$2"
$s systemctl restart "$2" || {{
  $s journalctl -u "$2" -n 20 -o cat --no-pager 2>/dev/null | grep -v '^edgeclf-\\|^Stopp\\|^Start\\|^Fail' | tail -n 1 >&2
  exit 1; }}
$s systemctl is-active --quiet "$2"
"""

# $1 a name such as live, $2 bytes of the lines of NAME=VALUE on standard input, which no command line and no log ever shows.
SECRETS = f"""
set -eu; umask 077; {SUDO}
$s install -d -m 0755 -o root -g root /etc/edgeclf
part=$(mktemp); trap 'rm -f "$part"' EXIT; trap 'exit 1' HUP INT TERM PIPE
cat >"$part"
[ "$(wc -c <"$part")" -eq "$2" ] || {{ echo "it arrived cut" >&2; exit 65; }}
$s install -m 0600 -o root -g root "$part" "/etc/edgeclf/$1.env"
"""
