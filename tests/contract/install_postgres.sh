#!/bin/sh
# install_postgres.sh: the PostgreSQL server that tests start by themselves, on Debian or a relative, as root. Changes nothing when it is there.
# No cluster of Debian's own is made or started: the tests make theirs in a temporary folder.
set -eu
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 && exit 0
mkdir -p /etc/postgresql-common
[ -e /etc/postgresql-common/createcluster.conf ] || echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.conf
apt-get update -q
DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends postgresql
