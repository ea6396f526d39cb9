package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

func up(name string, args []string) error {
	withTests := true
	for _, arg := range args {
		if arg != "--no-images" {
			return fmt.Errorf("up: don't understand %q", arg)
		}
		withTests = false
	}
	nodes := 3
	if value := os.Getenv("PGWARDEN_NODES"); value != "" {
		var err error
		if nodes, err = strconv.Atoi(value); err != nil || nodes < 1 || nodes > 9 {
			return fmt.Errorf("PGWARDEN_NODES=%q: a number from 1 to 9", value)
		}
	}
	if err := buildAll(withTests); err != nil {
		return err
	}
	unlock, err := lock("cluster-"+name, 10*time.Minute)
	if err != nil {
		return err
	}
	defer unlock()
	started := time.Now()
	c, err := readCluster(name)
	if err == nil && c.alive() {
		if c.State != stateDir(name) {
			return fmt.Errorf("cluster %s runs from another checkout, %s; choose another --name", name, c.State)
		}
		if c.Booted {
			return c.complete()
		}
	}
	// Whatever is there is what a crash left.
	if err := cleanUp(name); err != nil {
		return err
	}
	if err := os.RemoveAll(stateDir(name)); err != nil {
		return err
	}
	if c, err = newCluster(name, nodes); err != nil {
		return err
	}
	if err := c.start(withTests); err != nil {
		return fmt.Errorf("%w\nlogs are in %s", err, c.state("log"))
	}
	c.Booted = true
	if err := c.save(); err != nil {
		return err
	}
	progress("cluster %s is up after %.1f s: export KUBECONFIG=%s", name, time.Since(started).Seconds(), c.state("kubeconfig"))
	return nil
}

func (c *Cluster) alive() bool {
	for _, name := range []string{"api", "dns", "client"} {
		if !c.isOn(name) {
			return false
		}
	}
	return true
}

// complete starts what is missing in a cluster that runs.
func (c *Cluster) complete() error {
	// What a node said before it went off doesn't count.
	since := map[string]time.Time{}
	for _, n := range c.nodes() {
		if !c.isOn(n.Name) {
			since[n.Name] = time.Now().Truncate(time.Second)
			if err := c.bootNode(n); err != nil {
				return err
			}
		}
	}
	return c.waitReady(since)
}

// start boots a cluster from nothing.
func (c *Cluster) start(withTests bool) error {
	p, err := builtPrograms()
	if err != nil {
		return err
	}
	store, err := imageStore(withTests)
	if err != nil {
		return err
	}
	if err := c.makeKeys(); err != nil {
		return err
	}
	search := "default.svc.cluster.local svc.cluster.local cluster.local"
	if err := writeFile(c.resolvConf(), fmt.Appendf(nil, "nameserver %s\nsearch %s\noptions ndots:5 timeout:2\n", c.serviceIP(10), search), 0o644); err != nil {
		return err
	}
	if err := c.makeSwitch(); err != nil {
		return err
	}
	if err := c.startAPI(p); err != nil {
		return err
	}
	// The nodes' programs start while the API server does; kubelet finds it when it is there.
	for _, n := range c.nodes() {
		if err := fillNode(store, c.state(n.Name, "disk/containerd")); err != nil {
			return err
		}
		if err := sharedDir(c.state(n.Name, "disk/volumes")); err != nil {
			return err
		}
		if err := c.bootNode(n); err != nil {
			return err
		}
	}
	dns, err := c.dnsMachine(p)
	if err != nil {
		return err
	}
	for host, machine := range map[string]Machine{"dns": dns, "client": c.clientMachine(p)} {
		h, err := c.host(host)
		if err != nil {
			return err
		}
		if err := firstError(c.connect(h), c.boot(h, machine, nil)); err != nil {
			return err
		}
	}
	if err := c.waitAPI(); err != nil {
		return err
	}
	// What waits for the API server may start.
	if err := writeFile(c.apiReady(), nil, 0o644); err != nil {
		return err
	}
	if err := c.makeObjects(); err != nil {
		return err
	}
	return c.waitReady(nil)
}

func (c *Cluster) startAPI(p Programs) error {
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", c.apiPort()))
	if err != nil {
		return err
	}
	defer listener.Close()
	file, err := listener.(*net.TCPListener).File()
	if err != nil {
		return err
	}
	defer file.Close()
	if err := c.connect(c.apiHost()); err != nil {
		return err
	}
	return c.boot(c.apiHost(), c.apiMachine(p), file)
}

func (c *Cluster) bootNode(n Host) error {
	p, err := builtPrograms()
	if err != nil {
		return err
	}
	machine, err := c.nodeMachine(p, n)
	if err != nil {
		return err
	}
	return firstError(c.connect(n), c.boot(n, machine, nil))
}

// sharedDir makes a directory whose later mounts reach the nodes.
func sharedDir(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return firstError(unix.Mount(dir, dir, "", unix.MS_BIND, ""), unix.Mount("", dir, "", unix.MS_SHARED, ""))
}

func (c *Cluster) waitAPI() error {
	a, err := c.api()
	if err != nil {
		return err
	}
	return until("the API server is ready", time.Minute, a.ready)
}

// nodeCPUs is what every node offers: more than this small machine has, so that manifests made for real nodes fit. Time is then
// shared; nothing else notices.
const nodeCPUs = "16"

// nodeSize changes the kubelet's own count as it reports it.
const nodeSize = `{"metadata": {"name": "node-size"}, "spec": {
	"failurePolicy": "Fail", "reinvocationPolicy": "Never",
	"matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"],
		"resources": ["nodes", "nodes/status"]}]},
	"mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression":
		"has(object.status.capacity) && has(object.status.allocatable) ? [JSONPatch{op: 'add', path: '/status/capacity/cpu', value: '` + nodeCPUs + `'}, JSONPatch{op: 'add', path: '/status/allocatable/cpu', value: '` + nodeCPUs + `'}] : []"}}]}}`

func (c *Cluster) makeObjects() error {
	a, err := c.api()
	if err != nil {
		return err
	}
	return firstError(
		a.create("/apis/admissionregistration.k8s.io/v1beta1/mutatingadmissionpolicies", nodeSize),
		a.create("/apis/admissionregistration.k8s.io/v1beta1/mutatingadmissionpolicybindings",
			`{"metadata": {"name": "node-size"}, "spec": {"policyName": "node-size"}}`),
		a.create("/apis/storage.k8s.io/v1/storageclasses", `{"metadata": {"name": "standard", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
			"provisioner": "pgwarden.test/loop", "volumeBindingMode": "WaitForFirstConsumer", "reclaimPolicy": "Delete"}`),
		a.create("/api/v1/namespaces/kube-system/services", fmt.Sprintf(`{"metadata": {"name": "kube-dns"}, "spec": {"clusterIP": %q,
			"ports": [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]}}`, c.serviceIP(10))),
		a.create("/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices", fmt.Sprintf(`{"metadata": {"name": "kube-dns",
			"labels": {"kubernetes.io/service-name": "kube-dns"}}, "addressType": "IPv4", "endpoints": [{"addresses": [%q]}],
			"ports": [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]}`, c.address(c.dnsServer().Last))),
	)
}

func (c *Cluster) waitReady(since map[string]time.Time) error {
	if err := c.waitAPI(); err != nil {
		return err
	}
	a, err := c.api()
	if err != nil {
		return err
	}
	var missing []string
	err = until("every node is Ready", 90*time.Second, func() bool {
		ready, err := a.nodesReady()
		missing = nil
		for _, n := range c.nodes() {
			if said, is := ready[n.Name]; !is || said.Before(since[n.Name]) {
				missing = append(missing, n.Name)
			}
		}
		return err == nil && len(missing) == 0
	})
	if err != nil {
		return fmt.Errorf("%w: %s", err, strings.Join(missing, ", "))
	}
	// Pods are refused before their namespace has its account.
	if err := until("the default ServiceAccount exists", 30*time.Second, func() bool {
		_, err := a.do("GET", "/api/v1/namespaces/default/serviceaccounts/default", nil, nil)
		return err == nil
	}); err != nil {
		return err
	}
	// A question from every host goes through its kube-proxy: so all of them have their rules by then.
	var wait sync.WaitGroup
	failures := make([]error, len(c.hosts()))
	for i, h := range c.hosts() {
		if h.Name == c.dnsServer().Name {
			continue
		}
		wait.Add(1)
		go func() {
			defer wait.Done()
			failures[i] = until("DNS answers on "+h.Name, time.Minute, func() bool { return c.resolves(h.Name) })
		}()
	}
	wait.Wait()
	return firstError(failures...)
}

func (c *Cluster) resolves(host string) bool {
	self, err := os.Executable()
	if err != nil {
		return false
	}
	cmd := exec.Command(self, "--name", c.Name, "in", host, "getent", "hosts", "kubernetes.default.svc.cluster.local")
	output, err := cmd.Output()
	var exit *exec.ExitError
	return !errors.As(err, &exit) && strings.Contains(string(output), c.serviceIP(1))
}
