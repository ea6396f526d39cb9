package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func down(name string) error {
	unlock, err := lock("cluster-"+name, 10*time.Minute)
	if err != nil {
		return err
	}
	defer unlock()
	if c, err := readCluster(name); err == nil && c.State != stateDir(name) && c.alive() {
		return fmt.Errorf("cluster %s runs from another checkout, %s: stop it there", name, c.State)
	}
	if err := cleanUp(name); err != nil {
		return err
	}
	// The logs stay until the next start; the rest was the cluster.
	entries, _ := os.ReadDir(stateDir(name))
	for _, entry := range entries {
		if entry.Name() != "log" {
			if err := os.RemoveAll(filepath.Join(stateDir(name), entry.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// cleanUp removes every trace of a cluster from the machine, whatever state it is in. It goes by what the kernel shows,
// not by what the cluster once wrote down.
func cleanUp(name string) error {
	states := []string{stateDir(name)}
	if c, err := readCluster(name); err == nil && c.State != states[0] {
		states = append(states, c.State) // a crash in another checkout
	}
	// A hung disk would hold the processes that wait for it.
	for _, state := range states {
		thawVolumes(state)
	}
	group := clusterGroup(name)
	if exists(freezer(group)) {
		for _, host := range children(freezer(group)) {
			setFreezer(group+"/"+host, "THAWED", time.Second)
		}
		if err := killGroup(group); err != nil {
			return err
		}
	}
	killVisitors(name)
	for _, state := range states {
		if err := unmountAll(state + "/"); err != nil {
			return err
		}
	}
	if err := unmountAll(runDir(name) + "/"); err != nil {
		return err
	}
	if err := freeLoops(states); err != nil {
		return err
	}
	if err := removeGroup(group); err != nil {
		return err
	}
	err := os.RemoveAll(runDir(name))
	os.Remove(runRoot) // when this was the last cluster
	return err
}

func children(dir string) []string {
	var names []string
	entries, _ := os.ReadDir(dir)
	for _, entry := range entries {
		if entry.IsDir() {
			names = append(names, entry.Name())
		}
	}
	return names
}

// killVisitors ends what runs in the cluster's networks without being part of it: commands of "ctl in".
func killVisitors(name string) {
	nets := map[string]bool{}
	pins, _ := filepath.Glob(filepath.Join(runDir(name), "net", "*"))
	own, _ := os.Readlink("/proc/self/ns/net")
	for _, pin := range pins {
		var stat unix.Stat_t
		if unix.Stat(pin, &stat) == nil {
			nets[fmt.Sprintf("net:[%d]", stat.Ino)] = true
		}
	}
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, process := range processes {
		net, err := os.Readlink(process + "/ns/net")
		if err == nil && net != own && nets[net] {
			var pid int
			fmt.Sscanf(filepath.Base(process), "%d", &pid)
			unix.Kill(pid, unix.SIGKILL)
		}
	}
}

// mounts lists mount points under a prefix, the innermost first.
func mounts(prefix string) []string {
	var found []string
	table, _ := os.ReadFile("/proc/self/mountinfo")
	for _, line := range lines(string(table)) {
		fields := strings.Fields(line)
		if len(fields) > 4 && strings.HasPrefix(fields[4], prefix) {
			found = append(found, strings.ReplaceAll(fields[4], `\040`, " "))
		}
	}
	sort.Sort(sort.Reverse(sort.StringSlice(found)))
	return found
}

func unmountAll(prefix string) error {
	for _, point := range mounts(prefix) {
		// Busy for the moment that the last killed process takes to go; after that, lazily.
		err := until("unmount", 2*time.Second, func() bool { return unix.Unmount(point, 0) != unix.EBUSY })
		if err != nil {
			unix.Unmount(point, unix.MNT_DETACH)
		}
	}
	if left := mounts(prefix); len(left) > 0 {
		return fmt.Errorf("still mounted: %s", strings.Join(left, " "))
	}
	return nil
}

// loops gives the loop devices whose files lie in one of the directories.
func loops(states []string) []string {
	var devices []string
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, file := range files {
		backing, _ := os.ReadFile(file)
		for _, state := range states {
			if strings.HasPrefix(string(backing), state+"/") {
				devices = append(devices, "/dev/"+strings.Split(file, "/")[3])
			}
		}
	}
	return devices
}

// freeLoops waits for the devices that free themselves with their last mount, and frees the others.
func freeLoops(states []string) error {
	if until("loop devices free themselves", time.Second, func() bool { return len(loops(states)) == 0 }) == nil {
		return nil
	}
	var failures []error
	for _, device := range loops(states) {
		failures = append(failures, run("losetup", "-d", device))
	}
	if err := until("loop devices are free", 5*time.Second, func() bool { return len(loops(states)) == 0 }); err != nil {
		return errors.Join(append(failures, err)...)
	}
	return nil
}
