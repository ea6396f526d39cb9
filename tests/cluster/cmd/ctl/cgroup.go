package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const cgroupMount = "/sys/fs/cgroup"

// hierarchies are the mounts of cgroup v1; kubelet wants its root group in each of them.
func hierarchies() ([]string, error) {
	if exists(cgroupMount + "/cgroup.controllers") {
		return nil, fmt.Errorf("%s is cgroup v2; the cluster is written for v1, see README.md", cgroupMount)
	}
	var found []string
	entries, err := os.ReadDir(cgroupMount)
	for _, entry := range entries {
		if exists(filepath.Join(cgroupMount, entry.Name(), "cgroup.procs")) {
			found = append(found, filepath.Join(cgroupMount, entry.Name()))
		}
	}
	if err == nil && len(found) == 0 {
		err = fmt.Errorf("no cgroup hierarchies in %s", cgroupMount)
	}
	return found, err
}

func clusterGroup(name string) string { return "/pgwarden-" + name }

func (c *Cluster) group(host string) string { return clusterGroup(c.Name) + "/" + host }

// makeGroup creates the host's group in every hierarchy, and in it one for all that is not a pod.
func makeGroup(group string) error {
	roots, err := hierarchies()
	if err != nil {
		return err
	}
	for _, root := range roots {
		dir := filepath.Join(root, group, "system")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if filepath.Base(root) != "cpuset" {
			continue
		}
		// A cpuset group takes no process until it has been given CPUs and memory, from the top down.
		for dir := root; dir != filepath.Join(root, group, "system"); {
			rest, _ := filepath.Rel(dir, filepath.Join(root, group, "system"))
			next := filepath.Join(dir, strings.Split(rest, "/")[0])
			for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
				value, err := os.ReadFile(filepath.Join(dir, file))
				if err != nil {
					return err
				}
				if err := os.WriteFile(filepath.Join(next, file), value, 0o644); err != nil {
					return err
				}
			}
			dir = next
		}
	}
	return nil
}

// joinGroup moves the calling process.
func joinGroup(group string) error {
	roots, err := hierarchies()
	for _, root := range roots {
		if err := os.WriteFile(filepath.Join(root, group, "cgroup.procs"), []byte("0"), 0o644); err != nil {
			return err
		}
	}
	return err
}

// groupPids lists every process in a group and below. One hierarchy is enough: all of them hold the same processes.
func groupPids(group string) []int {
	var pids []int
	filepath.WalkDir(freezer(group), func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Name() == "cgroup.procs" {
			data, _ := os.ReadFile(path)
			for _, field := range strings.Fields(string(data)) {
				if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
					pids = append(pids, pid)
				}
			}
		}
		return nil
	})
	return pids
}

func freezer(group string) string { return filepath.Join(cgroupMount, "freezer", group) }

func freezerState(group string) string {
	state, _ := os.ReadFile(filepath.Join(freezer(group), "freezer.state"))
	return string(bytes.TrimSpace(state))
}

func setFreezer(group, state string, patience time.Duration) error {
	file := filepath.Join(freezer(group), "freezer.state")
	if err := os.WriteFile(file, []byte(state), 0o644); err != nil {
		return err
	}
	return until(group+" is "+state, patience, func() bool { return freezerState(group) == state })
}

// killGroup kills every process of a group at once: they are held still first, so that none sees another one die.
func killGroup(group string) error {
	// A process that waits for a hung disk can't be held still; the others are, and it is killed all the same.
	setFreezer(group, "FROZEN", 500*time.Millisecond)
	for _, pid := range groupPids(group) {
		unix.Kill(pid, unix.SIGKILL)
	}
	if exists(freezer(group)) {
		if err := setFreezer(group, "THAWED", 5*time.Second); err != nil {
			return err
		}
	}
	return until("the processes of "+group+" are gone", 20*time.Second, func() bool {
		left := groupPids(group)
		for _, pid := range left {
			unix.Kill(pid, unix.SIGKILL)
		}
		return len(left) == 0
	})
}

func removeGroup(group string) error {
	roots, err := hierarchies()
	if err != nil {
		return err
	}
	for _, root := range roots {
		var dirs []string
		filepath.WalkDir(filepath.Join(root, group), func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for i := len(dirs) - 1; i >= 0; i-- {
			// The kernel lets go of a group a moment after its last process.
			if err := until("remove "+dirs[i], 5*time.Second, func() bool {
				err := unix.Rmdir(dirs[i])
				return err == nil || err == unix.ENOENT
			}); err != nil {
				return err
			}
		}
	}
	return nil
}
