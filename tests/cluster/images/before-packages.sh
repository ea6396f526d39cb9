#!/bin/sh
# Runs in the new root file system before PostgreSQL is installed; $1 is that root.
set -eu
# The user as in the well-known images: the packages would take the next free uid. There is no useradd yet.
echo 'postgres:x:999:' >>"$1/etc/group"
echo 'postgres:*::' >>"$1/etc/gshadow"
echo 'postgres:x:999:999::/var/lib/postgresql:/bin/bash' >>"$1/etc/passwd"
echo 'postgres:*:19000::::::' >>"$1/etc/shadow"
# An image has no cluster of its own.
mkdir -p "$1/etc/postgresql-common"
echo 'create_main_cluster = false' >"$1/etc/postgresql-common/createcluster.conf"
