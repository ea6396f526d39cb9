#!/bin/sh
# Runs in the new root file system when everything is installed; $1 is that root.
set -eu
here=$(dirname "$0")
chroot "$1" localedef -i en_US -c -f UTF-8 en_US.UTF-8
chroot "$1" install -d -o postgres -g postgres -m 3777 /var/run/postgresql
chroot "$1" install -d -o postgres -g postgres -m 1777 /var/lib/postgresql /var/lib/postgresql/data
install -m 755 "$here/docker-entrypoint.sh" "$1/usr/local/bin/docker-entrypoint.sh"
rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/* "$1"/var/log/*.log "$1"/var/log/apt
