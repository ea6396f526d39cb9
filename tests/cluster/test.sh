#!/usr/bin/env bash
# Exercises every command of ctl for real, on clusters of its own. Prints one line per check; exits non-zero on failure.
set -uo pipefail
cd "$(dirname "$0")"
name=ctltest
ctl() { ./ctl --name "$name" "$@"; }
k() { ctl kubectl "$@"; }
work=$(mktemp -d)
trap 'ctl down; ./ctl --name ctltest2 down; rm -rf "$work"' EXIT
passed=0 failed=0

check() { # check DESCRIPTION COMMAND...: the command succeeds
    local what=$1 started=$SECONDS
    shift
    if "$@" >"$work/out" 2>&1; then
        passed=$((passed + 1))
        echo "ok    $what ($((SECONDS - started)) s)"
    else
        failed=$((failed + 1))
        echo "FAIL  $what ($((SECONDS - started)) s): $(tail -3 "$work/out" | tr '\n' ' ')"
    fi
}
refuse() { ! "$@"; }
soon() { # soon SECONDS COMMAND...: the command succeeds within that time
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        [ $SECONDS -lt $deadline ] || return 1
        sleep 0.2
    done
}

# What the machine has that a cluster could leave behind. Group "build" is left out: other work goes on meanwhile.
traces() {
    grep -E "pgwarden/$name|cluster-$name" /proc/mounts | sort
    find /sys/fs/cgroup -maxdepth 2 -name "pgwarden-$name" 2>/dev/null
    ls -d "/run/pgwarden/$name" 2>/dev/null
    cat /sys/block/loop*/loop/backing_file 2>/dev/null | grep "cluster-$name/"
    for process in /proc/[0-9]*; do
        tr '\0' ' ' <"$process/cmdline" 2>/dev/null | grep -F "cluster-$name/" | grep -v test.sh
    done
    true
}
no_traces() { local found; found=$(traces); echo "$found"; [ -z "$found" ]; }

ready_nodes() { k get nodes --no-headers | grep -c ' Ready '; }
node_is() { k get node "$1" --no-headers | grep -q " $2 "; }
rw_in() { k exec "$1" -- bash -c "$2"; }
reach() { # reach HOST ADDRESS PORT: a TCP connection opens within two seconds
    ctl in "$1" timeout 2 bash -c "exec 3<>/dev/tcp/$2/$3"
}

pod() { # pod NAME NODE [CLAIM]: a pod that sleeps on a node, under the restricted profile
    local volume='' mount=''
    if [ -n "${3:-}" ]; then
        volume="volumes: [{name: data, persistentVolumeClaim: {claimName: $3}}]"
        mount='volumeMounts: [{name: data, mountPath: /data}]'
        cat <<YAML
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: $3}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 64Mi}}}
---
YAML
    fi
    cat <<YAML
apiVersion: v1
kind: Pod
metadata: {name: $1, labels: {app: $1}}
spec:
  nodeSelector: {kubernetes.io/hostname: $2}
  terminationGracePeriodSeconds: 0
  securityContext: {runAsUser: 999, runAsGroup: 999, fsGroup: 999, runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
  containers:
  - name: main
    image: postgres:17
    command: [sleep, infinity]
    securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
    $mount
  $volume
YAML
}

postgres() {
    cat <<'YAML'
apiVersion: v1
kind: Pod
metadata: {name: pg, labels: {app: pg}}
spec:
  nodeSelector: {kubernetes.io/hostname: node3}
  terminationGracePeriodSeconds: 1
  securityContext: {runAsUser: 999, runAsGroup: 999, runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
  containers:
  - name: postgres
    image: postgres:17
    args: [postgres, -c, shared_buffers=16MB]
    env: [{name: POSTGRES_PASSWORD, value: secret}]
    securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
---
apiVersion: v1
kind: Service
metadata: {name: pg}
spec: {selector: {app: pg}, ports: [{port: 5432}]}
YAML
}
query() { ctl in "$1" timeout 5 psql "host=pg.default.svc.cluster.local user=postgres password=secret connect_timeout=2" -Atc 'select 40 + 2' | grep -qx 42; }

# --- up, and up again
ctl down
check "nothing is there before" no_traces
started=$SECONDS
check "up" ctl up
up_seconds=$((SECONDS - started))
check "up again, at once" timeout 10 ./ctl --name $name up
check "three nodes are Ready" [ "$(ready_nodes)" = 3 ]
check "zones are set" [ "$(k get nodes -o jsonpath='{.items[*].metadata.labels.topology\.kubernetes\.io/zone}')" = "zone1 zone2 zone3" ]
check "kubeconfig works from the host" kubectl --kubeconfig "$(ctl kubeconfig)" get nodes
check "status" ctl status
check "an unknown host is refused" refuse ctl in node9 true

# --- images
mkdir -p "$work/root/bin" && cp /bin/true "$work/root/bin/x" && ln -s x "$work/root/bin/y"
check "mkimage" ctl mkimage "$work/a.tar" test/image:1 "$work/root" '{"Entrypoint":["/bin/x"]}'
touch "$work/root/bin/x"
ctl mkimage "$work/b.tar" test/image:1 "$work/root" '{"Entrypoint":["/bin/x"]}'
check "mkimage gives the same bytes" cmp "$work/a.tar" "$work/b.tar"
check "load" ctl load "$work/a.tar"
on_every_node() { for n in node1 node2 node3; do ctl on $n ctr -n k8s.io images ls -q | grep -qx "$1" || return 1; done; }
check "the image is on every node" on_every_node docker.io/test/image:1
check "postgres:18 is there" on_every_node docker.io/library/postgres:18
check "no-postgres is there" on_every_node docker.io/pgwarden/no-postgres:1

# --- pods, volumes, DNS, Services
k label namespace default pod-security.kubernetes.io/enforce=restricted >/dev/null
for i in 1 2 3; do pod p$i node$i data$i; done | sed 's/^apiVersion: v1$/---\n&/' | k apply -f - >/dev/null
postgres | k apply -f - >/dev/null
check "a pod with a volume runs on each node" k wait --for=condition=Ready pod/p1 pod/p2 pod/p3 pod/pg --timeout=60s
check "restricted namespaces refuse a privileged pod" refuse k run bad --image=postgres:17 --privileged
check "a pod resolves a Service" rw_in p1 'getent hosts pg.default.svc.cluster.local'
check "a pod reaches the API through its Service" rw_in p1 'exec 3<>/dev/tcp/kubernetes.default.svc/443'
check "exec reads the pod's token" rw_in p1 'test -s /var/run/secrets/kubernetes.io/serviceaccount/token'
check "logs" soon 20 eval 'k logs pg | grep -q "ready to accept connections"'
check "the client reaches a Service by its name" soon 20 query client
check "a node reaches a Service" query node1
port_forward() {
    k port-forward pod/pg 25432:5432 >/dev/null & local pid=$!
    soon 10 psql "host=127.0.0.1 port=25432 user=postgres password=secret" -Atc 'select 1'
    local result=$?
    kill $pid; wait $pid 2>/dev/null
    return $result
}
check "port-forward" port_forward
check "cp" eval "echo copied >$work/file && k cp $work/file p1:/data/file && k exec p1 -- grep -q copied /data/file"
check "uid 999 is postgres and the binaries are on PATH" rw_in p1 'test "$(id -un)" = postgres && postgres --version'
check "pids finds a process by its pod" eval "ctl pids node1 'default/p1 main sleep' | grep -q '^[0-9]'"
size_is_real() { # 64 Mi: fewer than 64 fit, more than 50 do
    local written
    written=$(k exec p1 -- bash -c 'dd if=/dev/zero of=/data/fill bs=1M count=100 2>/dev/null; stat -c %s /data/fill')
    echo "$written bytes"
    k exec p1 -- rm /data/fill
    [ "$written" -lt $((64 << 20)) ] && [ "$written" -gt $((50 << 20)) ]
}
check "a volume of 64Mi is full at 64Mi" size_is_real
writes() { timeout "$1" ./ctl --name $name kubectl exec "$2" -- bash -c 'echo x >>/data/probe && sync /data/probe'; }
check "fsfreeze" ctl fsfreeze data2 default
check "a frozen disk hangs" refuse writes 3 p2
check "fsthaw" ctl fsthaw data2 default
check "a thawed disk goes on" writes 20 p2

# --- partitions
port=10250
node() { ctl kubectl get node "$1" -o jsonpath='{.status.addresses[0].address}'; }
n1=$(node node1) n2=$(node node2) n3=$(node node3)
check "node1 reaches node2" reach node1 "$n2" $port
check "cut node1 --from node2" ctl cut node1 --from node2
check "node1 doesn't reach node2" refuse reach node1 "$n2" $port
check "node2 doesn't reach node1" refuse reach node2 "$n1" $port
check "node1 still reaches node3" reach node1 "$n3" $port
check "heal node1" ctl heal node1
check "node1 reaches node2 again" reach node1 "$n2" $port
# One way shows in datagrams only: a connection needs both.
hears() { # hears TO FROM: a datagram sent by FROM arrives at TO
    local address=$(node "$1")
    ctl in "$1" timeout 3 python3 -c "import socket; s=socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('$address', 9999)); s.recv(9)" &
    local pid=$!
    for _ in 1 2 3 4; do sleep 0.3; ctl in "$2" bash -c "echo x >/dev/udp/$address/9999" 2>/dev/null; done
    wait $pid
}
check "cut node1 --from node2 --one-way" ctl cut node1 --from node2 --one-way
check "node2 doesn't hear node1" refuse hears node2 node1
check "node1 hears node2" hears node1 node2
check "heal all" ctl heal
check "cut node3: from all" ctl cut node3
check "the client loses the Service there" refuse query client
check "the API server doesn't reach the node" refuse reach api "$n3" $port
ctl heal node3
check "heal node3: the client has it back" soon 15 query client
check "cut node2 --from api: DNS stays" eval 'ctl cut node2 --from api && ctl in node2 getent hosts pg.default.svc.cluster.local && refuse reach node2 "$(ctl in node1 getent hosts kubernetes.default.svc.cluster.local | cut -d" " -f1)" 443'
ctl heal

# --- freeze, power
sleeper=$(ctl pids node1 'default/p1 main sleep' | cut -d' ' -f1)
state() { sed -n 's/^State:\s*\(.\).*/\1/p' "/proc/$1/status"; }
check "freeze node1" ctl freeze node1
frozen() { [ "$(cat /sys/fs/cgroup/freezer/pgwarden-$name/node1/freezer.state)" = FROZEN ] && [ "$(state "$sleeper")" = D ]; }
check "its processes stand still" frozen
check "thaw node1" ctl thaw node1
check "its pods answer again" soon 20 k exec p1 -- true
k exec p1 -- bash -c 'echo kept >/data/kept && sync' >/dev/null
check "power-off node1" ctl power-off node1
check "no process is left" [ ! -e "/sys/fs/cgroup/freezer/pgwarden-$name/node1" ]
check "power-on node1" ctl power-on node1
data_kept() { k exec p1 -- grep -q kept /data/kept; }
check "its pod is back with its data" soon 60 data_kept
check "node1 is Ready" soon 30 node_is node1 Ready
check "power-off of a frozen node with a frozen disk" eval 'ctl fsfreeze data2 default && ctl freeze node2; ctl power-off node2'
check "up brings it back" ctl up

# --- units
check "api-stop" ctl api-stop
check "the API is away" refuse k get --raw /readyz
check "pods run on without it" query client
check "api-start" ctl api-start
check "the API is back" k get --raw /readyz
check "stop and start a unit" eval 'ctl stop node1 kube-proxy && ctl start node1 kube-proxy'
check "an unknown unit is refused" refuse ctl stop node1 nothing

# --- reclaim, two clusters, crash, down
k delete pod p1 --now >/dev/null; k delete pvc data1 >/dev/null
reclaimed() { ! ls -d "../../target/cluster-$name"/node1/images/default.data1.* 2>/dev/null; }
check "a deleted claim's disk is deleted" soon 20 reclaimed
check "a second cluster boots beside it" ./ctl --name ctltest2 up --no-images
check "the first still answers" query client
check "the second goes" ./ctl --name ctltest2 down
crash() { # everything dies, nothing is cleaned up
    local pids
    pids=$(find /sys/fs/cgroup/freezer/pgwarden-$name -name cgroup.procs -exec cat {} +)
    kill -9 $pids
}
crash
check "up after a crash" ctl up --no-images
check "down" ctl down
check "down leaves nothing" no_traces

trap - EXIT
rm -rf "$work"
echo "up took $up_seconds s, the whole $SECONDS s"
echo "$passed passed, $failed failed"
[ $failed = 0 ]
