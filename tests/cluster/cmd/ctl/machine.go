package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A host runs in a PID namespace whose first process is this program: when it dies, the kernel kills all the others. It
// starts the host's programs, starts them again when they end, and reaps orphans. A node also has mounts of its own, so
// that they vanish with it; its disks and volumes are mounted outside and outlive it.

// Machine is what the first process of a host is told.
type Machine struct {
	Hostname string
	Net      string // pinned network namespace
	Group    string // its cgroup
	Disk     string // nodes: the directory that it sees as /run/node
	Log      string // directory
	Stopped  string // directory: a unit with a file of its name here is kept down
	Door     string // where connections to the inherited listener go
	Units    []Unit
}

// Unit is one program of a host.
type Unit struct {
	Name    string
	Wait    string // a path that must exist before the program starts
	Command []string
	Env     []string
}

const listenerFd = 3

// boot starts a host. listener, if any, was opened in the machine's own network.
func (c *Cluster) boot(h Host, m Machine, listener *os.File) error {
	m.Hostname, m.Net, m.Group = h.Name, c.netns(h.Name), c.group(h.Name)
	m.Log, m.Stopped = c.state("log"), c.state(h.Name, "stopped")
	for _, dir := range []string{m.Log, m.Stopped} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := makeGroup(m.Group); err != nil {
		return err
	}
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	spec := c.state(h.Name, "machine.json")
	if err := writeFile(spec, data, 0o644); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(m.Log, h.Name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(self, "machine-enter", spec)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", log, log
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/root", "PGWARDEN_ROOT=" + projectRoot()}
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC}
	if m.Disk != "" {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWNS
	}
	if listener != nil {
		cmd.ExtraFiles = []*os.File{listener}
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	return cmd.Process.Release()
}

func readMachine(spec string) (Machine, error) {
	var m Machine
	data, err := os.ReadFile(spec)
	if err == nil {
		err = json.Unmarshal(data, &m)
	}
	return m, err
}

// machineEnter moves into the host's group and network. A program of many threads can move only the one it stands on, so
// the second stage is a new program, which inherits that.
func machineEnter(spec string) error {
	runtime.LockOSThread()
	m, err := readMachine(spec)
	if err != nil {
		return err
	}
	if err := joinGroup(m.Group + "/system"); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(m.Hostname)); err != nil {
		return err
	}
	if err := enterNet(m.Net); err != nil {
		return err
	}
	if m.Disk != "" {
		if err := nodeMounts(m); err != nil {
			return err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return unix.Exec(self, []string{"ctl", "machine-run", spec}, os.Environ())
}

// nodeMounts gives a node its own /run, with its disk in it under a short name: sockets live there, and the kernel limits
// the length of their paths. New volumes still arrive from outside, because the tree stays a slave of the machine's.
func nodeMounts(m Machine) error {
	mount := func(source, target, kind string, flags uintptr) error {
		if err := unix.Mount(source, target, kind, flags, ""); err != nil {
			return fmt.Errorf("mount %s: %w", target, err)
		}
		return nil
	}
	if err := mount("", "/", "", unix.MS_SLAVE|unix.MS_REC); err != nil {
		return err
	}
	dropPins()
	return firstError(
		mount("", "/", "", unix.MS_SHARED|unix.MS_REC),
		mount("proc", "/proc", "proc", 0),
		mount("run", "/run", "tmpfs", 0),
		os.MkdirAll("/run/netns", 0o755),
		os.MkdirAll("/run/node", 0o755),
		mount(m.Disk, "/run/node", "", unix.MS_BIND|unix.MS_REC),
	)
}

// dropPins forgets this mount namespace's copies of the pinned networks, which would keep deleted ones alive.
func dropPins() {
	table, _ := os.ReadFile("/proc/self/mountinfo")
	for _, line := range lines(string(table)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], runRoot+"/") {
			unix.Unmount(fields[4], unix.MNT_DETACH)
		}
	}
}

// machineRun is the life of a host's first process.
func machineRun(spec string) error {
	m, err := readMachine(spec)
	if err != nil {
		return err
	}
	if m.Door != "" {
		listener, err := net.FileListener(os.NewFile(listenerFd, "door"))
		if err != nil {
			return err
		}
		unix.CloseOnExec(listenerFd)
		go door(listener, m.Door)
	}
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, unix.SIGHUP)
	// Caught and dropped; were they ignored, the programs would inherit that.
	signal.Notify(make(chan os.Signal, 1), unix.SIGINT, unix.SIGTERM)

	r := &reaper{ended: map[int]chan unix.WaitStatus{}}
	var units []*runner
	for _, unit := range m.Units {
		u := &runner{Unit: unit, machine: m, reaper: r, wake: make(chan struct{}, 1)}
		units = append(units, u)
		go u.loop()
	}
	go func() {
		for range changed {
			for _, u := range units {
				select {
				case u.wake <- struct{}{}:
				default:
				}
			}
		}
	}()
	return r.loop()
}

// door lets the machine in: the listener stands in its network, this process in the host's.
func door(listener net.Listener, target string) {
	for {
		outer, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer outer.Close()
			inner, err := net.Dial("tcp", target)
			if err != nil {
				return
			}
			defer inner.Close()
			go func() {
				io.Copy(inner, outer)
				inner.(*net.TCPConn).CloseWrite()
			}()
			io.Copy(outer, inner)
		}()
	}
}

// reaper waits for every child, its own and the orphans that fall to it.
type reaper struct {
	sync.Mutex // held from fork to entry in the table, so that no end is missed
	ended      map[int]chan unix.WaitStatus
}

func (r *reaper) loop() error {
	child := make(chan os.Signal, 1)
	signal.Notify(child, unix.SIGCHLD)
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if err == nil && pid > 0 {
			r.Lock()
			if ended, ours := r.ended[pid]; ours {
				delete(r.ended, pid)
				ended <- status
			}
			r.Unlock()
			continue
		}
		<-child
	}
}

func (r *reaper) start(argv []string, attr *os.ProcAttr) (int, chan unix.WaitStatus, error) {
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return 0, nil, err
	}
	ended := make(chan unix.WaitStatus, 1)
	r.Lock()
	defer r.Unlock()
	process, err := os.StartProcess(path, argv, attr)
	if err != nil {
		return 0, nil, err
	}
	pid := process.Pid
	r.ended[pid] = ended
	return pid, ended, process.Release()
}

// runner keeps one unit running.
type runner struct {
	Unit
	machine Machine
	reaper  *reaper
	wake    chan struct{}
}

func (u *runner) stopped() bool { return exists(filepath.Join(u.machine.Stopped, u.Name)) }

func (u *runner) loop() {
	for ; ; time.Sleep(500 * time.Millisecond) {
		for u.stopped() {
			<-u.wake
		}
		for u.Wait != "" && !exists(u.Wait) {
			time.Sleep(20 * time.Millisecond)
		}
		if err := u.once(); err != nil {
			fmt.Fprintln(os.Stderr, u.Name+":", err)
		}
	}
}

func (u *runner) once() error {
	log, err := os.OpenFile(filepath.Join(u.machine.Log, u.machine.Hostname+"."+u.Name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	pid, ended, err := u.reaper.start(u.Command, &os.ProcAttr{
		Dir: "/", Env: append(os.Environ(), u.Env...), Files: []*os.File{null, log, log},
		Sys: &unix.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return err
	}
	for {
		select {
		case status := <-ended:
			if u.stopped() {
				return nil
			}
			return fmt.Errorf("ended: exit %d, signal %v", status.ExitStatus(), status.Signal())
		case <-u.wake:
			if u.stopped() {
				// Killed, not asked: an outage doesn't say good-bye.
				unix.Kill(pid, unix.SIGKILL)
			}
		}
	}
}
