#!/usr/bin/env bash
# A full installation as a user does it: a built wheel and the pinned stack in a new virtual environment,
# outside the checkout. Downloads everything, so it is `make test-install` and no part of `make test`.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3.11}
platform=$(nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

step() { echo "== $*"; }

step "copy the checkout, without what git ignores"
mkdir "$place/source"
(cd "$root" && git ls-files -z --cached --others --exclude-standard |
    while IFS= read -r -d '' file; do [ -e "$file" ] && printf '%s\0' "$file"; done |
    tar --null --files-from=- --create --file=-) | tar --extract --file=- --directory="$place/source"

step "build the wheel"
"$python" -m venv "$place/venv"
pip=("$place/venv/bin/python" -m pip --quiet --disable-pip-version-check)
"${pip[@]}" wheel --no-deps --wheel-dir "$place/wheels" "$place/source"

step "install the pinned $platform stack, then the wheel"
cd "$place/source/requirements"
"${pip[@]}" install -r torch.txt
"${pip[@]}" install -r stack.txt
"${pip[@]}" install --no-deps -r "sharding-$platform.txt"
"${pip[@]}" install --no-deps "$place"/wheels/prismrec-*.whl
rm -rf "$place/source"
cd "$place"

step "prismrec doctor"
venv/bin/prismrec doctor

step "prismrec config on recipes of the wheel"
recipes=$(venv/bin/python -c 'from importlib.resources import files; print(files("prismrec.jobs") / "recipes")')
count=0
for recipe in "$recipes"/*.toml "$recipes"/*/dcnv2.toml; do
    venv/bin/prismrec config "$recipe" >/dev/null
    count=$((count + 1))
done
echo "the installation works: $count recipes read"
