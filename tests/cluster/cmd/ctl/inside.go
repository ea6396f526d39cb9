package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// firstPid finds a running host's first process, as seen from outside.
func (c *Cluster) firstPid(host string) (int, error) {
	for _, pid := range groupPids(c.group(host) + "/system") {
		status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		for _, line := range lines(string(status)) {
			if fields := strings.Fields(line); fields[0] == "NSpid:" && len(fields) > 2 && fields[len(fields)-1] == "1" {
				return pid, nil
			}
		}
	}
	return 0, fmt.Errorf("%s is off", host)
}

func (c *Cluster) isOn(host string) bool {
	_, err := c.firstPid(host)
	return err == nil
}

func (c *Cluster) resolvConf() string { return c.state("resolv.conf") }

// in becomes the command, in the host's network. The file systems are the machine's own, but for resolv.conf.
func in(c *Cluster, args []string) error {
	h, err := c.host(args[0])
	if err != nil {
		return err
	}
	path, err := exec.LookPath(args[1])
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	if err := enterNet(c.netns(h.Name)); err != nil {
		return fmt.Errorf("%w (is it off?)", err)
	}
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return err
	}
	// A slave, so that a volume unmounted outside isn't held by a command that runs on.
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return err
	}
	dropPins()
	if err := unix.Mount(c.resolvConf(), "/etc/resolv.conf", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("/etc/resolv.conf: %w", err)
	}
	return unix.Exec(path, args[1:], os.Environ())
}

// inHost prepares a command in all of a running host's namespaces.
func (c *Cluster) inHost(host string, argv ...string) (*exec.Cmd, error) {
	pid, err := c.firstPid(host)
	if err != nil {
		return nil, err
	}
	return exec.Command("nsenter", append([]string{"-t", strconv.Itoa(pid), "-m", "-u", "-i", "-n", "-p", "--"}, argv...)...), nil
}

func on(c *Cluster, args []string) error {
	h, err := c.host(args[0])
	if err != nil {
		return err
	}
	cmd, err := c.inHost(h.Name, args[1:]...)
	if err != nil {
		return err
	}
	return unix.Exec("/usr/bin/nsenter", cmd.Args, os.Environ())
}

func kubectl(name string, args []string) error {
	programs, err := builtPrograms()
	if err != nil {
		return err
	}
	environment := append(os.Environ(), "KUBECONFIG="+stateDir(name)+"/kubeconfig")
	return unix.Exec(programs.kube("kubectl"), append([]string{"kubectl"}, args...), environment)
}
