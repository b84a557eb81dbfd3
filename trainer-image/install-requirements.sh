#!/bin/sh
# Install those packages of /opt/requirements.txt whose name matches a pattern into /opt/venv.
# Run by both Dockerfiles, with their build secrets mounted.
set -eu
export UV_NO_CACHE=1
pattern=$1

if [ -e /run/secrets/build.env ]; then
  set -a
  . /run/secrets/build.env
  set +a
fi
if [ -e /run/secrets/ca.crt ]; then
  export SSL_CERT_FILE=/run/secrets/ca.crt PIP_CERT=/run/secrets/ca.crt
fi

work=$(mktemp -d)
python3 -m venv "$work/uv"
"$work/uv/bin/pip" install --quiet --no-cache-dir "uv==$UV_VERSION"
[ -d /opt/venv ] || "$work/uv/bin/uv" venv --quiet --python /usr/bin/python3 /opt/venv

# A package's name starts its line; its hashes are on indented lines below.
awk -v pattern="^($pattern)==" '/^[a-z]/ {keep = $0 ~ pattern} keep' /opt/requirements.txt \
  > "$work/requirements.txt"
# Byte-compiled here, because the image's user cannot write beside the modules.
"$work/uv/bin/uv" pip install --quiet --no-deps --require-hashes --compile-bytecode \
  --python /opt/venv/bin/python --requirements "$work/requirements.txt"
rm -rf "$work" /tmp/uv-*.lock
