package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	pauseImage      = "docker.io/pgwarden/pause:1"
	noPostgresImage = "docker.io/pgwarden/no-postgres:1"
)

// Each PostgreSQL comes from the Debian release that has it.
var postgresImages = []struct{ version, suite, data string }{
	{"15", "bookworm", "/var/lib/postgresql/data"},
	{"17", "trixie", "/var/lib/postgresql/data"},
	{"18", "sid", "/var/lib/postgresql/18/docker"},
}

func imageRecipe() (string, error) { return fingerprint([]string{"2"}, sources("images")) }

func postgresArchive(recipe, version string) string {
	return filepath.Join(cacheDir(), "images-"+recipe, "postgres-"+version+".tar")
}

func buildPostgresImages() error {
	recipe, err := imageRecipe()
	if err != nil {
		return err
	}
	for _, image := range postgresImages {
		archive := postgresArchive(recipe, image.version)
		if exists(archive) {
			continue
		}
		started := time.Now()
		if err := os.MkdirAll(filepath.Dir(archive), 0o755); err != nil {
			return err
		}
		rootfs := archive + ".rootfs.tar"
		defer os.Remove(rootfs)
		if err := inMemory(func(dir string) error {
			return run("env", "TMPDIR="+dir, "mmdebstrap", "--quiet", "--variant=minbase",
				// The socket directory is in /run.
				"--skip=cleanup/run",
				"--include=locales,ca-certificates,postgresql-"+image.version,
				"--essential-hook='"+sources("images/before-packages.sh")+`' "$1"`,
				"--customize-hook='"+sources("images/after-packages.sh")+`' "$1"`,
				"--dpkgopt=force-confold",
				// A mirror may stand still for longer than a release file is good for.
				`--aptopt=Acquire::Check-Valid-Until "false"`,
				"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*",
				"--dpkgopt=path-exclude=/usr/share/locale/*/LC_MESSAGES/*",
				image.suite, rootfs)
		}); err != nil {
			return fmt.Errorf("image postgres:%s: %w", image.version, err)
		}
		config := fmt.Sprintf(`{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/lib/postgresql/%[1]s/bin",`+
			`"LANG=en_US.utf8","PG_MAJOR=%[1]s","PGDATA=%[2]s"],"Entrypoint":["docker-entrypoint.sh"],"Cmd":["postgres"],`+
			`"Volumes":{"/var/lib/postgresql":{}},"StopSignal":"SIGINT","ExposedPorts":{"5432/tcp":{}}}`, image.version, image.data)
		if image.version < "18" {
			config = strings.Replace(config, `{"/var/lib/postgresql":`, `{"/var/lib/postgresql/data":`, 1)
		}
		if err := mkimage(archive, "postgres:"+image.version, rootfs, config); err != nil {
			return err
		}
		os.Remove(rootfs)
		progress("built image postgres:%s in %.0f s", image.version, time.Since(started).Seconds())
	}
	return nil
}

// inMemory lends a directory in memory: dpkg waits for the disk after every file, for a tree that is packed and thrown away.
func inMemory(use func(dir string) error) error {
	dir, err := os.MkdirTemp("", "pgwarden-memory")
	if err != nil {
		return err
	}
	defer os.Remove(dir)
	if err := unix.Mount("pgwarden-image", dir, "tmpfs", 0, ""); err != nil {
		return err
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	return use(dir)
}

func smallArchive(p Programs, name string) string {
	return filepath.Join(filepath.Dir(p.Pause), name+"-2.tar")
}

// buildSmallImages packs the pause program twice: as what holds pods, and as an image in which there is no Postgres.
func buildSmallImages() error {
	p, err := builtPrograms()
	if err != nil {
		return err
	}
	for name, image := range map[string]string{"pause": pauseImage, "no-postgres": noPostgresImage} {
		archive := smallArchive(p, name)
		if exists(archive) {
			continue
		}
		rootfs, err := os.MkdirTemp("", "pgwarden-image")
		if err != nil {
			return err
		}
		defer os.RemoveAll(rootfs)
		if err := run("install", "-m", "755", p.Pause, filepath.Join(rootfs, "pause")); err != nil {
			return err
		}
		// The label keeps the two apart: equal images would have one id.
		config := fmt.Sprintf(`{"Entrypoint":["/pause"],"User":"65532:65532","Labels":{"name":%q}}`, name)
		if err := mkimage(archive, image, rootfs, config); err != nil {
			return err
		}
	}
	return nil
}

func imageArchives(withTests bool) ([]string, error) {
	p, err := builtPrograms()
	if err != nil {
		return nil, err
	}
	archives := []string{smallArchive(p, "pause")}
	if withTests {
		recipe, err := imageRecipe()
		if err != nil {
			return nil, err
		}
		archives = append(archives, smallArchive(p, "no-postgres"))
		for _, image := range postgresImages {
			archives = append(archives, postgresArchive(recipe, image.version))
		}
	}
	return archives, nil
}

func printImages(_ string, _ []string) error {
	if err := buildAll(true); err != nil {
		return err
	}
	archives, err := imageArchives(true)
	if err == nil {
		fmt.Println(strings.Join(archives[1:], "\n"))
	}
	return err
}

// imageStore gives a containerd directory into which the images have been imported once. Importing them on every node of
// every cluster would take longer than all the rest of a start.
func imageStore(withTests bool) (string, error) {
	archives, err := imageArchives(withTests)
	if err != nil {
		return "", err
	}
	version, err := exec.Command("containerd", "--version").Output()
	if err != nil {
		return "", err
	}
	print, err := fingerprint(append(archives, string(version)))
	if err != nil {
		return "", err
	}
	store := filepath.Join(cacheDir(), "store-"+print)
	if exists(store) {
		return store, nil
	}
	started := time.Now()
	unfinished := store + ".new"
	if err := os.RemoveAll(unfinished); err != nil {
		return "", err
	}
	state, err := os.MkdirTemp("/run", "pgwarden-import") // short: a socket lives there
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(state)
	config := filepath.Join(state, "config.toml")
	if err := os.WriteFile(config, fmt.Appendf(nil, `version = 2
root = %q
state = %q
oom_score = 0
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs"]
[grpc]
  address = %q
`, unfinished, state, state+"/sock"), 0o644); err != nil {
		return "", err
	}
	daemon := exec.Command("containerd", "--config", config, "--log-level", "error")
	daemon.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := daemon.Start(); err != nil {
		return "", err
	}
	stop := func() { daemon.Process.Signal(unix.SIGTERM); daemon.Wait() }
	if err := until("containerd answers", 20*time.Second, func() bool { return exists(state + "/sock") }); err != nil {
		stop()
		return "", err
	}
	for _, archive := range archives {
		if err := run("ctr", "-a", state+"/sock", "-n", "k8s.io", "images", "import", archive); err != nil {
			stop()
			return "", err
		}
	}
	stop()
	progress("imported %d images in %.0f s", len(archives), time.Since(started).Seconds())
	return store, os.Rename(unfinished, store)
}

// fillNode gives a node the images of a store. The two databases are copied; file systems and blobs, which nobody writes
// to, are links: to delete an image deletes only the node's links.
func fillNode(store, root string) error {
	for _, database := range []string{"io.containerd.metadata.v1.bolt/meta.db", "io.containerd.snapshotter.v1.overlayfs/metadata.db"} {
		if err := copyFile(filepath.Join(store, database), filepath.Join(root, database)); err != nil {
			return err
		}
	}
	for _, dir := range []string{"io.containerd.snapshotter.v1.overlayfs/snapshots", "io.containerd.content.v1.content/blobs/sha256"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o700); err != nil {
			return err
		}
		entries, err := os.ReadDir(filepath.Join(store, dir))
		if err != nil {
			return err
		}
		for _, entry := range entries {
			if err := os.Symlink(filepath.Join(store, dir, entry.Name()), filepath.Join(root, dir, entry.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

func copyFile(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(target, source)
	return firstError(err, target.Close())
}

// load imports archives on every node that is on, at the same time.
func load(c *Cluster, archives []string) error {
	var wait sync.WaitGroup
	nodes := c.nodes()
	failures := make([]error, len(nodes))
	for i, n := range nodes {
		if !c.isOn(n.Name) {
			progress("%s is off: it doesn't get the images", n.Name)
			continue
		}
		wait.Add(1)
		go func() {
			defer wait.Done()
			for _, archive := range archives {
				if failures[i] = c.importOn(n, archive); failures[i] != nil {
					return
				}
			}
		}()
	}
	wait.Wait()
	return firstError(failures...)
}

func (c *Cluster) importOn(n Host, archive string) error {
	// Through standard input: the node doesn't see the machine's /run.
	file, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer file.Close()
	cmd, err := c.inHost(n.Name, "ctr", "-n", "k8s.io", "images", "import", "-")
	if err != nil {
		return err
	}
	cmd.Stdin = file
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("import %s on %s: %w: %s", archive, n.Name, err, output)
	}
	return nil
}
