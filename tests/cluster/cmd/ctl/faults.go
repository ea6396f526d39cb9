package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func (c *Cluster) lock() (func(), error) { return lock("cluster-"+c.Name, 10*time.Minute) }

func powerOff(c *Cluster, args []string) error {
	n, err := c.node(args[0])
	if err != nil {
		return err
	}
	unlock, err := c.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if !c.isOn(n.Name) {
		return fmt.Errorf("%s is off already", n.Name)
	}
	// The network first: else the dying processes' connections would tell their peers.
	if err := c.disconnect(n); err != nil {
		return err
	}
	setFreezer(c.group(n.Name), "FROZEN", 500*time.Millisecond)
	for _, pid := range groupPids(c.group(n.Name)) {
		unix.Kill(pid, unix.SIGKILL)
	}
	// A process that waits for a hung disk dies when the disk goes on, and has been killed by then.
	thawVolumes(c.state(n.Name))
	if err := killGroup(c.group(n.Name)); err != nil {
		return err
	}
	return firstError(c.removeNet(n), removeGroup(c.group(n.Name)))
}

func powerOn(c *Cluster, args []string) error {
	n, err := c.node(args[0])
	if err != nil {
		return err
	}
	unlock, err := c.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if c.isOn(n.Name) {
		return fmt.Errorf("%s is on already", n.Name)
	}
	return c.bootNode(n)
}

func freeze(c *Cluster, args []string) error {
	n, err := c.node(args[0])
	if err != nil {
		return err
	}
	if !c.isOn(n.Name) {
		return fmt.Errorf("%s is off", n.Name)
	}
	return setFreezer(c.group(n.Name), "FROZEN", 5*time.Second)
}

func thaw(c *Cluster, args []string) error {
	n, err := c.node(args[0])
	if err != nil {
		return err
	}
	return setFreezer(c.group(n.Name), "THAWED", 5*time.Second)
}

// stopUnit kills one program and keeps it down; startUnit lets it start again.
func stopUnit(c *Cluster, args []string) error  { return c.setUnit(args[0], args[1], true) }
func startUnit(c *Cluster, args []string) error { return c.setUnit(args[0], args[1], false) }

func (c *Cluster) setUnit(host, unit string, stopped bool) error {
	h, err := c.host(host)
	if err != nil {
		return err
	}
	m, err := readMachine(c.state(h.Name, "machine.json"))
	if err != nil {
		return err
	}
	var names []string
	for _, u := range m.Units {
		names = append(names, u.Name)
	}
	if all := strings.Join(names, " "); !strings.Contains(" "+all+" ", " "+unit+" ") {
		return fmt.Errorf("%s has no unit %q, only %s", h.Name, unit, all)
	}
	mark := filepath.Join(m.Stopped, unit)
	if stopped {
		err = writeFile(mark, nil, 0o644)
	} else if err = os.Remove(mark); errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return err
	}
	pid, err := c.firstPid(h.Name)
	if err != nil {
		return err
	}
	if err := unix.Kill(pid, unix.SIGHUP); err != nil || !stopped {
		return err
	}
	return until(unit+" is gone", 10*time.Second, func() bool {
		for _, pid := range groupPids(c.group(h.Name) + "/system") {
			command, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			if name, _, _ := strings.Cut(string(command), "\x00"); filepath.Base(name) == unit {
				return false
			}
		}
		return true
	})
}

func apiStart(c *Cluster, _ []string) error {
	if err := startUnit(c, []string{"api", "kube-apiserver"}); err != nil {
		return err
	}
	return c.waitAPI()
}

// volume finds a claim's mount point without asking the API server, which may be down.
func (c *Cluster) volume(claim, namespace string) (string, error) {
	pattern := c.state("node*", "disk/volumes", namespace+"."+claim+".????????")
	found, err := filepath.Glob(pattern)
	if err == nil && len(found) != 1 {
		err = fmt.Errorf("claim %s/%s has %d volumes", namespace, claim, len(found))
	}
	if err != nil {
		return "", err
	}
	return found[0], nil
}

// The two requests of linux/fs.h: _IOWR('X', 119, int) and _IOWR('X', 120, int).
const (
	fiFreeze = 0xC0045877
	fiThaw   = 0xC0045878
)

func fsIoctl(dir string, request uint) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	defer unix.Close(fd)
	if err := unix.IoctlSetInt(fd, request, 0); err != nil {
		return fmt.Errorf("freeze or thaw %s: %w", dir, err)
	}
	return nil
}

func fsFreeze(c *Cluster, args []string) error {
	dir, err := c.volume(args[0], args[1])
	if err != nil {
		return err
	}
	return fsIoctl(dir, fiFreeze)
}

func fsThaw(c *Cluster, args []string) error {
	dir, err := c.volume(args[0], args[1])
	if err != nil {
		return err
	}
	return fsIoctl(dir, fiThaw)
}

// thawVolumes lets every volume below a directory go on. Only loop devices: the machine's own disk is not ours to touch.
func thawVolumes(dir string) {
	for _, point := range mounts(dir + "/") {
		if strings.HasPrefix(mountSource(point), "/dev/loop") {
			fsIoctl(point, fiThaw) // an error says that it wasn't frozen
		}
	}
}

func mountSource(point string) string {
	table, _ := os.ReadFile("/proc/self/mounts")
	for _, line := range lines(string(table)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[1] == point {
			return fields[0]
		}
	}
	return ""
}

// pids prints the processes of a node's pods, numbered as the machine sees them, so that they can be sent signals.
func pids(c *Cluster, args []string) error {
	n, err := c.node(args[0])
	if err != nil {
		return err
	}
	pattern := regexp.MustCompile("")
	if len(args) == 2 {
		if pattern, err = regexp.Compile(args[1]); err != nil {
			return err
		}
	}
	first, err := c.firstPid(n.Name)
	if err != nil {
		return err
	}
	for _, pid := range groupPids(c.group(n.Name) + "/kubepods") {
		command, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil {
			continue
		}
		line := fmt.Sprintf("%d %s %s", pid, containerOf(first, pid), strings.TrimSpace(strings.ReplaceAll(string(command), "\x00", " ")))
		if pattern.MatchString(line) {
			fmt.Println(line)
		}
	}
	return nil
}

// containerOf names a process's pod and container, by what containerd wrote down for the runtime.
func containerOf(first, pid int) string {
	groups, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	id := ""
	for _, line := range lines(string(groups)) {
		if strings.Contains(line, ":freezer:") {
			id = filepath.Base(line)
		}
	}
	var spec struct{ Annotations map[string]string }
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/root/run/containerd/io.containerd.runtime.v2.task/k8s.io/%s/config.json", first, id))
	if err != nil || json.Unmarshal(data, &spec) != nil {
		return "? ?"
	}
	const cri = "io.kubernetes.cri."
	container := spec.Annotations[cri+"container-name"]
	if container == "" {
		container = "pause"
	}
	return spec.Annotations[cri+"sandbox-namespace"] + "/" + spec.Annotations[cri+"sandbox-name"] + " " + container
}

func status(c *Cluster, _ []string) error {
	ready := map[string]time.Time{}
	a, err := c.api()
	if err == nil {
		ready, err = a.nodesReady()
	}
	if err != nil {
		fmt.Println("API: no answer:", err)
	}
	for _, h := range c.hosts() {
		state := "on"
		switch {
		case !c.isOn(h.Name):
			state = "off"
		case freezerState(c.group(h.Name)) != "THAWED":
			state = "frozen"
		}
		if h.Node > 0 {
			if _, is := ready[h.Name]; is {
				state += ", Ready"
			} else {
				state += ", not Ready"
			}
		}
		for _, unit := range entries(c.state(h.Name, "stopped")) {
			state += ", stopped: " + unit
		}
		fmt.Printf("%-7s %-15s %s, %d processes\n", h.Name, c.address(h.Last), state, len(groupPids(c.group(h.Name))))
	}
	cuts, err := c.cuts()
	if cuts != "" {
		fmt.Println("cut:", cuts)
	}
	return err
}

func entries(dir string) []string {
	var names []string
	list, _ := os.ReadDir(dir)
	for _, entry := range list {
		names = append(names, entry.Name())
	}
	return names
}
