#!/bin/bash
# As much of the well-known image's entry point as a test needs: a server that starts on an empty volume.
set -euo pipefail
if [ "${1:-}" = postgres ]; then
    if [ "$(id -u)" = 0 ]; then
        install -d -o postgres -g postgres -m 700 "$PGDATA"
        exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
    fi
    if [ ! -s "$PGDATA/PG_VERSION" ]; then
        initdb --username="${POSTGRES_USER:-postgres}" --auth-host=scram-sha-256 --pwfile=<(printf '%s\n' "${POSTGRES_PASSWORD:?}")
        echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
        set -- "$@" -c 'listen_addresses=*'
    fi
fi
exec "$@"
