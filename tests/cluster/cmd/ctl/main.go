// ctl builds, boots and breaks the project's test cluster: real Kubernetes components on one machine, every host a set of
// Linux namespaces. README.md beside the entry point explains the whole.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

const usage = `usage: tests/cluster/ctl [--name NAME] COMMAND

  build                      build everything, boot nothing
  up [--no-images]           boot (or complete) the cluster; returns when every node is Ready and DNS answers
  down                       stop it and leave nothing
  status                     what runs, what is cut, frozen or off
  kubeconfig                 print the path of the kubeconfig, which works from the host
  kubectl ARG...             kubectl of the cluster's own version

  images                     build the test images and print the paths of their archives
  load ARCHIVE...            import OCI archives on every node
  mkimage OUT.tar NAME:TAG ROOTFS-DIR-or-TAR [CONFIG]   make an OCI archive; CONFIG is JSON or a file of it

  in HOST CMD...             run a command in a host's network, with the cluster's DNS
  on HOST CMD...             the same, but among the host's own mounts and processes too
  pids NODE [PATTERN]        processes of the node's pods: PID NAMESPACE/POD CONTAINER COMMAND, filtered by a regular expression

  cut HOST [--from HOST] [--one-way]    drop traffic between them (without --from: all of HOST's);
                                        --one-way drops only what the first HOST sends
  heal [HOST]                           undo cuts
  power-off NODE | power-on NODE        network first, then every process at once; boots again with its disks
  freeze NODE | thaw NODE               stop all processes of the node, and let them go on
  stop HOST UNIT | start HOST UNIT      kill a program and keep it down, e.g. "stop node1 kube-proxy"
  api-stop | api-start                  the same for kube-apiserver
  fsfreeze PVC NAMESPACE | fsthaw PVC NAMESPACE    hang a volume's disk, and let it go on

HOST is api, dns, client, node1, node2, ... NAME is also taken from PGWARDEN_CLUSTER (default main).
`

type command struct {
	minimum, maximum int // number of arguments; maximum < 0: any
	run              func(name string, args []string) error
}

var commands = map[string]command{
	"build":      {0, 0, func(string, []string) error { return buildAll(true) }},
	"up":         {0, 1, up},
	"down":       {0, 0, func(name string, _ []string) error { return down(name) }},
	"status":     {0, 0, withCluster(status)},
	"kubeconfig": {0, 0, func(name string, _ []string) error { fmt.Println(stateDir(name) + "/kubeconfig"); return nil }},
	"kubectl":    {0, -1, kubectl},
	"images":     {0, 0, printImages},
	"load":       {1, -1, withCluster(load)},
	"mkimage":    {3, 4, mkimageCommand},
	"in":         {2, -1, withCluster(in)},
	"on":         {2, -1, withCluster(on)},
	"pids":       {1, 2, withCluster(pids)},
	"cut":        {1, 4, withCluster(cut)},
	"heal":       {0, 1, withCluster(heal)},
	"power-off":  {1, 1, withCluster(powerOff)},
	"power-on":   {1, 1, withCluster(powerOn)},
	"freeze":     {1, 1, withCluster(freeze)},
	"thaw":       {1, 1, withCluster(thaw)},
	"stop":       {2, 2, withCluster(stopUnit)},
	"start":      {2, 2, withCluster(startUnit)},
	"api-stop":   {0, 0, withCluster(func(c *Cluster, _ []string) error { return stopUnit(c, []string{"api", "kube-apiserver"}) })},
	"api-start":  {0, 0, withCluster(apiStart)},
	"fsfreeze":   {2, 2, withCluster(fsFreeze)},
	"fsthaw":     {2, 2, withCluster(fsThaw)},

	// The two stages in which a host starts, see machine.go.
	"machine-enter": {1, 1, func(_ string, args []string) error { return machineEnter(args[0]) }},
	"machine-run":   {1, 1, func(_ string, args []string) error { return machineRun(args[0]) }},
}

func withCluster(run func(*Cluster, []string) error) func(string, []string) error {
	return func(name string, args []string) error {
		c, err := openCluster(name)
		if err != nil {
			return err
		}
		return run(c, args)
	}
}

func main() {
	name, args := os.Getenv("PGWARDEN_CLUSTER"), os.Args[1:]
	if len(args) > 1 && args[0] == "--name" {
		name, args = args[1], args[2:]
	} else if len(args) > 0 && strings.HasPrefix(args[0], "--name=") {
		name, args = strings.TrimPrefix(args[0], "--name="), args[1:]
	}
	if name == "" {
		name = "main"
	}
	if err := checkName(name); err != nil {
		fail(err)
	}
	if len(args) == 0 {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	if args[0] == "help" || args[0] == "--help" || args[0] == "-h" {
		fmt.Print(usage)
		return
	}
	cmd, known := commands[args[0]]
	if n := len(args) - 1; !known || n < cmd.minimum || (cmd.maximum >= 0 && n > cmd.maximum) {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	if err := cmd.run(name, args[1:]); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "ctl:", err)
	os.Exit(1)
}

// run executes a program and makes its output part of the error.
func run(name string, args ...string) error {
	return runInput("", name, args...)
}

func runInput(input, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(input)
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(output)))
	}
	return nil
}

// progress goes to standard error: standard output is for answers that scripts read.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}

func firstError(errs ...error) error { return errors.Join(errs...) }
