package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"sync"
	"time"
)

// Programs are what a cluster runs beside Debian's packages. They are built once, outside the work tree; each under a
// name that changes with what it is made from, so that a change to one doesn't build the others again.
type Programs struct {
	kubeDir     string // one binary, with a link for each component
	CoreDNS     string
	Provisioner string
	Pause       string
}

func (p Programs) kube(component string) string { return filepath.Join(p.kubeDir, component) }

var components = []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"}

// The Debian packages, each with a file that shows that it is there.
var packages = map[string]string{
	"containerd":                  "/usr/bin/containerd",
	"runc":                        "/usr/sbin/runc",
	"containernetworking-plugins": "/usr/lib/cni/bridge",
	"etcd-server":                 "/usr/bin/etcd",
	"iproute2":                    "/sbin/ip",
	"nftables":                    "/usr/sbin/nft",
	"util-linux":                  "/usr/bin/nsenter",
	"e2fsprogs":                   "/sbin/mkfs.ext4",
	"mmdebstrap":                  "/usr/bin/mmdebstrap",
	"postgresql-client":           "/usr/bin/psql",
	"ca-certificates":             "/etc/ssl/certs/ca-certificates.crt",
}

func cacheDir() string {
	base := os.Getenv("XDG_CACHE_HOME")
	if base == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			fail(err)
		}
		base = filepath.Join(home, ".cache")
	}
	return filepath.Join(base, "pgwarden", "cluster")
}

func sources(parts ...string) string {
	return filepath.Join(append([]string{projectRoot(), "tests/cluster"}, parts...)...)
}

// fingerprint names what something is made from: words, and the contents of files and directories.
func fingerprint(words []string, paths ...string) (string, error) {
	sum := sha256.New()
	fmt.Fprintln(sum, words)
	for _, path := range paths {
		files := []string{path}
		if info, err := os.Stat(path); err != nil {
			return "", err
		} else if info.IsDir() {
			files, _ = filepath.Glob(path + "/*")
			sort.Strings(files)
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				return "", err
			}
			fmt.Fprintln(sum, filepath.Base(file), len(data))
			sum.Write(data)
		}
	}
	return hex.EncodeToString(sum.Sum(nil))[:12], nil
}

// moduleVersion reads go.mod, which is the one place where versions are written.
func moduleVersion(module string) (string, error) {
	data, err := os.ReadFile(sources("go.mod"))
	if err != nil {
		return "", err
	}
	found := regexp.MustCompile(`(?m)^\s+` + regexp.QuoteMeta(module) + ` v(\S+)$`).FindSubmatch(data)
	if found == nil {
		return "", fmt.Errorf("go.mod doesn't require %s", module)
	}
	return string(found[1]), nil
}

type program struct {
	name, module string // the module whose version makes the program new, besides its own source
	flags        func(version string) string
	file         func(*Programs, string)
}

var programs = []program{
	{"kube", "k8s.io/kubernetes", func(version string) string {
		minor := strings.Split(version, ".")[1]
		set := " -X k8s.io/component-base/version."
		return set + "gitVersion=v" + version + set + "gitMajor=1" + set + "gitMinor=" + minor
	}, func(p *Programs, path string) { p.kubeDir = filepath.Dir(path) }},
	{"coredns", "github.com/coredns/coredns", nil, func(p *Programs, path string) { p.CoreDNS = path }},
	{"provisioner", "k8s.io/client-go", nil, func(p *Programs, path string) { p.Provisioner = path }},
	{"pause", "k8s.io/client-go", nil, func(p *Programs, path string) { p.Pause = path }},
}

func (p program) place() (path, version string, err error) {
	if version, err = moduleVersion(p.module); err != nil {
		return
	}
	print, err := fingerprint([]string{version}, sources("cmd", p.name))
	return filepath.Join(cacheDir(), p.name+"-"+version+"-"+print, p.name), version, err
}

// builtPrograms says where the programs are, without building them.
func builtPrograms() (Programs, error) {
	var all Programs
	for _, p := range programs {
		path, _, err := p.place()
		if err != nil {
			return all, err
		}
		p.file(&all, path)
	}
	return all, nil
}

func (p program) build() error {
	path, version, err := p.place()
	if err != nil || exists(path) {
		return err
	}
	started := time.Now()
	progress("building %s %s", p.name, version)
	flags := "-s -w"
	if p.flags != nil {
		flags += p.flags(version)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", flags, "-o", path+".new", "./cmd/"+p.name)
	cmd.Dir, cmd.Env = sources(), append(os.Environ(), "CGO_ENABLED=0")
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w: %s", p.name, err, output)
	}
	if p.name == "kube" {
		for _, component := range components {
			link := filepath.Join(filepath.Dir(path), component)
			os.Remove(link)
			if err := os.Symlink(p.name, link); err != nil {
				return err
			}
		}
	}
	progress("built %s in %.0f s", p.name, time.Since(started).Seconds())
	return os.Rename(path+".new", path)
}

// installPackages asks Debian for what is missing.
func installPackages() error {
	var missing []string
	for name, file := range packages {
		if !exists(file) {
			missing = append(missing, name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	sort.Strings(missing)
	progress("installing %s", strings.Join(missing, " "))
	// The packages must not start services of their own: RUNLEVEL=1 tells their scripts so.
	os.Setenv("RUNLEVEL", "1")
	os.Setenv("DEBIAN_FRONTEND", "noninteractive")
	if err := run("apt-get", "update", "-q"); err != nil {
		return err
	}
	return run("apt-get", append([]string{"install", "-yq", "--no-install-recommends"}, missing...)...)
}

// buildAll builds what is missing; the images, which mostly wait for a mirror, beside the programs, which don't.
// Without test images it makes all that a cluster needs to boot.
func buildAll(withTests bool) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("it needs root: namespaces, mounts, control groups")
	}
	unlock, err := lock("build", time.Hour)
	if err != nil {
		return err
	}
	defer unlock()
	if err := installPackages(); err != nil {
		return err
	}
	var images error
	var wait sync.WaitGroup
	if withTests {
		wait.Add(1)
		go func() {
			defer wait.Done()
			images = buildPostgresImages()
		}()
	}
	for _, p := range programs {
		if err = p.build(); err != nil {
			break
		}
	}
	wait.Wait()
	if err := firstError(err, images); err != nil {
		return err
	}
	if err := buildSmallImages(); err != nil {
		return err
	}
	_, err = imageStore(withTests)
	return err
}
