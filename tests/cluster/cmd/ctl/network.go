package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Every host is a network namespace with one interface. The other ends meet in a bridge in a namespace of its own, which
// has no uplink: nothing that happens in a cluster can reach the machine's network. Cuts are rules on that bridge.
// Namespaces are pinned in the run directory and not by "ip netns", which leaves a mount of its own behind.

func (c *Cluster) netns(host string) string { return c.run("net", host) }

const switchNet = "switch"

// inThread runs a function on a thread that is thrown away afterwards, so that it may change namespaces.
func inThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

// enterNet moves the calling thread.
func enterNet(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("network %s: %w", path, err)
	}
	defer unix.Close(fd)
	return unix.Setns(fd, unix.CLONE_NEWNET)
}

func newNet(path string, sysctls map[string]string) error {
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		return err
	}
	return inThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		for name, value := range sysctls {
			if err := os.WriteFile(filepath.Join("/proc/sys/net", name), []byte(value), 0o644); err != nil {
				return err
			}
		}
		return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
	})
}

func deleteNet(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	os.Remove(path)
	return nil
}

// runIn runs a program inside a host's network.
func (c *Cluster) runIn(host, input, program string, args ...string) error {
	return inThread(func() error {
		if err := enterNet(c.netns(host)); err != nil {
			return err
		}
		return runInput(input, program, args...)
	})
}

func (c *Cluster) ip(host string, batch ...string) error {
	return c.runIn(host, strings.Join(batch, "\n")+"\n", "ip", "-batch", "-")
}

func (c *Cluster) nft(script string) error { return c.runIn(switchNet, script, "nft", "-f", "-") }

const cutRules = `
table bridge cuts {
	set pairs { type ifname . ifname; }
	chain forward {
		type filter hook forward priority 0;
		ether type arp accept
		iifname . oifname @pairs drop
	}
}
`

func (c *Cluster) makeSwitch() error {
	// Packets on the bridge are filtered as bridged, once; not again as IP.
	if err := newNet(c.netns(switchNet), nil); err != nil {
		return err
	}
	if err := c.ip(switchNet, "link set lo up", "link add br0 type bridge", "link set br0 up"); err != nil {
		return err
	}
	// ARP passes, so that a cut is silence, as in a real network, and not "no such host".
	return c.nft(cutRules)
}

func (c *Cluster) connect(h Host) error {
	if err := newNet(c.netns(h.Name), map[string]string{"ipv4/ip_forward": "1", "ipv4/conf/all/rp_filter": "0"}); err != nil {
		return err
	}
	// A fixed hardware address, so that a host that boots again is still found.
	mac := fmt.Sprintf("02:70:67:77:%02x:%02x", c.Number, h.Last)
	if err := c.ip(switchNet,
		fmt.Sprintf("link add %s type veth peer name eth0 address %s netns %s", h.Name, mac, c.netns(h.Name)),
		fmt.Sprintf("link set %s master br0 up", h.Name)); err != nil {
		return err
	}
	batch := []string{
		"link set lo up",
		fmt.Sprintf("addr add %s/24 dev eth0", c.address(h.Last)),
		"link set eth0 up",
		// Services have no address anywhere. The route only lets the packet get as far as kube-proxy's rules.
		fmt.Sprintf("route add %s dev eth0", c.serviceNet()),
	}
	for _, n := range c.nodes() {
		if n.Name != h.Name {
			batch = append(batch, fmt.Sprintf("route add %s via %s", c.podNet(n.Node), c.address(n.Last)))
		}
	}
	return c.ip(h.Name, batch...)
}

// disconnect takes the host off the network before anything else happens to it.
func (c *Cluster) disconnect(h Host) error {
	return c.ip(switchNet, "link set "+h.Name+" down")
}

// removeNet forgets a host's network with everything in it: connections, rules, tracked flows.
func (c *Cluster) removeNet(h Host) error {
	return firstError(c.ip(switchNet, "link del "+h.Name), deleteNet(c.netns(h.Name)))
}

func cut(c *Cluster, args []string) error {
	from, oneWay := "", false
	first, err := c.host(args[0])
	if err != nil {
		return err
	}
	for i := 1; i < len(args); i++ {
		switch {
		case args[i] == "--one-way":
			oneWay = true
		case args[i] == "--from" && i+1 < len(args):
			i++
			from = args[i]
		default:
			return fmt.Errorf("cut: don't understand %q", args[i])
		}
	}
	others := c.hosts()
	if from != "" {
		other, err := c.host(from)
		if err != nil {
			return err
		}
		others = []Host{other}
	}
	var pairs []string
	for _, other := range others {
		if other.Name == first.Name {
			continue
		}
		pairs = append(pairs, pair(first, other))
		if !oneWay {
			pairs = append(pairs, pair(other, first))
		}
	}
	if len(pairs) == 0 {
		return fmt.Errorf("cut: nothing lies between %s and itself", first.Name)
	}
	return c.nft("add element bridge cuts pairs { " + strings.Join(pairs, ", ") + " }\n")
}

func pair(from, to Host) string { return fmt.Sprintf("%q . %q", from.Name, to.Name) }

func heal(c *Cluster, args []string) error {
	if len(args) == 0 {
		return c.nft("flush set bridge cuts pairs\n")
	}
	healed, err := c.host(args[0])
	if err != nil {
		return err
	}
	var pairs []string
	for _, other := range c.hosts() {
		if other.Name != healed.Name {
			pairs = append(pairs, pair(healed, other), pair(other, healed))
		}
	}
	elements := "{ " + strings.Join(pairs, ", ") + " }\n"
	// What is not in the set can't be deleted from it; what is in it already may be added.
	return c.nft("add element bridge cuts pairs " + elements + "delete element bridge cuts pairs " + elements)
}

// cuts lists what is dropped, for people.
func (c *Cluster) cuts() (string, error) {
	var output []byte
	err := inThread(func() (err error) {
		if err = enterNet(c.netns(switchNet)); err == nil {
			output, err = exec.Command("nft", "list", "set", "bridge", "cuts", "pairs").Output()
		}
		return err
	})
	_, elements, _ := strings.Cut(string(output), "elements = {")
	elements, _, _ = strings.Cut(elements, "}")
	return strings.Join(strings.Fields(strings.ReplaceAll(elements, " . ", "→")), " "), err
}
