package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

const runRoot = "/run/pgwarden"

// Cluster is what one cluster needs to know about itself. It is kept as JSON in the run directory, so that every later
// call, and the clean-up after a crash, knows what there is.
type Cluster struct {
	Name   string
	Number int    // picks the subnets and the loopback port
	Nodes  int    // how many
	State  string // disks, logs, keys: in the work tree
	Booted bool   // boot went through to its end
}

// Host is one machine of the cluster: the control plane, DNS, a client, or a node.
type Host struct {
	Name string
	Last int // last octet of its address
	Node int // number of the node, 0 for the others
}

func checkName(name string) error {
	// Short, because it is part of names whose length the kernel limits.
	if !regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,23}$`).MatchString(name) {
		return fmt.Errorf("bad cluster name %q: lower-case letters, digits and dashes, at most 24", name)
	}
	return nil
}

func projectRoot() string {
	root := os.Getenv("PGWARDEN_ROOT")
	if root == "" {
		fail(errors.New("run it through tests/cluster/ctl"))
	}
	return root
}

func stateDir(name string) string {
	if name == "main" {
		return filepath.Join(projectRoot(), "target/cluster")
	}
	return filepath.Join(projectRoot(), "target/cluster-"+name)
}

func runDir(name string) string { return filepath.Join(runRoot, name) }

func (c *Cluster) run(parts ...string) string {
	return filepath.Join(append([]string{runDir(c.Name)}, parts...)...)
}
func (c *Cluster) state(parts ...string) string {
	return filepath.Join(append([]string{c.State}, parts...)...)
}

// The address plan. Clusters don't see each other's networks; different subnets keep logs and captures readable.
func (c *Cluster) address(last int) string { return fmt.Sprintf("10.%d.0.%d", 80+c.Number, last) }
func (c *Cluster) podNet(node int) string  { return fmt.Sprintf("10.%d.%d.0/24", 144+c.Number, node) }
func (c *Cluster) podNets() string         { return fmt.Sprintf("10.%d.0.0/16", 144+c.Number) }
func (c *Cluster) serviceNet() string      { return fmt.Sprintf("10.%d.0.0/16", 96+c.Number) }
func (c *Cluster) serviceIP(last int) string {
	return fmt.Sprintf("10.%d.0.%d", 96+c.Number, last)
}
func (c *Cluster) apiPort() int    { return 6443 + c.Number }
func (c *Cluster) apiHost() Host   { return Host{Name: "api", Last: 10} }
func (c *Cluster) dnsServer() Host { return Host{Name: "dns", Last: 9} }

const maxClusters = 16

func (c *Cluster) nodes() []Host {
	var hosts []Host
	for i := 1; i <= c.Nodes; i++ {
		hosts = append(hosts, Host{Name: "node" + strconv.Itoa(i), Last: 10 + i, Node: i})
	}
	return hosts
}

func (c *Cluster) hosts() []Host {
	return append([]Host{c.apiHost(), c.dnsServer(), {Name: "client", Last: 8}}, c.nodes()...)
}

func (c *Cluster) host(name string) (Host, error) {
	for _, h := range c.hosts() {
		if h.Name == name {
			return h, nil
		}
	}
	return Host{}, fmt.Errorf("no host %q in cluster %s", name, c.Name)
}

func (c *Cluster) node(name string) (Host, error) {
	h, err := c.host(name)
	if err == nil && h.Node == 0 {
		err = fmt.Errorf("%s is not a node", name)
	}
	return h, err
}

func (c *Cluster) save() error {
	data, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return writeFile(c.run("cluster.json"), data, 0o644)
}

func readCluster(name string) (*Cluster, error) {
	data, err := os.ReadFile(filepath.Join(runDir(name), "cluster.json"))
	if err != nil {
		return nil, err
	}
	c := &Cluster{}
	return c, json.Unmarshal(data, c)
}

// openCluster gives a cluster that is up.
func openCluster(name string) (*Cluster, error) {
	c, err := readCluster(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("cluster %s is not up", name)
	}
	return c, err
}

// newCluster picks the lowest free number, under a lock that all clusters share.
func newCluster(name string, nodes int) (*Cluster, error) {
	unlock, err := lock("numbers", time.Minute)
	if err != nil {
		return nil, err
	}
	defer unlock()
	used := map[int]bool{}
	others, _ := filepath.Glob(filepath.Join(runRoot, "*", "cluster.json"))
	for _, file := range others {
		if other, err := readCluster(filepath.Base(filepath.Dir(file))); err == nil {
			used[other.Number] = true
		}
	}
	for number := 0; number < maxClusters; number++ {
		c := &Cluster{Name: name, Number: number, Nodes: nodes, State: stateDir(name)}
		// Number 0 stays free for the default cluster: its addresses are the ones people remember.
		if used[number] || (number == 0) != (name == "main") || !portFree(c.apiPort()) {
			continue
		}
		if err := os.MkdirAll(c.run("net"), 0o755); err != nil {
			return nil, err
		}
		return c, c.save()
	}
	return nil, fmt.Errorf("no free number for cluster %s: is port %d on loopback taken?", name, 6443)
}

func portFree(port int) bool {
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return false
	}
	l.Close()
	return true
}

// lock holds an abstract socket: it goes away with its process and leaves no file behind.
func lock(what string, patience time.Duration) (func(), error) {
	for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		l, err := net.Listen("unix", "@pgwarden-lock-"+what)
		if err == nil {
			return func() { l.Close() }, nil
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("another ctl has held the lock %q for %s", what, patience)
		}
	}
}

// until waits for a condition and says what it waited for in vain.
func until(what string, patience time.Duration, condition func() bool) error {
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("not within %s: %s", patience, what)
		}
	}
	return nil
}

func writeFile(path string, data []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	// Renamed into place: a reader sees the old content or the new, never half of it.
	if err := os.WriteFile(path+".new", data, mode); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func lines(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return r == '\n' })
}
